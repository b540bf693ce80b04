"""The supervisor's inbox: a talkative worker does not fill it, and signals reach it at once."""

import queue
import signal
import threading
import types

import pytest
from stage import eventually

from anklet_supervisor.daemon import loop
from anklet_supervisor.daemon.loop import Loop
from anklet_supervisor.daemon.signals import signals_heard
from anklet_supervisor.machine.events import StartPutOff, Terminated, WorkerExited, WorkerSaid
from anklet_worker.contract.errors import TemporaryError
from anklet_worker.link import messages as m

FACT = WorkerSaid("RUNNER1", m.LeaseLost())


def test_a_worker_that_talks_without_end_waits_and_a_signal_does_not(monkeypatch):
    """Nothing of what it says is lost, and nothing of the memory; its end is heard of in any case."""
    monkeypatch.setattr(loop, "_MOST_WAITING", 10)
    supervisor = Loop(None, None, None, None)
    inbox = supervisor._inbox
    talker = threading.Thread(target=lambda: [supervisor._hear(FACT) for _ in range(25)], daemon=True)
    talker.start()
    eventually(lambda: inbox.qsize() == 10, "it waits", 5)
    talker.join(0.1)
    assert talker.is_alive()
    assert inbox.qsize() == 10
    supervisor._hear(WorkerExited("RUNNER2", 0))
    inbox.put(Terminated())
    heard = [inbox.get(timeout=5) for _ in range(27)]
    assert heard.count(FACT) == 25
    assert heard.index(Terminated()) <= 11


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_that_another_thread_takes_ends_the_wait(number):
    """The system may give a signal to any thread; a handler would then run after the wait of the main thread."""
    before = {one: signal.getsignal(one) for one in loop._SIGNALS}
    inbox, done = queue.SimpleQueue(), threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    try:
        with signals_heard(loop._SIGNALS, inbox.put):
            later = threading.Timer(0.05, signal.pthread_kill, (other.ident, number))
            later.start()
            assert inbox.get(timeout=5) is number
            later.join()
    finally:
        done.set()
        for one, handler in before.items():
            signal.signal(one, handler)


def test_signals_that_were_held_back_are_heard():
    """Those that came between the lock and the first turn."""
    before = {one: signal.getsignal(one) for one in loop._SIGNALS}
    inbox = queue.SimpleQueue()
    signal.pthread_sigmask(signal.SIG_BLOCK, loop._SIGNALS)
    try:
        signal.pthread_kill(threading.get_ident(), signal.SIGHUP)
        with signals_heard(loop._SIGNALS, inbox.put):
            assert inbox.get(timeout=5) is signal.SIGHUP
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, loop._SIGNALS)
        for one, handler in before.items():
            signal.signal(one, handler)


def test_no_worker_of_another_version_is_started(monkeypatch):
    """Pip has replaced the files: the service is put off, with a reason that says what to do."""

    def replaced():
        raise TemporaryError("version 2 is installed, but version 1 runs; restart the supervisor")

    monkeypatch.setattr(loop, "INSTALLATION", types.SimpleNamespace(require_unchanged=replaced))
    supervisor = Loop(None, None, None, None)
    supervisor._start("RUNNER1")
    event = supervisor._inbox.get(timeout=5)
    assert event == StartPutOff("RUNNER1", "version 2 is installed, but version 1 runs; restart the supervisor")
    assert supervisor._processes == {}
