"""The board of a plugin: what services that share a store tell each other, so that one finds out for all.

Owns the binding of the store to this service's name, and the silence about an outage: a board that is away is an empty one, and
each service finds out for itself. Knows no job system.
"""

from __future__ import annotations

from anklet_worker.errors import StoreUnavailable
from anklet_worker.store import Store


class StoreBoard:
    """Implements `anklet_worker.plugin.Board` on a store, for the service called `owner`."""

    def __init__(self, store: Store, owner: str) -> None:
        self._store = store
        self._owner = owner

    def turn(self, key: str, seconds: float) -> bool:
        """Whether it is this service's turn."""
        try:
            return self._store.claim(key, self._owner, seconds)
        except StoreUnavailable:
            return True

    def holder(self, key: str) -> str | None:
        """Who holds a lease."""
        try:
            return self._store.holder(key)
        except StoreUnavailable:
            return None

    def count(self, key: str, seconds: float, amount: int = 1) -> int | None:
        """Count for all."""
        try:
            return self._store.count(key, seconds, amount)
        except StoreUnavailable:
            return None

    def post(self, key: str, text: str, seconds: float) -> None:
        """Tell all."""
        try:
            self._store.post(key, text, seconds)
        except StoreUnavailable:
            return

    def read(self, key: str) -> str | None:
        """What was told."""
        try:
            return self._store.read(key)
        except StoreUnavailable:
            return None
