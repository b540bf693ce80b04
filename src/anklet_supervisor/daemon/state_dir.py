"""The state directory: ours alone, of a version that we know, and writable, or nothing starts.

Owns what stands where at its top, and the file that says by which version it was written. What the files mean is their owners'
business.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from anklet_worker.contract.errors import AnkletError, ConfigError, TemporaryError
from anklet_worker.files import make_private_dir, remove, write_atomically

#: Version of the directory as a whole: what stands where, and how processes of ours share it. 0 had no version file.
FORMAT = 1
_VERSION_FILE = "version"
_FILES = (
    "boot-time", "install-id", "jobs.json", "leases.db", "leases.db.lock",
    "leases.db-shm", "leases.db-wal", "lock", "slots", "status.json",
    _VERSION_FILE,
)  # fmt: skip
_FOLDERS = ("jobs", "locks", "services", "services/*", "services/*/records")
#: What passes by itself, or by making room: a later start may succeed.
_PASSING = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}
)


def open_state_dir(path: Path) -> list[str]:
    """Make the directory, or see that it may be used; returns what had to be set right, one line each.

    Raises `ConfigError` for what an operator must see to (a symbolic link, somebody else's file, a later version, no right to
    write) and `TemporaryError` for a disk that is full.
    """
    with told(path):
        make_private_dir(path)
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            raise ConfigError(f"state_dir {path} cannot be written; chmod u+rwx it, or name another")
        _check_version(path)
        make_private_dir(path / "services")
        return [note for place in _places(path) if (note := _guard(place))]


def take_over(path: Path) -> None:
    """With the lock in hand: remove what a killed writer left aside, and say that this version writes here.

    Raises as `open_state_dir`.
    """
    with told(path):
        for aside in path.glob(".*.new"):
            remove(aside)
        if _version_of(path) != FORMAT:
            write_atomically(path / _VERSION_FILE, f"{FORMAT}\n".encode())


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """Whatever the system refuses in the state directory is one line, with the exit code that fits."""
    try:
        yield
    except OSError as error:
        reason = f"state_dir {path} cannot be used: {error.strerror or error}"
        if error.filename is not None and Path(str(error.filename)) != path:
            reason += f" ({error.filename})"
        raise refusal(error, reason) from None


def refusal(error: OSError, reason: str) -> AnkletError:
    """What to raise for something that the system refuses: for what passes by itself a later start may be the cure."""
    return TemporaryError(reason) if error.errno in _PASSING else ConfigError(reason)


def _check_version(path: Path) -> None:
    found = _version_of(path)
    if found > FORMAT:
        raise ConfigError(
            f"state_dir {path} was written by a later version of this program (format {found}, this one knows {FORMAT}); install "
            "that version again, or name another state_dir once its jobs have ended"
        )


def _version_of(path: Path) -> int:
    try:
        text = (path / _VERSION_FILE).read_bytes()
    except FileNotFoundError:
        return 0
    # Written whole or not at all: what is no number is none of ours, and is replaced.
    return int(text) if re.fullmatch(rb"[0-9]{1,9}\n", text) else 0


def _places(path: Path) -> Iterator[Path]:
    yield from (path / name for name in _FILES)
    for pattern in _FOLDERS:
        yield from path.glob(pattern)


def _guard(place: Path) -> str:
    """See that this is a plain file or directory of ours; take others' rights away. Returns what was done."""
    try:
        info = place.lstat()
    except FileNotFoundError:
        return ""
    if stat.S_ISLNK(info.st_mode):
        raise ConfigError(f"{place} is a symbolic link; the program writes there: delete the link")
    if info.st_uid != os.geteuid():
        raise ConfigError(f"{place} belongs to another user (uid {info.st_uid}); delete it, or name another state_dir")
    if not (stat.S_ISREG(info.st_mode) if place.name in _FILES else stat.S_ISDIR(info.st_mode)):
        # What stands loose among the directories is nobody's.
        if place.name in _FILES or place.name in _FOLDERS or place.name == "records":
            raise ConfigError(f"{place} is of the wrong kind; move it away")
        return ""
    if not info.st_mode & 0o077:
        return ""
    place.chmod(0o700 if stat.S_ISDIR(info.st_mode) else 0o600)
    if not info.st_mode & 0o022:
        # They could but look, within a directory that they cannot enter.
        return ""
    return f"others could write {place} (mode {stat.S_IMODE(info.st_mode):o}); they were taken away"
