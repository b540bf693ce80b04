"""Services that are no longer configured but left records: cleans up after them.

Owns the rule when such a record may be removed. A worker of the former service may still finish its job, so everything happens
under that service's lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from anklet_worker.attempt.attempt import Tools
from anklet_worker.attempt.left_records import LeftRecords
from anklet_worker.contract.errors import InfrastructureError, TemporaryError
from anklet_worker.life.holder import Holder
from anklet_worker.life.records import Record, RecordBook
from anklet_worker.link.messages import VMGone
from anklet_worker.link.setup import WorkerSetup
from anklet_worker.log.once_log import OnceLog
from anklet_worker.process.command import settle_in_flight
from anklet_worker.state_layout import Place
from anklet_worker.vm.driver import VMInfo, VMState

#: Seconds that a VM command of a dead worker may still run.
COMMAND_PATIENCE = 60.0


class FormerServices:
    """The former services of this host. Each configured service may clean up after them."""

    def __init__(self, setup: WorkerSetup, tools: Tools, left: LeftRecords, once_log: OnceLog) -> None:
        self._setup = setup
        self._tools = tools
        self._left = left
        self._once_log = once_log

    def folders(self) -> list[Path]:
        """Return the folders of former services that have records."""
        folders = {path.parents[1] for path in self._setup.state_dir.glob(Place.RECORD.pattern)}
        return sorted(folder for folder in folders if folder.name not in self._setup.services)

    def clean_up(self, folder: Path, listing: Sequence[VMInfo]) -> None:
        """Clean up after the former service in `folder`, unless one of its workers still lives."""
        try:
            with Holder(folder).at_once() as free:
                if free:
                    book = RecordBook(folder)
                    self._await_command(book)
                    for record in self._left.load(book):
                        self._clean_up_record(record, book, listing)
        except (InfrastructureError, TemporaryError) as error:
            self._once_log.warning(
                "cannot clean up after a former service now; trying again",
                folder.name,
                formerService=folder.name,
                err=str(error),
            )

    def _await_command(self, book: RecordBook) -> None:
        """Wait for a VM command that the service's last worker left running, as the next worker of the service would."""
        in_flight = book.in_flight()
        if in_flight is not None:
            settle_in_flight(in_flight, COMMAND_PATIENCE, self._tools.orders.wait)
            book.note_in_flight(None)

    def _clean_up_record(self, record: Record, book: RecordBook, listing: Sequence[VMInfo]) -> None:
        state = next((vm.state for vm in listing if vm.name == record.vm), None)
        lives = record.boot_id == self._setup.boot_id and state is VMState.RUNNING
        knows_origin = record.origin == self._setup.service.origin
        if lives and not (knows_origin and self._tools.plugin.driver.abandoned(record.vm)):
            if knows_origin or self._setup.sweeps_strays:
                self._once_log.warning(
                    "a VM of a former service may still run a job; leaving it alone", record.vm, vmName=record.vm
                )
            return
        if knows_origin:
            self._left.reap(record, msgspec.structs.replace(self._tools, book=book), lives=False)
        elif self._setup.sweeps_strays:
            self._remove_without_origin(record, book, exists=state is not None)

    def _remove_without_origin(self, record: Record, book: RecordBook, *, exists: bool) -> None:
        """Remove VM and record, and leave the runner: no service here can ask its origin, which drops offline runners itself."""
        if exists:
            self._tools.driver.delete(record.vm)
        self._tools.link.tell(VMGone(vm=record.vm))
        book.remove(record)
        self._tools.log.info("cleaned up after a former service", extra={"vmName": record.vm})
