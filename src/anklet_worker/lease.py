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

from anklet_worker.errors import StoreUnavailable
from anklet_worker.store import Store

#: Renewals in the time that a lease lives: two may fail before it ends.
_RENEWALS = 3
_OUTAGE_PAUSE_FIRST = 1.0
_CLOSE_PATIENCE = 5.0

_Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


class _Standing(Enum):
    HELD = "held"
    #: Another owner has it. The key is kept so that the runner can ask.
    LOST = "lost"


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

    def renewed(self, now: float) -> bool:
        """A round succeeded. True when that ends an outage."""
        recovered, self._outage_pause = self._outage_pause is not None, None
        self._due = now + self._interval
        return recovered

    def failed(self, now: float) -> bool:
        """The store did not answer: try again after a pause that doubles up to the interval. True when an outage begins."""
        last = self._outage_pause
        self._outage_pause = min(self._interval, _OUTAGE_PAUSE_FIRST if last is None else last * 2)
        self._due = now + self._outage_pause
        return last is None


def _ignore() -> None:
    """Nobody wants to know."""


class LeaseKeeper:
    """The leases of one owner, each renewed every third of `ttl` seconds by one daemon thread, until given back.

    The thread sleeps while nothing is held. While the store does not answer it tries again with a growing pause: one WARN when
    that begins, one INFO when it is over. Safe to call from several threads.
    """

    def __init__(
        self, store: Store, owner: str, ttl: float, log: _Log, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._owner = owner
        self._ttl = ttl
        self._log = log
        self._clock = clock
        # Guards what follows; never held while the store is asked, so that `lost` answers at once.
        self._changed = threading.Condition()
        self._leases: dict[str, _Standing] = {}
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
            if not self._store.claim(key, self._owner, self._ttl):
                return False
            with self._changed:
                self._leases[key] = _Standing.HELD
                self._schedule.taken(self._clock())
                if self._thread is None and not self._closed:
                    self._thread = threading.Thread(target=self._keep, name="lease-keeper", daemon=True)
                    self._thread.start()
                self._changed.notify_all()
        return True

    def give_back(self, key: str) -> bool:
        """Release the lease; True when it was ours to the end. When the store does not answer, it expires by itself."""
        with self._asking:
            with self._changed:
                standing = self._leases.pop(key, None)
            if standing is _Standing.LOST:
                return False
            try:
                return self._store.release(key, self._owner)
            except StoreUnavailable as error:
                self._failed(error)
                return False

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
            except StoreUnavailable as error:
                self._failed(error)
            except Exception as error:  # noqa: BLE001  a thread that dies in silence would cost every claim of the service
                self._log.exception("a bug hindered the renewal of claims", extra={"err": type(error).__name__})
                self._failed(StoreUnavailable("see the bug above"))
            else:
                with self._changed:
                    recovered = self._schedule.renewed(self._clock())
                if recovered:
                    self._log.info("the store of claims answers again")

    def _wait_for_round(self) -> list[str] | None:
        """Sleep until renewals are due and return what is held; None when the keeper is closed."""
        with self._changed:
            while not self._closed:
                held = [key for key, standing in self._leases.items() if standing is _Standing.HELD]
                if not held:
                    self._schedule.idle()
                pause = self._schedule.pause(self._clock())
                if pause == 0:
                    return held
                self._changed.wait(pause)
        return None

    def _renew(self, key: str) -> None:
        with self._asking:
            with self._changed:
                if self._leases.get(key) is not _Standing.HELD:
                    return
            if self._store.renew(key, self._owner, self._ttl):
                return
            # It ended before its time: the host slept, or the store was away or forgot. Perhaps nobody has noticed.
            if self._store.claim(key, self._owner, self._ttl):
                self._log.info("a claim had ended and was taken again", extra={"lease": key})
                return
            with self._changed:
                if key in self._leases:
                    self._leases[key] = _Standing.LOST
            holder = None
            with contextlib.suppress(StoreUnavailable):
                holder = self._store.holder(key)
            self._log.warning("a claim was lost to another owner", extra={"lease": key, "holder": holder or "unknown"})
            self.on_lost()

    def _failed(self, error: StoreUnavailable) -> None:
        with self._changed:
            outage_begins = self._schedule.failed(self._clock())
        if outage_begins:
            self._log.warning(
                "the store of claims does not answer; claims cannot be renewed", extra={"err": str(error)}
            )
