"""The store: what services share, as a contract, and the choice of an implementation.

Owns the `Store` protocol: leases (which owner holds what), counters (how often something happened) and notes (text that one service
leaves for the others). Knows no job system and no VM, and leaves each implementation to its own module.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Protocol

from anklet_worker.contract.installation import INSTALLATION
from anklet_worker.contract.service import Database
from anklet_worker.state_layout import Place

_Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


class Store(Protocol):
    """Leases, counters and notes, atomic across processes (and across hosts, if the store is on the network).

    All methods are safe to call from several threads. They raise `StoreUnavailable`, in one line without a secret, while the store
    does not answer, and after `close`. After an outage a store works again without a restart. Times to live (`ttl`) are seconds, at
    least 0.001.
    """

    def claim(self, key: str, owner: str, ttl: float) -> bool:
        """Take the lease `key` for `owner`, or renew it if `owner` holds it. False if another owner holds it."""
        ...

    def renew(self, key: str, owner: str, ttl: float) -> bool:
        """Extend a lease that `owner` holds. False if it expired or another owner holds it."""
        ...

    def release(self, key: str, owner: str) -> bool:
        """Free a lease that `owner` holds. False, and no change, if `owner` does not hold it."""
        ...

    def holder(self, key: str) -> str | None:
        """The current owner of the lease, or None."""
        ...

    def count(self, key: str, ttl: float, amount: int = 1) -> int:
        """Add `amount` to the counter `key` and return the sum. The counter expires `ttl` seconds after the last addition.

        If an answer is lost on the network, a second try may add twice.
        """
        ...

    def post(self, key: str, value: str, ttl: float) -> None:
        """Write the note `key` in place of an earlier one. It expires after `ttl` seconds."""
        ...

    def read(self, key: str) -> str | None:
        """The note `key`, or None."""
        ...

    def close(self) -> None:
        """Release connections. Leases stay, for the next process of the same owner."""
        ...


def open_store(database: Database, state_dir: Path, client_name: str, boot_id: str, log: _Log) -> Store:
    """Open the store that the service's `database` selects: Redis, or the embedded store in `state_dir`.

    `client_name` identifies this service in Redis' CLIENT LIST. `boot_id` differs for each boot of the host.

    Raises `StoreUnavailable` (try again later) or `ServiceFatal` (an operator must act: Redis is too old, or a newer version of
    this program wrote the file). `RightsRefused`, a `ServiceFatal`, means that Redis refuses the user or the password.
    """
    # Each client is imported only where it is in use: the one of Redis takes a tenth of a second.
    if database.enabled:
        with INSTALLATION.late_import("anklet_worker.store.redis_store"):
            from anklet_worker.store.redis_store import RedisStore

        return RedisStore(database, client_name)
    with INSTALLATION.late_import("anklet_worker.store.embedded"):
        from anklet_worker.store.embedded import SqliteStore

    return SqliteStore(Place.STORE.path(state_dir), boot_id, log=log)
