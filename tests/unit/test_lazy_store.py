"""The store as all parts of a worker see it: opened late, away for all of them at once, told once."""

import contextlib
import logging

import pytest

from anklet_worker.contract.errors import RightsRefused, StoreUnavailable
from anklet_worker.store.board import StoreBoard
from anklet_worker.store.lazy_store import LazyStore, Outage

AWAY = "the store of claims does not answer; no new job is taken, those that run go on"
BACK = "the store of claims answers again"


class Store:
    """Answers, or not, and counts the questions."""

    def __init__(self):
        self.asked = 0
        self.away = False
        self.closed = False

    def __getattr__(self, name):
        def ask(*_):
            self.asked += 1
            if self.away:
                raise StoreUnavailable("no answer")
            return f"{name} answered"

        return ask

    def close(self):
        """See `Store.close`."""
        self.closed = True


class Bench:
    """A lazy store, its clock, and what it opens."""

    def __init__(self):
        self.now = 0.0
        self.real = Store()
        self.problem = None
        self.opened = 0
        self.store = LazyStore(self.open, 60.0, logging.getLogger("lazy"), lambda: self.now, lambda: 0.0)

    def open(self):
        """Open the real one."""
        self.opened += 1
        if self.problem:
            raise self.problem
        return self.real


@pytest.fixture
def bench(caplog):
    """A fresh one."""
    caplog.set_level(logging.INFO)
    return Bench()


def test_it_is_opened_once_and_late(bench):
    """When it is first needed."""
    assert bench.opened == 0
    assert bench.store.holder("k") == "holder answered"
    assert bench.store.read("k") == "read answered"
    assert bench.opened == 1
    bench.store.close()
    assert bench.real.closed


@pytest.mark.parametrize("from_the_start", [True, False])
def test_an_outage_is_told_once_over_all_parts(bench, caplog, from_the_start):
    """Claims, renewals, the board: one WARN, and one INFO when it is over; then another outage is another WARN."""
    if from_the_start:
        bench.problem = StoreUnavailable("no answer")
    else:
        bench.store.open()
        bench.real.away = True
    board = StoreBoard(bench.store, "me")
    for _ in range(20):
        bench.now += 3.0
        board.read("k")
        with pytest.raises(StoreUnavailable, match="no answer"):
            bench.store.claim("k", "me", 60)
        with pytest.raises(StoreUnavailable):
            bench.store.renew("k", "me", 60)
    assert [record.message for record in caplog.records] == [AWAY]
    bench.problem, bench.real.away = None, False
    bench.now += 60
    assert board.read("k") == "read answered"
    assert [record.message for record in caplog.records] == [AWAY, BACK]
    bench.real.away = True
    board.read("k")
    assert [record.message for record in caplog.records] == [AWAY, BACK, AWAY]


def test_a_store_that_is_away_holds_nobody_up(bench):
    """Each question could take seconds to fail: it is asked again after a pause, not with each one."""
    bench.real.away = True
    for _ in range(50):
        with pytest.raises(StoreUnavailable):
            bench.store.read("k")
    assert bench.real.asked == 1
    bench.real.away = False
    bench.now += 1.0
    assert bench.store.read("k") == "read answered"


def test_a_refusal_is_no_outage(bench, caplog):
    """It is an operator's business, and told as such."""
    bench.problem = RightsRefused("user refused")
    with pytest.raises(RightsRefused):
        bench.store.open()
    assert caplog.records == []


@pytest.mark.parametrize(("ttl", "pauses"), [(60.0, [1, 2, 4, 8, 10, 10]), (6.0, [1, 1, 1, 1, 1, 1]), (3.0, [0.5] * 6)])
def test_pauses_grow_and_stay_short_beside_the_leases(ttl, pauses):
    """A lease must be renewed in time when the store is back; up to a quarter more keeps hosts from coming all at once."""
    for jitter in (0.0, 1.0):
        outage, now = Outage(ttl, lambda jitter=jitter: jitter), 0.0
        for pause in pauses:
            assert outage.begins(now) == (now == 0.0)
            now += pause * (1 + jitter / 4)
            assert outage.holds(now - 0.01)
            assert not outage.holds(now)
        assert (outage.ends(), outage.ends()) == (True, False)


def test_a_store_that_only_reads_stays_away(bench, caplog):
    """On a full disk reading still works: that ends no outage, and one that lasts is told once."""

    def full(*_):
        raise StoreUnavailable("disk is full")

    bench.real.claim = bench.real.count = full
    for _ in range(5):
        for question in (lambda: bench.store.read("k"), lambda: bench.store.claim("k", "o", 1.0)):
            bench.now += 100
            with contextlib.suppress(StoreUnavailable):
                question()
    assert [record.message for record in caplog.records] == [AWAY]
    del bench.real.claim, bench.real.count
    bench.now += 100
    bench.store.read("k")
    assert [record.message for record in caplog.records] == [AWAY, BACK]
