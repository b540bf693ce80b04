"""The one list of what stands where in the state directory, for the processes that write there and for the guard at start.

Owns the names, not the contents: the modules that write a file decide what is in it. Does no I/O. The log is not in the list:
`log.file_dir` may be any directory, inside this one or not.
"""

from __future__ import annotations

from enum import Enum, unique
from pathlib import Path


class PathKind(Enum):
    """What a path is."""

    FILE = "file"
    FOLDER = "folder"


class Writer(Enum):
    """Which process writes a path. A folder's writer makes it."""

    SUPERVISOR = "the supervisor"
    #: The worker of the service that the path names. The supervisor and other workers may do it while no such worker runs.
    WORKER = "the service's worker"
    #: Any worker of the host, under a lock or by atomic replacement.
    WORKERS = "all workers"
    COMMAND = "`pause` and `resume`"


_PRIVATE = {PathKind.FILE: 0o600, PathKind.FOLDER: 0o700}


@unique
class Place(Enum):
    """One path, or a family of paths. `pattern` is relative to the state directory; each `*` stands for a part of one name.

    `mode` has the permission bits that the path may have.
    """

    VERSION = ("version", PathKind.FILE, Writer.SUPERVISOR)
    LOCK = ("lock", PathKind.FILE, Writer.SUPERVISOR)
    PID_FILE = ("anklet.pid", PathKind.FILE, Writer.SUPERVISOR, 0o644)
    INSTALL_ID = ("install-id", PathKind.FILE, Writer.SUPERVISOR)
    BOOT_TIME = ("boot-time", PathKind.FILE, Writer.SUPERVISOR)
    SLOTS = ("slots", PathKind.FILE, Writer.SUPERVISOR)
    STATUS = ("status.json", PathKind.FILE, Writer.SUPERVISOR)
    HISTORY = ("jobs.json", PathKind.FILE, Writer.SUPERVISOR)
    DAMAGED_HISTORY = ("jobs.json.corrupt", PathKind.FILE, Writer.SUPERVISOR)

    #: The embedded store, with the files that SQLite keeps beside it.
    STORE = ("leases.db", PathKind.FILE, Writer.WORKERS)
    STORE_LOCK = ("leases.db.lock", PathKind.FILE, Writer.WORKERS)
    STORE_WAL = ("leases.db-wal", PathKind.FILE, Writer.WORKERS)
    STORE_SHM = ("leases.db-shm", PathKind.FILE, Writer.WORKERS)
    STORE_JOURNAL = ("leases.db-journal", PathKind.FILE, Writer.WORKERS)
    DAMAGED_STORE = ("leases.db.damaged-*", PathKind.FILE, Writer.WORKERS)

    SERVICES = ("services", PathKind.FOLDER, Writer.SUPERVISOR)
    SERVICE = ("services/*", PathKind.FOLDER, Writer.WORKER)
    HOLDER_LOCK = ("services/*/holder.lock", PathKind.FILE, Writer.WORKER)
    COMMAND_IN_FLIGHT = ("services/*/command.json", PathKind.FILE, Writer.WORKER)
    PAUSE_MARK = ("services/*/paused", PathKind.FILE, Writer.COMMAND)
    RECORDS = ("services/*/records", PathKind.FOLDER, Writer.WORKER)
    RECORD = ("services/*/records/*.json", PathKind.FILE, Writer.WORKER)
    RECORD_PROBE = ("services/*/records/.probe", PathKind.FILE, Writer.WORKER)
    DAMAGED_RECORD = ("services/*/records/*.json.corrupt*", PathKind.FILE, Writer.WORKER)

    #: One folder for each job, and in it one for each attempt. The files in those come from guests: nothing opens them.
    ARCHIVE = ("jobs", PathKind.FOLDER, Writer.WORKERS)
    ARCHIVED_JOB = ("jobs/*", PathKind.FOLDER, Writer.WORKERS)
    ARCHIVED_ATTEMPT = ("jobs/*/*", PathKind.FOLDER, Writer.WORKERS)

    #: The latest listing of a driver's VMs, shared by the services of the host.
    VM_LISTING = ("vms-*.json", PathKind.FILE, Writer.WORKERS)

    #: Each driver has locks of its own; the files have the same names (`ImageLocks`).
    ANKA_LOCKS = ("locks", PathKind.FOLDER, Writer.WORKERS)
    ANKA_PULL_LOCK = ("locks/pull.lock", PathKind.FILE, Writer.WORKERS)
    ANKA_PULL_NOTE = ("locks/pull.json", PathKind.FILE, Writer.WORKERS)
    ANKA_IMAGE_LOCK = ("locks/image-*.lock", PathKind.FILE, Writer.WORKERS)

    TART = ("tart", PathKind.FOLDER, Writer.WORKERS)
    TART_ASKPASS = ("tart/askpass", PathKind.FILE, Writer.WORKERS, 0o700)
    TART_USUAL_PASSWORD = ("tart/usual-password", PathKind.FILE, Writer.WORKERS)
    TART_LOCKS = ("tart/locks", PathKind.FOLDER, Writer.WORKERS)
    TART_PULL_LOCK = ("tart/locks/pull.lock", PathKind.FILE, Writer.WORKERS)
    TART_PULL_NOTE = ("tart/locks/pull.json", PathKind.FILE, Writer.WORKERS)
    TART_IMAGE_LOCK = ("tart/locks/image-*.lock", PathKind.FILE, Writer.WORKERS)
    TART_RUNS = ("tart/runs", PathKind.FOLDER, Writer.WORKERS)
    TART_RUN_NOTE = ("tart/runs/*.json", PathKind.FILE, Writer.WORKERS)
    TART_RUN_OUTPUT = ("tart/runs/*.log", PathKind.FILE, Writer.WORKERS)

    def __init__(self, pattern: str, kind: PathKind, writer: Writer, mode: int | None = None) -> None:
        self.pattern = pattern
        self.kind = kind
        self.writer = writer
        self.mode = _PRIVATE[kind] if mode is None else mode

    @property
    def has_any_name(self) -> bool:
        """True for a pattern whose last part is `*`: something else may lie there, such as a `.DS_Store`."""
        return self.pattern.endswith("/*")

    def path(self, state_dir: Path, *names: str) -> Path:
        """The path in `state_dir`, with each `*` of the pattern replaced by the next of `names`."""
        return state_dir / _filled(self.pattern, names)

    def in_folder(self, folder: Path, *names: str) -> Path:
        """The same for a caller that was given the path's own folder: only the last part of the pattern counts."""
        return folder / _filled(self.pattern.rpartition("/")[2], names)


def _filled(pattern: str, names: tuple[str, ...]) -> str:
    first, *rest = pattern.split("*")
    return first + "".join(name + text for name, text in zip(names, rest, strict=True))
