"""The finding half of a plugin: which jobs wait at the origin, and the upkeep there that no single job asks for.

Knows no VM and no attempt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from anklet_worker.contract.job import Job


class Source(Protocol):
    """Finds the jobs of one service. Calls come from one thread, one after the other.

    Raises the errors of `anklet_worker.contract.errors`; any other exception counts as a bug and ends the worker.
    """

    def find(self) -> Sequence[Job]:
        """Return the jobs that this service could run now, best first. Changes nothing, here or at the origin."""
        ...

    def housekeep(self, claimed: Job | None) -> None:
        """Do the upkeep that `find` and `claim` must not do, because it changes something: sweep registrations, pass on a turn.

        Called after each look, with the job that this service runs next or None when it took none, and with None again when that
        job is over. Bounded in time; what fails waits for the next call.
        """
        ...
