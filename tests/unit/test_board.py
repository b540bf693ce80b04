"""The board: turns, notes and counters that services share, and its behaviour during a store outage."""

from anklet_worker.contract.errors import StoreUnavailable
from anklet_worker.store.board import StoreBoard
from anklet_worker.store.memory import MemoryStore

KEY = "anklet:{octo/app}:queue:turn"


def test_services_take_turns():
    """One service has the turn until it passes it on, and the others see which one."""
    store = MemoryStore()
    one, other = StoreBoard(store, "one"), StoreBoard(store, "other")
    assert one.turn(KEY, 60)
    assert one.turn(KEY, 60)
    assert not other.turn(KEY, 60)
    assert other.holder(KEY) == "one"
    other.pass_on(KEY)
    assert not other.turn(KEY, 60)
    one.pass_on(KEY)
    assert other.turn(KEY, 60)


def test_notes_and_counters_are_shared():
    """Each service reads the others' notes and counters."""
    store = MemoryStore()
    one, other = StoreBoard(store, "one"), StoreBoard(store, "other")
    one.post("note", "text", 60)
    assert other.read("note") == "text"
    assert [one.count("n", 60), other.count("n", 60, 5), one.count("n", 60, 0)] == [1, 6, 6]


def refuse(operation):
    """Simulate an outage."""
    raise StoreUnavailable("away")


def test_a_store_that_is_away_is_an_empty_board():
    """Without a store, every service has the turn and finds things out for itself."""
    store = MemoryStore()
    store.shelf.before = refuse
    board = StoreBoard(store, "one")
    assert board.turn(KEY, 60)
    assert board.read("x") is None
    assert board.holder("x") is None
    assert board.count("x", 60) is None
    board.post("x", "y", 60)
    board.pass_on(KEY)
