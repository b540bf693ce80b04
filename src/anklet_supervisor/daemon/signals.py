"""The signals that are orders to the supervisor: from the system into the loop's inbox.

Owns the handlers, the wake-up descriptor and the thread that reads it. Does not know what a signal means.

A handler in Python runs in the main thread, and only between two bytecodes: a signal that arrives just before the loop begins to
wait, or in another thread, would be handled when the wait is over. The interpreter writes each signal's number to the wake-up
descriptor as soon as it arrives.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager


@contextmanager
def signals_heard(numbers: Collection[signal.Signals], hear: Callable[[signal.Signals], object]) -> Iterator[None]:
    """Call `hear` for each of these signals, also for those that were held back before. It runs in a thread.

    Afterwards they are ignored: a process that exits takes no more orders, and nothing must change its exit code.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    reader = threading.Thread(target=_read, args=(reading, hear), name="signals", daemon=True)
    # Started while the signals are still blocked, which it inherits: they are for the main thread.
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        reader.start()
    except BaseException:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
        raise
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in numbers:
        signal.signal(number, _leave_to_reader)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        os.close(writing)
        reader.join()
        os.close(reading)


def _leave_to_reader(*_: object) -> None:
    """Do nothing: the signal's number is in the pipe already."""


def _read(reading: int, hear: Callable[[signal.Signals], object]) -> None:
    while data := os.read(reading, 256):
        for number in data:
            hear(signal.Signals(number))
