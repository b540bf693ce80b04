"""Who may pull and who may clone on this host, over all services: file locks, one set for a host.

Never two pulls at once, and never a clone of what is being pulled (Anka 3.9 spoils both). Locks are flock'ed files, so that
none outlives its holder; a pull's child inherits them, so that they last as long as the pull itself, whoever started it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from anklet_worker.contract.errors import UNREADABLE, Detached, PullBusy, VMTransient
from anklet_worker.files import make_private_dir, remove, write_atomically
from anklet_worker.process.command import InFlight, settle_in_flight
from anklet_worker.state_layout import Place

#: Seconds after which a pull that nobody watches any more is taken to hang; its watcher would have ended it long before.
_OVERDUE = 3 * 3600.0


class PullHold(msgspec.Struct, frozen=True):
    """The right to pull: descriptors for the pull's child to inherit, and where the child is noted."""

    fds: list[int]
    path: Path

    def note(self, command: InFlight | None) -> None:
        """Remember the pull's process, or that it ended. Raises `OSError`."""
        if command is None:
            remove(self.path)
        else:
            write_atomically(self.path, msgspec.json.encode(command), durable=False)


class ImageLocks:
    """The locks of one host, kept in `folder`. An image is locked by all the names that it is known by. `now`: Unix seconds."""

    def __init__(self, folder: Path, now: Callable[[], float] = time.time) -> None:
        make_private_dir(folder)
        self._now = now
        self._folder = folder
        self._pull_path = Place.ANKA_PULL_LOCK.in_folder(folder)
        self._note_path = Place.ANKA_PULL_NOTE.in_folder(folder)

    def pulls_begun(self) -> int:
        """How many pulls this host has begun: a listing older than the last change of this figure may be stale."""
        try:
            return self._pull_path.stat().st_size
        except FileNotFoundError:
            return 0

    @contextmanager
    def cloning(self, *images: str) -> Iterator[None]:
        """Nobody pulls the image while this is held. Raises `PullBusy` when somebody does, `VMTransient` where the disk refuses."""
        with self._locked_images(images, fcntl.LOCK_SH, "is being pulled"):
            yield

    @contextmanager
    def pulling(self, *images: str) -> Iterator[PullHold]:
        """Nobody else pulls anything, and nobody clones the image. Raises `PullBusy`, `VMTransient` where the disk refuses."""
        self._end_overdue_pull()
        with (
            self._locked(self._pull_path, fcntl.LOCK_EX, "another pull runs on this host") as pull,
            self._locked_images(images, fcntl.LOCK_EX, "is being cloned") as own,
        ):
            try:
                os.write(pull, b".")
            except OSError as error:
                # Uncounted, others would take what they listed before it for fresh.
                raise VMTransient(f"{self._pull_path} cannot be written: {error.strerror}") from None
            yield PullHold([pull, *own], self._note_path)

    def _end_overdue_pull(self) -> None:
        """A pull outlives the worker that started it; when it hangs then, nobody else would ever end it."""
        try:
            note = msgspec.json.decode(self._note_path.read_bytes(), type=InFlight)
        except (OSError, *UNREADABLE):
            return
        if self._now() - note.created > _OVERDUE:
            settle_in_flight(note, 0.0)
            with contextlib.suppress(OSError):
                remove(self._note_path)

    @contextmanager
    def _locked_images(self, images: tuple[str, ...], how: int, busy: str) -> Iterator[list[int]]:
        with ExitStack() as held:
            yield [
                held.enter_context(self._locked(self._path_of(image), how, f"{image!r} {busy}"))
                for image in sorted(set(images))
            ]

    def _path_of(self, image: str) -> Path:
        return Place.ANKA_IMAGE_LOCK.in_folder(self._folder, hashlib.sha256(image.encode()).hexdigest()[:16])

    @contextmanager
    def _locked(self, path: Path, how: int, busy: str) -> Iterator[int]:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise VMTransient(f"{path} cannot be opened: {error.strerror}") from None
        goes_on = False
        try:
            try:
                fcntl.flock(fd, how | fcntl.LOCK_NB)
            except BlockingIOError:
                raise PullBusy(busy) from None
            yield fd
        except Detached:
            goes_on = True
            raise
        finally:
            if not goes_on:
                # Not by closing alone: something that the pull's child has left behind may hold the descriptor, too.
                fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)
