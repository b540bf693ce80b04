"""A store that is opened when it is first needed. Owns the moment of opening, nothing of what a store does.

A worker must recover and follow running jobs also while Redis is away; only claiming needs it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from anklet_worker.store import Store


class LazyStore:
    """Implements `Store` on the store that `opener` makes; tries to make it at each call until that succeeds once.

    Every method raises what `opener` raises: `StoreUnavailable` for now, `ServiceFatal` until an operator acts.
    """

    def __init__(self, opener: Callable[[], Store]) -> None:
        self._opener = opener
        self._opening = threading.Lock()
        self._store: Store | None = None

    def open(self) -> Store:
        """The store itself."""
        with self._opening:
            if self._store is None:
                self._store = self._opener()
            return self._store

    def claim(self, key: str, owner: str, ttl: float) -> bool:
        """See `Store`."""
        return self.open().claim(key, owner, ttl)

    def renew(self, key: str, owner: str, ttl: float) -> bool:
        """See `Store`."""
        return self.open().renew(key, owner, ttl)

    def release(self, key: str, owner: str) -> bool:
        """See `Store`."""
        return self.open().release(key, owner)

    def holder(self, key: str) -> str | None:
        """See `Store`."""
        return self.open().holder(key)

    def count(self, key: str, ttl: float, amount: int = 1) -> int:
        """See `Store`."""
        return self.open().count(key, ttl, amount)

    def post(self, key: str, value: str, ttl: float) -> None:
        """See `Store`."""
        self.open().post(key, value, ttl)

    def read(self, key: str) -> str | None:
        """See `Store`."""
        return self.open().read(key)

    def close(self) -> None:
        """Close what has been opened."""
        with self._opening:
            if self._store is not None:
                self._store.close()
