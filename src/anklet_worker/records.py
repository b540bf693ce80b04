"""What this service owns: one record file for each attempt at a job, written before the effect and gone when all is.

Owns the record files, the service's state directory, and the lock that makes one process its holder. A record bears the ids of
host and boot, so that one from another host or from before a reboot is recognised. No secret is ever in a record.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil

from anklet_worker.errors import RecordNotWritten, TemporaryError
from anklet_worker.files import make_private_dir, remove, remove_unfinished, write_atomically
from anklet_worker.job import Job, Outcome, Phase
from anklet_worker.messages import SlotRef
from anklet_worker.vm.command import InFlight

#: Version of the record format. A record of another version is left alone and reported.
RECORD_VERSION = 1
_HOLDER_KILL_GRACE = 10.0


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt at one job. `facts` are the plugin's; `outcome` is set once the job ended; times are Unix seconds."""

    version: int = RECORD_VERSION
    service: str
    host_id: str
    boot_id: str
    driver: str
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
        return f"{self.vm}.json"


class RecordBook:
    """The record files of one service, in `<state_dir>/services/<name>/records`.

    Writing raises `RecordNotWritten` when the disk refuses: the effect that the record announces must then not happen.
    """

    def __init__(self, service_dir: Path) -> None:
        self._dir = service_dir / "records"
        self._in_flight = service_dir / "command.json"
        make_private_dir(service_dir)
        make_private_dir(self._dir)

    def save(self, record: Record) -> None:
        """Write the record durably, replacing its earlier version."""
        try:
            write_atomically(self._dir / record.name, msgspec.json.encode(record))
        except OSError as error:
            raise RecordNotWritten(f"cannot write the record of {record.vm}: {error.strerror}: {self._dir}") from error

    def remove(self, record: Record) -> None:
        """Nothing of this attempt is left."""
        remove(self._dir / record.name)

    def forget_unfinished(self) -> None:
        """Remove what an earlier holder was writing when it died: the version before it counts. Only for the holder."""
        for folder in (self._dir, self._dir.parent):
            remove_unfinished(folder)

    def load(self) -> tuple[list[Record], list[str]]:
        """All records, oldest first, and one line for each file that is none (it is moved aside, not deleted)."""
        records: list[Record] = []
        problems: list[str] = []
        for path in sorted(self._dir.glob("*.json")):
            try:
                record = msgspec.json.decode(path.read_bytes(), type=Record)
            except (msgspec.MsgspecError, OSError) as error:
                problems.append(f"{path.name} is no record: {error}; kept as {path.name}.corrupt")
                path.rename(path.with_name(path.name + ".corrupt"))
                continue
            if record.version == RECORD_VERSION:
                records.append(record)
            else:
                problems.append(
                    f"{path.name} is of version {record.version}, this program writes {RECORD_VERSION}; left alone"
                )
        return sorted(records, key=lambda record: record.claimed_at), problems

    def note_in_flight(self, command: InFlight | None) -> None:
        """Remember which VM command runs now, so that a later process can wait for it. Not worth an fsync: it guards
        against the death of this process, not of the host, which ends the command too."""
        if command is None:
            remove(self._in_flight)
        else:
            write_atomically(self._in_flight, msgspec.json.encode(command), durable=False)

    def in_flight(self) -> InFlight | None:
        """The VM command that an earlier process left running, perhaps."""
        try:
            return msgspec.json.decode(self._in_flight.read_bytes(), type=InFlight)
        except (OSError, msgspec.MsgspecError):
            return None


class Holder:
    """A lock on a service's state, held for the life of the worker process. A successor waits for it, then kills the holder."""

    def __init__(self, service_dir: Path) -> None:
        make_private_dir(service_dir)
        self._path = service_dir / "holder.lock"
        self._fd = -1

    def acquire(self, patience: float, wait: Callable[[float], None]) -> None:
        """Take the lock within `patience` seconds, else end the process that holds it. Raises `TemporaryError`."""
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        if not (self._try_for(patience, wait) or self._end_holder_and_try(wait)):
            raise TemporaryError(f"another process holds {self._path} and could not be ended")
        me = psutil.Process()
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{me.pid} {me.create_time()}\n".encode(), 0)

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
