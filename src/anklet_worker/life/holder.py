"""The lock that makes one process the holder of a service's state.

Owns the file `holder.lock`. Knows nothing about the files beside it.
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

#: Seconds for a killed holder to disappear.
_HOLDER_KILL_GRACE = 10.0


class Holder:
    """A lock on a service's state, held for the life of the worker process. The next worker waits for it, then kills its holder."""

    def __init__(self, service_dir: Path) -> None:
        """Raises `TemporaryError` when the directory cannot be made."""
        try:
            make_private_dir(service_dir)
        except OSError as error:
            raise TemporaryError(f"{service_dir} cannot be used: {error.strerror or error}") from error
        self._path = Place.HOLDER_LOCK.in_folder(service_dir)
        self._fd = -1

    def acquire(self, patience: float, wait: Callable[[float], None]) -> None:
        """Wait up to `patience` seconds for the lock, then kill the process that holds it. Raises `TemporaryError`.

        `wait` sleeps for some seconds; an order may end it with an exception.
        """
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise TemporaryError(f"{self._path} cannot be opened: {error.strerror}") from error
        if not (self._try_for(patience, wait) or self._end_holder_and_try(wait)):
            raise TemporaryError(f"another process holds {self._path} and could not be killed")
        me = psutil.Process()
        # On a full disk the worker goes on: its VM needs it. The next worker can then only wait for it, not kill it.
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{me.pid} {me.create_time()}\n".encode(), 0)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[bool]:
        """Hold the lock during the `with` block if it is free. The value says whether it is held. Raises `TemporaryError`."""
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
        """Kill the process named in the lock file, and try again.

        Pids are reused, so the process must also have the start time that is in the file.
        """
        try:
            pid, created = os.pread(self._fd, 100, 0).decode().split()
            process = psutil.Process(int(pid))
            if process.create_time() == float(created):
                process.kill()
        except (ValueError, psutil.Error):
            pass
        return self._try_for(_HOLDER_KILL_GRACE, wait)
