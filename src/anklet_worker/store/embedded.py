"""The embedded store: leases, counters and notes in one sqlite3 file that the services of a host share.

The only importer of sqlite3. Owns the file: its tables, their upgrade, and the replacement of a damaged file. Knows no job system
and no VM.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from anklet_worker.contract.errors import ServiceFatal, StoreUnavailable

#: Version of the tables (sqlite's user_version).
SCHEMA_VERSION = 3
#: Seconds to wait for a process that writes, and for a process that opens or repairs the file.
_BUSY_PATIENCE, _OPENING_PATIENCE = 5.0, 10.0
_OPENING_PAUSE = 0.02
#: Seconds between two removals of expired rows.
_HOUSEKEEPING_INTERVAL = 60.0
# Times are seconds since boot (see `uptime`). With the wall clock, setting that clock would end the lease of a running job or keep
# a lease for ever, and a host that sleeps would lose all its leases.
_LIVE = "boot = :boot AND :now < expires_at"
_LEASES_AND_COUNTERS = """
CREATE TABLE lease (
  key TEXT PRIMARY KEY, owner TEXT NOT NULL, written_at REAL NOT NULL, expires_at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE counter (
  key TEXT PRIMARY KEY, value INTEGER NOT NULL, written_at REAL NOT NULL, expires_at REAL NOT NULL
) WITHOUT ROWID;
"""
_NOTES = """
CREATE TABLE note (key TEXT PRIMARY KEY, value TEXT NOT NULL, written_at REAL NOT NULL, expires_at REAL NOT NULL);
"""
#: Converts wall clock times to seconds since boot; live rows keep the rest of their time.
_UPTIME = """
ALTER TABLE lease RENAME TO old_lease;
ALTER TABLE counter RENAME TO old_counter;
ALTER TABLE note RENAME TO old_note;
CREATE TABLE lease (
  key TEXT PRIMARY KEY, owner TEXT NOT NULL, boot TEXT NOT NULL, expires_at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE counter (
  key TEXT PRIMARY KEY, value INTEGER NOT NULL, boot TEXT NOT NULL, expires_at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE note (key TEXT PRIMARY KEY, value TEXT NOT NULL, boot TEXT NOT NULL, expires_at REAL NOT NULL);
INSERT INTO lease SELECT key, owner, '{boot}', expires_at - {wall} + {now} FROM old_lease;
INSERT INTO counter SELECT key, value, '{boot}', expires_at - {wall} + {now} FROM old_counter;
INSERT INTO note SELECT key, value, '{boot}', expires_at - {wall} + {now} FROM old_note;
DROP TABLE old_lease;
DROP TABLE old_counter;
DROP TABLE old_note;
"""
#: The statements that lead from each version to the next, so that this program can upgrade an older file.
_STEPS = (_LEASES_AND_COUNTERS, _NOTES, _UPTIME)
_CLAIM = f"""
INSERT INTO lease (key, owner, boot, expires_at) VALUES (:key, :owner, :boot, :now + :ttl)
ON CONFLICT (key) DO UPDATE
  SET owner = excluded.owner, boot = excluded.boot, expires_at = excluded.expires_at
  WHERE owner = excluded.owner OR NOT ({_LIVE})
"""  # noqa: S608  built from constants only
_RENEW = f"UPDATE lease SET expires_at = :now + :ttl WHERE key = :key AND owner = :owner AND {_LIVE}"  # noqa: S608  built from constants only
_RELEASE = f"DELETE FROM lease WHERE key = :key AND owner = :owner AND {_LIVE}"  # noqa: S608  built from constants only
_HOLDER = f"SELECT owner FROM lease WHERE key = :key AND {_LIVE}"  # noqa: S608  built from constants only
_COUNT = f"""
INSERT INTO counter (key, value, boot, expires_at) VALUES (:key, :amount, :boot, :now + :ttl)
ON CONFLICT (key) DO UPDATE
  SET value = CASE WHEN {_LIVE} THEN value + :amount ELSE :amount END,
      boot = excluded.boot, expires_at = excluded.expires_at
RETURNING value
"""  # noqa: S608  built from constants only
_POST = """
INSERT OR REPLACE INTO note (key, value, boot, expires_at) VALUES (:key, :value, :boot, :now + :ttl)
"""
_READ = f"SELECT value FROM note WHERE key = :key AND {_LIVE}"  # noqa: S608  built from constants only
_FORGET_EXPIRED = tuple(
    f"DELETE FROM {table} WHERE NOT ({_LIVE})"  # noqa: S608  built from constants only
    for table in ("lease", "counter", "note")
)

_Answer = TypeVar("_Answer")
_Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


def uptime() -> float:
    """Seconds since boot, without the time that the host slept.

    All processes of the host read the same value, and setting the clock does not change it. Time asleep must not count, because no
    process can renew a lease then.
    """
    # On macOS CLOCK_MONOTONIC includes time asleep (clock_gettime(3)); on Linux it does not.
    return time.clock_gettime(getattr(time, "CLOCK_UPTIME_RAW", time.CLOCK_MONOTONIC))


class SqliteStore:
    """Implements `Store` on one sqlite3 file on a local disk, for all services of this host.

    Each operation is one statement, so sqlite's locks make it atomic across processes. `clock` returns seconds and must be the same
    for all processes of the host. Rows from an earlier boot count as expired, because their writers are gone. A damaged file is
    renamed, kept, and replaced by an empty one; the lost leases cost a surplus VM at worst.
    """

    def __init__(self, path: Path, boot_id: str, clock: Callable[[], float] = uptime, log: _Log | None = None) -> None:
        self._path = path
        self._boot_id = boot_id
        self._clock = clock
        self._log = log or logging.getLogger(__name__)
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._closed = False
        self._housekeeping_due = 0.0
        self._transact(lambda _: None)

    def claim(self, key: str, owner: str, ttl: float) -> bool:
        """See `Store.claim`. Also removes expired rows, at most once a minute."""
        self._transact(self._forget_expired)
        return self._change(_CLAIM, key=key, owner=owner, ttl=ttl)

    def renew(self, key: str, owner: str, ttl: float) -> bool:
        """See `Store.renew`."""
        return self._change(_RENEW, key=key, owner=owner, ttl=ttl)

    def release(self, key: str, owner: str) -> bool:
        """See `Store.release`."""
        return self._change(_RELEASE, key=key, owner=owner)

    def holder(self, key: str) -> str | None:
        """See `Store.holder`."""
        rows = self._transact(lambda connection: connection.execute(_HOLDER, self._facts(key=key)).fetchall())
        return str(rows[0][0]) if rows else None

    def count(self, key: str, ttl: float, amount: int = 1) -> int:
        """See `Store.count`."""
        facts = self._facts(key=key, ttl=ttl, amount=amount)
        rows = self._transact(lambda connection: connection.execute(_COUNT, facts).fetchall())
        return int(rows[0][0])

    def post(self, key: str, value: str, ttl: float) -> None:
        """See `Store.post`. Also removes expired rows, at most once a minute."""
        self._transact(self._forget_expired)
        self._change(_POST, key=key, value=value, ttl=ttl)

    def read(self, key: str) -> str | None:
        """See `Store.read`."""
        rows = self._transact(lambda connection: connection.execute(_READ, self._facts(key=key)).fetchall())
        return str(rows[0][0]) if rows else None

    def close(self) -> None:
        """See `Store.close`."""
        with self._lock:
            self._closed = True
            self._disconnect()

    def _facts(self, **facts: str | float) -> dict[str, str | float]:
        return {"now": self._clock(), "boot": self._boot_id, **facts}

    def _change(self, statement: str, **facts: str | float) -> bool:
        return self._transact(lambda connection: connection.execute(statement, self._facts(**facts)).rowcount == 1)

    def _forget_expired(self, connection: sqlite3.Connection) -> None:
        now = self._clock()
        if self._housekeeping_due - _HOUSEKEEPING_INTERVAL <= now < self._housekeeping_due:
            return
        self._housekeeping_due = now + _HOUSEKEEPING_INTERVAL
        for statement in _FORGET_EXPIRED:
            connection.execute(statement, self._facts())

    def _transact(self, work: Callable[[sqlite3.Connection], _Answer]) -> _Answer:
        """Do `work` on an open connection. If the file turns out to be damaged, replace it and do `work` again."""
        with self._lock:
            try:
                try:
                    return work(self._connected())
                except sqlite3.DatabaseError as error:
                    if not _is_damage(error):
                        raise
                    self._disconnect()
                return work(self._connected())
            except (sqlite3.Error, OSError) as error:
                # The connection may be unusable after a failed write; the next call opens another.
                self._disconnect()
                raise StoreUnavailable(f"the claim store {self._path} failed: {error}") from error

    def _connected(self) -> sqlite3.Connection:
        """Return the open connection; open one at first use, after an error, and after another process replaced the file."""
        if self._closed:
            raise StoreUnavailable("the claim store is closed")
        if self._connection is not None and self._identity == _identity(self._path):
            return self._connection
        self._disconnect()
        with _exclusively(self._path.with_name(f"{self._path.name}.lock")):
            try:
                self._connection = self._open()
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
                self._move_aside(error)
                self._connection = self._open()
            self._identity = _identity(self._path)
        return self._connection

    def _open(self) -> sqlite3.Connection:
        """Open the file, create it if it is missing, and check it. Raises `sqlite3.DatabaseError` if it is damaged."""
        path = self._path
        # Create it first with a private mode: sqlite gives its journal files the mode of the database file.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        path.chmod(0o600)
        connection = sqlite3.connect(path, timeout=_BUSY_PATIENCE, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise ServiceFatal(
                f"{self._path} has version {version}, written by a newer anklet-supervisor; this one supports up to"
                f" {SCHEMA_VERSION}: install the newer one again, or stop every supervisor here and move the file away"
            )
        # Where a write-ahead log is impossible, sqlite keeps its rollback journal: slower, but as safe.
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
        # A power failure may lose the last claims; it also ends the VMs that they were for.
        connection.execute("PRAGMA synchronous = NORMAL")
        if version < SCHEMA_VERSION:
            boot = self._boot_id.replace("'", "''")
            steps = "".join(_STEPS[version:]).format(boot=boot, wall=time.time(), now=self._clock())
            connection.executescript(f"BEGIN IMMEDIATE; {steps} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT")
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise _damaged(verdict)

    def _disconnect(self) -> None:
        connection, self._connection, self._identity = self._connection, None, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _move_aside(self, error: sqlite3.DatabaseError) -> None:
        """Rename a damaged file and its journal, to keep them as evidence. Call with the opening lock held."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        evidence = self._path.with_name(f"{self._path.name}.damaged-{stamp}")
        self._path.rename(evidence)
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                self._path.with_name(self._path.name + suffix).rename(evidence.with_name(evidence.name + suffix))
        self._log.error(
            "replaced the damaged claim store by an empty one; check the disk, then delete the kept file",
            extra={"err": str(error), "kept": str(evidence)},
        )


def _damaged(verdict: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(verdict)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    # The low byte is the primary result code (sqlite.org/rescode.html). Errors of Python's sqlite3 module itself have no code.
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK)
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of the file at `path`. They change when another process replaces a damaged file."""
    try:
        info = path.stat()
    except FileNotFoundError:
        return None
    return info.st_dev, info.st_ino


@contextlib.contextmanager
def _exclusively(path: Path) -> Iterator[None]:
    """Hold the lock file, so one process at a time creates, checks or replaces the store. Raises `OSError` after ten seconds."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + _OPENING_PATIENCE
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_OPENING_PAUSE)
        yield
    finally:
        os.close(descriptor)
