"""What this service owns: one record file for each attempt at a job, written before the effect and gone when all is.

Owns the record files, the service's state directory, and the lock that makes one process its holder. A record bears the ids of
host and boot, so that one from another host or from before a reboot is recognised. No secret is ever in a record.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil

from anklet_worker.attempt.phases import Phase
from anklet_worker.contract.errors import UNREADABLE, RecordNotWritten, RecordsUnreadable, TemporaryError
from anklet_worker.contract.job import Job, Outcome
from anklet_worker.files import make_private_dir, remove, remove_unfinished, write_atomically
from anklet_worker.link.messages import SlotRef
from anklet_worker.process.command import InFlight

#: Version of the record format, and the ones that can be read. A record of any other version is left alone, with its VM.
#: 1 had no `origin`.
RECORD_VERSION = 2
_READABLE = frozenset({1, RECORD_VERSION})
_SUFFIX = ".json"
_HOLDER_KILL_GRACE = 10.0


class _Versioned(msgspec.Struct, frozen=True):
    """As much of a record as every version has."""

    version: int


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt at one job. `facts` are the plugin's; `outcome` is set once the job ended; times are Unix seconds.

    `origin` says where the job came from (`ServiceConfig.origin`), so that another service of that origin can ask there when this
    service is configured no more.
    """

    version: int = RECORD_VERSION
    service: str
    host_id: str
    boot_id: str
    driver: str
    origin: str = ""
    job: Job
    attempt: int
    vm: str
    slot: SlotRef | None
    phase: Phase
    claimed_at: float
    outcome: Outcome | None = None
    facts: dict[str, str | int] = {}

    @property
    def name(self) -> str:
        """File name of the record: the VM's name, which is derived from service, job and attempt."""
        return f"{self.vm}{_SUFFIX}"


class _DriverOnly(msgspec.Struct):
    driver: str


def drivers_on_record(state_dir: Path) -> set[str]:
    """The VM drivers by which the records of any service, configured or not, were made."""
    found = set()
    for path in state_dir.glob("services/*/records/*.json"):
        with contextlib.suppress(OSError, *UNREADABLE):
            found.add(msgspec.json.decode(path.read_bytes(), type=_DriverOnly).driver)
    return found


class RecordBook:
    """The record files of one service, in `<state_dir>/services/<name>/records`.

    Writing raises `RecordNotWritten` when the disk refuses: the effect that the record announces must then not happen.
    """

    def __init__(self, service_dir: Path) -> None:
        """Raises `TemporaryError` when the directories cannot be made."""
        self._dir = service_dir / "records"
        self._in_flight = service_dir / "command.json"
        #: The disk refused the last record; until it takes one again, no job may be begun.
        self._refused = False
        try:
            make_private_dir(service_dir)
            make_private_dir(self._dir)
        except OSError as error:
            raise TemporaryError(f"records cannot be kept in {self._dir}: {error.strerror or error}") from error

    def save(self, record: Record) -> None:
        """Write the record durably, replacing its earlier version."""
        self._write(record.name, msgspec.json.encode(record))

    def check(self) -> None:
        """Raise `RecordNotWritten` while the disk takes no record. Costs nothing unless it refused the last one."""
        if self._refused:
            probe = ".probe"
            # Of the size of a record: a disk may have room for an empty file.
            self._write(probe, b" " * 4096)
            with contextlib.suppress(OSError):
                remove(self._dir / probe)

    def _write(self, name: str, data: bytes) -> None:
        try:
            write_atomically(self._dir / name, data)
        except OSError as error:
            self._refused = True
            raise RecordNotWritten(f"cannot write {self._dir / name}: {error.strerror or error}") from error
        self._refused = False

    def remove(self, record: Record) -> bool:
        """Nothing of this attempt is left. False when the disk refuses even that: the record is then looked through again later."""
        try:
            remove(self._dir / record.name)
        except OSError:
            return False
        return True

    def forget_unfinished(self) -> None:
        """Remove what an earlier holder was writing when it died: the version before it counts. Only for the holder."""
        for folder in (self._dir, self._dir.parent):
            remove_unfinished(folder)

    def load(self) -> tuple[list[Record], list[str]]:
        """All records, oldest first, and one line for each file that is none.

        A damaged one is moved aside, not deleted; one of another version (or one that cannot be read) stays: see `untouchable`.
        Raises `RecordsUnreadable`: without knowing what is on record nothing may be removed.
        """
        records: list[Record] = []
        problems: list[str] = []
        for path in self._files():
            try:
                records.append(_read(path))
            except FileNotFoundError:
                # Its owner has removed it since.
                continue
            except _Damaged as damage:
                problems.append(f"{path.name} is no record: {damage}; {_move_aside(path)}")
            except _LeftAlone as reason:
                problems.append(f"{path.name} {reason}; left alone, with its VM")
        return sorted(records, key=lambda record: record.claimed_at), problems

    def untouchable(self) -> frozenset[str]:
        """VMs of records that this version cannot read: nothing is known of them but the name."""
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
        """Remember which VM command runs now, so that a later process can wait for it. Not worth an fsync: it guards
        against the death of this process, not of the host, which ends the command too."""
        if command is None:
            with contextlib.suppress(OSError):
                remove(self._in_flight)
        else:
            write_atomically(self._in_flight, msgspec.json.encode(command), durable=False)

    def in_flight(self) -> InFlight | None:
        """The VM command that an earlier process left running, perhaps."""
        try:
            return msgspec.json.decode(self._in_flight.read_bytes(), type=InFlight)
        except (OSError, *UNREADABLE):
            return None


class _Damaged(ValueError):
    """No record of any version."""


class _LeftAlone(ValueError):
    """Perhaps a record, but not one to be judged here."""


def _read(path: Path) -> Record:
    """Read one record. Raises `_Damaged`, `_LeftAlone`, `FileNotFoundError`."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _LeftAlone(f"cannot be read: {error.strerror or error}") from error
    try:
        # The version first: what a newer program writes need not look like a record to this one.
        version = msgspec.json.decode(data, type=_Versioned).version
        if version not in _READABLE:
            known = " and ".join(map(str, sorted(_READABLE)))
            raise _LeftAlone(f"is of version {version}, and this program reads {known}")
        record = msgspec.json.decode(data, type=Record)
    except UNREADABLE as error:
        raise _Damaged(str(error)) from None
    if record.name != path.name:
        raise _Damaged(f"it is about {record.vm}")
    return msgspec.structs.replace(record, version=RECORD_VERSION)


def _move_aside(path: Path) -> str:
    """Keep a damaged file as evidence, beside any earlier one; what became of it."""
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


class Holder:
    """A lock on a service's state, held for the life of the worker process. A successor waits for it, then kills the holder."""

    def __init__(self, service_dir: Path) -> None:
        """Raises `TemporaryError` when there can be no such file."""
        try:
            make_private_dir(service_dir)
        except OSError as error:
            raise TemporaryError(f"{service_dir} cannot be used: {error.strerror or error}") from error
        self._path = service_dir / "holder.lock"
        self._fd = -1

    def acquire(self, patience: float, wait: Callable[[float], None]) -> None:
        """Take the lock within `patience` seconds, else end the process that holds it. Raises `TemporaryError`."""
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise TemporaryError(f"{self._path} cannot be opened: {error.strerror}") from error
        if not (self._try_for(patience, wait) or self._end_holder_and_try(wait)):
            raise TemporaryError(f"another process holds {self._path} and could not be ended")
        me = psutil.Process()
        # A full disk does not keep what runs from being looked after; a successor can then only wait for us.
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{me.pid} {me.create_time()}\n".encode(), 0)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[bool]:
        """Hold the lock for a while, if nobody has it: whether it is held. Raises `TemporaryError`."""
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise TemporaryError(f"{self._path} cannot be opened: {error.strerror}") from error
        try:
            yield self._try_for(0.0, time.sleep)
        finally:
            os.close(self._fd)

    def _try_for(self, seconds: float, wait: Callable[[float], None]) -> bool:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    return False
                wait(0.05)
            else:
                return True

    def _end_holder_and_try(self, wait: Callable[[float], None]) -> bool:
        """Pids are never compared alone: only the very process that wrote itself into the lock file is killed."""
        try:
            pid, created = os.pread(self._fd, 100, 0).decode().split()
            process = psutil.Process(int(pid))
            if process.create_time() == float(created):
                process.kill()
        except (ValueError, psutil.Error):
            pass
        return self._try_for(_HOLDER_KILL_GRACE, wait)
