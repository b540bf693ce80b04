"""The supervisor's inbox: nobody fills it."""

import threading

from stage import eventually

from anklet_supervisor.daemon import loop
from anklet_supervisor.daemon.loop import Loop
from anklet_supervisor.machine.events import Terminated, WorkerExited, WorkerSaid
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
