"""Speaks with GitHub's REST API: what to try again, what to ask only if it changed, and errors by who should act.

Knows no job. A call that succeeded is never repeated, and no error or log line ever holds a token. GitHub REST docs (rate limits,
best practices), version 2022-11-28.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
import time
import urllib.parse
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import msgspec

from anklet_github.connect import headers
from anklet_github.http import NoAnswer, Reply, Transport
from anklet_github.limits import Budget
from anklet_github.login import Login
from anklet_worker.errors import RetryHere, RightsRefused
from anklet_worker.plugin import Context

T = TypeVar("T")

_TRIES = 4
_PAUSE_FIRST, _PAUSE_LONGEST = 0.5, 10.0
_PER_PAGE = 100
_MOST_PAGES = 10
_KEPT = 512
#: Replies of up to so many bytes are told on the board, for an hour: another service, or our successor, then need not ask.
_LARGEST_TOLD, _TOLD_FOR = 512 * 1024, 3600.0
#: A refusal of what was granted before is told after so many seconds (GitHub's own incidents look the same), and asked for again at
#: growing intervals.
_TELL_AFTER, _ASK_AGAIN_FIRST, _ASK_AGAIN_LONGEST = 30.0, 5.0, 300.0
#: What a 401 refuses.
_LOGIN = "login"
_OK, _CREATED, _ACCEPTED, _NO_CONTENT, _NOT_MODIFIED = 200, 201, 202, 204, 304
_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _CONFLICT, _UNPROCESSABLE = 401, 403, 404, 409, 422


class ApiTrouble(RetryHere):
    """GitHub could not be asked, or did not answer as documented; it may the next time."""


class TimedOut(ApiTrouble):
    """No answer in time: what was asked for may be yet to happen."""


class NotFound(ApiTrouble):
    """404: it does not exist, or the token may not see it."""


class Conflict(ApiTrouble):
    """409: it exists already."""


class Unprocessable(ApiTrouble):
    """422: refused as it is (a runner that is busy, a label that is not allowed)."""


class Refused(ApiTrouble):
    """401, 403, and 404 for what was configured: who we are, or what we may do, is refused. For how long must show.

    `cause` is what is refused: all (the login), a route, or a path.
    """

    def __init__(self, text: str, cause: str) -> None:
        super().__init__(text)
        self.cause = cause


class Page(Protocol[T]):
    """A reply that is one page of a list."""

    @property
    def total_count(self) -> int:
        """How many there are on all pages."""
        ...

    @property
    def items(self) -> list[T]:
        """Those on this page."""
        ...


class Api:
    """One login's client."""

    def __init__(self, transport: Transport, login: Login, context: Context) -> None:
        self.identity = login.identity
        self._transport = transport
        self._login = login
        self._context = context
        self._budget = Budget(f"anklet:{{{login.identity}/api}}", context)
        self._known = KnownReplies(f"{login.identity}@{context.service.api_url}", context)
        self._worked: set[str] = set()
        self._refusals: dict[str, _Refusal] = {}

    def get(self, path: str, kind: type[T], *, urgent: bool = True, configured: bool = False, **query: str | int) -> T:
        """GET one object; what is not `urgent` waits first when the budget is short. Raises `NotFound`, `ApiTrouble`,
        `RightsRefused`.

        `configured`: an operator named what the path leads to, so a 404 is a refusal.
        """
        url = _url(path, query)

        def once() -> T:
            try:
                return self._conditional(url, kind, urgent=urgent)
            except NotFound as error:
                if not configured:
                    raise
                raise Refused(f"{error}: it does not exist, or the token may not see it", path) from None

        return self._repeated("GET", path, once)

    def get_all(
        self,
        path: str,
        kind: type[Page[T]],
        *,
        urgent: bool = True,
        emptied: bool = False,
        configured: bool = False,
        **query: str | int,
    ) -> list[T]:
        """GET every page of a list (GitHub gives no more than 1,000 of what is filtered). `emptied`: by what we know it should be
        empty now; that it is, then costs nothing to learn, as far as it was empty before. `configured`: somebody configured this
        path, so that a 404 is a refusal."""
        items: list[T] = []
        for number in range(1, _MOST_PAGES + 1):
            page_query = {**query, "per_page": _PER_PAGE, "page": number}
            if number == 1 and emptied:
                self._known.expect_empty(_url(path, page_query))
            page = self.get(path, kind, urgent=urgent, configured=configured, **page_query)
            if number == 1 and not page.items:
                self._known.is_empty(_url(path, page_query))
            items += page.items
            if len(page.items) < _PER_PAGE or len(items) >= page.total_count:
                break
        return items

    def post(self, path: str, kind: type[T], body: object, *, repeatable: bool) -> T:
        """POST; `repeatable` says that doing it twice does no harm. Raises `Conflict`, `Unprocessable` besides."""

        def once() -> T:
            return _decode(self._asked("POST", path, msgspec.json.encode(body)).body, kind, path)

        return self._repeated("POST", path, once, only_refusals=not repeatable)

    def delete(self, path: str) -> bool:
        """DELETE. False: it was not there, by GitHub's word. Raises `Unprocessable`."""

        def once() -> bool:
            try:
                self._asked("DELETE", path)
            except NotFound:
                return False
            return True

        return self._repeated("DELETE", path, once)

    def _conditional(self, url: str, kind: type[T], *, urgent: bool) -> T:
        """A GET that costs nothing where nothing has changed (304 does not count against the limit)."""
        known = self._known.of(url)
        more = {} if known is None else {"If-None-Match": known.etag}
        reply = self._asked("GET", url, more=more, urgent=urgent)
        if reply.status != _NOT_MODIFIED:
            answer = _decode(reply.body, kind, url)
            # Only what could be read is kept: a garbled reply must not be confirmed for ever after.
            self._known.learn(url, reply)
            return answer
        if known is None:
            raise ApiTrouble(f"GET {_path(url)}: GitHub answered 304 to what was not asked conditionally")
        return _decode(known.body, kind, url)

    def _repeated(self, method: str, path: str, attempt: Callable[[], T], *, only_refusals: bool = False) -> T:
        """Try a few times what a passing fault may have spoiled. Raises the last try's error."""
        causes = (_LOGIN, route_of(method, path), path)
        for cause in self._refusals.keys() & set(causes):
            self._refusals[cause].check(time.monotonic())
        pause = _PAUSE_FIRST
        for left in range(_TRIES - 1, -1, -1):
            try:
                answer = attempt()
            except (NotFound, Conflict, Unprocessable):
                self._granted(causes)
                raise
            except Refused as error:
                if not left:
                    raise self._judged(error) from None
            except ApiTrouble:
                if not left or only_refusals:
                    raise
            else:
                self._granted(causes)
                return answer
            self._context.wait(pause * random.uniform(0.75, 1.25))  # noqa: S311  jitter, not a secret
            pause = min(pause * 2, _PAUSE_LONGEST)
        raise AssertionError("the loop above returns or raises")

    def _granted(self, causes: tuple[str, ...]) -> None:
        """We may do this (or what was asked for was at least judged on its merits)."""
        self._worked.update(causes)
        for cause in self._refusals.keys() & set(causes):
            del self._refusals[cause]
            self._context.log.info("GitHub grants again what it refused", extra={"what": cause})

    def _judged(self, error: Refused) -> Exception:
        """What a refusal comes to: the end of the service when it never was otherwise, else patience."""
        if error.cause not in self._worked:
            return RightsRefused(str(error))
        now = time.monotonic()
        self._refusals.setdefault(error.cause, _Refusal(now)).again(error, now, self._context)
        return error

    def _asked(
        self,
        method: str,
        url: str,
        body: bytes | None = None,
        more: Mapping[str, str] | None = None,
        *,
        urgent: bool = True,
    ) -> Reply:
        """Ask once, waiting out limits (a request that was refused by a limit had no effect)."""
        renewed = False
        while True:
            self._context.check()
            self._budget.spend(method, urgent=urgent)
            reply = self._send(method, url, body, more or {})
            if self._budget.account(reply):
                continue
            if reply.status == _UNAUTHORIZED and not renewed and self._login.refused(reply.date()):
                renewed = True
                continue
            _raise_for(reply, method, url)
            return reply

    def _send(self, method: str, url: str, body: bytes | None, more: Mapping[str, str]) -> Reply:
        route = route_of(method, url)
        said = headers(self._login.authorization()) | dict(more)
        if body is not None:
            said["Content-Type"] = "application/json"
        began = time.monotonic()
        try:
            reply = self._transport.exchange(method, url, said, body)
        except NoAnswer as error:
            self._context.api_called(route, "none", time.monotonic() - began)
            kind = ApiTrouble if error.in_time else TimedOut
            raise kind(f"{method} {_path(url)}: {error}") from None
        self._context.api_called(route, str(reply.status), time.monotonic() - began)
        return reply


class Known(msgspec.Struct, frozen=True):
    """A reply that GitHub may confirm instead of sending it again."""

    etag: str
    body: bytes


class KnownReplies:
    """The last reply to each GET, by ETag: in memory, and on the board for all with the same login (an ETag is one login's own)."""

    def __init__(self, identity: str, context: Context) -> None:
        self._prefix = f"anklet:{{{hashlib.sha256(identity.encode()).hexdigest()[:24]}/etag}}:"
        self._board = context.board
        self._last: OrderedDict[str, Known] = OrderedDict()
        self._empty: dict[str, Known] = {}

    def of(self, url: str) -> Known | None:
        """What is known of this URL."""
        known = self._last.get(url)
        if known is None:
            known = self._told(url)
            if known is not None:
                self._keep(url, known)
        else:
            self._last.move_to_end(url)
        return known

    def learn(self, url: str, reply: Reply) -> None:
        """A new reply."""
        etag = reply.headers.get("etag")
        if not etag:
            self._last.pop(url, None)
            return
        self._keep(url, Known(etag, reply.body))
        if len(reply.body) <= _LARGEST_TOLD:
            text = f"{etag}\n{base64.b85encode(zlib.compress(reply.body, 1)).decode()}"
            self._board.post(self._key(url), text, _TOLD_FOR)

    def is_empty(self, url: str) -> None:
        """The last reply to this URL was an empty list."""
        if url in self._last:
            self._empty[url] = self._last[url]

    def expect_empty(self, url: str) -> None:
        """Ask whether it is as it was when it was empty: an ETag stands for a content, whenever it was seen."""
        if url in self._empty:
            self._last[url] = self._empty[url]

    def _keep(self, url: str, known: Known) -> None:
        self._last[url] = known
        self._last.move_to_end(url)
        while len(self._last) > _KEPT:
            self._empty.pop(self._last.popitem(last=False)[0], None)

    def _told(self, url: str) -> Known | None:
        text = self._board.read(self._key(url))
        if text is None:
            return None
        etag, _, body = text.partition("\n")
        try:
            return Known(etag, zlib.decompress(base64.b85decode(body)))
        except (ValueError, zlib.error):
            return None

    def _key(self, url: str) -> str:
        return self._prefix + hashlib.sha256(url.encode()).hexdigest()[:24]


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


def route_of(method: str, url: str) -> str:
    """The call's route with its variable parts taken out: a label of few values."""
    path = _path(url)
    path = re.sub(r"^/repos/[^/]+/[^/]+", "/repos/{owner}/{repo}", path)
    path = re.sub(r"^/orgs/[^/]+", "/orgs/{org}", path)
    return f"{method} {re.sub(r'/[0-9]+(?=/|$)', '/{id}', path)}"


def _path(url: str) -> str:
    return url.partition("?")[0]


def _url(path: str, query: Mapping[str, str | int]) -> str:
    return path + ("?" + urllib.parse.urlencode(query) if query else "")


def _raise_for(reply: Reply, method: str, url: str) -> None:
    what, status = f"{method} {_path(url)}", reply.status
    if status in (_OK, _CREATED, _ACCEPTED, _NO_CONTENT, _NOT_MODIFIED):
        return
    said = _message(reply)
    if status == _UNAUTHORIZED:
        raise Refused(f"{what}: GitHub does not accept the token (401 {said}); is it expired or revoked?", _LOGIN)
    if status == _FORBIDDEN:
        needed = reply.headers.get("x-accepted-github-permissions")
        hint = f"; it needs {needed.replace('=', ': ')}" if needed else ""
        raise Refused(f"{what}: GitHub refuses what the token may not do (403 {said}){hint}", route_of(method, url))
    kinds: dict[int, type[ApiTrouble]] = {_NOT_FOUND: NotFound, _CONFLICT: Conflict, _UNPROCESSABLE: Unprocessable}
    raise kinds.get(status, ApiTrouble)(f"{what}: GitHub answered {status} {said}".rstrip())


def _message(reply: Reply) -> str:
    """GitHub's own words, if it said any: one line, cut."""
    try:
        value: Any = json.loads(reply.body)
    except ValueError:
        return ""
    text = value.get("message") if isinstance(value, dict) else ""
    return " ".join(str(text or "").split())[:200]


def _decode(body: bytes, kind: type[T], url: str) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise ApiTrouble(f"{_path(url)}: GitHub's reply is not what is documented: {error}") from None
