"""The orders that this worker has received: drain, stop or detach; and waits that end as soon as an order arrives.

Owns these flags and the descriptors that end a wait. Knows nothing of messages, VMs or jobs.

Three threads of execution meet here: the reader of the supervisor's pipe gives orders, a signal arrives at any moment, and the
main thread waits. Nothing here takes a lock, because a signal handler runs in the middle of whatever the main thread does. A flag
says what was ordered, and a byte in a pipe ends the wait.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from anklet_worker.contract.errors import Detached, Interrupted

#: Bytes read at once from the pipe of news; each stands for "look again".
_NEWS = 4096


class Orders:
    """Level-triggered orders. Drain lets the current job finish; stop interrupts it; detach leaves everything as it is.

    Orders only ever grow stronger. `check` and `wait` raise `Interrupted` after a stop, unless the caller is inside `shield`,
    and `Detached` after a detach, always. Any thread may give orders; only one thread at a time may wait.
    """

    def __init__(self) -> None:
        self._draining = False
        self._stopping = False
        self._detaching = False
        self._shields = 0
        # A byte in one of the first two stays there: so each later wait ends at once, too. The waiting thread reads the news.
        self._stop_pipe = _pipe()
        self._detach_pipe = _pipe()
        self._news_pipe = _pipe()
        # A worker's orders last as long as the process, and its exit closes the descriptors. Others must not use them up.
        closed = weakref.finalize(self, _close, (*self._stop_pipe, *self._detach_pipe, *self._news_pipe))
        closed.atexit = False

    @property
    def draining(self) -> bool:
        """True when no new job may be taken."""
        return self._draining or self._stopping or self._detaching

    @property
    def stopping(self) -> bool:
        """True after a stop."""
        return self._stopping

    @property
    def detach_fd(self) -> int:
        """A file descriptor that is readable from the moment of a detach on, even before the main thread knows of it."""
        return self._detach_pipe[0]

    def detach_at(self, number: signal.Signals) -> None:
        """Make this signal the order to detach. Call it once, in the main thread.

        A handler in Python runs only when the main thread is between two bytecodes. A signal that arrives just before a wait
        begins would therefore be handled after the wait. The interpreter itself writes to the wake-up descriptor as soon as the
        signal arrives, so the wait ends at once.
        """
        signal.set_wakeup_fd(self._detach_pipe[1], warn_on_full_buffer=False)
        signal.signal(number, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._detaching = True

    def drain(self) -> None:
        """Take no new job."""
        self._draining = True
        _write(self._news_pipe)

    def stop(self) -> None:
        """Interrupt the job and clean up."""
        self._stopping = True
        _write(self._stop_pipe)

    def detach(self) -> None:
        """Let go of everything."""
        self._detaching = True
        _write(self._detach_pipe)

    def notify(self) -> None:
        """End the pause in `wait_for`, because something that its condition looks at has changed."""
        _write(self._news_pipe)

    @contextmanager
    def shield(self) -> Iterator[None]:
        """Protect clean-up: a stop does not cut it short (each step has its own time limit); a detach does."""
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
        """Sleep for `seconds`. A stop or a detach ends it early, with the exception of `check`; a drain does not."""
        self.wait_for(lambda: False, seconds)

    def wait_for(self, condition: Callable[[], bool], seconds: float | None) -> bool:
        """Wait until `condition` holds, at most `seconds` (None: without limit). True when it held."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            # Read old news before looking at what it was about: news that arrives later ends the pause below.
            self._read_news()
            self.check()
            if condition():
                return True
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            self._pause(left)

    def _read_news(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self._news_pipe[0], _NEWS)) == _NEWS:
                pass

    def _pause(self, seconds: float | None) -> None:
        poll = select.poll()
        for fd in (*self.wake_fds(), self._news_pipe[0]):
            poll.register(fd, select.POLLIN)
        poll.poll(None if seconds is None else 1000 * seconds)

    def wake_fds(self) -> list[int]:
        """File descriptors that become readable (and stay so) when the caller must stop waiting: for select."""
        if self._shields:
            return [self.detach_fd]
        return [self.detach_fd, self._stop_pipe[0]]


def _close(fds: tuple[int, ...]) -> None:
    for fd in fds:
        os.close(fd)


def _pipe() -> tuple[int, int]:
    """A pipe whose ends never block: a full one already says what there is to say."""
    ends = os.pipe()
    for end in ends:
        os.set_blocking(end, False)
    return ends


def _write(pipe: tuple[int, int]) -> None:
    with contextlib.suppress(BlockingIOError):
        os.write(pipe[1], b"!")
