"""The board of a plugin: what services that share a store tell each other, so that one finds out for all.

Owns the binding of the store to this service's name, and the silence about an outage: a board that is away is an empty one, and
each service finds out for itself. Knows no job system.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from anklet_worker.contract.errors import StoreUnavailable
from anklet_worker.store.store import Store

_T = TypeVar("_T")


class StoreBoard:
    """Implements `anklet_worker.plugin.Board` on a store, for the service called `owner`."""

    def __init__(self, store: Store, owner: str) -> None:
        self._store = store
        self._owner = owner

    def turn(self, key: str, seconds: float) -> bool:
        """Whether it is this service's turn."""
        return self._asked(lambda: self._store.claim(key, self._owner, seconds), otherwise=True)

    def pass_on(self, key: str) -> None:
        """Let another have the turn."""
        self._asked(lambda: self._store.release(key, self._owner), otherwise=False)

    def holder(self, key: str) -> str | None:
        """Who holds a lease."""
        return self._asked(lambda: self._store.holder(key), otherwise=None)

    def count(self, key: str, seconds: float, amount: int = 1) -> int | None:
        """Count for all."""
        return self._asked(lambda: self._store.count(key, seconds, amount), otherwise=None)

    def post(self, key: str, text: str, seconds: float) -> None:
        """Tell all."""
        self._asked(lambda: self._store.post(key, text, seconds), otherwise=None)

    def read(self, key: str) -> str | None:
        """What was told."""
        return self._asked(lambda: self._store.read(key), otherwise=None)

    def _asked(self, question: Callable[[], _T], otherwise: _T) -> _T:
        try:
            return question()
        except StoreUnavailable:
            return otherwise
