"""Orders to a worker: what cuts a wait short, and what a shield holds off."""

import select
import threading
import time

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
