"""Decides whether a refusal by GitHub ends the service or may be an incident that passes.

Owns the memory of what GitHub has granted, and the growing intervals between retries of a refused request. An earlier process
shares that memory through the board: a restart during an incident must not end the service. Sends nothing.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable

from anklet_github.trouble import Refused
from anklet_worker.contract.backoff import Backoff
from anklet_worker.contract.context import Context
from anklet_worker.contract.errors import RightsRefused

#: Log a refusal of what was granted before only after this many seconds: GitHub's own incidents look the same.
_LOG_AFTER = 30.0
#: Pauses between retries of such a request.
_ASK_AGAIN = Backoff(first=5.0, longest=300.0)
#: Seconds for which the board remembers a grant, and between two renewals of that note.
_GRANTED_FOR, _RENEW_GRANT = 7 * 86_400.0, 86_400.0


class Refusals:
    """What GitHub refuses to one login, by cause: everything (`LOGIN`), a route of a repository, or a configured path."""

    def __init__(self, identity: str, context: Context) -> None:
        self._prefix = f"anklet:{{{_hash(identity)}/granted}}:"
        self._context = context
        self._granted: dict[str, float] = {}
        self._pending: dict[str, _Refusal] = {}

    def check(self, causes: Iterable[str]) -> None:
        """Call before a request. Raises the last refusal of one of these causes until its pause is over."""
        for cause in self._pending.keys() & set(causes):
            self._pending[cause].check(time.monotonic())

    def granted(self, causes: Iterable[str]) -> None:
        """Record that GitHub allows this. An answer about the request itself (404, 409, 422) counts as well."""
        now = time.monotonic()
        for cause in causes:
            if cause not in self._granted or now - self._granted[cause] >= _RENEW_GRANT:
                self._granted[cause] = now
                self._context.board.post(self._key(cause), "", _GRANTED_FOR)
        for cause in self._pending.keys() & set(causes):
            del self._pending[cause]
            self._context.log.info("GitHub grants again what it refused", extra={"what": cause})

    def judged(self, error: Refused) -> Exception:
        """The exception to raise for a refusal: `RightsRefused` for what was never granted, else the refusal itself.

        While GitHub refuses something that it granted before, a refusal of something new proves nothing: an incident refuses
        everything.
        """
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
    """One cause that GitHub granted before and refuses now. It is logged once. Times are monotonic seconds."""

    def __init__(self, since: float) -> None:
        self._since = since
        self._ask_again_at = since
        self._backoff = _ASK_AGAIN
        self._logged = False
        self._last: Refused | None = None

    def check(self, now: float) -> None:
        """Raise the last refusal until it is time to ask again."""
        if self._last is not None and now < self._ask_again_at:
            raise Refused(str(self._last), self._last.cause)

    def again(self, error: Refused, now: float, context: Context) -> None:
        """Record one more refusal."""
        self._last = error
        if now - self._since >= _LOG_AFTER and not self._logged:
            self._logged = True
            context.log.error("GitHub refuses what it granted before; asking now and then", extra={"err": str(error)})
        self._ask_again_at = now + self._backoff.pause
        self._backoff = self._backoff.next()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]
