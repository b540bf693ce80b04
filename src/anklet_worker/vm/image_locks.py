"""Who may pull and who may clone on this host, over all services: file locks, one set for a host.

Never two pulls at once, and never a clone of what is being pulled (Anka 3.9 spoils both). Locks are flock'ed files, so that
none outlives its holder; a pull's child inherits them, so that they last as long as the pull itself, whoever started it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anklet_worker.files import make_private_dir
from anklet_worker.vm import PullBusy


class ImageLocks:
    """The locks of one host, kept in `folder`."""

    def __init__(self, folder: Path) -> None:
        make_private_dir(folder)
        self._folder = folder
        self._pull_path = folder / "pull.lock"

    def pulls_begun(self) -> int:
        """How many pulls this host has begun: a listing older than the last change of this figure may be stale."""
        try:
            return self._pull_path.stat().st_size
        except FileNotFoundError:
            return 0

    @contextmanager
    def cloning(self, image: str) -> Iterator[None]:
        """Nobody pulls `image` while this is held. Raises `PullBusy` when somebody does."""
        with self._locked(self._path_of(image), fcntl.LOCK_SH, f"{image!r} is being pulled"):
            yield

    @contextmanager
    def pulling(self, image: str) -> Iterator[list[int]]:
        """Nobody else pulls anything, and nobody clones `image`; gives the descriptors that the pull's child shall inherit.

        Raises `PullBusy`.
        """
        with (
            self._locked(self._pull_path, fcntl.LOCK_EX, "another pull runs on this host") as pull,
            self._locked(self._path_of(image), fcntl.LOCK_EX, f"{image!r} is being cloned") as own,
        ):
            os.write(pull, b".")
            yield [pull, own]

    def _path_of(self, image: str) -> Path:
        return self._folder / f"image-{hashlib.sha256(image.encode()).hexdigest()[:16]}.lock"

    @contextmanager
    def _locked(self, path: Path, how: int, busy: str) -> Iterator[int]:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, how | fcntl.LOCK_NB)
            except BlockingIOError:
                raise PullBusy(busy) from None
            yield fd
        finally:
            os.close(fd)
