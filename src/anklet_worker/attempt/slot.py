"""Gets a slot for the next job: asks the supervisor, waits, and makes sure that other VMs have left room.

Owns the wait and what happens meanwhile. Which service gets which slot is the supervisor's decision.
"""

from __future__ import annotations

from anklet_worker.attempt.attempt import Tools
from anklet_worker.attempt.debts import Debts
from anklet_worker.attempt.reconcile import Reconciler
from anklet_worker.contract.errors import InfrastructureError
from anklet_worker.link.messages import SlotRef, SlotReleased, Status
from anklet_worker.link.status import StatusReporter
from anklet_worker.vm.count import report_running_vms


class SlotWait:
    """Asks for slots on behalf of one service. `interval` is the seconds between two clean-ups while it waits."""

    def __init__(
        self, tools: Tools, interval: float, debts: Debts, reconciler: Reconciler, status: StatusReporter
    ) -> None:
        self._tools = tools
        self._interval = interval
        self._debts = debts
        self._reconciler = reconciler
        self._status = status

    def acquire(self) -> SlotRef | None:
        """Wait for a slot. None after a drain, or when other VMs leave no room. Raises `VMError` when they cannot be listed."""
        slot = self._tools.link.acquire_slot(self._interval, self.clean_up)
        if slot is None:
            return None
        try:
            _, running = report_running_vms(self._tools.driver, self._tools.link)
        except InfrastructureError:
            self.release(slot)
            raise
        if running >= self._tools.slots.snapshot().limit:
            self.release(slot)
            self._status.show(Status.PAUSED)
            self._tools.log.warning("other VMs run on this host; no room for a job", extra={"runningVMs": running})
            return None
        return slot

    def release(self, slot: SlotRef | None) -> None:
        """Give back a slot that holds no VM."""
        if slot is not None:
            self._tools.link.tell(SlotReleased(slot=slot))

    def clean_up(self) -> None:
        """Free what fills the slots, if possible: a VM that could not be deleted, a slot without a VM, other VMs that are gone."""
        try:
            self._debts.settle()
            # A job that runs is found again once the wait is over, and adopted then.
            self._reconciler.reconcile()
            table = self._tools.slots.snapshot()
            if table.foreign or table.held_back:
                self._status.show(Status.PAUSED)
            if table.foreign:
                report_running_vms(self._tools.driver, self._tools.link)
        except InfrastructureError as error:
            self._status.trouble(error)
