"""The lock that makes one process the holder of a service's state.

Owns `holder.lock`. Knows nothing of what stands beside it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from anklet_worker.contract.errors import TemporaryError
from anklet_worker.files import make_private_dir
from anklet_worker.state_layout import Place

#: Seconds that a killed holder may take to go.
_HOLDER_KILL_GRACE = 10.0


class Holder:
    """A lock on a service's state, held for the life of the worker process. A successor waits for it, then kills the holder."""

    def __init__(self, service_dir: Path) -> None:
        """Raises `TemporaryError` when there can be no such file."""
        try:
            make_private_dir(service_dir)
        except OSError as error:
            raise TemporaryError(f"{service_dir} cannot be used: {error.strerror or error}") from error
        self._path = Place.HOLDER_LOCK.in_folder(service_dir)
        self._fd = -1

    def acquire(self, patience: float, wait: Callable[[float], None]) -> None:
        """Take the lock within `patience` seconds, else end the process that holds it. Raises `TemporaryError`."""
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise TemporaryError(f"{self._path} cannot be opened: {error.strerror}") from error
        if not (self._try_for(patience, wait) or self._end_holder_and_try(wait)):
            raise TemporaryError(f"another process holds {self._path} and could not be ended")
        me = psutil.Process()
        # A full disk does not keep what runs from being looked after; a successor can then only wait for us.
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{me.pid} {me.create_time()}\n".encode(), 0)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[bool]:
        """Hold the lock for a while, if nobody has it: whether it is held. Raises `TemporaryError`."""
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise TemporaryError(f"{self._path} cannot be opened: {error.strerror}") from error
        try:
            yield self._try_for(0.0, time.sleep)
        finally:
            os.close(self._fd)

    def _try_for(self, seconds: float, wait: Callable[[float], None]) -> bool:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    return False
                wait(0.05)
            else:
                return True

    def _end_holder_and_try(self, wait: Callable[[float], None]) -> bool:
        """Pids are never compared alone: only the very process that wrote itself into the lock file is killed."""
        try:
            pid, created = os.pread(self._fd, 100, 0).decode().split()
            process = psutil.Process(int(pid))
            if process.create_time() == float(created):
                process.kill()
        except (ValueError, psutil.Error):
            pass
        return self._try_for(_HOLDER_KILL_GRACE, wait)
