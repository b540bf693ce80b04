"""Orders to a worker: what cuts a wait short, and what a shield holds off."""

import contextlib
import gc
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from anklet_worker.contract.errors import Detached, Interrupted
from anklet_worker.process.orders import Orders

LONG = 30.0


def wait_in_thread(orders, result):
    """Wait long in a thread; `result` gets the name of what ended the wait."""

    def waiting():
        try:
            orders.wait(LONG)
        except (Interrupted, Detached) as error:
            result.append(type(error).__name__)
        else:
            result.append("slept")

    thread = threading.Thread(target=waiting)
    thread.start()
    return thread


@pytest.mark.parametrize(("order", "expected"), [("stop", "Interrupted"), ("detach", "Detached")])
def test_an_order_cuts_a_wait_short(order, expected):
    """A stop or a detach ends a wait at once, from another thread."""
    orders, result = Orders(), []
    began = time.monotonic()
    thread = wait_in_thread(orders, result)
    getattr(orders, order)()
    thread.join(LONG)
    assert result == [expected]
    assert time.monotonic() - began < LONG / 2


def test_a_drain_does_not_cut_a_wait_short():
    """Who drains finishes what is in hand: the wait lasts, and `draining` is seen."""
    orders = Orders()
    orders.drain()
    orders.wait(0.01)
    assert orders.draining
    assert not orders.stopping


def test_a_shield_holds_off_a_stop_but_not_a_detach():
    """Clean-up goes on after a stop; a supervisor that is gone still means let go."""
    orders = Orders()
    with orders.shield():
        orders.stop()
        orders.check()
        orders.wait(0.01)
        orders.detach()
        with pytest.raises(Detached):
            orders.check()
    with pytest.raises(Detached):
        orders.check()


def test_a_stop_is_felt_again_behind_the_shield():
    """The order is not forgotten while it is held off."""
    orders = Orders()
    orders.stop()
    with orders.shield():
        orders.check()
    with pytest.raises(Interrupted):
        orders.check()


def test_detach_wins_over_stop():
    """With both orders given, nothing more may be cleaned."""
    orders = Orders()
    orders.stop()
    orders.detach()
    with pytest.raises(Detached):
        orders.check()


def test_wake_fds_become_readable_and_stay_so():
    """A select on them returns at once after the order, every time."""
    orders = Orders()
    assert select.select(orders.wake_fds(), [], [], 0)[0] == []
    orders.stop()
    for _ in range(2):
        assert select.select(orders.wake_fds(), [], [], 0)[0]
    with orders.shield():
        assert select.select(orders.wake_fds(), [], [], 0)[0] == []


def test_wait_for_sees_a_condition_that_another_thread_makes_true():
    """`notify` wakes the waiter, which looks again."""
    orders, seen = Orders(), []
    thread = threading.Thread(target=lambda: seen.append(orders.wait_for(lambda: bool(facts), LONG)))
    facts = []
    thread.start()
    facts.append("granted")
    orders.notify()
    thread.join(LONG)
    assert seen == [True]


def test_wait_for_gives_up_at_its_deadline():
    """A condition that never holds is reported as such."""
    assert Orders().wait_for(lambda: False, 0.01) is False


# ---- signals ----

#: Felt at once, on a machine that has other things to do; far below every wait of these tests.
AT_ONCE = 2.0


@pytest.fixture
def signalled():
    """Orders to which SIGTERM is the order to detach."""
    handler = signal.getsignal(signal.SIGTERM)
    orders = Orders()
    orders.detach_at(signal.SIGTERM)
    yield orders
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, handler)


def test_a_signal_between_check_and_wait_ends_the_wait(signalled):
    """The condition is looked at after `check` and before the wait: a signal there must not be missed."""

    def signal_arrives():
        os.kill(os.getpid(), signal.SIGTERM)
        return False

    began = time.monotonic()
    with pytest.raises(Detached):
        signalled.wait_for(signal_arrives, LONG)
    assert time.monotonic() - began < AT_ONCE


@pytest.mark.parametrize("around", [contextlib.nullcontext, Orders.shield], ids=["anywhere", "clean-up"])
def test_a_signal_ends_a_wait_that_has_begun(signalled, around):
    """In clean-up, too."""
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    began = time.monotonic()
    with around(signalled), pytest.raises(Detached):
        signalled.wait(LONG)
    assert time.monotonic() - began < AT_ONCE


def test_a_signal_ends_a_wait_for_a_command(signalled):
    """Commands are waited for by select, on descriptors that were fetched before the signal."""
    fds = signalled.wake_fds()
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(2):
        assert select.select(fds, [], [], 0)[0]
    with pytest.raises(Detached):
        signalled.check()


#: A worker's main thread that does nothing but begin short waits, so that a signal often arrives right before one.
BUSY = """
import signal
from anklet_worker.contract.errors import Detached
from anklet_worker.process.orders import Orders
orders = Orders()
orders.detach_at(signal.SIGTERM)
print("ready", flush=True)
try:
    while True:
        for _ in range(50):
            orders.wait(0.00001)
        orders.wait(60)
except Detached:
    pass
"""


def test_no_signal_is_felt_late():
    """Signals at moments that nothing controls: each ends a process that begins waits of a minute among many short ones."""
    for number in range(20):
        with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE) as worker:
            assert worker.stdout.readline() == b"ready\n"
            for _ in range(number * 1000):
                """A different moment for each signal."""
            worker.terminate()
            assert worker.wait(10) == 0


def test_news_of_the_past_does_not_keep_a_wait_busy():
    """Every notice is read once, however many there are."""
    orders, looks = Orders(), []
    for _ in range(100_000):
        orders.notify()
    assert orders.wait_for(lambda: looks.append(1), 0.05) is False
    assert len(looks) < 5


def test_orders_that_nothing_uses_hold_no_descriptors():
    """Whoever makes many of them runs out of none."""
    before = len(list(Path("/dev/fd").iterdir()))
    for _ in range(50):
        Orders()
    gc.collect()
    assert len(list(Path("/dev/fd").iterdir())) <= before
