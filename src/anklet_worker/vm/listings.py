"""The last whole listing of one driver, and whether it still holds: it saves a second one between two steps of one job.

A worker lists all VMs when it gets a slot, and looks for the job's template right after. The first listing answers the second
question, unless something may have changed since.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec

from anklet_worker.vm.driver import VMInfo
from anklet_worker.vm.image_locks import ImageLocks

#: Seconds for which a listing holds. Claiming a job takes less; an operator who adds or removes a template by hand takes longer.
_FRESH = 5.0


class Listed(msgspec.Struct, frozen=True):
    """A whole listing, and the host's pull marks from before it was made."""

    rows: Sequence[VMInfo]
    pulls: int


class LastListing:
    """Remembers the last listing of one driver. `clock`: monotonic seconds."""

    def __init__(self, locks: ImageLocks, clock: Callable[[], float] = time.monotonic) -> None:
        self._locks = locks
        self._clock = clock
        self._listed: Listed | None = None
        self._taken = 0.0

    def take(self, list_all: Callable[[], Sequence[VMInfo]]) -> Sequence[VMInfo]:
        """Make a listing of everything and remember it. One that is made while a pull runs is not remembered: the pull may
        replace what it shows at any moment."""
        self.forget()
        taken, pulls = self._clock(), self._locks.pull_marks()
        quiet = not self._locks.pull_runs()
        rows = list_all()
        if quiet:
            self._listed, self._taken = Listed(rows, pulls), taken
        return rows

    def fresh(self) -> Listed | None:
        """The last listing, while it holds: it is young, and no pull has begun or ended since."""
        listed = self._listed
        if listed is None or self._clock() - self._taken > _FRESH or listed.pulls != self._locks.pull_marks():
            return None
        return listed

    def forget(self) -> None:
        """Something has changed that the last listing does not show."""
        self._listed = None
