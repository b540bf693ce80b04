"""Files of ours: written whole or not at all, and private.

Owns how a file is replaced and how a private directory is made. Knows nothing of what is in them.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path


def write_atomically(path: Path, data: bytes, *, mode: int = 0o600, durable: bool = True) -> None:
    """Replace `path` by `data`: a reader sees the old content or the new one, and a full disk leaves the old one.

    `durable` also survives a power cut (file and directory are synced). Raises `OSError`.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.new")
    # One that an earlier process of this pid left, or somebody else put there, is not written into.
    aside.unlink(missing_ok=True)
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        try:
            os.fchmod(fd, mode)
            _write_all(fd, data)
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        aside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise
    if durable:
        _sync_directory(path.parent)


def is_there(path: Path) -> bool:
    """Whether there is such a file; one that may not be looked for is not."""
    try:
        return path.exists()
    except OSError:
        return False


def remove(path: Path) -> None:
    """Remove a file; one that is not there is removed."""
    path.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what processes that died in the middle of `write_atomically` have left in `folder`. For who alone writes there."""
    for path in folder.glob(".*.new"):
        remove(path)


def make_private_dir(path: Path) -> None:
    """Make a directory that only its owner may enter, with its parents.

    An existing one is tightened to 0700. Raises `PermissionError` for a symlink in its place, or somebody else's directory.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = path.lstat()
    if stat.S_ISLNK(info.st_mode):
        raise PermissionError(f"{path} is a symbolic link; a directory of its own is needed there")
    if info.st_uid != os.geteuid():
        raise PermissionError(f"{path} belongs to another user (uid {info.st_uid})")
    if info.st_mode & 0o077:
        path.chmod(0o700)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
