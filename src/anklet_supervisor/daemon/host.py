"""The host that this supervisor runs on: who it is, that nobody else supervises it, and that it stays awake.

Owns the lock, the ids and the pid file in the state directory. Knows no service and no VM.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import threading
from collections.abc import Iterable
from pathlib import Path

import msgspec
import psutil

from anklet_worker.contract.errors import AlreadyRunning, ConfigError, TemporaryError
from anklet_worker.files import remove, write_atomically
from anklet_worker.state_layout import Place

#: What stands in place of a host's id where the system has none.
UNKNOWN_HOST = "0" * 16
#: The file: our id, the host's id.
_INSTALL_ID = re.compile(r"([0-9a-f]{8}) ([0-9a-f]{16})\n")
_MACHINE_ID_FILES = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
_BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")
#: Seconds; no machine boots twice in that time.
_BOOT_TIME_TOLERANCE = 30
#: Looks at a lock, and seconds between them, before it counts as held for good.
_LOOKS, _LOOK_PAUSE = 10, 0.02


class HostIds(msgspec.Struct, frozen=True, kw_only=True):
    """`install_id` is in every name that we give; `host_id` tells this machine, `boot_id` this boot, from any other.

    `former_install_id` is set when the state directory came from another machine, and its install id has been replaced.
    """

    install_id: str
    host_id: str
    boot_id: str
    former_install_id: str | None = None


class InstanceLock:
    """One supervisor per state directory. The kernel drops the lock with its holder, however that dies."""

    def __init__(self, state_dir: Path) -> None:
        self._path = Place.LOCK.path(state_dir)
        self._fd = -1

    def acquire(self) -> None:
        """Take the lock. Raises `AlreadyRunning`, or `TemporaryError` when there can be no lock file."""
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            if not self._try_for_a_moment():
                pid = _pid_in(self._fd)
                holder = "another supervisor" if pid is None else f"another supervisor (pid {pid})"
                self.release()
                raise AlreadyRunning(f"already running: {holder} holds {self._path}")
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            raise TemporaryError(f"cannot lock {self._path}: {error.strerror}") from None

    def release(self) -> None:
        """Let go. The file stays: removing it could give two holders."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _try_for_a_moment(self) -> bool:
        """A command that looks whether somebody holds the lock has it for an instant; a supervisor has it for days."""
        for _ in range(_LOOKS):
            if _flock(self._fd, fcntl.LOCK_EX):
                return True
            threading.Event().wait(_LOOK_PAUSE)
        return False


def running_supervisor(state_dir: Path) -> int | None:
    """The pid of the supervisor of this state directory, None when none runs. A pid is never trusted without the lock.

    Raises `TemporaryError` when one runs and does not say its pid.
    """
    try:
        fd = os.open(Place.LOCK.path(state_dir), os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise TemporaryError(f"cannot read {Place.LOCK.path(state_dir)}: {error.strerror}") from None
    try:
        for _ in range(_LOOKS):
            if _flock(fd, fcntl.LOCK_SH):
                return None
            pid = _pid_in(fd)
            if pid is not None:
                return pid
            # It took the lock just now, and writes its pid next.
            threading.Event().wait(_LOOK_PAUSE)
    finally:
        os.close(fd)
    raise TemporaryError(f"a supervisor holds {Place.LOCK.path(state_dir)}, but its pid is not in it")


def _flock(fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _pid_in(fd: int) -> int | None:
    """The pid that stands in a lock file whole, with its line's end."""
    text = os.pread(fd, 32, 0)
    return int(text) if re.fullmatch(rb"[1-9][0-9]{0,9}\n", text) else None


class PidFile:
    """`<pid_file_dir>/anklet.pid`: a pointer for people and scripts, nothing of ours relies on it."""

    def __init__(self, directory: Path) -> None:
        self._path = Place.PID_FILE.in_folder(directory)

    def write(self) -> None:
        """Write our pid. Raises `TemporaryError`."""
        try:
            write_atomically(self._path, f"{os.getpid()}\n".encode(), mode=0o644, durable=False)
        except OSError as error:
            raise TemporaryError(f"cannot write {self._path}: {error.strerror}") from None

    def remove(self) -> None:
        """Remove it, if it still is ours."""
        try:
            if self._path.read_bytes().strip() == str(os.getpid()).encode():
                remove(self._path)
        except OSError:
            return


def identify(state_dir: Path, host: str | None = None) -> HostIds:
    """The ids of this host (`host` stands for `host_id()` in tests).

    The install id is made once. A state directory that was copied from another machine gets a new one: two hosts with one id would
    take each other's leases for their own. A machine that cannot be told from others keeps the id that it finds. Raises
    `ConfigError` when the file holds none, `TemporaryError` when it cannot be read or written.
    """
    here = host_id() if host is None else host
    path = Place.INSTALL_ID.path(state_dir)
    try:
        found = _read_install_id(path)
        if found is not None and (found.host_id == here or UNKNOWN_HOST in (found.host_id, here)):
            # The host's id as it was then: it stands in the records, too.
            return HostIds(install_id=found.install_id, host_id=found.host_id, boot_id=boot_id(state_dir))
        fresh = secrets.token_hex(4)
        write_atomically(path, f"{fresh} {here}\n".encode())
        former = None if found is None else found.install_id
        return HostIds(install_id=fresh, host_id=here, boot_id=boot_id(state_dir), former_install_id=former)
    except OSError as error:
        raise TemporaryError(f"cannot use {path}: {error.strerror}") from None


def known_install_id(state_dir: Path) -> str | None:
    """The install id that a state directory bears; None when no supervisor has used it yet. Writes nothing.

    Raises `OSError`, and `ConfigError` for a file that says nothing.
    """
    found = _read_install_id(Place.INSTALL_ID.path(state_dir))
    return None if found is None else found.install_id


class _Installation(msgspec.Struct, frozen=True):
    install_id: str
    host_id: str


def _read_install_id(path: Path) -> _Installation | None:
    """What the file says, None when there is none. Raises `OSError`, and `ConfigError` for a file that says nothing."""
    try:
        text = path.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return None
    found = _INSTALL_ID.fullmatch(text)
    if found is None:
        raise ConfigError(
            f"{path} holds no install id (8 and 16 hex digits); restore it, or delete it: VMs that bear the old id in their names "
            "(anklet-vm-<id>-...) are then no longer ours, and yours to delete"
        )
    return _Installation(found[1], found[2])


def host_id() -> str:
    """Sixteen hex digits that stand for this machine, `UNKNOWN_HOST` when nothing does.

    Derived from the hardware's id (macOS: gethostuuid(2)) or the installation's machine id (Linux: machine-id(5), which asks not to
    be shown as it is). Not from names or network addresses: those change.
    """
    raw = _gethostuuid() if psutil.MACOS else _first_text(_MACHINE_ID_FILES)
    return hashlib.sha256(f"anklet:{raw}".encode()).hexdigest()[:16] if raw else UNKNOWN_HOST


def boot_id(state_dir: Path, kernel: str | None = None) -> str:
    """What differs from boot to boot, and not in between: the kernel's own id (`kernel` stands for it in tests), else the time of
    boot as it was first seen. Raises `OSError`."""
    said = kernel_boot_id() if kernel is None else kernel
    if said:
        return said
    # Systems work the time of boot out from two clocks, so that it moves whenever one of them is set.
    path, now = Place.BOOT_TIME.path(state_dir), round(psutil.boot_time())
    seen = _first_text((path,))
    if seen.isdigit() and abs(int(seen) - now) <= _BOOT_TIME_TOLERANCE:
        return seen
    write_atomically(path, f"{now}\n".encode())
    return str(now)


def kernel_boot_id() -> str:
    """Linux: random(4); macOS: kern.bootsessionuuid. Empty elsewhere."""
    return _first_text((_BOOT_ID_FILE,)) or _sysctl("kern.bootsessionuuid")


def keep_awake(pid: int | None = None, *, macos: bool = psutil.MACOS) -> int | None:
    """Keep a Mac from idle sleep for as long as process `pid` (this one) lives. Returns the pid of what does it, None for nothing.

    caffeinate(8) ends with the process that it watches, so there is nothing to clean up. It is not ours to wait for: it has its own
    process group (Ctrl-C is not for it), no terminal and, of our environment, only what finds programs.
    """
    program = shutil.which("caffeinate")
    if not macos or program is None:
        return None
    null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)]
    arguments = [program, "-i", "-s", "-w", str(pid or os.getpid())]
    try:
        return os.posix_spawn(program, arguments, {"PATH": os.defpath}, file_actions=null, setpgroup=0, setsigmask=[])
    except OSError:
        # A Mac that may doze off is worse than one that does not, and better than none.
        return None


def _first_text(paths: Iterable[Path]) -> str:
    for path in paths:
        try:
            text = path.read_text().strip()
        except (OSError, ValueError):
            continue
        if text:
            return text
    return ""


def _gethostuuid() -> str:
    function = getattr(ctypes.CDLL(None), "gethostuuid", None)
    if function is None:
        return ""
    uuid = (ctypes.c_ubyte * 16)()
    timeout = (ctypes.c_long * 2)(1, 0)
    return bytes(uuid).hex() if function(uuid, timeout) == 0 else ""


def _sysctl(name: str) -> str:
    """A text by sysctlbyname(3), which Linux does not have."""
    function = getattr(ctypes.CDLL(None), "sysctlbyname", None)
    if function is None:
        return ""
    size = ctypes.c_size_t(128)
    buffer = ctypes.create_string_buffer(size.value)
    failed = function(name.encode(), buffer, ctypes.byref(size), None, ctypes.c_size_t(0))
    return "" if failed else buffer.value.decode(errors="replace")
