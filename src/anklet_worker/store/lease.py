"""Renews this service's leases in the background, while the main thread waits for orders and jobs.

Owns which leases are held, when they are renewed, and which were lost. Knows no job; the caller decides what a lost lease means.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable
from enum import Enum

from anklet_worker.contract.backoff import Backoff
from anklet_worker.contract.errors import ServiceFatal, StoreUnavailable
from anklet_worker.store.store import Store

#: Renewals per time to live: two may fail before the lease expires.
_RENEWALS = 3
#: Seconds until the first retry after a failed renewal.
_FIRST_RETRY = 1.0
#: Seconds that `close` waits for the thread.
_CLOSE_PATIENCE = 5.0

_Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


class _Standing(Enum):
    HELD = "held"
    #: Another owner has it. Kept so that `lost` can answer.
    LOST = "lost"
    #: Given back while the store was away: to be released when it answers.
    RETURNED = "returned"


class RenewalSchedule:
    """When to renew next. `now` is seconds of a clock that never goes back; `ttl` is the leases' time to live in seconds."""

    def __init__(self, ttl: float) -> None:
        self._interval = ttl / _RENEWALS
        self._due: float | None = None
        self._backoff = Backoff(first=_FIRST_RETRY, longest=self._interval)

    def pause(self, now: float) -> float | None:
        """Seconds until the next round of renewals, 0 if it is due; None if nothing is held."""
        return None if self._due is None else max(0.0, self._due - now)

    def taken(self, now: float) -> None:
        """Note a new lease: the next round starts within the interval."""
        if self._due is None:
            self._due = now + self._interval

    def idle(self) -> None:
        """Note that nothing is held."""
        self._due = None

    def renewed(self, now: float) -> None:
        """Note a round that succeeded."""
        self._backoff = self._backoff.reset()
        self._due = now + self._interval

    def failed(self, now: float) -> None:
        """Note a round that failed: the next one starts after a pause that doubles up to the interval."""
        self._due = now + self._backoff.pause
        self._backoff = self._backoff.next()


_Clock = Callable[[], tuple[float, float]]


def _both_clocks() -> tuple[float, float]:
    return time.monotonic(), time.time()


def _age(now: tuple[float, float], then: tuple[float, float]) -> float:
    """Seconds between two readings: the longer of both clocks' answers."""
    return max(later - earlier for later, earlier in zip(now, then, strict=True))


def _ignore() -> None:
    """Default for `LeaseKeeper.on_lost`."""


class LeaseKeeper:
    """Holds the leases of one owner; a daemon thread renews them every `ttl / 3` seconds until they are given back.

    The thread sleeps while nothing is held. During an outage it retries with growing pauses and logs nothing, because the store
    logs the outage. Safe to call from several threads.

    `clock` returns the seconds of a monotonic and of a wall clock. The longer of the two ages of a renewal counts: the monotonic
    clock stands still while the host sleeps, and somebody may set the wall clock.
    """

    def __init__(self, store: Store, owner: str, ttl: float, log: _Log, clock: _Clock = _both_clocks) -> None:
        self._store = store
        self._owner = owner
        self._ttl = ttl
        self._log = log
        self._clock = clock
        # Guards the fields below; never held during a call to the store, so that `lost` answers at once.
        self._changed = threading.Condition()
        self._leases: dict[str, _Standing] = {}
        #: When each lease was last confirmed, if it was held without a gap since it was taken.
        self._confirmed: dict[str, tuple[float, float]] = {}
        self._schedule = RenewalSchedule(ttl)
        self._closed = False
        #: Called from the renewing thread for each lease that another owner has taken.
        self.on_lost: Callable[[], object] = _ignore
        self._thread: threading.Thread | None = None
        # Serializes calls to the store: a renewal in flight must not revive a lease that is being given back.
        self._asking = threading.Lock()

    def take(self, key: str) -> bool:
        """Claim the lease and renew it from now on. False if another owner has it. Raises `StoreUnavailable`."""
        with self._asking:
            # Taken before the call: the lease's time runs from before the answer arrives.
            asked = self._clock()
            if not self._store.claim(key, self._owner, self._ttl):
                return False
            with self._changed:
                self._leases[key] = _Standing.HELD
                self._confirmed[key] = asked
                self._wake()
        return True

    def _wake(self) -> None:
        """Wake the thread, or start it. Call with `_changed` held."""
        self._schedule.taken(self._now())
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._keep, name="lease-keeper", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def give_back(self, key: str) -> bool:
        """Release the lease. True if this owner held it until now.

        While the store is away the release is retried in the background, unless the lease expires first.
        """
        with self._asking:
            with self._changed:
                standing = self._leases.pop(key, None)
                self._confirmed.pop(key, None)
            if standing is _Standing.LOST:
                return False
            try:
                return self._store.release(key, self._owner)
            except (StoreUnavailable, ServiceFatal):
                # `ServiceFatal` too: a refused password must not stop the caller's clean-up.
                with self._changed:
                    self._leases[key] = _Standing.RETURNED
                    self._schedule.failed(self._now())
                    self._wake()
                return False

    def may_have_been_lost(self, key: str) -> bool:
        """True if the lease was not renewed in time, so another owner may have held it in between (see `lost` for certainty).

        The store may have been away, or this process or the host may have stood still. Renews the lease first if it is overdue.
        """
        with self._changed:
            confirmed = self._confirmed.get(key)
        age = _age(self._clock(), confirmed) if confirmed else math.inf
        if age < self._ttl:
            return False
        try:
            return not self._renew(key)
        except StoreUnavailable:
            return True

    def lost(self, key: str) -> bool:
        """True if another owner is known to have a lease that was taken here. Never calls the store."""
        with self._changed:
            return self._leases.get(key) is _Standing.LOST

    def close(self) -> None:
        """End the thread. Leases stay until they expire, for the next process of the same owner to adopt."""
        with self._changed:
            self._closed = True
            self._leases.clear()
            self._changed.notify_all()
        if self._thread is not None:
            # Bounded: a call to the store may hang, and the thread is a daemon.
            self._thread.join(_CLOSE_PATIENCE)

    def _keep(self) -> None:
        while (held := self._wait_for_round()) is not None:
            try:
                for key in held:
                    self._renew(key)
            except (StoreUnavailable, ServiceFatal):
                self._failed()
            except Exception as error:  # noqa: BLE001  if this thread died silently, every claim of the service would expire
                self._log.exception("bug: could not renew claims", extra={"err": type(error).__name__})
                self._failed()
            else:
                with self._changed:
                    self._schedule.renewed(self._now())

    def _wait_for_round(self) -> list[str] | None:
        """Sleep until renewals are due and return the keys to renew; None if the keeper is closed."""
        with self._changed:
            while not self._closed:
                held = [key for key, standing in self._leases.items() if standing is not _Standing.LOST]
                if not held:
                    self._schedule.idle()
                pause = self._schedule.pause(self._now())
                if pause == 0:
                    return held
                self._changed.wait(pause)
        return None

    def _renew(self, key: str) -> bool:
        """Renew one lease, or release it if it was given back. True if it was held without a gap."""
        with self._asking:
            with self._changed:
                standing, now = self._leases.get(key), self._clock()
            if standing is _Standing.RETURNED:
                self._store.release(key, self._owner)
                with self._changed:
                    self._leases.pop(key, None)
            if standing is not _Standing.HELD:
                return False
            if self._store.renew(key, self._owner, self._ttl):
                with self._changed:
                    if key not in self._confirmed:
                        # There was a gap earlier.
                        return False
                    self._confirmed[key] = now
                return True
            # The lease expired: the host slept, or the store was away or lost its data. It may still be free.
            with self._changed:
                self._confirmed.pop(key, None)
            if self._store.claim(key, self._owner, self._ttl):
                self._log.info("a claim had expired and was taken again", extra={"lease": key})
            else:
                self._lose(key)
            return False

    def _lose(self, key: str) -> None:
        with self._changed:
            if key in self._leases:
                self._leases[key] = _Standing.LOST
        holder = None
        with contextlib.suppress(StoreUnavailable):
            holder = self._store.holder(key)
        self._log.warning("lost a claim to another owner", extra={"lease": key, "holder": holder or "unknown"})
        self.on_lost()

    def _now(self) -> float:
        return self._clock()[0]

    def _failed(self) -> None:
        with self._changed:
            self._schedule.failed(self._now())
