"""Client of GitHub's REST API: retries, conditional requests, and errors that say who should act.

Knows nothing about jobs. Never repeats a call that succeeded, and never puts a token into an error or a log line.
Source: GitHub REST docs (rate limits, best practices), version 2022-11-28.
"""

from __future__ import annotations

import json
import random
import re
import time
import urllib.parse
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import msgspec

from anklet_github.connect import headers
from anklet_github.http import NoAnswer, Reply, Transport
from anklet_github.known import KnownReplies
from anklet_github.limits import Budget
from anklet_github.login import Login
from anklet_github.refusals import Refusals
from anklet_github.settings import settings_of
from anklet_github.trouble import LOGIN, ApiTrouble, Conflict, LimitPause, NotFound, Refused, TimedOut, Unprocessable
from anklet_worker.contract.backoff import Backoff
from anklet_worker.contract.context import Context
from anklet_worker.contract.errors import UNREADABLE

T = TypeVar("T")

_TRIES = 4
#: Pauses between two tries of a call. The jitter below adds up to a quarter, or takes it away.
_PAUSES = Backoff(first=0.5, longest=10.0)
#: The longest wait for a rate limit, in seconds, while a job is watched or cleaned up: a VM does not wait for a limit.
LONGEST_BOUNDED_PAUSE = 5.0
_PER_PAGE = 100
_MOST_PAGES = 10
#: Answers of a renamed or moved repository (GitHub REST docs, redirects). 307 and 308 allow any request to be repeated.
_MOVED_FOR_READS, _MOVED = frozenset({301, 302, 307, 308}), frozenset({307, 308})
_MOST_MOVES = 3
#: A server that still reports its rate limit after this many of the pauses it asked for is in trouble.
_MOST_LIMITS = 5
_OK, _CREATED, _ACCEPTED, _NO_CONTENT, _NOT_MODIFIED = 200, 201, 202, 204, 304
_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _CONFLICT, _UNPROCESSABLE = 401, 403, 404, 409, 422


class Page(Protocol[T]):
    """One page of a list."""

    @property
    def total_count(self) -> int:
        """Number of items on all pages."""
        ...

    @property
    def items(self) -> list[T]:
        """Items on this page."""
        ...


class Api:
    """The API client of one login."""

    def __init__(self, transport: Transport, login: Login, context: Context) -> None:
        self.identity = login.identity
        self._transport = transport
        self._login = login
        self._context = context
        self._budget = Budget(f"anklet:{{{login.identity}/api}}", context)
        self._server = settings_of(context.service).api_url
        whose = f"{login.identity}@{self._server}"
        self._known = KnownReplies(whose, context)
        self._refusals = Refusals(whose, context)
        self._logged_move = False

    def has_room_to_look(self) -> bool:
        """Return True when a request that is not urgent would be sent at once, according to the limits we know."""
        return self._budget.has_room_to_look()

    def bounded(self, seconds: float) -> AbstractContextManager[None]:
        """While the `with` lasts, raise `LimitPause` instead of waiting longer than this for a rate limit."""
        return self._budget.bounded(seconds)

    def get(self, path: str, kind: type[T], *, urgent: bool = True, configured: bool = False, **query: str | int) -> T:
        """GET one object. Raises `NotFound`, `ApiTrouble`, `RightsRefused`.

        A request that is not `urgent` waits first when the budget is short. `configured`: an operator named this
        path, so a 404 is a refusal.
        """
        url = _url(path, query)

        def once() -> T:
            try:
                return self._conditional(url, kind, urgent=urgent)
            except NotFound as error:
                if not configured:
                    raise
                raise Refused(f"{error}: it does not exist, or the token may not see it", path) from None

        return self._repeated("GET", path, once, configured=configured)

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
        """GET every page of a list; GitHub returns at most 1,000 items of a filtered list.

        `emptied`: we expect the list to be empty now. If it was empty before, GitHub confirms that with a 304, free of charge.
        `configured` as for `get`.
        """
        items: list[T] = []
        for number in range(1, _MOST_PAGES + 1):
            page_query = {**query, "per_page": _PER_PAGE, "page": number}
            if number == 1 and emptied:
                self._known.expect_empty(_url(path, page_query))
            page = self.get(path, kind, urgent=urgent, configured=configured, **page_query)
            if number == 1 and not page.items:
                self._known.is_empty(_url(path, page_query))
            items += page.items
            # A short page need not be the last one: a server may have its own limit for `per_page`.
            if not page.items or len(items) >= page.total_count:
                break
        return items

    def post(self, path: str, kind: type[T], body: object, *, repeatable: bool, configured: bool = False) -> T:
        """POST. `repeatable`: sending it twice does no harm. `configured` as for `get`.

        Raises `Conflict`, `Unprocessable`, and what `get` raises.
        """

        def once() -> T:
            try:
                return _decode(self._asked("POST", path, msgspec.json.encode(body)).body, kind, path)
            except NotFound as error:
                if not configured:
                    raise
                raise Refused(f"{error}: it does not exist, or the login may not use it", path) from None

        return self._repeated("POST", path, once, only_refusals=not repeatable, configured=configured)

    def delete(self, path: str) -> bool:
        """DELETE. Return False when GitHub says that there is no such thing. Raises `Unprocessable`."""

        def once() -> bool:
            try:
                self._asked("DELETE", path)
            except NotFound:
                return False
            return True

        return self._repeated("DELETE", path, once)

    def _conditional(self, url: str, kind: type[T], *, urgent: bool) -> T:
        """A GET that is free when nothing has changed: a 304 does not count against the rate limit."""
        known = self._known.of(url)
        more = {} if known is None else {"If-None-Match": known.etag}
        reply = self._asked("GET", url, more=more, urgent=urgent)
        if reply.status != _NOT_MODIFIED:
            answer = _decode(reply.body, kind, url)
            # Keep only a reply that could be decoded. GitHub would confirm a garbled one again and again.
            self._known.learn(url, reply)
            return answer
        if known is None:
            raise ApiTrouble(f"GET {_path(url)}: GitHub answered 304 to an unconditional request")
        return _decode(known.body, kind, url)

    def _repeated(
        self, method: str, path: str, attempt: Callable[[], T], *, only_refusals: bool = False, configured: bool = False
    ) -> T:
        """Retry what a passing fault may have spoiled. Raises the error of the last try."""
        causes = (LOGIN, _right(method, path), *([path] if configured else []))
        self._refusals.check(causes)
        backoff = _PAUSES
        for left in range(_TRIES - 1, -1, -1):
            try:
                answer = attempt()
            except (NotFound, Conflict, Unprocessable):
                self._refusals.granted(causes)
                raise
            except LimitPause:
                raise
            except Refused as error:
                if not left:
                    raise self._refusals.judged(error) from None
            except ApiTrouble:
                if not left or only_refusals:
                    raise
            else:
                self._refusals.granted(causes)
                return answer
            self._context.wait(backoff.pause * random.uniform(0.75, 1.25))  # noqa: S311  jitter, not a secret
            backoff = backoff.next()
        raise AssertionError("the loop above returns or raises")

    def _asked(
        self,
        method: str,
        url: str,
        body: bytes | None = None,
        more: Mapping[str, str] | None = None,
        *,
        urgent: bool = True,
    ) -> Reply:
        """Send one request, and wait out rate limits: a request that a limit refused had no effect."""
        place, renewed, moves, limits = url, False, 0, 0
        while True:
            self._context.check()
            self._budget.spend(method, urgent=urgent)
            reply = self._send(method, place, body, more or {})
            if self._budget.account(reply):
                limits += 1
                if limits >= _MOST_LIMITS:
                    raise LimitPause(f"{method} {_path(url)}: GitHub's rate limit does not end when it should")
                continue
            if reply.status == _UNAUTHORIZED and not renewed and self._login.refused(reply.date()):
                renewed = True
                continue
            elsewhere = self._moved_to(method, reply)
            if elsewhere is not None and moves < _MOST_MOVES:
                place, moves = elsewhere, moves + 1
                continue
            # Report the configured name, not where it moved to: grants are recorded under that name.
            _raise_for(reply, method, url)
            return reply

    def _moved_to(self, method: str, reply: Reply) -> str | None:
        """The new place of a renamed repository, on the same server. Our login never goes to another server."""
        if reply.status not in (_MOVED_FOR_READS if method == "GET" else _MOVED):
            return None
        place = urllib.parse.urljoin(f"{self._server}/", reply.headers.get("location", ""))
        if not place.startswith(f"{self._server}/"):
            return None
        if not self._logged_move:
            self._logged_move = True
            self._context.log.warning("GitHub has moved the configured repository; update owner and repo")
        return place[len(self._server) :]

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


def route_of(method: str, url: str) -> str:
    """The route of a call without its variable parts, so that it can be a metric label."""
    path = re.sub(r"^/repos/[^/]+/[^/]+", "/repos/{owner}/{repo}", _path(url))
    path = re.sub(r"^/orgs/[^/]+", "/orgs/{org}", path)
    return f"{method} {_without_ids(path)}"


def _right(method: str, url: str) -> str:
    """The right that such a call needs. Each repository counts by itself: some may be closed to us while others are open."""
    return f"{method} {_without_ids(_path(url))}"


def _without_ids(path: str) -> str:
    return re.sub(r"/[0-9]+(?=/|$)", "/{id}", path)


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
        raise Refused(f"{what}: GitHub does not accept the token (401 {said}); is it expired or revoked?", LOGIN)
    if status == _FORBIDDEN:
        needed = reply.headers.get("x-accepted-github-permissions")
        hint = f"; it needs {needed.replace('=', ': ')}" if needed else ""
        raise Refused(f"{what}: the token lacks the permission (403 {said}){hint}", _right(method, url))
    kinds: dict[int, type[ApiTrouble]] = {_NOT_FOUND: NotFound, _CONFLICT: Conflict, _UNPROCESSABLE: Unprocessable}
    raise kinds.get(status, ApiTrouble)(f"{what}: GitHub answered {status} {said}".rstrip())


def _message(reply: Reply) -> str:
    """GitHub's own error message: one line of at most 200 characters, or an empty text."""
    try:
        value: Any = json.loads(reply.body)
    except ValueError:
        return ""
    text = value.get("message") if isinstance(value, dict) else ""
    return " ".join(str(text or "").split())[:200]


def _decode(body: bytes, kind: type[T], url: str) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except UNREADABLE as error:
        raise ApiTrouble(f"{_path(url)}: GitHub's reply is not as documented: {error}") from None
