"""The store as all parts of a worker see it: opened when it is first needed, and away for all of them at once.

Owns the moment of opening, and what is known of an outage: one WARN when it begins and one INFO when it is over, whoever met it;
and when it is asked again. In between each call fails at once: a store that is away takes seconds to say so. A worker must recover
and follow running jobs also while Redis is away; only claiming needs it.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from anklet_worker.contract.errors import StoreUnavailable
from anklet_worker.store.store import Store

#: Seconds until a store that is away is asked again: at first, and at most (and less, where leases are short). Up to a quarter more
#: at random, so that not all hosts come at once.
_PAUSE_FIRST, _PAUSE_LONGEST = 1.0, 10.0
_PAUSES_IN_TTL = 6
#: What is counted to see whether a store that was away takes what is written.
_PROBE, _PROBE_TTL = "anklet:probe", 1.0

_Answer = TypeVar("_Answer")
_Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


class Outage:
    """Whether the store is away, and when it is to be asked again. Pure: `now` is any clock's seconds that never go back."""

    def __init__(self, ttl: float, jitter: Callable[[], float]) -> None:
        self._longest = min(_PAUSE_LONGEST, ttl / _PAUSES_IN_TTL)
        self._jitter = jitter
        self._pause: float | None = None
        self._until = 0.0

    @property
    def lasts(self) -> bool:
        """True until it is known to be over."""
        return self._pause is not None

    def holds(self, now: float) -> bool:
        """True while nobody need ask."""
        return self._pause is not None and now < self._until

    def begins(self, now: float) -> bool:
        """The store did not answer. True when that is news."""
        news = self._pause is None
        self._pause = min(self._longest, _PAUSE_FIRST if self._pause is None else self._pause * 2)
        self._until = now + self._pause * (1 + self._jitter() / 4)
        return news

    def ends(self) -> bool:
        """The store answered. True when that is news."""
        news, self._pause = self._pause is not None, None
        return news


class LazyStore:
    """Implements `Store` on the store that `opener` makes; tries to make it until that succeeds once.

    Every method raises what `opener` raises: `StoreUnavailable` for now, `ServiceFatal` until an operator acts. `ttl`: for how long
    the leases live that are kept in it, in seconds.
    """

    def __init__(
        self,
        opener: Callable[[], Store],
        ttl: float,
        log: _Log,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._opener = opener
        self._log = log
        self._clock = clock
        self._opening = threading.Lock()
        self._store: Store | None = None
        # Guards what is known of an outage; never held while the store is asked.
        self._telling = threading.Lock()
        self._outage = Outage(ttl, jitter)
        self._said = ""

    def open(self) -> None:
        """Open the store, if it is not open yet."""
        self._ask(lambda _: None)

    def claim(self, key: str, owner: str, ttl: float) -> bool:
        """See `Store`."""
        return self._ask(lambda store: store.claim(key, owner, ttl))

    def renew(self, key: str, owner: str, ttl: float) -> bool:
        """See `Store`."""
        return self._ask(lambda store: store.renew(key, owner, ttl))

    def release(self, key: str, owner: str) -> bool:
        """See `Store`."""
        return self._ask(lambda store: store.release(key, owner))

    def holder(self, key: str) -> str | None:
        """See `Store`."""
        return self._ask(lambda store: store.holder(key))

    def count(self, key: str, ttl: float, amount: int = 1) -> int:
        """See `Store`."""
        return self._ask(lambda store: store.count(key, ttl, amount))

    def post(self, key: str, value: str, ttl: float) -> None:
        """See `Store`."""
        self._ask(lambda store: store.post(key, value, ttl))

    def read(self, key: str) -> str | None:
        """See `Store`."""
        return self._ask(lambda store: store.read(key))

    def close(self) -> None:
        """Close what has been opened."""
        with self._opening:
            if self._store is not None:
                self._store.close()

    def _ask(self, question: Callable[[Store], _Answer]) -> _Answer:
        with self._telling:
            if self._outage.holds(self._clock()):
                raise StoreUnavailable(self._said)
            in_doubt = self._outage.lasts
        try:
            store = self._opened()
            if in_doubt:
                # On a full disk all that is read, or not to be had, is still answered: only a write proves that it is over.
                store.count(_PROBE, _PROBE_TTL)
            answer = question(store)
        except StoreUnavailable as error:
            self._tell_away(error)
            raise
        with self._telling:
            back = self._outage.ends()
        if back:
            self._log.info("the store of claims answers again")
        return answer

    def _opened(self) -> Store:
        with self._opening:
            if self._store is None:
                self._store = self._opener()
            return self._store

    def _tell_away(self, error: StoreUnavailable) -> None:
        with self._telling:
            self._said = str(error)
            news = self._outage.begins(self._clock())
        if news:
            self._log.warning(
                "the store of claims does not answer; no new job is taken, those that run go on",
                extra={"err": str(error)},
            )
