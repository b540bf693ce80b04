"""The embedded store beyond the contract: clocks that jump, damaged files, full disks, killed writers."""

import logging
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from anklet_worker.contract.errors import ExitCode, ServiceFatal, StoreUnavailable
from anklet_worker.store import embedded
from anklet_worker.store.embedded import SqliteStore

HERE, THERE = "host:builds", "host:tests"
HOUR = 3600.0


class HostClock:
    """Seconds since boot that a test sets."""

    def __init__(self, now=1_000.0):
        self.now = now

    def __call__(self):
        """The time in seconds."""
        return self.now


@pytest.fixture
def clock():
    """A clock that the test sets."""
    return HostClock()


@pytest.fixture
def path(tmp_path):
    """The path of the store's file."""
    return tmp_path / "leases.db"


@pytest.fixture
def open_store(path, clock):
    """Open a store on the file; closed after the test."""
    opened = []

    def open_one(boot="this boot"):
        opened.append(SqliteStore(path, boot, clock))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store):
    """One open store."""
    return open_store()


def rows(path, table):
    """How many rows the file has in a table."""
    connection = sqlite3.connect(path)
    try:
        return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608  the test's own names
    finally:
        connection.close()


def test_a_lease_lasts_its_time_and_not_longer(store, clock):
    """A lease is held until just before its end, and free at its end."""
    store.claim("job", HERE, 60)
    clock.now += 59.999
    assert store.holder("job") == HERE
    clock.now += 0.001
    assert store.holder("job") is None
    assert store.release("job", HERE) is False


@pytest.mark.parametrize("jump", [-24 * HOUR, -1.0, 24 * HOUR])
def test_the_wall_clock_is_not_asked(path, monkeypatch, jump):
    """Setting the wall clock back or forward by a day changes no lease's end."""
    store = SqliteStore(path, "boot")
    store.claim("job", HERE, 60)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    assert store.claim("job", THERE, 60) is False
    assert store.renew("job", HERE, 0.01) is True
    deadline = time.monotonic() + 10
    while not store.claim("job", THERE, 60):
        assert time.monotonic() < deadline
    store.close()


def test_a_lease_of_another_boot_has_expired(open_store, clock):
    """Leases from an earlier boot have expired: their owners are gone, and the clock started again at zero."""
    before = open_store("earlier boot")
    before.claim("job", HERE, 60)
    before.count("tries", 60)
    before.post("note", "text", 60)
    clock.now = 3.0
    after = open_store()
    assert after.holder("job") is None
    assert after.renew("job", HERE, 60) is False
    assert after.read("note") is None
    assert after.count("tries", 60) == 1
    assert after.claim("job", THERE, 60) is True


def test_a_counter_ends_with_its_time(store, clock):
    """A counter expires its time to live after the last addition."""
    assert [store.count("tries", 60), store.count("tries", 60)] == [1, 2]
    clock.now += 60
    assert store.count("tries", 60) == 1


def test_what_has_expired_is_removed_now_and_then(store, clock, path):
    """A claim sweeps out expired rows of all keys, at most once a minute, and no live one."""
    store.claim("live", HERE, 10 * HOUR)
    for number in range(20):
        store.claim(f"job-{number}", HERE, 60)
        store.count(f"tries-{number}", 60)
    assert (rows(path, "lease"), rows(path, "counter")) == (21, 20)
    clock.now += 61
    store.claim("another", HERE, 60)
    assert (rows(path, "lease"), rows(path, "counter")) == (2, 0)
    assert store.holder("live") == HERE


def test_the_files_are_the_owners_alone(store, path):
    """Other users can neither read nor write the file and its journal."""
    store.claim("job", HERE, 60)
    files = list(path.parent.iterdir())
    assert path in files
    assert path.with_name("leases.db-wal") in files
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_loose_rights_are_tightened(open_store, path):
    """Opening a file that others can read, for example after a restore, makes it private."""
    open_store().close()
    path.chmod(0o644)
    open_store()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def errors(caplog):
    """Log records of level ERROR."""
    return [record for record in caplog.records if record.levelno >= logging.ERROR]


def damage_wholly(path):
    """Overwrite the file with bytes that are no database."""
    path.write_bytes(b"\xff" * 16384)


def damage_inside(path):
    """Damage the tables but not the first page: sqlite opens such a file without an error."""
    content = bytearray(path.read_bytes())
    content[4096:] = b"\x55" * (len(content) - 4096)
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [damage_wholly, damage_inside])
def test_a_damaged_file_is_kept_and_replaced(open_store, path, caplog, damage):
    """The services continue with an empty store; the damaged file is kept as evidence, and one ERROR reports it."""
    first = open_store()
    first.claim("job", HERE, 60)
    first.close()
    damage(path)
    evidence = path.read_bytes()
    one = open_store()
    (record,) = errors(caplog)
    other = open_store()
    assert one.holder("job") is None
    assert one.claim("job", HERE, 60) is True
    assert other.claim("job", THERE, 60) is False
    assert errors(caplog) == [record]
    kept = list(path.parent.glob("leases.db.damaged-*"))
    assert [str(file) for file in kept] == [record.kept]
    assert kept[0].read_bytes() == evidence


def test_damage_under_an_open_store_is_survived(open_store, path, caplog):
    """A file that is damaged while stores are open is replaced at the next operation; then both agree again."""
    one, other = open_store(), open_store()
    one.claim("job", HERE, 60)
    emptying = sqlite3.connect(path)
    emptying.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    emptying.close()
    damage_wholly(path)
    assert one.claim("job", HERE, 60) is True
    assert other.claim("job", THERE, 60) is False
    assert len(errors(caplog)) == 1


def test_a_replaced_file_is_noticed(open_store, path):
    """A store whose file another process has renamed switches to the new file, so that all agree."""
    one = open_store()
    one.claim("job", HERE, 60)
    for file in list(path.parent.glob("leases.db*")):
        file.rename(file.with_name(f"old-{file.name}"))
    other = open_store()
    assert other.claim("job", THERE, 60) is True
    assert one.holder("job") == THERE
    assert one.renew("job", HERE, 60) is False


def test_a_newer_files_version_is_refused(open_store, path):
    """A file of a newer version stays unchanged, and the error says what an operator can do."""
    open_store().close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    content = path.read_bytes()
    with pytest.raises(ServiceFatal, match="version 99, written by a newer") as caught:
        open_store()
    assert caught.value.exit_code is ExitCode.CONFIG
    assert path.read_bytes() == content


def test_a_writer_waits_for_another(store, path):
    """A claim waits for the write of another process instead of failing."""
    blocker = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    blocker.execute("BEGIN IMMEDIATE")
    waiting = threading.Event()
    answers = []

    def claim():
        waiting.set()
        answers.append(store.claim("job", HERE, 60))

    claimer = threading.Thread(target=claim)
    claimer.start()
    waiting.wait(10)
    claimer.join(0.3)
    assert answers == []
    blocker.execute("COMMIT")
    blocker.close()
    claimer.join(10)
    assert answers == [True]


def test_a_killed_writer_blocks_nobody(store, path):
    """A process that dies during a write leaves no lock and no partial write."""
    script = """
        import os, sqlite3, sys
        connection = sqlite3.connect(sys.argv[1], isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO lease VALUES ('job', 'dead', 'this boot', 9e9)")
        os.kill(os.getpid(), 9)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), path], timeout=60, check=False)
    assert done.returncode == -9
    assert store.holder("job") is None
    assert store.claim("job", HERE, 60) is True


def test_a_full_disk_is_told_and_survived(path):
    """On a full disk a claim raises `StoreUnavailable`; with space again the same store works."""
    script = """
        import resource, sys
        from pathlib import Path
        from anklet_worker.contract.errors import StoreUnavailable
        from anklet_worker.store.embedded import SqliteStore

        store = SqliteStore(Path(sys.argv[1]), "boot")
        assert store.claim("before", "host:builds", 60)
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, most))
        failures = 0
        for number in range(5):
            try:
                store.claim(f"job-{number}", "host:builds", 60)
            except StoreUnavailable as error:
                assert "leases.db" in str(error) and "\\n" not in str(error), error
                failures += 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        assert store.claim("after", "host:builds", 60)
        assert store.holder("before") == "host:builds"
        store.close()
        print(failures)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), path], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("5\n", "")
    assert done.returncode == 0
    assert not list(path.parent.glob("*.damaged-*"))


def test_a_directory_that_is_missing_is_an_outage(tmp_path):
    """A missing state directory is an outage, not fatal: it may come back."""
    with pytest.raises(StoreUnavailable, match=r"leases\.db"):
        SqliteStore(tmp_path / "missing" / "leases.db", "boot")


@pytest.mark.parametrize("version", range(1, embedded.SCHEMA_VERSION))
def test_a_file_of_every_earlier_version_is_taken_over(open_store, path, clock, version):
    """An upgrade keeps leases and counters for the rest of their time, and adds the new tables."""
    connection = sqlite3.connect(path)
    connection.executescript("".join(embedded._STEPS[:version]) + f"PRAGMA user_version = {version};")
    now = time.time()
    connection.execute("INSERT INTO lease VALUES ('k', 'me', ?, ?)", (now, now + 50))
    connection.execute("INSERT INTO lease VALUES ('old', 'me', ?, ?)", (now - 90, now - 30))
    connection.execute("INSERT INTO counter VALUES ('c', 4, ?, ?)", (now, now + HOUR))
    connection.commit()
    connection.close()
    store = open_store()
    assert (store.holder("k"), store.holder("old"), store.count("c", 60)) == ("me", None, 5)
    clock.now += 51
    assert store.holder("k") is None
    store.post("n", "text", 60)
    assert store.read("n") == "text"


def test_a_file_that_may_only_be_read_is_an_outage(open_store):
    """A read-only file makes claims fail; the store recovers without a restart."""
    store = open_store()
    store.claim("other", HERE, 60)
    store._transact(lambda connection: connection.execute("PRAGMA query_only = 1"))
    with pytest.raises(StoreUnavailable, match="readonly"):
        store.claim("job", HERE, 60)
    assert store.claim("job", HERE, 60) is True
