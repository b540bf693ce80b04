"""A store that opens at first use and remembers an outage, shared by all parts of a worker.

A worker must reconcile and watch running jobs while Redis is away; only claiming needs the store. Owns when the store opens, the
log lines of an outage (one WARN at its start, one INFO at its end), and when to try again. Until then every call fails at once,
because a real call would take seconds to fail. Knows no kind of store.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import msgspec

from anklet_worker.contract.backoff import Backoff
from anklet_worker.contract.errors import StoreUnavailable
from anklet_worker.store.store import Store

#: Seconds between two tries during an outage. The jitter keeps hosts from trying all at once.
_BACKOFF = Backoff(first=1.0, longest=10.0, jitter=0.25)
#: The longest pause also stays below this share of a lease's time to live.
_PAUSES_IN_TTL = 6
#: The counter that shows, after an outage, that the store accepts writes again.
_PROBE, _PROBE_TTL = "anklet:probe", 1.0

_Answer = TypeVar("_Answer")
_Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


class Outage:
    """Remembers whether the store is away and when to try again. `now` is seconds of a clock that never goes back.

    `ttl` is the leases' time to live in seconds: pauses stay well below it, so that leases are renewed in time after an outage.
    """

    def __init__(self, ttl: float, jitter: Callable[[], float]) -> None:
        longest = min(_BACKOFF.longest, ttl / _PAUSES_IN_TTL)
        self._fresh = msgspec.structs.replace(_BACKOFF, longest=longest)
        self._jitter = jitter
        #: The next pause; None while the store answers.
        self._backoff: Backoff | None = None
        self._until = 0.0

    @property
    def lasts(self) -> bool:
        """True from the first failure until a success."""
        return self._backoff is not None

    def holds(self, now: float) -> bool:
        """True while it is too early for another try."""
        return self._backoff is not None and now < self._until

    def begins(self, now: float) -> bool:
        """Note a failure. True if the outage starts with it."""
        news = self._backoff is None
        backoff = self._backoff or self._fresh
        self._until = now + backoff.jittered(self._jitter())
        self._backoff = backoff.next()
        return news

    def ends(self) -> bool:
        """Note a success. True if it ends an outage."""
        news, self._backoff = self._backoff is not None, None
        return news


class LazyStore:
    """Implements `Store` on the store that `opener` returns; calls `opener` until it succeeds once.

    Every method raises what `opener` raises: `StoreUnavailable` (try again later) or `ServiceFatal` (an operator must act).
    `ttl` is the time to live in seconds of the leases that the caller keeps in the store.
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
        # Guards the outage; never held during a call to the store, which may take seconds.
        self._noting = threading.Lock()
        self._outage = Outage(ttl, jitter)
        self._reason = ""

    def open(self) -> None:
        """Open the store if it is not open yet."""
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
        """Close the store if it is open."""
        with self._opening:
            if self._store is not None:
                self._store.close()

    def _ask(self, question: Callable[[Store], _Answer]) -> _Answer:
        with self._noting:
            if self._outage.holds(self._clock()):
                raise StoreUnavailable(self._reason)
            in_doubt = self._outage.lasts
        try:
            store = self._opened()
            if in_doubt:
                # A store on a full disk still answers reads; only a successful write proves that the outage is over.
                store.count(_PROBE, _PROBE_TTL)
            answer = question(store)
        except StoreUnavailable as error:
            self._note_failure(error)
            raise
        with self._noting:
            back = self._outage.ends()
        if back:
            self._log.info("the claim store answers again")
        return answer

    def _opened(self) -> Store:
        with self._opening:
            if self._store is None:
                self._store = self._opener()
            return self._store

    def _note_failure(self, error: StoreUnavailable) -> None:
        with self._noting:
            self._reason = str(error)
            news = self._outage.begins(self._clock())
        if news:
            self._log.warning(
                "the claim store does not answer: taking no new jobs; running jobs continue",
                extra={"err": str(error)},
            )
