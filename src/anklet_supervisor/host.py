"""The host that this supervisor runs on: who it is, that nobody else supervises it, and that it stays awake.

Owns the lock, the ids and the pid file in the state directory. Knows no service and no VM.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import fcntl
import hashlib
import os
import re
import secrets
import shutil
from pathlib import Path

import msgspec
import psutil

from anklet_worker.errors import AlreadyRunning, TemporaryError
from anklet_worker.files import remove, write_atomically

_INSTALL_ID = re.compile(r"[0-9a-f]{8}")
#: macOS: gethostuuid(2)'s figure is that of the hardware; Linux: the machine id of the installation.
_MACHINE_ID_FILES = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
_BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")


class HostIds(msgspec.Struct, frozen=True, kw_only=True):
    """`install_id` is in every name that we give; `host_id` tells this machine, `boot_id` this boot, from any other."""

    install_id: str
    host_id: str
    boot_id: str


class InstanceLock:
    """One supervisor per state directory. The kernel drops the lock with its holder, however that dies."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "lock"
        self._fd = -1

    def acquire(self) -> None:
        """Take the lock. Raises `AlreadyRunning`."""
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 32, 0).decode(errors="replace").strip() or "unknown"
            raise AlreadyRunning(f"another supervisor is running (pid {holder}); it holds {self._path}") from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)


def running_supervisor(state_dir: Path) -> int | None:
    """The pid of the supervisor of this state directory, None when none runs. A pid is never trusted without the lock."""
    try:
        fd = os.open(state_dir / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(fd, 32, 0).decode(errors="replace").strip()
        return int(text) if text.isdigit() else None
    else:
        return None
    finally:
        os.close(fd)


class PidFile:
    """`<pid_file_dir>/anklet.pid`: a pointer for people and scripts, nothing of ours relies on it."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "anklet.pid"

    def write(self) -> None:
        """Write our pid. Raises `TemporaryError`."""
        try:
            write_atomically(self._path, f"{os.getpid()}\n".encode(), mode=0o644, durable=False)
        except OSError as error:
            raise TemporaryError(f"cannot write {self._path}: {error.strerror}") from None

    def remove(self) -> None:
        """Remove it, if it still is ours."""
        try:
            if self._path.read_text().strip() == str(os.getpid()):
                remove(self._path)
        except OSError:
            return


def identify(state_dir: Path) -> HostIds:
    """The ids of this host. The install id is made once; a state directory that was copied from another machine gets a new one,
    for two hosts with one id would delete each other's VMs. Raises `TemporaryError`."""
    host, boot = host_id(), boot_id()
    path = state_dir / "install-id"
    try:
        text = path.read_text().split()
    except FileNotFoundError:
        text = []
    except OSError as error:
        raise TemporaryError(f"cannot read {path}: {error.strerror}") from None
    if len(text) == 2 and _INSTALL_ID.fullmatch(text[0]) and text[1] == host:  # noqa: PLR2004  two words
        return HostIds(install_id=text[0], host_id=host, boot_id=boot)
    if text and (len(text) != 2 or not _INSTALL_ID.fullmatch(text[0])):  # noqa: PLR2004  two words
        raise TemporaryError(
            f"{path} holds no install id; restore it, or remove it after all VMs named anklet-vm-* are gone"
        )
    fresh = secrets.token_hex(4)
    try:
        write_atomically(path, f"{fresh} {host}\n".encode())
    except OSError as error:
        raise TemporaryError(f"cannot write {path}: {error.strerror}") from None
    return HostIds(install_id=fresh, host_id=host, boot_id=boot)


def host_id() -> str:
    """Sixteen hex digits that stand for this machine: derived from its hardware's id (macOS) or its machine id (Linux)."""
    if psutil.MACOS:
        raw = _gethostuuid()
    else:
        raw = (
            next((path.read_text().strip() for path in _MACHINE_ID_FILES if path.is_file()), "") or os.uname().nodename
        )
    return hashlib.sha256(f"anklet:{raw}".encode()).hexdigest()[:16]


def boot_id() -> str:
    """What differs from boot to boot: the kernel's own id (Linux), else the boot time in whole minutes."""
    if _BOOT_ID_FILE.is_file():
        return _BOOT_ID_FILE.read_text().strip()
    return _sysctl("kern.bootsessionuuid") or str(round(psutil.boot_time() / 60))


def keep_awake() -> None:
    """Keep a Mac from idle sleep for as long as this process lives (caffeinate ends with it). Elsewhere: nothing."""
    program = shutil.which("caffeinate")
    if not psutil.MACOS or program is None:
        return
    os.posix_spawn(program, [program, "-i", "-s", "-w", str(os.getpid())], os.environ)


def _gethostuuid() -> str:
    libc = ctypes.CDLL(ctypes.util.find_library("c"))
    uuid = (ctypes.c_ubyte * 16)()
    timeout = (ctypes.c_long * 2)(1, 0)
    return bytes(uuid).hex() if libc.gethostuuid(uuid, timeout) == 0 else os.uname().nodename


def _sysctl(name: str) -> str:
    libc = ctypes.CDLL(ctypes.util.find_library("c"))
    if not hasattr(libc, "sysctlbyname"):
        return ""
    size = ctypes.c_size_t(128)
    buffer = ctypes.create_string_buffer(size.value)
    failed = libc.sysctlbyname(name.encode(), buffer, ctypes.byref(size), None, 0)
    return "" if failed else buffer.value.decode(errors="replace")
