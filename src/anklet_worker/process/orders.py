"""What this worker has been ordered to do: go on, drain, stop, or detach; and waits that such an order cuts short.

Owns the one piece of state that the pipe's reader thread and the signal handler write and everybody else reads. Knows nothing of
messages, VMs or jobs.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from anklet_worker.contract.errors import Detached, Interrupted


class Orders:
    """Level-triggered orders. Drain lets the current job finish; stop interrupts it; detach leaves everything as it is.

    Orders only ever grow stronger. `check` and `wait` raise `Interrupted` after a stop, unless the caller is inside `shield`,
    and `Detached` after a detach, always.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.RLock())
        self._draining = False
        self._stopping = False
        self._detaching = False
        self._shields = 0
        self._stop_pipe = os.pipe()
        self._detach_pipe = os.pipe()

    @property
    def draining(self) -> bool:
        """True when no new job may be taken."""
        return self._draining or self._stopping or self._detaching

    @property
    def stopping(self) -> bool:
        """True after a stop."""
        return self._stopping

    def drain(self) -> None:
        """Take no new job."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Interrupt the job and clean up."""
        with self._changed:
            if not self._stopping:
                self._stopping = True
                os.write(self._stop_pipe[1], b"s")
            self._changed.notify_all()

    def detach(self) -> None:
        """Let go of everything; safe to call from a signal handler of the main thread (the lock is re-entrant)."""
        with self._changed:
            if not self._detaching:
                self._detaching = True
                os.write(self._detach_pipe[1], b"d")
            self._changed.notify_all()

    def notify(self) -> None:
        """Wake whoever waits in `wait_for`, because something that its condition looks at has changed."""
        with self._changed:
            self._changed.notify_all()

    @contextmanager
    def shield(self) -> Iterator[None]:
        """Clean-up runs in here: a stop does not cut it short (each step is bounded in time by itself); a detach does."""
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1

    def check(self) -> None:
        """Raise `Detached` or `Interrupted` if ordered so."""
        if self._detaching:
            raise Detached("detached from the supervisor")
        if self._stopping and not self._shields:
            raise Interrupted("stopped")

    def wait(self, seconds: float) -> None:
        """Sleep for `seconds`, unless an order cuts it short (a drain does not)."""
        self.wait_for(lambda: False, seconds)

    def wait_for(self, condition: Callable[[], bool], seconds: float | None) -> bool:
        """Wait until `condition` holds, at most `seconds` (None: without limit). True when it held."""
        deadline = None if seconds is None else time.monotonic() + seconds
        with self._changed:
            while True:
                self.check()
                if condition():
                    return True
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._changed.wait(left)

    def wake_fds(self) -> list[int]:
        """File descriptors that become readable (and stay so) when the caller's wait is to be cut short: for select."""
        fds = [self._detach_pipe[0]]
        if not self._shields:
            fds.append(self._stop_pipe[0])
        return fds
