"""The lease keeper: renewals in the background, outages, and leases that are lost."""

import logging
import threading
import time

import pytest

from anklet_worker.contract.errors import RightsRefused, StoreUnavailable
from anklet_worker.store.lease import LeaseKeeper, RenewalSchedule
from anklet_worker.store.memory import MemoryStore, Shelf

HERE, THERE = "host-a:builds", "host-b:builds"
AWAY = StoreUnavailable("no answer")
#: Of the keeper's own threads: short enough to see several renewals in a test.
TTL = 0.15


def eventually(condition, patience=10.0):
    """Wait until the condition holds and return its value."""
    deadline = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)
    return value


class Watched(MemoryStore):
    """A store whose leases never expire, since its clock stands still; counts calls, can fail them, and can hold renewals back."""

    def __init__(self):
        super().__init__(Shelf(clock=lambda: 0.0))
        self.shelf.before = self._on_call
        self.renewals = []
        self.fault = None
        self.questions = 0
        self.gate = threading.Event()
        self.gate.set()
        self.at_gate = threading.Event()

    def _on_call(self, operation):
        if operation == "renew":
            self.at_gate.set()
            self.gate.wait(10)
        self.questions += 1
        if self.fault:
            raise self.fault

    def renew(self, key, owner, ttl):
        """Note each renewal that reaches the data."""
        answer = super().renew(key, owner, ttl)
        self.renewals.append((key, owner, ttl))
        return answer

    @property
    def leases(self):
        """The owner of each lease."""
        return {key: entry.value for key, entry in dict(self.shelf.leases).items()}

    def give_to(self, key, owner):
        """Give a lease to another owner, regardless of its holder."""
        del self.shelf.leases[key]
        self.claim(key, owner, TTL)

    def forget(self, key):
        """Lose a lease, as a restarted Redis does."""
        del self.shelf.leases[key]


@pytest.fixture
def store():
    """A store that records its calls."""
    return Watched()


@pytest.fixture
def keeper(store, caplog):
    """A keeper of short leases; its log is in `caplog`."""
    caplog.set_level(logging.DEBUG)
    keeper = LeaseKeeper(store, HERE, TTL, logging.getLogger("keeper"))
    yield keeper
    store.gate.set()
    keeper.close()
    assert "lease-keeper" not in {thread.name for thread in threading.enumerate()}


def lines(caplog, level):
    """Messages logged at a level."""
    return [record.message for record in caplog.records if record.levelno == level]


def test_a_taken_lease_is_renewed_by_itself(store, keeper):
    """A taken lease is renewed repeatedly in the background."""
    assert keeper.take("job") is True
    eventually(lambda: len(store.renewals) >= 4)
    assert set(store.renewals) == {("job", HERE, TTL)}
    assert keeper.lost("job") is False


def test_every_lease_is_renewed(store, keeper):
    """A lease taken while another is held is renewed too."""
    keeper.take("one")
    eventually(lambda: store.renewals)
    keeper.take("two")
    eventually(lambda: {key for key, _, _ in store.renewals} == {"one", "two"})


def test_a_lease_of_another_is_not_taken(store, keeper):
    """A refused claim is neither renewed nor lost."""
    store.claim("job", THERE, TTL)
    assert keeper.take("job") is False
    assert keeper.lost("job") is False
    keeper.take("mine")
    eventually(lambda: len(store.renewals) >= 3)
    assert {key for key, _, _ in store.renewals} == {"mine"}


def test_giving_back_releases_and_ends_renewals(store, keeper):
    """A lease that was given back is free at once and is no longer renewed."""
    keeper.take("job")
    keeper.take("other")
    eventually(lambda: len(store.renewals) >= 2)
    assert keeper.give_back("job") is True
    assert "job" not in store.leases
    store.renewals.clear()
    eventually(lambda: len(store.renewals) >= 3)
    assert {key for key, _, _ in store.renewals} == {"other"}
    assert keeper.give_back("job") is False


def test_a_renewal_under_way_does_not_bring_back_a_released_lease(store, keeper):
    """Giving back waits for a renewal that has begun, so that its outcome cannot undo the release."""
    store.gate.clear()
    keeper.take("job")
    assert store.at_gate.wait(10)
    giver = threading.Thread(target=keeper.give_back, args=("job",))
    giver.start()
    assert keeper.lost("job") is False, "`lost` answers also while the store is being asked"
    giver.join(0.05)
    store.gate.set()
    giver.join(10)
    assert store.leases == {}
    keeper.take("other")
    eventually(lambda: ("other", HERE, TTL) in store.renewals)
    assert store.leases == {"other": HERE}


def test_nothing_held_nothing_asked(store, keeper):
    """The keeper's thread sleeps while no lease is held, and wakes for the next one."""
    keeper.take("job")
    eventually(lambda: store.renewals)
    keeper.give_back("job")
    asked = store.questions
    began = time.monotonic()
    eventually(lambda: time.monotonic() > began + 3 * TTL)
    assert store.questions == asked
    store.renewals.clear()
    keeper.take("next")
    eventually(lambda: ("next", HERE, TTL) in store.renewals)


def test_a_lease_taken_by_another_is_lost(store, keeper, caplog):
    """A lease that another owner has taken is reported once, and the other owner keeps it."""
    keeper.take("job")
    store.give_to("job", THERE)
    eventually(lambda: keeper.lost("job"))
    eventually(lambda: lines(caplog, logging.WARNING))
    assert lines(caplog, logging.WARNING) == ["lost a claim to another owner"]
    assert caplog.records[-1].holder == THERE
    assert keeper.give_back("job") is False
    assert store.leases == {"job": THERE}
    assert keeper.lost("job") is False


def test_a_lease_that_ended_unnoticed_is_taken_again(store, keeper, caplog):
    """An expired lease is taken again if it is still free, without a warning."""
    keeper.take("job")
    store.forget("job")
    eventually(lambda: store.leases == {"job": HERE})
    eventually(lambda: "a claim had expired and was taken again" in lines(caplog, logging.INFO))
    assert keeper.lost("job") is False
    assert lines(caplog, logging.WARNING) == []


def test_a_lost_lease_can_be_taken_again_when_it_is_free(store, keeper):
    """A lost lease can be taken again."""
    keeper.take("job")
    store.give_to("job", THERE)
    eventually(lambda: keeper.lost("job"))
    assert keeper.take("job") is False
    store.forget("job")
    assert keeper.take("job") is True
    assert keeper.lost("job") is False


def test_an_outage_loses_no_lease(store, keeper, caplog):
    """Renewals are retried during an outage and continue after it; only the store logs the outage."""
    keeper.take("job")
    store.fault = AWAY
    asked = store.questions
    eventually(lambda: store.questions >= asked + 4)
    assert keeper.lost("job") is False
    store.renewals.clear()
    store.fault = None
    eventually(lambda: store.renewals)
    assert lines(caplog, logging.WARNING) == []


def test_taking_during_an_outage_raises_and_holds_nothing(store, keeper):
    """A claim during an outage raises, and nothing is held."""
    store.fault = AWAY
    with pytest.raises(StoreUnavailable):
        keeper.take("job")
    store.fault = None
    keeper.take("other")
    eventually(lambda: len(store.renewals) >= 3)
    assert {key for key, _, _ in store.renewals} == {"other"}


def test_a_lease_given_back_during_an_outage_is_released_when_it_is_over(store, keeper):
    """Giving back does not wait for the store; the lease is released as soon as the store answers."""
    keeper.take("job")
    store.fault = AWAY
    assert keeper.give_back("job") is False
    store.renewals.clear()
    store.fault = None
    eventually(lambda: store.leases == {})
    assert store.renewals == []
    keeper.take("job")
    eventually(lambda: store.renewals)


def test_a_store_that_refuses_us_does_not_hinder_giving_back(store, keeper, caplog):
    """A refused login does not stop a clean-up; the lease is released after the refusal ends, and no bug is reported."""
    keeper.take("job")
    store.fault = RightsRefused("wrong password")
    assert keeper.give_back("job") is False
    asked = store.questions
    eventually(lambda: store.questions > asked)
    store.fault = None
    eventually(lambda: store.leases == {})
    assert lines(caplog, logging.ERROR) == []


def test_a_lease_of_an_earlier_process_is_released_late_too(store, keeper):
    """A lease of an earlier process, given back during an outage, is released when the store answers."""
    store.claim("job", HERE, TTL)
    store.fault = AWAY
    assert keeper.give_back("job") is False
    store.fault = None
    eventually(lambda: store.leases == {})


class Clocks:
    """The two clocks of a host. The test moves them."""

    def __init__(self):
        self.mono = self.wall = 1000.0

    def __call__(self):
        """Seconds of both clocks."""
        return self.mono, self.wall

    def pass_on(self, seconds):
        """Advance both clocks."""
        self.mono += seconds
        self.wall += seconds


@pytest.fixture
def clocks():
    """Clocks that the test moves."""
    return Clocks()


@pytest.fixture
def slow_keeper(store, clocks, caplog):
    """A keeper without its thread, whose leases live for an hour: only the test calls the store."""
    caplog.set_level(logging.DEBUG)
    keeper = LeaseKeeper(store, HERE, 3600.0, logging.getLogger("keeper"), clocks)
    keeper.close()
    return keeper


def test_a_lease_that_was_renewed_in_time_is_beyond_doubt(store, slow_keeper, clocks):
    """A lease renewed in time is certain, without a call to the store."""
    slow_keeper.take("job")
    clocks.pass_on(3599)
    asked = store.questions
    assert slow_keeper.may_have_been_lost("job") is False
    assert store.questions == asked


@pytest.mark.parametrize("clock", ["mono", "wall"])
def test_a_process_that_stood_still_asks_the_store(store, slow_keeper, clocks, clock):
    """After hours of standstill, seen by either clock, the store decides whether the lease is still held."""
    slow_keeper.take("job")
    setattr(clocks, clock, getattr(clocks, clock) + 7200)
    assert slow_keeper.may_have_been_lost("job") is False
    assert len(store.renewals) == 1
    store.give_to("job", THERE)
    setattr(clocks, clock, getattr(clocks, clock) + 7200)
    assert slow_keeper.may_have_been_lost("job") is True
    assert slow_keeper.lost("job") is True


def test_a_lease_that_had_lapsed_stays_in_doubt(store, slow_keeper, clocks):
    """A lease that expired and was taken again stays in doubt: another owner may have held it in between."""
    slow_keeper.take("job")
    store.forget("job")
    clocks.pass_on(7200)
    assert slow_keeper.may_have_been_lost("job") is True
    assert slow_keeper.lost("job") is False
    assert slow_keeper.may_have_been_lost("job") is True


def test_a_lease_that_cannot_be_renewed_is_in_doubt(store, slow_keeper, clocks):
    """A lease that cannot be renewed is in doubt once its time to live is over."""
    slow_keeper.take("job")
    store.fault = AWAY
    assert slow_keeper.may_have_been_lost("job") is False
    clocks.pass_on(3600)
    assert slow_keeper.may_have_been_lost("job") is True
    assert slow_keeper.lost("job") is False


def test_a_bug_in_the_store_does_not_end_renewals(store, keeper, caplog):
    """An unexpected exception is logged as a bug, and the thread continues."""
    keeper.take("job")
    store.fault = RuntimeError("no such thing")
    eventually(lambda: "bug: could not renew claims" in lines(caplog, logging.ERROR))
    store.fault = None
    store.renewals.clear()
    eventually(lambda: len(store.renewals) >= 2)


def test_closing_leaves_what_is_held(store, keeper):
    """A keeper that ends releases nothing: the next process of the same owner adopts it."""
    keeper.take("job")
    keeper.close()
    keeper.close()
    assert store.leases == {"job": HERE}


def test_the_schedule_renews_each_third_of_the_time_to_live():
    """The first lease sets the time of the next round; later ones do not put it off."""
    schedule = RenewalSchedule(60)
    assert schedule.pause(100) is None
    schedule.taken(100)
    schedule.taken(110)
    assert [schedule.pause(110), schedule.pause(120), schedule.pause(500)] == [10, 0, 0]
    schedule.renewed(121)
    assert schedule.pause(121) == 20
    schedule.idle()
    assert schedule.pause(121) is None


def test_the_schedule_backs_off_while_the_store_is_away():
    """Pauses double from one second up to the usual interval, and start again after an outage."""
    schedule = RenewalSchedule(60)
    schedule.taken(0)
    pauses, now = [], 20.0
    for _ in range(7):
        schedule.failed(now)
        pauses.append(schedule.pause(now))
        now += pauses[-1]
    assert pauses == [1, 2, 4, 8, 16, 20, 20]
    schedule.renewed(now)
    assert schedule.pause(now) == 20
    schedule.failed(now + 20)
    assert schedule.pause(now + 20) == 1
