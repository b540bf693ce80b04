"""Reconciles records, VMs and slots with what exists: when a worker starts, and every minute while it has no attempt in hand.

Keeps what still runs a job, for the caller to adopt, and removes the rest. Owns the order of these steps and their interval; who
may touch what is decided in `left_records`, `unexplained` and `former_services`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from anklet_worker.attempt.attempt import Tools
from anklet_worker.attempt.former_services import FormerServices
from anklet_worker.attempt.left_records import LeftRecords
from anklet_worker.attempt.shared_listing import INTERVAL, SharedListing
from anklet_worker.attempt.unexplained import Unexplained
from anklet_worker.life.records import Record
from anklet_worker.link.messages import VMGone
from anklet_worker.link.setup import WorkerSetup
from anklet_worker.log.once_log import OnceLog
from anklet_worker.state_layout import Place
from anklet_worker.vm.count import report_running_vms
from anklet_worker.vm.driver import VMInfo, VMState


class Reconciler:
    """One per worker. Call it only while no attempt is in hand: it takes every record for one that an earlier process left."""

    def __init__(self, setup: WorkerSetup, tools: Tools) -> None:
        self._setup = setup
        self._tools = tools
        once_log = OnceLog(tools.log)
        self._left = LeftRecords(setup, tools.driver.name, once_log)
        self._unexplained = Unexplained(setup, tools, once_log)
        self._former = FormerServices(setup, tools, self._left, once_log)
        self._shared = SharedListing(Place.VM_LISTING.path(setup.state_dir, tools.driver.name))
        #: When the next comparison is due, in monotonic seconds.
        self._due = time.monotonic() + INTERVAL

    def at_start(self) -> list[Record]:
        """Clean up after earlier processes; return the records whose jobs still run, to be adopted.

        Raises `VMError` when the VMs cannot be listed and `RecordsUnreadable` when the records cannot: then take no job.
        """
        return self._compare(self._list())

    def reconcile(self) -> list[Record]:
        """Do the same once a minute. Raises as `at_start` does.

        Usually one service of the host makes a listing and the others only read it; they make their own when it shows work to do.
        """
        now = time.monotonic()
        if now < self._due:
            return []
        self._due = now + INTERVAL
        shared = self._shared.latest(now)
        if shared is not None and not self._shows_work(shared):
            return []
        return self._compare(self._list())

    def our_records(self) -> list[Record]:
        """Return the records of this service that this worker may act on. Raises `RecordsUnreadable`."""
        return self._left.load(self._tools.book)

    def _list(self) -> Sequence[VMInfo]:
        listing, _ = report_running_vms(self._tools.driver, self._tools.link)
        now = time.monotonic()
        self._due = now + INTERVAL
        self._shared.share(listing, now)
        return listing

    def _shows_work(self, listing: Sequence[VMInfo]) -> bool:
        """Return True when there may be something to clean up. The listing may be a minute old, so it proves nothing."""
        on_record = self._on_any_record()
        return (
            bool(self._tools.book.load()[0])
            or bool(self._unexplained.vms(listing, on_record))
            or bool(self._unexplained.slots(listing, on_record))
            or bool(self._former.folders())
        )

    def _compare(self, listing: Sequence[VMInfo]) -> list[Record]:
        # A VM whose record goes away below is still in the listing, so remember the records from before.
        on_record = self._on_any_record()
        still_running = self._reap_records(listing)
        for folder in self._former.folders():
            self._former.clean_up(folder, listing)
        on_record |= self._on_any_record()
        for vm in self._unexplained.vms(listing, on_record):
            self._unexplained.remove(vm)
        for name in self._unexplained.slots(listing, on_record):
            self._tools.link.tell(VMGone(vm=name))
        return still_running

    def _on_any_record(self) -> set[str]:
        """Names of the VMs on record, for all services. Read it after the listing: a VM is on record before it exists."""
        return {path.stem for path in self._setup.state_dir.glob(Place.RECORD.pattern)}

    def _reap_records(self, listing: Sequence[VMInfo]) -> list[Record]:
        """Clean up after each record of this service; return those whose jobs still run."""
        running = {vm.name for vm in listing if vm.state is VMState.RUNNING}
        still_running = []
        for record in self.our_records():
            lives = record.boot_id == self._setup.boot_id and record.vm in running
            if self._left.reap(record, self._tools, lives=lives):
                still_running.append(record)
        return still_running
