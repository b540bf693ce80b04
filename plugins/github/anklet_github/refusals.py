"""What GitHub refuses, and whether it may be an incident: the end of the service, or patience.

Owns what was ever granted (also to an earlier process of ours: a restart in the midst of an incident must not end the service),
and the growing intervals at which a refusal is asked about again. Asks nobody.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable

from anklet_github.trouble import Refused
from anklet_worker.contract.context import Context
from anklet_worker.contract.errors import RightsRefused

#: A refusal of what was granted before is told after so many seconds (GitHub's own incidents look the same), and asked for again at
#: growing intervals.
_TELL_AFTER, _ASK_AGAIN_FIRST, _ASK_AGAIN_LONGEST = 30.0, 5.0, 300.0
#: For so long it is remembered what was granted; while it is, that is told anew so often.
_GRANTED_FOR, _TELL_GRANTED = 7 * 86_400.0, 86_400.0


class Refusals:
    """What is refused to one login, by cause: all (the login), a route of a repository, or a path that somebody configured."""

    def __init__(self, identity: str, context: Context) -> None:
        self._prefix = f"anklet:{{{_hash(identity)}/granted}}:"
        self._context = context
        self._granted: dict[str, float] = {}
        self._pending: dict[str, _Refusal] = {}

    def check(self, causes: Iterable[str]) -> None:
        """Before asking: raise a refusal again, unasked, until it is time to ask again."""
        for cause in self._pending.keys() & set(causes):
            self._pending[cause].check(time.monotonic())

    def granted(self, causes: Iterable[str]) -> None:
        """We may do this (or what was asked for was at least judged on its merits)."""
        now = time.monotonic()
        for cause in causes:
            if cause not in self._granted or now - self._granted[cause] >= _TELL_GRANTED:
                self._granted[cause] = now
                self._context.board.post(self._key(cause), "", _GRANTED_FOR)
        for cause in self._pending.keys() & set(causes):
            del self._pending[cause]
            self._context.log.info("GitHub grants again what it refused", extra={"what": cause})

    def judged(self, error: Refused) -> Exception:
        """What a refusal comes to: the end of the service when it never was otherwise, else patience. While something is refused
        that was granted before, a refusal of what was never asked for proves nothing: an incident refuses everything."""
        if not self._pending and not self._was_granted(error.cause):
            return RightsRefused(str(error))
        now = time.monotonic()
        self._pending.setdefault(error.cause, _Refusal(now)).again(error, now, self._context)
        return error

    def _was_granted(self, cause: str) -> bool:
        return cause in self._granted or self._context.board.read(self._key(cause)) is not None

    def _key(self, cause: str) -> str:
        return self._prefix + _hash(cause)


class _Refusal:
    """What GitHub granted before and refuses now: waited for at growing intervals, and told once. Times are monotonic seconds."""

    def __init__(self, since: float) -> None:
        self._since = since
        self._ask_again_at = since
        self._pause = _ASK_AGAIN_FIRST
        self._told = False
        self._last: Refused | None = None

    def check(self, now: float) -> None:
        """Raise the refusal again, unasked, until it is time to ask again."""
        if self._last is not None and now < self._ask_again_at:
            raise Refused(str(self._last), self._last.cause)

    def again(self, error: Refused, now: float, context: Context) -> None:
        """It was refused once more."""
        self._last = error
        if now - self._since >= _TELL_AFTER and not self._told:
            self._told = True
            context.log.error("GitHub refuses what it granted before; asking now and then", extra={"err": str(error)})
        self._ask_again_at = now + self._pause
        self._pause = min(self._pause * 2, _ASK_AGAIN_LONGEST)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]
