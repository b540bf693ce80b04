"""Records that an earlier process left: which of them this worker may act on, and what happens to each.

Owns these two decisions and the log lines about records that are left alone. Knows no listing and no interval.
"""

from __future__ import annotations

from collections.abc import Sequence

from anklet_worker.attempt.attempt import Attempt, Tools
from anklet_worker.life.entry import Entry
from anklet_worker.life.owned_vm import OwnedVM
from anklet_worker.life.records import Record, RecordBook
from anklet_worker.life.stages import Stages
from anklet_worker.link.messages import OrphanReaped
from anklet_worker.link.setup import WorkerSetup
from anklet_worker.log.once_log import OnceLog


class LeftRecords:
    """Reads records and cleans up after them, for this service and for services that are no longer configured."""

    def __init__(self, setup: WorkerSetup, driver: str, once_log: OnceLog) -> None:
        self._host_id = setup.host_id
        self._drivers = frozenset((driver, *setup.drivers))
        self._once_log = once_log

    def load(self, book: RecordBook) -> list[Record]:
        """Return the records that this worker may act on, oldest first. Raises `RecordsUnreadable`."""
        records, problems = book.load()
        self._report(problems)
        return [record for record in records if self._is_ours(record)]

    def reap(self, record: Record, tools: Tools, *, lives: bool) -> bool:
        """Clean up after a record, unless a job runs in its VM: then return True, and the caller adopts it.

        `lives`: the VM was started in this boot and still runs.
        """
        if record.job is None:
            gone = remove_unused(record, tools)
        else:
            attempt = Attempt.of(record, tools)
            if attempt.reconcile(vm_lives=lives):
                return True
            gone = not attempt.record.vm_may_exist
        if record.vm_may_exist and gone:
            tools.link.tell(OrphanReaped())
        return False

    def _report(self, problems: Sequence[str]) -> None:
        for problem in problems:
            self._once_log.error("cannot read a record; its VM is found by name", problem, err=problem)

    def _is_ours(self, record: Record) -> bool:
        if record.host_id != self._host_id:
            self._once_log.error(
                "leaving a record of another host alone; was the state directory copied?", record.vm, vmName=record.vm
            )
            return False
        if record.driver not in self._drivers:
            self._once_log.error(
                "leaving a record of another VM driver alone, with its VM",
                record.vm,
                vmName=record.vm,
                driver=record.driver,
            )
            return False
        return True


def remove_unused(record: Record, tools: Tools) -> bool:
    """Remove a VM that no attempt uses, with its slot and record. Return False when it cannot be deleted now; it stays on
    record then."""
    entry = Entry(record, tools.book, tools.log)
    with tools.orders.shield():
        gone = OwnedVM(entry, tools.for_vm(), Stages(tools.link)).remove(tools.cleanup_deadline)
    if gone:
        entry.forget()
    return gone
