"""What services tell each other through a store, and the silence when it is away."""

from anklet_worker.contract.errors import StoreUnavailable
from anklet_worker.store.board import StoreBoard
from anklet_worker.store.store import SqliteStore

KEY = "anklet:{octo/app}:queue:turn"


def test_services_take_turns(tmp_path):
    """One has it until it passes it on; others see who."""
    store = SqliteStore(tmp_path / "leases.db", "boot")
    one, other = StoreBoard(store, "one"), StoreBoard(store, "other")
    assert one.turn(KEY, 60)
    assert one.turn(KEY, 60)
    assert not other.turn(KEY, 60)
    assert other.holder(KEY) == "one"
    other.pass_on(KEY)
    assert not other.turn(KEY, 60)
    one.pass_on(KEY)
    assert other.turn(KEY, 60)
    store.close()


def test_notes_and_counters_are_everybodys(tmp_path):
    """What one posts the others read."""
    store = SqliteStore(tmp_path / "leases.db", "boot")
    one, other = StoreBoard(store, "one"), StoreBoard(store, "other")
    one.post("note", "text", 60)
    assert other.read("note") == "text"
    assert [one.count("n", 60), other.count("n", 60, 5), one.count("n", 60, 0)] == [1, 6, 6]
    store.close()


class Away:
    """A store that does not answer."""

    def __getattr__(self, name):
        def ask(*_):
            raise StoreUnavailable("away")

        return ask


def test_a_store_that_is_away_is_an_empty_board():
    """Everyone has the turn and finds out for himself."""
    board = StoreBoard(Away(), "one")
    assert board.turn(KEY, 60)
    assert board.read("x") is None
    assert board.holder("x") is None
    assert board.count("x", 60) is None
    board.post("x", "y", 60)
    board.pass_on(KEY)
