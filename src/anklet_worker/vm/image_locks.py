"""Who may pull and who may clone on this host, for all services together: file locks, one set per driver.

Two pulls never run at once, and nothing clones an image while it is pulled (Anka 3.9 damages both). The locks are flock'ed
files, so none outlives its holder. A pull's process inherits them: they last as long as the pull, even when its worker is gone.
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

#: Seconds after which a pull without its worker counts as hung. A worker would have ended it long before.
_OVERDUE = 3 * 3600.0
#: One byte each in the file of the pull lock. A worker that dies or detaches leaves a pull without its second mark.
_BEGUN, _ENDED = b".", b"e"


class PullHold(msgspec.Struct, frozen=True):
    """The right to pull: descriptors for the pull's process to inherit, and where that process is noted."""

    fds: list[int]
    path: Path

    def note(self, command: InFlight | None) -> None:
        """Note the pull's process; None when it has ended. Raises `OSError`."""
        if command is None:
            remove(self.path)
        else:
            write_atomically(self.path, msgspec.json.encode(command), durable=False)


class ImageLocks:
    """The locks in `folder`. An image is locked under each of its names. `now`: Unix seconds."""

    def __init__(self, folder: Path, now: Callable[[], float] = time.time) -> None:
        make_private_dir(folder)
        self._now = now
        self._folder = folder
        self._pull_path = Place.ANKA_PULL_LOCK.in_folder(folder)
        self._note_path = Place.ANKA_PULL_NOTE.in_folder(folder)

    def pull_marks(self) -> int:
        """A number that grows when a pull begins and when it ends on this host. A listing from before its last change may be
        stale."""
        try:
            return self._pull_path.stat().st_size
        except FileNotFoundError:
            return 0

    def pull_runs(self) -> bool:
        """True while a pull may be running on this host."""
        try:
            fd = os.open(self._pull_path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        try:
            size = os.fstat(fd).st_size
            return size > 0 and os.pread(fd, 1, size - 1) != _ENDED and not self._mark_lost_end(fd)
        except OSError:
            return True
        finally:
            os.close(fd)

    def _mark_lost_end(self, fd: int) -> bool:
        """The last pull has no end mark. Add it when nothing holds the pull lock any longer; False while the pull runs."""
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        os.write(fd, _ENDED)
        return True

    @contextmanager
    def cloning(self, *images: str) -> Iterator[None]:
        """Keep pulls away from the image. Raises `PullBusy` while one replaces it, `VMTransient` when the disk refuses."""
        with self._locked_images(images, fcntl.LOCK_SH, "is being pulled"):
            yield

    @contextmanager
    def pulling(self, *images: str) -> Iterator[PullHold]:
        """Keep all other pulls away, and clones away from the image. Raises `PullBusy`, `VMTransient` when the disk refuses."""
        self._end_overdue_pull()
        with (
            self._locked(self._pull_path, fcntl.LOCK_EX, "another pull runs on this host") as pull,
            self._locked_images(images, fcntl.LOCK_EX, "is being cloned") as own,
        ):
            try:
                os.write(pull, _BEGUN)
            except OSError as error:
                # Without the mark, others would trust a listing from before this pull.
                raise VMTransient(f"cannot write {self._pull_path}: {error.strerror}") from None
            try:
                yield PullHold([pull, *own], self._note_path)
            except Detached:
                raise
            except BaseException:
                self._mark_end(pull)
                raise
            self._mark_end(pull)

    def _mark_end(self, pull: int) -> None:
        """A disk that refuses the mark costs each job a second listing, until the next pull."""
        with contextlib.suppress(OSError):
            os.write(pull, _ENDED)

    def _end_overdue_pull(self) -> None:
        """A pull outlives the worker that started it. When it hangs then, only another worker can end it."""
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
            raise VMTransient(f"cannot open {path}: {error.strerror}") from None
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
                # Closing is not enough: a process that the pull has left behind may hold the descriptor too.
                fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)
