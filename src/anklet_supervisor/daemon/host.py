"""The host of this supervisor: its ids, the lock that allows one supervisor only, and keeping a Mac awake.

Owns the lock, the ids and the pid file. Knows no service and no VM.
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

#: The host id of a system that has none.
UNKNOWN_HOST = "0" * 16
#: The file's content: install id and host id.
_INSTALL_ID = re.compile(r"([0-9a-f]{8}) ([0-9a-f]{16})\n")
_MACHINE_ID_FILES = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
_BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")
#: Seconds within which no machine boots twice.
_BOOT_TIME_TOLERANCE = 30
#: Tries to take the lock, and seconds between them, before it counts as held by a supervisor.
_LOOKS, _LOOK_PAUSE = 10, 0.02


class HostIds(msgspec.Struct, frozen=True, kw_only=True):
    """`install_id` is part of each VM name; `host_id` identifies the machine, and `boot_id` the boot.

    `former_install_id` is set if the state directory came from another machine and got a new install id.
    """

    install_id: str
    host_id: str
    boot_id: str
    former_install_id: str | None = None


class InstanceLock:
    """Allows one supervisor per state directory. The kernel releases the lock when its holder dies."""

    def __init__(self, state_dir: Path) -> None:
        self._path = Place.LOCK.path(state_dir)
        self._fd = -1

    def acquire(self) -> None:
        """Take the lock. Raises `AlreadyRunning`, or `TemporaryError` if the lock file cannot be used."""
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
        """Release the lock. The file stays: removing it could allow two holders."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _try_for_a_moment(self) -> bool:
        """Retry for a moment: a command that checks the lock holds it for an instant, a supervisor for days."""
        for _ in range(_LOOKS):
            if _flock(self._fd, fcntl.LOCK_EX):
                return True
            threading.Event().wait(_LOOK_PAUSE)
        return False


def running_supervisor(state_dir: Path) -> int | None:
    """The pid of the supervisor of this state directory, or None. A pid counts only while the lock is held.

    Raises `TemporaryError` if a supervisor runs and its pid is unknown.
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
            # It has just taken the lock and writes its pid next.
            threading.Event().wait(_LOOK_PAUSE)
    finally:
        os.close(fd)
    raise TemporaryError(f"a supervisor holds {Place.LOCK.path(state_dir)}, but its pid is not in it; try again")


def _flock(fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _pid_in(fd: int) -> int | None:
    """The pid in a lock file; None unless the whole line is there."""
    text = os.pread(fd, 32, 0)
    return int(text) if re.fullmatch(rb"[1-9][0-9]{0,9}\n", text) else None


class PidFile:
    """`<pid_file_dir>/anklet.pid`, for people and scripts. The program itself does not rely on it."""

    def __init__(self, directory: Path) -> None:
        self._path = Place.PID_FILE.in_folder(directory)

    def write(self) -> None:
        """Write our pid. Raises `TemporaryError`."""
        try:
            write_atomically(self._path, f"{os.getpid()}\n".encode(), mode=0o644, durable=False)
        except OSError as error:
            raise TemporaryError(f"cannot write {self._path}: {error.strerror}") from None

    def remove(self) -> None:
        """Remove the file if it still has our pid."""
        try:
            if self._path.read_bytes().strip() == str(os.getpid()).encode():
                remove(self._path)
        except OSError:
            return


def identify(state_dir: Path, host: str | None = None) -> HostIds:
    """The ids of this host. Tests pass `host` in place of `host_id()`.

    The install id is created once. A state directory copied from another machine gets a new one: two hosts with one id would take
    each other's leases for their own. A machine without a host id keeps the install id that it finds. Raises `ConfigError` for a
    file without an id, and `TemporaryError` for one that cannot be read or written.
    """
    here = host_id() if host is None else host
    path = Place.INSTALL_ID.path(state_dir)
    try:
        found = _read_install_id(path)
        if found is not None and (found.host_id == here or UNKNOWN_HOST in (found.host_id, here)):
            # The host id on file, since records contain it, too.
            return HostIds(install_id=found.install_id, host_id=found.host_id, boot_id=boot_id(state_dir))
        fresh = secrets.token_hex(4)
        write_atomically(path, f"{fresh} {here}\n".encode())
        former = None if found is None else found.install_id
        return HostIds(install_id=fresh, host_id=here, boot_id=boot_id(state_dir), former_install_id=former)
    except OSError as error:
        raise TemporaryError(f"cannot use {path}: {error.strerror}") from None


def known_install_id(state_dir: Path) -> str | None:
    """The install id of a state directory; None if no supervisor has used it yet. Writes nothing.

    Raises `OSError`, and `ConfigError` for a file without an id.
    """
    found = _read_install_id(Place.INSTALL_ID.path(state_dir))
    return None if found is None else found.install_id


class _Installation(msgspec.Struct, frozen=True):
    install_id: str
    host_id: str


def _read_install_id(path: Path) -> _Installation | None:
    """The content of the file; None without one. Raises `OSError`, and `ConfigError` for a file without an id."""
    try:
        text = path.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return None
    found = _INSTALL_ID.fullmatch(text)
    if found is None:
        raise ConfigError(
            f"{path} holds no install id (8 and 16 hex digits); restore it, or delete it together with the VMs that have the old "
            "id in their names (anklet-vm-<id>-...)"
        )
    return _Installation(found[1], found[2])


def host_id() -> str:
    """Sixteen hex digits that identify this machine; `UNKNOWN_HOST` if the system gives no id.

    A hash of the hardware's id (macOS: gethostuuid(2)) or of the machine id (Linux: machine-id(5), which says to keep the id itself
    confidential). Host names and network addresses would change.
    """
    raw = _gethostuuid() if psutil.MACOS else _first_text(_MACHINE_ID_FILES)
    return hashlib.sha256(f"anklet:{raw}".encode()).hexdigest()[:16] if raw else UNKNOWN_HOST


def boot_id(state_dir: Path, kernel: str | None = None) -> str:
    """An id that changes with each boot: the kernel's boot id, else the time of the boot as it was first seen.

    Tests pass `kernel` in place of the kernel's id. Raises `OSError`.
    """
    said = kernel_boot_id() if kernel is None else kernel
    if said:
        return said
    # Systems compute the boot time from two clocks, so it moves when one of them is set.
    path, now = Place.BOOT_TIME.path(state_dir), round(psutil.boot_time())
    seen = _first_text((path,))
    if seen.isdigit() and abs(int(seen) - now) <= _BOOT_TIME_TOLERANCE:
        return seen
    write_atomically(path, f"{now}\n".encode())
    return str(now)


def kernel_boot_id() -> str:
    """The kernel's boot id (Linux: random(4); macOS: kern.bootsessionuuid), else an empty string."""
    return _first_text((_BOOT_ID_FILE,)) or _sysctl("kern.bootsessionuuid")


def keep_awake(pid: int | None = None, *, macos: bool = psutil.MACOS) -> int | None:
    """Keep a Mac from idle sleep while process `pid` (default: this one) lives. Returns the pid of caffeinate, or None.

    caffeinate(8) exits with the process that it watches, so nothing needs to wait for it. It gets a process group of its own, so
    that Ctrl-C does not reach it, no terminal, and an environment with nothing but PATH.
    """
    program = shutil.which("caffeinate")
    if not macos or program is None:
        return None
    null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)]
    arguments = [program, "-i", "-s", "-w", str(pid or os.getpid())]
    try:
        return os.posix_spawn(program, arguments, {"PATH": os.defpath}, file_actions=null, setpgroup=0, setsigmask=[])
    except OSError:
        # Better a supervisor on a Mac that may sleep than no supervisor.
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
    """A string from sysctlbyname(3); empty on Linux, which does not have it."""
    function = getattr(ctypes.CDLL(None), "sysctlbyname", None)
    if function is None:
        return ""
    size = ctypes.c_size_t(128)
    buffer = ctypes.create_string_buffer(size.value)
    failed = function(name.encode(), buffer, ctypes.byref(size), None, ctypes.c_size_t(0))
    return "" if failed else buffer.value.decode(errors="replace")
