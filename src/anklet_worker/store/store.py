"""The store: its contract, and the embedded store on sqlite3.

Owns what services or hosts share: who holds what (leases), how often something was done (counters), and what one has found out for
all (notes). Knows no job system and no VM.
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
from typing import Protocol, TypeVar

from anklet_worker.contract.errors import ServiceFatal, StoreUnavailable
from anklet_worker.contract.installation import INSTALLATION
from anklet_worker.contract.service import Database

#: Version of the embedded store's tables (sqlite's user_version).
SCHEMA_VERSION = 3
_FILE_NAME = "leases.db"
#: Seconds to wait for another process that writes, and for one that opens or repairs the file.
_BUSY_PATIENCE, _OPENING_PATIENCE = 5.0, 10.0
_OPENING_PAUSE = 0.02
#: Seconds between two removals of what has expired.
_HOUSEKEEPING_INTERVAL = 60.0
# Times are seconds of a clock that nobody can set, which all processes of the host share and which begins anew at each boot. By the
# wall clock, a lease would end under a running job, or never, when that clock is set; and all would end while a host sleeps.
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
#: From the wall clock to the host's: what is live stays so for the rest of its time.
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
#: What leads from each version to the next, so that a file of an older program is taken over.
_STEPS = (_LEASES_AND_COUNTERS, _NOTES, _UPTIME)
_CLAIM = f"""
INSERT INTO lease (key, owner, boot, expires_at) VALUES (:key, :owner, :boot, :now + :ttl)
ON CONFLICT (key) DO UPDATE
  SET owner = excluded.owner, boot = excluded.boot, expires_at = excluded.expires_at
  WHERE owner = excluded.owner OR NOT ({_LIVE})
"""  # noqa: S608  put together from constants
_RENEW = f"UPDATE lease SET expires_at = :now + :ttl WHERE key = :key AND owner = :owner AND {_LIVE}"  # noqa: S608  put together from constants
_RELEASE = f"DELETE FROM lease WHERE key = :key AND owner = :owner AND {_LIVE}"  # noqa: S608  put together from constants
_HOLDER = f"SELECT owner FROM lease WHERE key = :key AND {_LIVE}"  # noqa: S608  put together from constants
_COUNT = f"""
INSERT INTO counter (key, value, boot, expires_at) VALUES (:key, :amount, :boot, :now + :ttl)
ON CONFLICT (key) DO UPDATE
  SET value = CASE WHEN {_LIVE} THEN value + :amount ELSE :amount END,
      boot = excluded.boot, expires_at = excluded.expires_at
RETURNING value
"""  # noqa: S608  put together from constants
_POST = """
INSERT OR REPLACE INTO note (key, value, boot, expires_at) VALUES (:key, :value, :boot, :now + :ttl)
"""
_READ = f"SELECT value FROM note WHERE key = :key AND {_LIVE}"  # noqa: S608  put together from constants
_FORGET_EXPIRED = tuple(
    f"DELETE FROM {table} WHERE NOT ({_LIVE})"  # noqa: S608  put together from constants
    for table in ("lease", "counter", "note")
)

_Answer = TypeVar("_Answer")
_Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


class Store(Protocol):
    """Leases, counters and notes, atomic across processes (and hosts, where the store is shared).

    Methods raise `StoreUnavailable` when the store does not answer (or is closed), in one line without a secret; they are safe
    to call from several threads. A store that was out of reach serves again by itself. Times to live are seconds, at least 1 ms.
    """

    def claim(self, key: str, owner: str, ttl: float) -> bool:
        """Take the lease `key` for `owner` for `ttl` seconds. True when it is ours now (or was ours already: renewed)."""
        ...

    def renew(self, key: str, owner: str, ttl: float) -> bool:
        """Extend a lease that `owner` holds; False when it is not the owner's any more (expired or another's)."""
        ...

    def release(self, key: str, owner: str) -> bool:
        """Give the lease back if `owner` holds it; True when it was held. Never touches another owner's lease."""
        ...

    def holder(self, key: str) -> str | None:
        """Who holds the lease now, or None."""
        ...

    def count(self, key: str, ttl: float, amount: int = 1) -> int:
        """Add `amount` to the counter `key` and return its new value; it is forgotten `ttl` seconds after the last addition.

        Where an answer is lost on its way, a second try may add twice.
        """
        ...

    def post(self, key: str, value: str, ttl: float) -> None:
        """Leave a note for all, instead of an earlier one; it is gone after `ttl` seconds."""
        ...

    def read(self, key: str) -> str | None:
        """The note, or None."""
        ...

    def close(self) -> None:
        """Give back connections; the store cannot be used any more."""
        ...


def uptime() -> float:
    """Seconds of this boot without the time that the host slept: the same for all its processes, and not to be set by anybody.
    Asleep, no process can renew anything, so that time must not count."""
    # On macOS CLOCK_MONOTONIC goes on while it sleeps; on Linux it does not.
    return time.clock_gettime(getattr(time, "CLOCK_UPTIME_RAW", time.CLOCK_MONOTONIC))


def open_store(database: Database, state_dir: Path, client_name: str, boot_id: str, log: _Log) -> Store:
    """Open the store that the service's `database` asks for: Redis, or the embedded one in `state_dir`, shared by its services.

    `client_name` tells an operator of Redis who is connected. `boot_id` differs from boot to boot of the host.
    Raises `StoreUnavailable` (try again later), or `ServiceFatal` (an operator must act): Redis is too old, the file is of a
    newer version of this program; its kind `RightsRefused`: Redis refuses user or password.
    """
    if database.enabled:
        # The client takes a tenth of a second to import; a service without Redis does not pay for it.
        with INSTALLATION.late_import("anklet_worker.store.redis_store"):
            from anklet_worker.store.redis_store import RedisStore

        return RedisStore(database, client_name)
    return SqliteStore(state_dir / _FILE_NAME, boot_id, log=log)


class SqliteStore:
    """Leases in one sqlite3 file on a local disk: shared by all services of this host, by none of another.

    Each operation is one statement, so sqlite's own locks make it atomic among processes. `clock` tells seconds, the same for all
    processes of the host; what was written in another boot has expired, for whoever wrote it is gone. A damaged file is moved
    aside, kept, and replaced by an empty one: leases are then forgotten, which costs a surplus VM at worst.
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
        """See `Store.claim`. Removes what has expired, now and then."""
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
        """See `Store.post`. Removes what has expired, now and then."""
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
        """Do `work` on an open connection; when the file turns out damaged, once more on a fresh one."""
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
                # A connection after a failed write is not worth a thought: the next call opens another.
                self._disconnect()
                raise StoreUnavailable(f"the store of claims at {self._path} does not work: {error}") from error

    def _connected(self) -> sqlite3.Connection:
        """The open connection, or a new one: at first, after an error, and when another process has replaced the file."""
        if self._closed:
            raise StoreUnavailable("the store of claims is closed")
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
        """Open the file, make it when it is missing, and check it. Raises `sqlite3.DatabaseError` when it is damaged."""
        path = self._path
        # Made by us first: sqlite gives its journal the mode of the file.
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
                f"{self._path} is of version {version}, written by a newer anklet-supervisor; this one knows"
                f" {SCHEMA_VERSION}: install the newer one again, or move the file away while none runs"
            )
        # Where sqlite cannot have a write-ahead log it stays with a rollback journal, which serves as well, only slower.
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
        # After a power failure the last claims may be missing, but so are the VMs that they were for.
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
        """Keep a damaged file, with its journal, as evidence. Only under the opening lock: one process does it, and says so."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        evidence = self._path.with_name(f"{self._path.name}.damaged-{stamp}")
        self._path.rename(evidence)
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                self._path.with_name(self._path.name + suffix).rename(evidence.with_name(evidence.name + suffix))
        self._log.error(
            "the store of claims was damaged and is begun anew; check the disk, then delete the file that was kept",
            extra={"err": str(error), "kept": str(evidence)},
        )


def _damaged(verdict: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(verdict)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    # The low byte is the kind of error, the rest tells more of it. Errors of Python's module itself have no code.
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK)
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file is at `path` now: a process that replaced a damaged one leaves others with a connection to the old."""
    try:
        info = path.stat()
    except FileNotFoundError:
        return None
    return info.st_dev, info.st_ino


@contextlib.contextmanager
def _exclusively(path: Path) -> Iterator[None]:
    """Hold the lock file: one process at a time makes, checks or replaces the store's file. Raises `OSError` in the end."""
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
