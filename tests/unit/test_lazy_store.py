"""The lazy store: it opens at first use, and reports an outage once for all parts of a worker."""

import contextlib
import logging

import pytest

from anklet_worker.contract.errors import RightsRefused, StoreUnavailable
from anklet_worker.store.board import StoreBoard
from anklet_worker.store.lazy_store import LazyStore, Outage
from anklet_worker.store.memory import MemoryStore

AWAY = "the claim store does not answer: taking no new jobs; running jobs continue"
BACK = "the claim store answers again"
ALL = {"claim", "renew", "release", "holder", "count", "post", "read"}


class Bench:
    """A lazy store, its clock, and the store that it opens, with the lease "k" and the note "k"."""

    def __init__(self):
        self.now = 0.0
        self.real = MemoryStore()
        self.real.claim("k", "holder", 3600.0)
        self.real.post("k", "note", 3600.0)
        self.real.shelf.before = self._on_call
        self.asked = 0
        #: Operations that fail, as during an outage.
        self.failing = set()
        self.problem = None
        self.opened = 0
        self.store = LazyStore(self.open, 60.0, logging.getLogger("lazy"), lambda: self.now, lambda: 0.0)

    def _on_call(self, operation):
        self.asked += 1
        if operation in self.failing:
            raise StoreUnavailable("no answer")

    def open(self):
        """Open the real store."""
        self.opened += 1
        if self.problem:
            raise self.problem
        return self.real


@pytest.fixture
def bench(caplog):
    """A bench with a working store."""
    caplog.set_level(logging.INFO)
    return Bench()


def test_it_is_opened_once_and_late(bench):
    """The store opens once, at first use."""
    assert bench.opened == 0
    assert bench.store.holder("k") == "holder"
    assert bench.store.read("k") == "note"
    assert bench.opened == 1
    bench.store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        bench.real.read("k")


@pytest.mark.parametrize("from_the_start", [True, False])
def test_an_outage_is_told_once_over_all_parts(bench, caplog, from_the_start):
    """An outage logs one WARN and one INFO, whatever part meets it; the next outage logs another WARN."""
    if from_the_start:
        bench.problem = StoreUnavailable("no answer")
    else:
        bench.store.open()
        bench.failing = ALL
    board = StoreBoard(bench.store, "me")
    for _ in range(20):
        bench.now += 3.0
        board.read("k")
        with pytest.raises(StoreUnavailable, match="no answer"):
            bench.store.claim("k", "me", 60)
        with pytest.raises(StoreUnavailable):
            bench.store.renew("k", "me", 60)
    assert [record.message for record in caplog.records] == [AWAY]
    bench.problem, bench.failing = None, set()
    bench.now += 60
    assert board.read("k") == "note"
    assert [record.message for record in caplog.records] == [AWAY, BACK]
    bench.failing = ALL
    board.read("k")
    assert [record.message for record in caplog.records] == [AWAY, BACK, AWAY]


def test_a_store_that_is_away_holds_nobody_up(bench):
    """During an outage calls fail at once, because a real call may take seconds; a retry follows a pause."""
    bench.failing = ALL
    for _ in range(50):
        with pytest.raises(StoreUnavailable):
            bench.store.read("k")
    assert bench.asked == 1
    bench.failing = set()
    bench.now += 1.0
    assert bench.store.read("k") == "note"


def test_a_refusal_is_no_outage(bench, caplog):
    """A refused login raises `RightsRefused` and logs no outage."""
    bench.problem = RightsRefused("user refused")
    with pytest.raises(RightsRefused):
        bench.store.open()
    assert caplog.records == []


@pytest.mark.parametrize(("ttl", "pauses"), [(60.0, [1, 2, 4, 8, 10, 10]), (6.0, [1, 1, 1, 1, 1, 1]), (3.0, [0.5] * 6)])
def test_pauses_grow_and_stay_short_beside_the_leases(ttl, pauses):
    """Pauses double, stay well below the leases' time to live, and have a jitter of a quarter."""
    for jitter in (0.0, 1.0):
        outage, now = Outage(ttl, lambda jitter=jitter: jitter), 0.0
        for pause in pauses:
            assert outage.begins(now) == (now == 0.0)
            now += pause * (1 + jitter / 4)
            assert outage.holds(now - 0.01)
            assert not outage.holds(now)
        assert (outage.ends(), outage.ends()) == (True, False)


def test_a_store_that_only_reads_stays_away(bench, caplog):
    """A store that answers only reads, as on a full disk, stays away; the outage is logged once."""
    bench.failing = {"claim", "count"}
    for _ in range(5):
        for question in (lambda: bench.store.read("k"), lambda: bench.store.claim("k", "o", 1.0)):
            bench.now += 100
            with contextlib.suppress(StoreUnavailable):
                question()
    assert [record.message for record in caplog.records] == [AWAY]
    bench.failing = set()
    bench.now += 100
    bench.store.read("k")
    assert [record.message for record in caplog.records] == [AWAY, BACK]
