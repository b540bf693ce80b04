"""GitHub's rate limits: how to recognize one, how long to wait, and how services with the same login share its budget.

Owns the arithmetic and its notes on the board. Sends nothing. GitHub REST docs (rate limits), version 2022-11-28: a read costs
one point and a write five, at most 900 points a minute; the headers of each reply give the reset time of the primary limit.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from anklet_github.http import Reply
from anklet_github.trouble import LimitPause
from anklet_worker.contract.board import Board
from anklet_worker.contract.context import Context

#: Points a minute for all requests, and for looks at the queue. The rest is reserved for registering, watching and cleaning up.
MOST_POINTS, MOST_POINTS_TO_LOOK = 800, 500
#: The share of the primary limit that is reserved for them too, and the most calls that are.
_RESERVED_PART, _MOST_RESERVED = 0.1, 500
#: Pause in seconds for a secondary limit that names none: GitHub asks for a minute.
_SECONDARY_PAUSE = 60.0
_LONGEST_PAUSE = 3900.0
_MINUTE = 60.0
#: Random seconds added to a pause, so that services do not all ask at the same moment.
_SPREAD = 2.0
_FORBIDDEN, _TOO_MANY = 403, 429
#: Words of a 403 without rate headers that is a limit; the second is of older servers.
_WORDS_OF_LIMITS = (b"rate limit", b"abuse detection")
#: Seconds between two checks whether a pause still serves a purpose.
_SLICE = 1.0
_READS = frozenset({"GET", "HEAD", "OPTIONS"})


def points(method: str) -> int:
    """Cost of a request in points."""
    return 1 if method in _READS else 5


def limit_pause(reply: Reply, secondary: float, now: float) -> float | None:
    """Seconds to wait when the reply reports a rate limit, else None.

    Without rate headers, only a 429 or a 403 that mentions a limit is one; then the pause is `secondary`. `now` is Unix seconds.
    """
    if reply.status not in (_FORBIDDEN, _TOO_MANY):
        return None
    asked_for = _retry_after(reply, now)
    if asked_for is not None:
        return min(asked_for, _LONGEST_PAUSE)
    reset = reply.headers.get("x-ratelimit-reset", "")
    if reply.headers.get("x-ratelimit-remaining") == "0" and reset.isdigit():
        server_now = reply.date() or now
        return min(max(1.0, float(reset) - server_now + 1.0), _LONGEST_PAUSE)
    if reply.status == _TOO_MANY or any(words in reply.body.lower() for words in _WORDS_OF_LIMITS):
        return min(secondary, _LONGEST_PAUSE)
    return None


def _retry_after(reply: Reply, now: float) -> float | None:
    """Seconds from the Retry-After header: a number, or a date by the server's clock (RFC 9110). Proxies send either."""
    said = reply.headers.get("retry-after", "").strip()
    if said.isdigit():
        return float(said)
    from email.utils import parsedate_to_datetime  # noqa: PLC0415  seldom needed, and half a megabyte

    try:
        return max(1.0, parsedate_to_datetime(said).timestamp() - (reply.date() or now))
    except ValueError:
        return None


class Budget:
    """What one login may still spend. All services with the same `key` and store share the figures."""

    def __init__(self, key: str, context: Context, clock: Callable[[], float] = time.time) -> None:
        self._key = key
        self._context = context
        self._board: Board = context.board
        self._clock = clock
        self._refused_until = 0.0
        self._secondary = _SECONDARY_PAUSE
        self._reserve_until = 0.0
        self._left: tuple[int, int] | None = None
        self._patience = math.inf

    @contextmanager
    def bounded(self, seconds: float) -> Iterator[None]:
        """Inside the `with`, a request that would wait longer than this raises `LimitPause` instead."""
        before, self._patience = self._patience, seconds
        try:
            yield
        finally:
            self._patience = before

    def spend(self, method: str, *, urgent: bool) -> None:
        """Call before a request: wait until the budget has room for it. A request that is not urgent leaves room for urgent ones.

        Raises `LimitPause` when the wait would be too long, or when the service drains and the request is not urgent; and what
        `Context.wait` raises.
        """
        while (pause := self._pause(method, urgent=urgent)) > 0:
            if pause > self._patience:
                raise LimitPause(f"GitHub's rate limit is reached for another {pause:.0f} s")
            with self._context.limit_paused():
                self._sit_out(pause + random.uniform(0, _SPREAD), urgent=urgent)  # noqa: S311  jitter, not a secret

    def _sit_out(self, seconds: float, *, urgent: bool) -> None:
        """Wait. A drain ends the pause of a look for jobs: the service takes no new job."""
        left = seconds
        while left > 0:
            if self._context.draining and not urgent:
                raise LimitPause("GitHub's rate limit is reached, and the service drains")
            self._context.wait(min(left, _SLICE))
            left -= _SLICE

    def has_room_to_look(self) -> bool:
        """Return True when a request that is not urgent would be sent now. Spends nothing."""
        now = self._clock()
        return not self._refused_for(now, urgent=False) and self._spent(now, 0) < MOST_POINTS_TO_LOOK

    def _pause(self, method: str, *, urgent: bool) -> float:
        now = self._clock()
        if refused := self._refused_for(now, urgent=urgent):
            return refused
        if self._spent(now, points(method)) > (MOST_POINTS if urgent else MOST_POINTS_TO_LOOK):
            return (now // _MINUTE + 1) * _MINUTE - now
        return 0.0

    def _refused_for(self, now: float, *, urgent: bool) -> float:
        """Seconds until GitHub, or the reserve for urgent requests, allows such a request."""
        posted = self._board.read(f"{self._key}:refused-until")
        until = max(self._refused_until, float(posted) if posted else 0.0, 0.0 if urgent else self._reserve_until)
        # If the clock was set back, do not wait for the old moment.
        return until - now if now < until <= now + _LONGEST_PAUSE else 0.0

    def _spent(self, now: float, more: int) -> int:
        """Points that all services have spent in this minute, with `more` added; 0 while the board does not answer."""
        return self._board.count(f"{self._key}:points:{int(now // _MINUTE)}", 2 * _MINUTE, more) or 0

    def account(self, reply: Reply) -> bool:
        """Call after a reply. Return True when a rate limit refused the request, so that it must be sent again."""
        now = self._clock()
        self._note_left(reply, now)
        pause = limit_pause(reply, self._secondary, now)
        if pause is None:
            if reply.status < _FORBIDDEN:
                self._secondary = _SECONDARY_PAUSE
            return False
        self._secondary = min(self._secondary * 2, _LONGEST_PAUSE)
        if self._refused_until <= now:
            self._context.log.warning(
                "GitHub's rate limit is reached; waiting",
                extra={"seconds": round(pause), "apiCallsLeft": self._calls_left()},
            )
        self._refused_until = now + pause
        self._board.post(f"{self._key}:refused-until", str(self._refused_until), max(1.0, pause))
        return True

    def _calls_left(self) -> int:
        return 0 if self._left is None else self._left[0]

    def _note_left(self, reply: Reply, now: float) -> None:
        """Record the state of the primary limit, if the reply shows it."""
        left, reset = reply.headers.get("x-ratelimit-remaining", ""), reply.headers.get("x-ratelimit-reset", "")
        limit = reply.headers.get("x-ratelimit-limit", "")
        if not (left.isdigit() and reset.isdigit() and limit.isdigit()):
            return
        if self._left != (int(left), int(reset)):
            self._left = (int(left), int(reset))
            self._context.api_budget(float(left), float(limit), float(reset))
        reserved = min(_MOST_RESERVED, int(limit) * _RESERVED_PART)
        pause = float(reset) - (reply.date() or now)
        self._reserve_until = now + pause if int(left) < reserved and pause > 0 else 0.0
