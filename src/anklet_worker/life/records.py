"""Records: one file per VM of this service, written before each effect and removed when nothing is left of it.

Owns the record files and their format, and the note of the VM command in flight. A record carries the ids of host and boot, which
show when it is from another host or from before a reboot. It never contains a secret. Knows no plugin.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from anklet_worker.contract.errors import UNREADABLE, RecordNotWritten, RecordsUnreadable, TemporaryError
from anklet_worker.contract.job import Job, Outcome
from anklet_worker.files import make_private_dir, remove, remove_unfinished, write_atomically
from anklet_worker.life.attempt_phases import Phase
from anklet_worker.life.vm_phases import VMPhase, may_exist
from anklet_worker.link.messages import SlotRef
from anklet_worker.process.command import InFlight
from anklet_worker.state_layout import Place

#: Version of the record format, and all versions that can be read. A record of any other version is left alone, with its VM.
#: Version 1 had no `origin`; 1 and 2 had one phase for both VM and attempt.
RECORD_VERSION = 3
_READABLE = frozenset({1, 2, RECORD_VERSION})
_SUFFIX = ".json"


class _Versioned(msgspec.Struct, frozen=True):
    """The part that all versions share."""

    version: int


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One VM of ours and, while an attempt at a job borrows it, that attempt. Times are Unix seconds.

    `job` and `phase` are None for a VM without an attempt. `facts` belong to the plugin. `outcome` is set once the job has ended.
    `origin` (`ServiceConfig.origin`) says where the job came from: once this service is no longer configured, another service of
    the same origin can ask there.
    """

    version: int = RECORD_VERSION
    service: str
    host_id: str
    boot_id: str
    driver: str
    vm: str
    slot: SlotRef | None
    vm_phase: VMPhase
    origin: str = ""
    job: Job | None = None
    phase: Phase | None = None
    attempt: int = 0
    claimed_at: float = 0.0
    outcome: Outcome | None = None
    facts: dict[str, str | int] = {}

    @property
    def name(self) -> str:
        """The file name of the record: the VM's name and a suffix."""
        return f"{self.vm}{_SUFFIX}"

    @property
    def vm_may_exist(self) -> bool:
        """True when a VM of this name may exist."""
        return may_exist(self.vm_phase)


class _OldRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Versions 1 and 2: every record had a job, and one phase for both lives."""

    version: int
    service: str
    host_id: str
    boot_id: str
    driver: str
    origin: str = ""
    job: Job
    attempt: int
    vm: str
    slot: SlotRef | None
    phase: str
    claimed_at: float
    outcome: Outcome | None = None
    facts: dict[str, str | int] = {}


_OLD_PHASES = {
    "claimed": (VMPhase.PLANNED, Phase.CLAIMED),
    "vm_intended": (VMPhase.MAKING, Phase.CLAIMED),
    "vm_starting": (VMPhase.STARTING, Phase.CLAIMED),
    "driving": (VMPhase.READY, Phase.DRIVING),
    "started": (VMPhase.READY, Phase.STARTED),
    "ended": (VMPhase.GOING, Phase.ENDED),
    "vm_gone": (VMPhase.GONE, Phase.ENDED),
}


def _modern(old: _OldRecord) -> Record:
    """Convert a record to the present version. Raises `_Damaged` for an unknown phase."""
    if old.phase not in _OLD_PHASES:
        raise _Damaged(f"unknown phase {old.phase!r}")
    vm_phase, phase = _OLD_PHASES[old.phase]
    fields = {**msgspec.structs.asdict(old), "version": RECORD_VERSION, "vm_phase": vm_phase, "phase": phase}
    return Record(**fields)


class _DriverOnly(msgspec.Struct):
    driver: str


def drivers_on_record(state_dir: Path) -> set[str]:
    """Return the VM drivers that any record names, of services configured or not."""
    found = set()
    for path in state_dir.glob(Place.RECORD.pattern):
        with contextlib.suppress(OSError, *UNREADABLE):
            found.add(msgspec.json.decode(path.read_bytes(), type=_DriverOnly).driver)
    return found


class RecordBook:
    """The record files of one service, in `<state_dir>/services/<name>/records`.

    A write raises `RecordNotWritten` when the disk refuses it; then the effect that the record announces must not happen.
    """

    def __init__(self, service_dir: Path) -> None:
        """Raises `TemporaryError` when the directories cannot be made."""
        self._dir = Place.RECORDS.in_folder(service_dir)
        self._in_flight = Place.COMMAND_IN_FLIGHT.in_folder(service_dir)
        #: True after the disk refused a record. Until it takes one again, the service begins no job.
        self._refused = False
        try:
            make_private_dir(service_dir)
            make_private_dir(self._dir)
        except OSError as error:
            raise TemporaryError(f"cannot keep records in {self._dir}: {error.strerror or error}") from error

    def save(self, record: Record) -> None:
        """Write the record durably, replacing its earlier version."""
        self._write(record.name, msgspec.json.encode(record))

    def check(self) -> None:
        """Raise `RecordNotWritten` while the disk takes no record. Writes a probe only if it refused the last record."""
        if self._refused:
            probe = Place.RECORD_PROBE.in_folder(self._dir)
            # The size of a record: a full disk may still take an empty file.
            self._write(probe.name, b" " * 4096)
            with contextlib.suppress(OSError):
                remove(probe)

    def _write(self, name: str, data: bytes) -> None:
        try:
            write_atomically(self._dir / name, data)
        except OSError as error:
            self._refused = True
            raise RecordNotWritten(f"cannot write {self._dir / name}: {error.strerror or error}") from error
        self._refused = False

    def remove(self, record: Record) -> bool:
        """Remove a record of which nothing is left. False when the disk refuses; the record is then reconciled again later."""
        try:
            remove(self._dir / record.name)
        except OSError:
            return False
        return True

    def forget_unfinished(self) -> None:
        """Remove half-written files of an earlier holder; the version before each of them counts. Call it only as the holder."""
        for folder in (self._dir, self._dir.parent):
            remove_unfinished(folder)

    def load(self) -> tuple[list[Record], list[str]]:
        """Return all records, oldest first, and one line about each file that is not a record.

        A damaged file is moved aside, not deleted. A record of another version, or one that cannot be read, stays in place: see
        `untouchable`. Raises `RecordsUnreadable` when the directory cannot be listed; then no VM may be removed.
        """
        records: list[Record] = []
        problems: list[str] = []
        for path in self._files():
            try:
                records.append(_read(path))
            except FileNotFoundError:
                # Its owner removed it after the listing.
                continue
            except _Damaged as damage:
                problems.append(f"{path.name} is not a record: {damage}; {_move_aside(path)}")
            except _LeftAlone as reason:
                problems.append(f"{path.name} {reason}; left alone, with its VM")
        return sorted(records, key=lambda record: record.claimed_at), problems

    def untouchable(self) -> frozenset[str]:
        """Return the VMs of records that this program cannot read. Their file names are all that it knows about them."""
        names = set()
        for path in self._files():
            try:
                _read(path)
            except (_Damaged, FileNotFoundError):
                continue
            except _LeftAlone:
                names.add(path.stem)
        return frozenset(names)

    def _files(self) -> list[Path]:
        try:
            return sorted(path for path in self._dir.iterdir() if path.suffix == _SUFFIX)
        except OSError as error:
            raise RecordsUnreadable(f"the records in {self._dir} cannot be read: {error.strerror or error}") from error

    def note_in_flight(self, command: InFlight | None) -> None:
        """Note the VM command that runs now, so that a later process can wait for it; None when it has ended.

        Not synced to disk: the note matters after the death of this process, and a host that dies ends the command too.
        """
        if command is None:
            with contextlib.suppress(OSError):
                remove(self._in_flight)
        else:
            write_atomically(self._in_flight, msgspec.json.encode(command), durable=False)

    def in_flight(self) -> InFlight | None:
        """Return the VM command that an earlier process may have left running."""
        try:
            return msgspec.json.decode(self._in_flight.read_bytes(), type=InFlight)
        except (OSError, *UNREADABLE):
            return None


class _Damaged(ValueError):
    """Not a record of any version."""


class _LeftAlone(ValueError):
    """Possibly a record, but this program cannot tell."""


def _read(path: Path) -> Record:
    """Read one record. Raises `_Damaged`, `_LeftAlone`, `FileNotFoundError`."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _LeftAlone(f"cannot be read: {error.strerror or error}") from error
    try:
        # The version first: a record of a newer program may have any form.
        version = msgspec.json.decode(data, type=_Versioned).version
        if version not in _READABLE:
            known = " and ".join(map(str, sorted(_READABLE)))
            raise _LeftAlone(f"is of version {version}, and this program reads {known}")
        if version == RECORD_VERSION:
            record = msgspec.json.decode(data, type=Record)
        else:
            record = _modern(msgspec.json.decode(data, type=_OldRecord))
    except UNREADABLE as error:
        raise _Damaged(str(error)) from None
    if record.name != path.name:
        raise _Damaged(f"it is about {record.vm}")
    return record


def _move_aside(path: Path) -> str:
    """Rename a damaged file, beside any earlier one, and say what happened to it."""
    aside = path.with_name(f"{path.name}.corrupt")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.corrupt-{number}")
    try:
        path.rename(aside)
    except OSError as error:
        return f"it cannot be moved aside: {error.strerror or error}"
    return f"kept as {aside.name}"
