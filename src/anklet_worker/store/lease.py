"""Keeps the leases that this service holds alive, while its main thread waits for commands and jobs.

Owns which leases are held, when they are renewed, and what is known of those that were lost. Knows no job; what to do about a
lost lease is the runner's business.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from enum import Enum

from anklet_worker.contract.errors import ServiceFatal, StoreUnavailable
from anklet_worker.store.store import Store

#: Renewals in the time that a lease lives: two may fail before it ends.
_RENEWALS = 3
_OUTAGE_PAUSE_FIRST = 1.0
_CLOSE_PATIENCE = 5.0

_Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


class _Standing(Enum):
    HELD = "held"
    #: Another owner has it. The key is kept so that the runner can ask.
    LOST = "lost"
    #: Given back, but the store did not answer: released as soon as it does.
    RETURNED = "returned"


class RenewalSchedule:
    """When to renew next, and whether the store is known to be away. Pure: `now` is any clock's seconds that never go back."""

    def __init__(self, ttl: float) -> None:
        self._interval = ttl / _RENEWALS
        self._due: float | None = None
        self._outage_pause: float | None = None

    def pause(self, now: float) -> float | None:
        """Seconds until the next round of renewals, 0 when it is time; None when there is nothing to renew."""
        return None if self._due is None else max(0.0, self._due - now)

    def taken(self, now: float) -> None:
        """A lease was taken: the next round comes within the interval."""
        if self._due is None:
            self._due = now + self._interval

    def idle(self) -> None:
        """Nothing is held any more."""
        self._due = None

    def renewed(self, now: float) -> None:
        """A round succeeded."""
        self._outage_pause = None
        self._due = now + self._interval

    def failed(self, now: float) -> None:
        """The store did not answer: try again after a pause that doubles up to the interval."""
        last = self._outage_pause
        self._outage_pause = min(self._interval, _OUTAGE_PAUSE_FIRST if last is None else last * 2)
        self._due = now + self._outage_pause


_Clock = Callable[[], tuple[float, float]]


def _both_clocks() -> tuple[float, float]:
    return time.monotonic(), time.time()


def _ignore() -> None:
    """Nobody wants to know."""


class LeaseKeeper:
    """The leases of one owner, each renewed every third of `ttl` seconds by one daemon thread, until given back.

    The thread sleeps while nothing is held. While the store does not answer it tries again with a growing pause; an outage is the
    store's to tell. Safe to call from several threads.

    `clock` tells how long ago a lease was last known to be ours: two clocks, the longer time counts, for one of them may have stood
    still (a host asleep), and the other may have been set.
    """

    def __init__(self, store: Store, owner: str, ttl: float, log: _Log, clock: _Clock = _both_clocks) -> None:
        self._store = store
        self._owner = owner
        self._ttl = ttl
        self._log = log
        self._clock = clock
        # Guards what follows; never held while the store is asked, so that `lost` answers at once.
        self._changed = threading.Condition()
        self._leases: dict[str, _Standing] = {}
        #: When each was last known to be ours without a gap.
        self._sure: dict[str, tuple[float, float]] = {}
        self._schedule = RenewalSchedule(ttl)
        self._closed = False
        #: Told, from the thread that renews, of each lease that another owner has taken.
        self.on_lost: Callable[[], object] = _ignore
        self._thread: threading.Thread | None = None
        # One question to the store at a time: a renewal under way must not bring back a lease that is being given back.
        self._asking = threading.Lock()

    def take(self, key: str) -> bool:
        """Claim the lease and keep it alive. False: another owner has it. Raises `StoreUnavailable`; then nothing is held."""
        with self._asking:
            # From before the question: the store's answer may be long on its way.
            asked = self._clock()
            if not self._store.claim(key, self._owner, self._ttl):
                return False
            with self._changed:
                self._leases[key] = _Standing.HELD
                self._sure[key] = asked
                self._wake()
        return True

    def _wake(self) -> None:
        """There is something for the thread to do. Called with `_changed` held."""
        self._schedule.taken(self._now())
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._keep, name="lease-keeper", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def give_back(self, key: str) -> bool:
        """Release the lease; True when it was ours to the end. When the store does not answer, it is released as soon as that does,
        or expires by itself."""
        with self._asking:
            with self._changed:
                standing = self._leases.pop(key, None)
                self._sure.pop(key, None)
            if standing is _Standing.LOST:
                return False
            try:
                return self._store.release(key, self._owner)
            except (StoreUnavailable, ServiceFatal):
                # Also of one that refuses us: whoever cleans up has more to remove than this.
                with self._changed:
                    self._leases[key] = _Standing.RETURNED
                    self._schedule.failed(self._now())
                    self._wake()
                return False

    def may_have_been_lost(self, key: str) -> bool:
        """Whether another owner may have had the lease meanwhile, although it is not known to be lost (see `lost`): it could not be
        renewed in time, for the store was away, or this process or its host stood still. Asks the store first in that case."""
        with self._changed:
            sure = self._sure.get(key)
        age = max(now - then for now, then in zip(self._clock(), sure, strict=True)) if sure else float("inf")
        if age < self._ttl:
            return False
        try:
            return not self._renew(key)
        except StoreUnavailable:
            return True

    def lost(self, key: str) -> bool:
        """True when a lease that was taken here is known to be another owner's now. Answers at once."""
        with self._changed:
            return self._leases.get(key) is _Standing.LOST

    def close(self) -> None:
        """End the thread. What is held is left to expire, or to the next process of the same owner."""
        with self._changed:
            self._closed = True
            self._leases.clear()
            self._changed.notify_all()
        if self._thread is not None:
            # Bounded: it may be waiting for a store that does not answer, and it is a daemon.
            self._thread.join(_CLOSE_PATIENCE)

    def _keep(self) -> None:
        while (held := self._wait_for_round()) is not None:
            try:
                for key in held:
                    self._renew(key)
            except (StoreUnavailable, ServiceFatal):
                self._failed()
            except Exception as error:  # noqa: BLE001  a thread that dies in silence would cost every claim of the service
                self._log.exception("a bug hindered the renewal of claims", extra={"err": type(error).__name__})
                self._failed()
            else:
                with self._changed:
                    self._schedule.renewed(self._now())

    def _wait_for_round(self) -> list[str] | None:
        """Sleep until renewals are due and return what is held; None when the keeper is closed."""
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
        """Renew one lease, or release it. True when it was ours all the time."""
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
                    if key not in self._sure:
                        # There has been a gap before.
                        return False
                    self._sure[key] = now
                return True
            # It ended before its time: the host slept, or the store was away or forgot. Perhaps nobody has noticed.
            with self._changed:
                self._sure.pop(key, None)
            if self._store.claim(key, self._owner, self._ttl):
                self._log.info("a claim had ended and was taken again", extra={"lease": key})
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
        self._log.warning("a claim was lost to another owner", extra={"lease": key, "holder": holder or "unknown"})
        self.on_lost()

    def _now(self) -> float:
        return self._clock()[0]

    def _failed(self) -> None:
        with self._changed:
            self._schedule.failed(self._now())
