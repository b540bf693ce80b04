"""The board of a plugin: a store bound to the name of one service, silent about outages.

While the store is away the board reads as empty, so that each service finds things out for itself. Knows no job system.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from anklet_worker.contract.errors import StoreUnavailable
from anklet_worker.store.store import Store

_T = TypeVar("_T")


class StoreBoard:
    """Implements `anklet_worker.contract.board.Board` on `store`, for the service called `owner`. Never raises for an outage."""

    def __init__(self, store: Store, owner: str) -> None:
        self._store = store
        self._owner = owner

    def turn(self, key: str, seconds: float) -> bool:
        """True if it is this service's turn, for the next `seconds`. Always true while the store is away."""
        return self._ask(lambda: self._store.claim(key, self._owner, seconds), otherwise=True)

    def pass_on(self, key: str) -> None:
        """End this service's turn early."""
        self._ask(lambda: self._store.release(key, self._owner), otherwise=False)

    def holder(self, key: str) -> str | None:
        """The owner of a turn or lease; None if it is free or the store is away."""
        return self._ask(lambda: self._store.holder(key), otherwise=None)

    def count(self, key: str, seconds: float, amount: int = 1) -> int | None:
        """Add to a shared counter and return the sum; None while the store is away."""
        return self._ask(lambda: self._store.count(key, seconds, amount), otherwise=None)

    def post(self, key: str, text: str, seconds: float) -> None:
        """Write a note for all services, for `seconds`."""
        self._ask(lambda: self._store.post(key, text, seconds), otherwise=None)

    def read(self, key: str) -> str | None:
        """A note; None if there is none or the store is away."""
        return self._ask(lambda: self._store.read(key), otherwise=None)

    def _ask(self, question: Callable[[], _T], otherwise: _T) -> _T:
        try:
            return question()
        except StoreUnavailable:
            return otherwise
