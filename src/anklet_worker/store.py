"""The store of leases: its contract, and the embedded store on sqlite3.

Owns what hosts or services must agree on: who holds a job, and how often it was tried. Knows no job system and no VM.
"""

from __future__ import annotations

from typing import Protocol


class Store(Protocol):
    """Leases and small counters, atomic across processes (and hosts, where the store is shared).

    Methods raise `StoreUnavailable` when the store does not answer; they are safe to call from several threads.
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

    def count(self, key: str, ttl: float) -> int:
        """Add one to the counter `key` and return its new value; it is forgotten `ttl` seconds after the last addition."""
        ...

    def close(self) -> None:
        """Give back connections; the store cannot be used any more."""
        ...
