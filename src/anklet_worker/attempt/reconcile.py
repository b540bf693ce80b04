"""Compares what there is (VMs, slots) with what is on record, at the start of a worker and every minute: keeps what still runs,
removes the rest.

Only names with our install id are touched. VMs that no record explains are known by their names; records of services that are no
more are looked after by those that are. What is left alone is told once.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from anklet_worker.attempt.attempt import Attempt, Tools
from anklet_worker.contract.errors import UNREADABLE, InfrastructureError, TemporaryError
from anklet_worker.contract.guest import NAME_PREFIX
from anklet_worker.files import write_atomically
from anklet_worker.life.entry import Entry
from anklet_worker.life.holder import Holder
from anklet_worker.life.owned_vm import OwnedVM
from anklet_worker.life.records import Record, RecordBook
from anklet_worker.life.stages import Stages
from anklet_worker.link.messages import OrphanReaped, VMGone
from anklet_worker.link.setup import WorkerSetup
from anklet_worker.link.slots import SlotState
from anklet_worker.process.command import settle_in_flight
from anklet_worker.state_layout import Place
from anklet_worker.vm.count import report_running_vms
from anklet_worker.vm.driver import VMInfo, VMState
from anklet_worker.vm.names import parse_vm_name, service_tag

#: Seconds between two comparisons; a listing that another service of the host made within this time will do for a suspicion.
INTERVAL = 60.0
#: Seconds that a VM command of a worker that is gone may still run.
COMMAND_PATIENCE = 60.0


class Reconciler:
    """One for the life of a worker. Works only while no attempt is in hand: whatever is on record then was left by somebody."""

    def __init__(self, setup: WorkerSetup, tools: Tools) -> None:
        self._setup = setup
        self._tools = tools
        self._told: set[str] = set()
        self._shared = SharedListing(Place.VM_LISTING.path(setup.state_dir, tools.driver.name))
        self._due = time.monotonic() + INTERVAL

    def at_start(self) -> list[Record]:
        """At the start: clean up after earlier processes; return the records of attempts whose jobs still run, to be followed.

        Raises `VMError` when the VMs cannot be listed, `RecordsUnreadable` when the records cannot be read: nothing may be taken on
        then.
        """
        return self._act(self._list())

    def reconcile(self) -> list[Record]:
        """The same every minute, as cheaply as can be: one listing a minute serves all services of the host."""
        now = time.monotonic()
        if now < self._due:
            return []
        self._due = now + INTERVAL
        shared = self._shared.latest(now)
        if shared is not None and not self._is_suspicious(shared):
            return []
        return self._act(self._list())

    def _list(self) -> Sequence[VMInfo]:
        listing, _ = report_running_vms(self._tools.driver, self._tools.link)
        now = time.monotonic()
        self._due = now + INTERVAL
        self._shared.share(listing, now)
        return listing

    def _is_suspicious(self, listing: Sequence[VMInfo]) -> bool:
        """Whether there is anything to be looked into, by a listing that may be a minute old."""
        existing = {vm.name for vm in listing}
        on_record = self._on_any_record()
        return (
            bool(self._tools.book.load()[0])
            or bool(self._strays(listing, on_record))
            or bool(self._stale_slots(existing, on_record))
            or any(self._former_services())
        )

    def _act(self, listing: Sequence[VMInfo]) -> list[Record]:
        # What goes from the records now goes from the listing, too, which is older.
        on_record = self._on_any_record()
        left_running = self._reconcile_records(listing)
        for folder in self._former_services():
            self._look_after(folder, listing)
        on_record |= self._on_any_record()
        for vm in self._strays(listing, on_record):
            self._remove_stray(vm)
        for name in self._stale_slots({vm.name for vm in listing}, on_record):
            self._tools.link.tell(VMGone(vm=name))
        return left_running

    def _on_any_record(self) -> set[str]:
        """VMs that a record of any service names. After the listing: a VM is on record before it exists."""
        return {path.stem for path in self._setup.state_dir.glob(Place.RECORD.pattern)}

    def _tell_once(self, level: str, message: str, name: str, **extra: object) -> None:
        if (key := f"{message} {name}") not in self._told:
            self._told.add(key)
            tell = {"ERROR": self._tools.log.error, "WARN": self._tools.log.warning}[level]
            tell(message, extra={"vmName": name, **extra})

    # ---- records ----

    def _reconcile_records(self, listing: Sequence[VMInfo]) -> list[Record]:
        running = {vm.name for vm in listing if vm.state is VMState.RUNNING}
        records, problems = self._tools.book.load()
        self.tell_problems(problems)
        still_running = []
        for record in records:
            if not self.is_ours(record):
                continue
            lives = record.boot_id == self._setup.boot_id and record.vm in running
            if self._reconcile_record(record, self._tools, lives=lives):
                still_running.append(record)
        return still_running

    def tell_problems(self, problems: Sequence[str]) -> None:
        """Each line about a file that is no record, once."""
        for problem in problems:
            if problem not in self._told:
                self._told.add(problem)
                self._tools.log.error(
                    "a record cannot be read; what it named is found by its VM's name", extra={"err": problem}
                )

    def is_ours(self, record: Record) -> bool:
        """Whether this worker can do anything about the record; else that is told once."""
        if record.host_id != self._setup.host_id:
            self._tell_once(
                "ERROR", "a record of another host is left alone; was the state directory copied?", record.vm
            )
            return False
        if record.driver not in (self._tools.driver.name, *self._setup.drivers):
            self._tell_once(
                "ERROR",
                "a record of another VM driver is left alone, with its VM",
                record.vm,
                driver=record.driver,
            )
            return False
        return True

    def _reconcile_record(self, record: Record, tools: Tools, *, lives: bool) -> bool:
        if record.job is None:
            reaped = remove_unused(record, tools)
        else:
            attempt = Attempt.of(record, tools)
            if attempt.reconcile(vm_lives=lives):
                return True
            reaped = not attempt.record.vm_may_exist
        if record.vm_may_exist and reaped:
            self._tools.link.tell(OrphanReaped())
        return False

    # ---- VMs without a record, slots without a VM ----

    def _strays(self, listing: Sequence[VMInfo], on_record: set[str]) -> list[VMInfo]:
        """VMs of this service, or of one that is no more, that no record explains."""
        found = []
        for vm in listing:
            if vm.name in on_record or not vm.name.startswith(NAME_PREFIX):
                continue
            parsed = parse_vm_name(vm.name)
            if parsed is None or parsed.install_id != self._setup.install_id:
                if self._setup.sweeps_strays:
                    self._tell_once("WARN", "a VM of another Anklet is on this host; it is left alone", vm.name)
            elif self._is_mine(parsed.service_tag):
                found.append(vm)
        return found

    def _is_mine(self, tag: str) -> bool:
        if tag == service_tag(self._setup.service.name):
            return True
        return self._setup.sweeps_strays and tag not in {service_tag(name) for name in self._setup.services}

    def _remove_stray(self, vm: VMInfo) -> None:
        """Stopped ones at once, running ones when nothing runs in them. Whose origin nobody here knows, is left while it runs."""
        tools = self._tools
        parsed = parse_vm_name(vm.name)
        knows_origin = parsed is not None and parsed.service_tag == service_tag(self._setup.service.name)
        try:
            if vm.state is VMState.RUNNING and not (knows_origin and tools.plugin.driver.abandoned(vm.name)):
                self._tell_once(
                    "WARN", "a VM of ours that no record explains still runs a job, perhaps; left alone", vm.name
                )
                return
            tools.driver.delete(vm.name)
        except InfrastructureError as error:
            self._tell_once("WARN", "a VM that no record explains could not be removed", vm.name, err=str(error))
            return
        tools.log.info("removed a VM that no record explains", extra={"vmName": vm.name})
        tools.link.tell(VMGone(vm=vm.name))
        tools.link.tell(OrphanReaped())

    def _stale_slots(self, existing: set[str], on_record: set[str]) -> list[str]:
        """VMs that hold a slot of this service, or of one that is no more, and that neither exist nor are on record."""
        return [
            slot.vm
            for slot in self._tools.slots.snapshot().slots
            if slot.state in (SlotState.OCCUPIED, SlotState.ORPHANED)
            and slot.vm
            and slot.vm not in existing
            and slot.vm not in on_record
            and self._is_mine(service_tag(slot.service))
        ]

    # ---- services that are no more ----

    def _former_services(self) -> list[Path]:
        """Folders of services that are configured no more, and have records."""
        folders = {path.parents[1] for path in self._setup.state_dir.glob(Place.RECORD.pattern)}
        return sorted(folder for folder in folders if folder.name not in self._setup.services)

    def _look_after(self, folder: Path, listing: Sequence[VMInfo]) -> None:
        """What such a service left: under its lock, for a worker of it may still finish its job."""
        try:
            with Holder(folder).at_once() as free:
                if free:
                    book = RecordBook(folder)
                    self._await_command(book)
                    records, problems = book.load()
                    self.tell_problems(problems)
                    for record in filter(self.is_ours, records):
                        self._reconcile_former(record, book, listing)
        except (InfrastructureError, TemporaryError) as error:
            self._tell_once(
                "WARN", "what a former service left cannot be looked after now", folder.name, err=str(error)
            )

    def _await_command(self, book: RecordBook) -> None:
        """A VM command that its last worker left running is waited for, as that worker's successor would."""
        left = book.in_flight()
        if left is not None:
            settle_in_flight(left, COMMAND_PATIENCE, self._tools.orders.wait)
            book.note_in_flight(None)

    def _reconcile_former(self, record: Record, book: RecordBook, listing: Sequence[VMInfo]) -> None:
        state = next((vm.state for vm in listing if vm.name == record.vm), None)
        lives = record.boot_id == self._setup.boot_id and state is VMState.RUNNING
        knows_origin = record.origin == self._setup.service.origin
        if lives and not (knows_origin and self._tools.plugin.driver.abandoned(record.vm)):
            if knows_origin or self._setup.sweeps_strays:
                self._tell_once(
                    "WARN", "a VM of a service that is no more still runs a job, perhaps; left alone", record.vm
                )
            return
        if knows_origin:
            self._reconcile_record(record, msgspec.structs.replace(self._tools, book=book), lives=False)
        elif self._setup.sweeps_strays:
            # Nobody here can ask where its runner is registered; the origin removes one that is offline by itself.
            if state is not None:
                self._tools.driver.delete(record.vm)
            self._tools.link.tell(VMGone(vm=record.vm))
            book.remove(record)
            self._tools.log.info("removed what a former service left", extra={"vmName": record.vm})


def remove_unused(record: Record, tools: Tools) -> bool:
    """Remove a VM that no attempt borrows, with its slot and record. False when it would not go now; it stays on record."""
    entry = Entry(record, tools.book, tools.log)
    with tools.orders.shield():
        gone = OwnedVM(entry, tools.for_vm(), Stages(tools.link)).remove(tools.cleanup_deadline)
    if gone:
        entry.forget()
    return gone


class _Listed(msgspec.Struct, frozen=True):
    at: float
    vms: list[VMInfo]


class SharedListing:
    """The latest listing of a host's VMs, on file for its other services. `now`: seconds of the host's monotonic clock."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def share(self, listing: Sequence[VMInfo], now: float) -> None:
        """Leave it for others. A disk that refuses costs them a listing each."""
        with contextlib.suppress(OSError):
            write_atomically(self._path, msgspec.json.encode(_Listed(now, list(listing))), durable=False)

    def latest(self, now: float) -> Sequence[VMInfo] | None:
        """The listing that was made within the last interval of this boot, if there is one."""
        try:
            listed = msgspec.json.decode(self._path.read_bytes(), type=_Listed)
        except (OSError, *UNREADABLE):
            return None
        return listed.vms if 0 <= now - listed.at < INTERVAL else None
