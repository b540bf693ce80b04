"""One worker's process, as the supervisor sees it: whatever it does, its end is heard of."""

import queue
import threading
import time
import types

import psutil
import pytest

from anklet_supervisor.daemon import process
from anklet_supervisor.daemon.process import WorkerProcess
from anklet_supervisor.machine.events import WorkerExited, WorkerStarted
from anklet_worker.link import messages as m

SETUP = types.SimpleNamespace(service=types.SimpleNamespace(name="RUNNER1"))

#: A worker that is wedged, and one that has nothing to do: programs in place of the worker's.
NEVER_READS = ("-c", "import time; time.sleep(600)")
ENDS_AT_ONCE = ("-c", "")


@pytest.fixture
def heard():
    """What the inbox gets."""
    return queue.Queue()


def test_a_worker_that_never_reads_is_killed_and_its_end_is_heard_of(heard, monkeypatch):
    """Commands that nobody took must not keep the supervisor from learning that it is gone."""
    monkeypatch.setattr(process, "_PROGRAM", NEVER_READS)
    worker = WorkerProcess(SETUP, heard.put, lambda _line: None)
    assert isinstance(heard.get(timeout=10), WorkerStarted)
    end = time.monotonic() + 30
    while heard.empty():
        assert time.monotonic() < end, "its end was not heard of"
        worker.tell(m.LogLevel(level="INFO"))
    assert heard.get() == WorkerExited("RUNNER1", -9)


def test_an_order_that_crosses_the_end_goes_nowhere(heard, monkeypatch):
    """The loop may still have orders for a worker whose end it has not yet heard of."""
    monkeypatch.setattr(process, "_PROGRAM", ENDS_AT_ONCE)
    worker = WorkerProcess(SETUP, heard.put, lambda _line: None)
    assert isinstance(heard.get(timeout=10), WorkerStarted)
    assert heard.get(timeout=30) == WorkerExited("RUNNER1", 0)
    worker.tell(m.Drain())
    worker.detach()
    worker.kill()


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_a_system_without_threads_is_a_refusal_and_leaves_no_process(heard, monkeypatch, threads):
    """As when it has no process for us: the supervisor goes on, and tries again later."""
    monkeypatch.setattr(process, "_PROGRAM", NEVER_READS)
    allowed = iter(range(threads))
    start = threading.Thread.start

    def start_if_allowed(thread):
        if next(allowed, None) is None:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_if_allowed)
    with pytest.raises(BlockingIOError):
        WorkerProcess(SETUP, heard.put, lambda _line: None)
    started = heard.get(timeout=10)
    assert not psutil.pid_exists(started.pid)
    assert heard.empty()
