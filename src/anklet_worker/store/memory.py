"""A store in memory: leases, counters and notes for tests and for services of one process.

Passes the same contract tests as the other stores. Owns the data and their expiry. Knows no file and no network.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from anklet_worker.contract.errors import StoreUnavailable


class Stored(NamedTuple):
    """A lease's owner, a counter's sum or a note's text, until `expires_at` (seconds of the store's clock)."""

    value: str | int
    expires_at: float


def _allow(operation: str) -> None:
    """Let every operation pass."""


class Shelf:
    """The data that several `MemoryStore`s share, as the services of a host share a file.

    `before` is called with the name of each operation ahead of it; the operation raises what it raises. A test sets it to play an
    outage (`StoreUnavailable`), a refusal or a bug. `clock` returns seconds that never decrease.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.before: Callable[[str], object] = _allow
        self.clock = clock
        self.leases: dict[str, Stored] = {}
        self.counters: dict[str, Stored] = {}
        self.notes: dict[str, Stored] = {}
        self.lock = threading.Lock()


class MemoryStore:
    """Implements `Store` on a `Shelf`: one of its own, or one that it shares with other stores of this process."""

    def __init__(self, shelf: Shelf | None = None) -> None:
        self.shelf = shelf if shelf is not None else Shelf()
        self._closed = False

    def claim(self, key: str, owner: str, ttl: float) -> bool:
        """See `Store.claim`."""
        self._begin("claim")
        with self.shelf.lock:
            if self._live(self.shelf.leases, key) not in (None, owner):
                return False
            self._put(self.shelf.leases, key, owner, ttl)
            return True

    def renew(self, key: str, owner: str, ttl: float) -> bool:
        """See `Store.renew`."""
        self._begin("renew")
        with self.shelf.lock:
            if self._live(self.shelf.leases, key) != owner:
                return False
            self._put(self.shelf.leases, key, owner, ttl)
            return True

    def release(self, key: str, owner: str) -> bool:
        """See `Store.release`."""
        self._begin("release")
        with self.shelf.lock:
            if self._live(self.shelf.leases, key) != owner:
                return False
            del self.shelf.leases[key]
            return True

    def holder(self, key: str) -> str | None:
        """See `Store.holder`."""
        self._begin("holder")
        with self.shelf.lock:
            owner = self._live(self.shelf.leases, key)
        return None if owner is None else str(owner)

    def count(self, key: str, ttl: float, amount: int = 1) -> int:
        """See `Store.count`."""
        self._begin("count")
        with self.shelf.lock:
            total = int(self._live(self.shelf.counters, key) or 0) + amount
            self._put(self.shelf.counters, key, total, ttl)
        return total

    def post(self, key: str, value: str, ttl: float) -> None:
        """See `Store.post`."""
        self._begin("post")
        with self.shelf.lock:
            self._put(self.shelf.notes, key, value, ttl)

    def read(self, key: str) -> str | None:
        """See `Store.read`."""
        self._begin("read")
        with self.shelf.lock:
            text = self._live(self.shelf.notes, key)
        return None if text is None else str(text)

    def close(self) -> None:
        """See `Store.close`."""
        self._closed = True

    def _begin(self, operation: str) -> None:
        if self._closed:
            raise StoreUnavailable("the claim store is closed")
        # Outside the lock: a test may hold one operation back while others go on.
        self.shelf.before(operation)

    def _live(self, entries: dict[str, Stored], key: str) -> str | int | None:
        entry = entries.get(key)
        if entry is None or entry.expires_at <= self.shelf.clock():
            entries.pop(key, None)
            return None
        return entry.value

    def _put(self, entries: dict[str, Stored], key: str, value: str | int, ttl: float) -> None:
        entries[key] = Stored(value, self.shelf.clock() + ttl)
