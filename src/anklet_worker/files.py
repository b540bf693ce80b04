"""Atomic replacement of files, and private directories.

Owns how a file is written and how a directory is made. Knows nothing of their content.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path


def write_atomically(path: Path, data: bytes, *, mode: int = 0o600, durable: bool = True) -> None:
    """Replace the content of `path`. Readers see the old content or the new one; on a full disk the old one stays.

    `durable` syncs file and directory, so that the new content survives a power cut. Raises `OSError`.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.new")
    # Never write into a file that is already there: an earlier process with this pid, or another user, may have made it.
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
    """True if the file exists; False also if a lack of rights hides it."""
    try:
        return path.exists()
    except OSError:
        return False


def remove(path: Path) -> None:
    """Remove a file if it exists."""
    path.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove files that dead processes left in the middle of `write_atomically`. Only the sole writer of `folder` may call this."""
    for path in folder.glob(".*.new"):
        remove(path)


def make_private_dir(path: Path) -> None:
    """Make a directory with mode 0700, and its parents. An existing directory of this user gets that mode too.

    Raises `PermissionError` if there is a symlink or another user's directory at `path`.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = path.lstat()
    if stat.S_ISLNK(info.st_mode):
        raise PermissionError(f"{path} is a symbolic link; replace it by a directory")
    if info.st_uid != os.geteuid():
        raise PermissionError(f"{path} belongs to another user (uid {info.st_uid}); remove it or change its owner")
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
