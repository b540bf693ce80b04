"""Debts: clean-up steps that failed and stay on record until they succeed. VMs, runner registrations, outcomes not yet heard.

Owns when they are tried again and for how long a VM that cannot be deleted keeps the service from taking jobs. Knows no slot.
"""

from __future__ import annotations

from collections.abc import Callable

from anklet_worker.attempt.attempt import Attempt, Tools
from anklet_worker.attempt.reconcile import Reconciler
from anklet_worker.life.attempt_phases import Phase

#: Seconds between two tries.
_PAUSE = 30.0
#: Seconds during which the service takes no job because a VM cannot be deleted. A job may take days, and nothing retries the
#: deletion meanwhile, so its slot would be lost for as long.
_PATIENCE = 300.0


class Debts:
    """The debts of one service. `clock` returns monotonic seconds."""

    def __init__(self, tools: Tools, reconciler: Reconciler, clock: Callable[[], float]) -> None:
        self._tools = tools
        self._reconciler = reconciler
        self._clock = clock
        self._due = 0.0
        #: Since when there has been a VM that cannot be deleted.
        self._stuck_since: float | None = None

    def settle(self) -> None:
        """Try once to settle each debt, if that is due. Raises `RecordsUnreadable`."""
        if self._clock() < self._due:
            return
        self._due = self._clock() + _PAUSE
        stuck = False
        for record in self._reconciler.our_records():
            if record.phase is Phase.ENDED:
                attempt = Attempt.of(record, self._tools)
                attempt.retry_cleanup()
                stuck = stuck or attempt.vm_remains
        if not stuck:
            self._stuck_since = None
        elif self._stuck_since is None:
            self._stuck_since = self._clock()

    def settle_at_next_pass(self) -> None:
        """Let the next `settle` try at once."""
        self._due = 0.0

    @property
    def come_first(self) -> bool:
        """True while a VM that cannot be deleted matters more than the next job."""
        return self._stuck_since is not None and self._clock() - self._stuck_since < _PATIENCE
