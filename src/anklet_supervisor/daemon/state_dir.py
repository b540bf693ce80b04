"""Guards the state directory at start: private, of a known version and writable, or nothing starts.

Owns the directory's version file and its permissions. `anklet_worker.state_layout` lists what stands in it; the modules that write
the files know what they mean.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from anklet_worker.contract.errors import AnkletError, ConfigError, TemporaryError
from anklet_worker.files import make_private_dir, remove_unfinished, write_atomically
from anklet_worker.state_layout import PathKind, Place

#: Version of the directory as a whole: its layout, and how our processes share it. Version 0 had no version file.
FORMAT = 1
#: Errors that may pass without a change of the configuration: a later start may succeed.
_PASSING = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}
)
_IS_KIND = {PathKind.FILE: stat.S_ISREG, PathKind.FOLDER: stat.S_ISDIR}


def open_state_dir(path: Path) -> list[str]:
    """Make the directory, or check everything in it; return one line for each permission that was removed.

    Raises `ConfigError` for what an operator must mend (a symbolic link, another user's file, a later version, a directory that is
    not writable), and `TemporaryError` for a full disk.
    """
    with explained(path):
        make_private_dir(path)
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            raise ConfigError(f"state_dir {path} is not writable; chmod u+rwx it, or set another state_dir")
        notes = _guard_all([Place.VERSION], path)
        _check_version(path)
        notes += _guard_all(Place, path)
        make_private_dir(Place.SERVICES.path(path))
        return notes


def take_over(path: Path) -> None:
    """With the lock held: remove files that a killed writer left unfinished, and record this version as the directory's.

    Raises the same errors as `open_state_dir`.
    """
    with explained(path):
        remove_unfinished(path)
        if _version_of(path) != FORMAT:
            write_atomically(Place.VERSION.path(path), f"{FORMAT}\n".encode())


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an `OSError` in the state directory into one line, as an error with the right exit code."""
    try:
        yield
    except OSError as error:
        reason = f"state_dir {path} is not usable: {error.strerror or error}"
        if error.filename is not None and Path(str(error.filename)) != path:
            reason += f" ({error.filename})"
        raise refusal(error, reason) from None


def refusal(error: OSError, reason: str) -> AnkletError:
    """The exception for an operation that the system refused: temporary if a later start may succeed."""
    return TemporaryError(reason) if error.errno in _PASSING else ConfigError(reason)


def _check_version(path: Path) -> None:
    found = _version_of(path)
    if found > FORMAT:
        raise ConfigError(
            f"state_dir {path} was written by a later version of this program (format {found}, this version reads {FORMAT}); "
            "install that version again, or set another state_dir once its jobs have ended"
        )


def _version_of(path: Path) -> int:
    try:
        text = Place.VERSION.path(path).read_bytes()
    except FileNotFoundError:
        return 0
    # We replace the file atomically, so anything but a number is damage; it is overwritten.
    return int(text) if re.fullmatch(rb"[0-9]{1,9}\n", text) else 0


def _guard_all(places: Iterable[Place], path: Path) -> list[str]:
    return [note for place in places for found in _matches(place, path) if (note := _guard(place, found))]


def _matches(place: Place, path: Path) -> Iterator[Path]:
    """The paths to check for `place`. One without a `*` in its name need not exist: `glob` does not show a dangling link."""
    parent, _, name = place.pattern.rpartition("/")
    for folder in path.glob(parent) if parent else (path,):
        if "*" in name:
            yield from folder.glob(name)
        else:
            yield folder / name


def _guard(place: Place, found: Path) -> str:
    """Check one path, and remove permissions that others must not have. Returns a line if others could write it, else ""."""
    try:
        info = found.lstat()
        if stat.S_ISLNK(info.st_mode):
            raise ConfigError(
                f"{found} is a symbolic link; delete the link, for {place.writer.value} would write through it"
            )
        if info.st_uid != os.geteuid():
            raise ConfigError(
                f"{found} belongs to another user (uid {info.st_uid}); delete it, or set another state_dir"
            )
        if not _IS_KIND[place.kind](info.st_mode):
            if place.has_any_name:
                return ""
            raise ConfigError(f"{found} is not a {place.kind.value}; move it away")
        if not info.st_mode & ~place.mode & 0o077:
            return ""
        found.chmod(place.mode)
    except (FileNotFoundError, NotADirectoryError):
        # Not made yet, or a worker of the previous supervisor removed it meanwhile.
        return ""
    if not info.st_mode & ~place.mode & 0o022:
        # Others could only read it, and they cannot enter the directory.
        return ""
    return f"removed group/other write permission from {found} (mode was {stat.S_IMODE(info.st_mode):o})"
