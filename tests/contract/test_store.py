"""The contract of `Store`, held by every implementation: embedded, Redis and memory."""

import logging
import multiprocessing
import threading
import time

import pytest

from anklet_worker.contract.errors import StoreUnavailable
from anklet_worker.contract.service import Database
from anklet_worker.contract.settings import Secret
from anklet_worker.store.memory import MemoryStore, Shelf
from anklet_worker.store.store import open_store as open_as_configured

KEY = "anklet:{octo/app}:claim:4711"
TRIES = "anklet:{octo/app}:attempts:4711"
NOTE = "anklet:{octo/app}:queue"
HERE, THERE = "host-a:builds", "host-b:builds"
LOG = logging.getLogger("store")
LONG, SHORT = 60.0, 0.15
#: Short enough to wait for, long enough to act in, on a busy machine.
BRIEF = 1.0
RACERS, ROUNDS = 4, 25


def eventually(condition, patience=10.0):
    """Wait until the condition holds, and return its value."""
    deadline = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
    return value


class Configured:
    """A store that a configuration selects and that several processes share."""

    def open(self):
        """Open the store, as a worker does."""
        return open_as_configured(self.database, self.directory, "contract", "boot", LOG)


class SqliteBackend(Configured):
    """The embedded store, in a directory that an outage renames."""

    def __init__(self, directory):
        self.directory = directory
        self.database = Database()

    def outage(self):
        """Rename the directory."""
        self.directory.rename(self.directory.with_name("away"))

    def mend(self):
        """Rename it back."""
        self.directory.with_name("away").rename(self.directory)


class MemoryBackend:
    """The store in memory. An outage fails each operation; opening needs no server and succeeds."""

    def __init__(self):
        self.shelf = Shelf()
        self._allow = self.shelf.before

    def open(self):
        """Open one more store on the same data."""
        return MemoryStore(self.shelf)

    def outage(self):
        """Let each operation fail."""
        self.shelf.before = _refuse

    def mend(self):
        """Let operations pass again."""
        self.shelf.before = self._allow


def _refuse(operation):
    raise StoreUnavailable(f"no {operation} now")


class RedisBackend(Configured):
    """The store on a real Redis that requires user and password."""

    def __init__(self, server, directory):
        self.server = server
        self._let_in()
        self.directory = directory
        password = Secret("hunter2-hunter2")
        self.database = Database(enabled=True, host=server.host, port=server.port, user="supervisor", password=password)

    def _let_in(self):
        with self.server.client() as client:
            client.acl_setuser(
                "supervisor",
                enabled=True,
                passwords=["+hunter2-hunter2"],
                keys=["anklet:*"],
                commands=[
                    "+ping",
                    "+get",
                    "+set",
                    "+del",
                    "+incrby",
                    "+pexpire",
                    "+evalsha",
                    "+script|load",
                    "+client|setname",
                ],
            )

    def outage(self):
        """Kill the server."""
        self.server.stop()

    def mend(self):
        """Start it again."""
        self.server.start()
        self._let_in()


@pytest.fixture(params=["sqlite", "redis", "memory"])
def backend(request, tmp_path):
    """A backend of each kind, empty."""
    if request.param == "memory":
        return MemoryBackend()
    directory = tmp_path / "state"
    directory.mkdir()
    if request.param == "sqlite":
        return SqliteBackend(directory)
    return RedisBackend(request.getfixturevalue("redis_server"), directory)


@pytest.fixture
def open_store(backend):
    """Open one more store on the same data, as another process does. Closed after the test."""
    opened = []

    def open_one():
        opened.append(backend.open())
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store):
    """One open store."""
    return open_store()


def test_a_free_lease_is_had_and_shows_its_holder(store):
    """A claim on a free key succeeds, and the store names its holder."""
    assert store.holder(KEY) is None
    assert store.claim(KEY, HERE, LONG) is True
    assert store.holder(KEY) == HERE


def test_a_held_lease_is_refused_to_others(store, open_store):
    """Another owner cannot claim a held lease, through this store or another one."""
    store.claim(KEY, HERE, LONG)
    assert store.claim(KEY, THERE, LONG) is False
    assert open_store().claim(KEY, THERE, LONG) is False
    assert store.holder(KEY) == HERE


def test_leases_do_not_touch_each_other(store):
    """Keys are independent, even if one is a prefix of the other."""
    assert store.claim(KEY, HERE, LONG)
    assert store.claim(f"{KEY}1", THERE, LONG)
    assert store.release(KEY, HERE)
    assert store.holder(f"{KEY}1") == THERE


def test_a_second_claim_by_the_owner_renews(store):
    """Claiming a lease that the owner already holds succeeds and restarts its time to live."""
    store.claim(KEY, HERE, SHORT)
    assert store.claim(KEY, HERE, LONG) is True
    began = time.monotonic()
    eventually(lambda: time.monotonic() > began + 2 * SHORT)
    assert store.holder(KEY) == HERE


def test_a_lease_outlives_its_process(store, open_store):
    """Closing a store releases nothing: the next process of the same owner has the lease."""
    store.claim(KEY, HERE, LONG)
    store.close()
    heir = open_store()
    assert heir.holder(KEY) == HERE
    assert heir.renew(KEY, HERE, LONG) is True


def test_an_expired_lease_is_free(store):
    """After its time to live a lease has no holder, and any owner can claim it."""
    store.claim(KEY, HERE, SHORT)
    eventually(lambda: store.holder(KEY) is None)
    assert store.claim(KEY, THERE, LONG) is True
    assert store.holder(KEY) == THERE


def test_renewal_keeps_a_lease_alive(store):
    """A renewed lease outlives its first time to live."""
    store.claim(KEY, HERE, BRIEF)
    assert store.renew(KEY, HERE, LONG) is True
    began = time.monotonic()
    eventually(lambda: time.monotonic() > began + BRIEF + SHORT)
    assert store.claim(KEY, THERE, LONG) is False


def test_renewal_after_expiry_fails(store):
    """An expired lease cannot be renewed, even if it is free; it can be claimed."""
    store.claim(KEY, HERE, SHORT)
    eventually(lambda: store.holder(KEY) is None)
    assert store.renew(KEY, HERE, LONG) is False
    assert store.holder(KEY) is None
    assert store.claim(KEY, HERE, LONG) is True


def test_only_the_owner_renews(store):
    """A lease of another owner, or one that does not exist, cannot be renewed; trying changes nothing."""
    assert store.renew(KEY, HERE, LONG) is False
    store.claim(KEY, HERE, SHORT)
    assert store.renew(KEY, THERE, LONG) is False
    eventually(lambda: store.holder(KEY) is None)


def test_only_the_owner_releases(store):
    """A release by another owner changes nothing; a release by its owner frees the lease, once."""
    store.claim(KEY, HERE, LONG)
    assert store.release(KEY, THERE) is False
    assert store.holder(KEY) == HERE
    assert store.release(KEY, HERE) is True
    assert store.holder(KEY) is None
    assert store.release(KEY, HERE) is False


def test_a_late_release_spares_the_next_owner(store):
    """An owner whose lease has expired cannot release the lease of the next owner."""
    store.claim(KEY, HERE, SHORT)
    eventually(lambda: store.claim(KEY, THERE, LONG))
    assert store.release(KEY, HERE) is False
    assert store.holder(KEY) == THERE


def test_counting(store, open_store):
    """A counter starts at one and is shared; other keys do not change it."""
    assert [store.count(TRIES, LONG), open_store().count(TRIES, LONG), store.count(TRIES, LONG)] == [1, 2, 3]
    assert store.count(f"{TRIES}2", LONG) == 1


def test_a_counter_is_forgotten_after_the_last_addition(store):
    """Each addition restarts a counter's time to live; after it the counter starts at one again."""
    assert store.count(TRIES, BRIEF) == 1
    assert store.count(TRIES, LONG) == 2
    began = time.monotonic()
    eventually(lambda: time.monotonic() > began + BRIEF + SHORT)
    assert store.count(TRIES, SHORT) == 3
    began = time.monotonic()
    eventually(lambda: time.monotonic() > began + 2 * SHORT)
    assert store.count(TRIES, LONG) == 1


def test_counting_by_more_than_one(store):
    """A call may add more than one."""
    assert [store.count(TRIES, LONG, 5), store.count(TRIES, LONG), store.count(TRIES, LONG, 5)] == [5, 6, 11]


def test_a_note_is_for_all(store, open_store):
    """All services read the latest note. A lease with the same prefix does not change it."""
    assert store.read(KEY) is None
    store.claim(f"{KEY}:lease", HERE, LONG)
    store.post(KEY, "first", LONG)
    store.post(KEY, "größer\n" * 100_000, LONG)
    assert open_store().read(KEY) == "größer\n" * 100_000


def test_a_note_is_gone_in_time(store):
    """A note expires, so that no service acts on old facts."""
    store.post(KEY, "text", SHORT)
    eventually(lambda: store.read(KEY) is None)


def racer(database, directory, name, pipe):
    """Claim each key that comes through the pipe, and answer with the result. Runs in its own process."""
    store = open_as_configured(database, directory, name, "boot", LOG)
    pipe.send("ready")
    for key in iter(pipe.recv, None):
        pipe.send(store.claim(key, name, LONG))
    store.close()


#: The stores that processes share.
between_processes = pytest.mark.parametrize("backend", ["sqlite", "redis"], indirect=True)


@between_processes
def test_one_process_wins_each_race(backend, open_store):
    """If several processes claim the same key at the same time, exactly one gets it."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for number in range(RACERS):
        ours, theirs = context.Pipe()
        arguments = (backend.database, backend.directory, f"racer-{number}", theirs)
        processes.append(context.Process(target=racer, args=arguments, daemon=True))
        processes[-1].start()
        theirs.close()
        pipes.append(ours)
    try:
        assert [pipe.poll(60) and pipe.recv() for pipe in pipes] == ["ready"] * RACERS
        watcher = open_store()
        for lap in range(ROUNDS):
            for pipe in pipes:
                pipe.send(f"{KEY}:{lap}")
            answers = [pipe.poll(30) and pipe.recv() for pipe in pipes]
            assert answers.count(True) == 1, f"lap {lap}: {answers}"
            assert watcher.holder(f"{KEY}:{lap}") == f"racer-{answers.index(True)}"
        for pipe in pipes:
            pipe.send(None)
    finally:
        for process in processes:
            process.join(20)
            process.kill()
            process.join()
            process.close()
        for pipe in pipes:
            pipe.close()


def test_one_thread_wins_each_race(store):
    """If several threads claim the same key at the same time, exactly one gets it; and no count is lost."""
    start = threading.Barrier(RACERS)
    won, counts = [], []

    def race(name):
        for lap in range(ROUNDS):
            start.wait(30)
            if store.claim(f"{KEY}:{lap}", name, LONG):
                won.append(lap)
            counts.append(store.count(TRIES, LONG))

    threads = [threading.Thread(target=race, args=(f"racer-{number}",)) for number in range(RACERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(won) == list(range(ROUNDS))
    assert sorted(counts) == list(range(1, RACERS * ROUNDS + 1))


def operations(store):
    """Every operation of a store, by name."""
    return {
        "claim": lambda: store.claim(KEY, HERE, LONG),
        "renew": lambda: store.renew(KEY, HERE, LONG),
        "release": lambda: store.release(KEY, HERE),
        "holder": lambda: store.holder(KEY),
        "count": lambda: store.count(TRIES, LONG),
        "post": lambda: store.post(NOTE, "text", LONG),
        "read": lambda: store.read(NOTE),
    }


def test_an_outage_is_told_and_survived(backend, store):
    """During an outage every operation raises one line without a secret; afterwards the store works again without a restart."""
    store.claim(KEY, HERE, LONG)
    backend.outage()
    try:
        for name, operation in operations(store).items():
            with pytest.raises(StoreUnavailable) as caught:
                operation()
            text = f"{caught.value}{caught.value!r}"
            assert text.count("\n") == 0, name
            assert "hunter2" not in text, name
            assert "supervisor" not in text, name
    finally:
        backend.mend()
    assert store.claim(KEY, HERE, LONG) is True
    assert store.claim(KEY, THERE, LONG) is False


@between_processes
def test_opening_during_an_outage_is_told(backend, open_store):
    """Opening an unreachable store raises `StoreUnavailable`, which is not fatal: the caller may try again."""
    backend.outage()
    try:
        with pytest.raises(StoreUnavailable):
            open_store()
    finally:
        backend.mend()
    assert open_store().claim(KEY, HERE, LONG) is True


def test_a_closed_store_is_not_used(store):
    """After `close`, which may be called twice, every operation raises `StoreUnavailable`."""
    store.close()
    store.close()
    for operation in operations(store).values():
        with pytest.raises(StoreUnavailable):
            operation()
