"""Speaks HTTP with GitHub's REST API: retries, limits, conditional requests, and errors by who should try again.

Owns the connection and the token's way into a header; knows no job. A call that succeeded is never repeated, and no error or
log line ever holds a token. GitHub REST docs (rate limits, best practices), version 2022-11-28.
"""

from __future__ import annotations

import json
import random
import time
import urllib.parse
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import msgspec
import urllib3

from anklet_worker import __version__
from anklet_worker.errors import RetryHere, RightsRefused
from anklet_worker.plugin import Context

T = TypeVar("T")

_VERSION = "2022-11-28"
_TIMEOUT = urllib3.Timeout(connect=5.0, read=30.0)
#: Seconds in which a whole reply must have come, however slowly it drips.
_WHOLE_REPLY = 60.0
_LARGEST_REPLY = 32 * 1024 * 1024
_CHUNK = 256 * 1024
_TRIES = 4
_PAUSE_FIRST, _PAUSE_LONGEST = 0.5, 10.0
#: GitHub asks for a minute when a secondary limit says nothing of its own.
_SECONDARY_PAUSE = 60.0
_LONGEST_LIMIT_PAUSE = 3900.0
_PER_PAGE = 100
_MOST_PAGES = 100
_CACHED = 256
_OK, _CREATED, _NO_CONTENT, _NOT_MODIFIED = 200, 201, 204, 304
_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _CONFLICT, _UNPROCESSABLE, _TOO_MANY = 401, 403, 404, 409, 422, 429
_SERVER_ERROR = 500


class ApiTrouble(RetryHere):
    """GitHub could not be asked, or did not answer as documented; it may the next time."""


class NotFound(ApiTrouble):
    """404: it does not exist, or the token may not see it."""


class Conflict(ApiTrouble):
    """409: it exists already."""


class Unprocessable(ApiTrouble):
    """422: refused as it is (a runner that is busy, a label that is not allowed)."""


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


class Reply(msgspec.Struct, frozen=True):
    """A reply that came whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Api:
    """One service's client. `authorization` gives the header's value anew for each request."""

    def __init__(self, url: str, authorization: Callable[[], str], context: Context) -> None:
        self._url = url
        self._authorization = authorization
        self._context = context
        self._pool = urllib3.PoolManager(num_pools=4, maxsize=1, timeout=_TIMEOUT, retries=False)
        self._cache: OrderedDict[str, tuple[str, bytes]] = OrderedDict()

    def get(self, path: str, kind: type[T], **query: str | int) -> T:
        """GET one object. Raises `NotFound`, `ApiTrouble`, `RightsRefused`."""
        url = path + ("?" + urllib.parse.urlencode(query) if query else "")
        return self._repeated(lambda: _decode(self._conditional(url), kind, path))

    def get_all(self, path: str, kind: type[Page[T]], **query: str | int) -> list[T]:
        """GET every page of a list."""
        items: list[T] = []
        for number in range(1, _MOST_PAGES + 1):
            page = self.get(path, kind, **query, per_page=_PER_PAGE, page=number)
            items += page.items
            if len(page.items) < _PER_PAGE or len(items) >= page.total_count:
                break
        return items

    def post(self, path: str, kind: type[T], body: object, *, repeatable: bool) -> T:
        """POST; `repeatable` says that doing it twice does no harm. Raises `Conflict`, `Unprocessable` besides."""

        def once() -> T:
            return _decode(self._asked("POST", path, msgspec.json.encode(body)).body, kind, path)

        return self._repeated(once) if repeatable else once()

    def delete(self, path: str) -> None:
        """DELETE; what is not there is deleted. Raises `Unprocessable`."""

        def once() -> None:
            try:
                self._asked("DELETE", path)
            except NotFound:
                return

        self._repeated(once)

    def close(self) -> None:
        """Close all connections."""
        self._pool.clear()

    def _conditional(self, url: str) -> bytes:
        """A GET that costs nothing where nothing has changed (304 does not count against the limit)."""
        known = self._cache.get(url)
        reply = self._asked("GET", url, more={} if known is None else {"If-None-Match": known[0]})
        if reply.status == _NOT_MODIFIED and known is not None:
            self._cache.move_to_end(url)
            return known[1]
        etag = reply.headers.get("etag")
        if etag:
            self._cache[url] = (etag, reply.body)
            self._cache.move_to_end(url)
            while len(self._cache) > _CACHED:
                self._cache.popitem(last=False)
        return reply.body

    def _repeated(self, attempt: Callable[[], T]) -> T:
        """Try a few times what a passing fault may have spoiled."""
        pause = _PAUSE_FIRST
        for left in range(_TRIES - 1, -1, -1):
            try:
                return attempt()
            except (NotFound, Conflict, Unprocessable):
                raise
            except ApiTrouble:
                if not left:
                    raise
            self._context.wait(pause * random.uniform(0.75, 1.25))  # noqa: S311  jitter, not a secret
            pause = min(pause * 2, _PAUSE_LONGEST)
        raise AssertionError("the loop above returns or raises")

    def _asked(self, method: str, url: str, body: bytes | None = None, more: Mapping[str, str] | None = None) -> Reply:
        """Ask once, waiting out limits (a request that was refused by a limit had no effect)."""
        secondary = _SECONDARY_PAUSE
        while True:
            self._context.check()
            reply = self._send(method, url, body, more or {})
            pause = _limit_pause(reply, secondary, time.time())
            if pause is None:
                _raise_for(reply, method, url)
                return reply
            secondary *= 2
            self._context.log.warning(
                "GitHub's rate limit is reached; waiting", extra={"seconds": round(pause), "api_limit_remaining": 0}
            )
            with self._context.limit_paused():
                self._context.wait(pause)

    def _send(self, method: str, url: str, body: bytes | None, more: Mapping[str, str]) -> Reply:
        headers = {
            "Accept": "application/vnd.github+json",
            "Authorization": self._authorization(),
            "User-Agent": f"anklet-supervisor/{__version__}",
            "X-GitHub-Api-Version": _VERSION,
            **({"Content-Type": "application/json"} if body is not None else {}),
            **more,
        }
        what = f"{method} {url.partition('?')[0]}"
        try:
            response = self._pool.request(
                method, self._url + url, body=body, headers=headers, preload_content=False, redirect=False
            )
            try:
                content = self._read(response)
            finally:
                response.release_conn()
        except urllib3.exceptions.HTTPError as error:
            raise ApiTrouble(f"{what}: no answer from GitHub: {type(error).__name__}") from None
        except OSError as error:
            raise ApiTrouble(f"{what}: no answer from GitHub: {error.strerror or type(error).__name__}") from None
        return Reply(response.status, {key.lower(): value for key, value in response.headers.items()}, content)

    def _read(self, response: urllib3.BaseHTTPResponse) -> bytes:
        deadline = time.monotonic() + _WHOLE_REPLY
        content = bytearray()
        while chunk := response.read1(_CHUNK):
            content += chunk
            if len(content) > _LARGEST_REPLY or time.monotonic() > deadline:
                response.close()
                raise urllib3.exceptions.HTTPError("a reply without end")
        return bytes(content)


def _limit_pause(reply: Reply, secondary: float, now: float) -> float | None:
    """Seconds to wait when the reply is a refusal for want of rate, else None. Without rate headers nothing is a limit but 429."""
    if reply.status not in (_FORBIDDEN, _TOO_MANY):
        return None
    retry_after = reply.headers.get("retry-after", "")
    if retry_after.isdigit():
        return min(float(retry_after), _LONGEST_LIMIT_PAUSE)
    reset = reply.headers.get("x-ratelimit-reset", "")
    if reply.headers.get("x-ratelimit-remaining") == "0" and reset.isdigit():
        return min(max(1.0, float(reset) - now + 1.0), _LONGEST_LIMIT_PAUSE)
    if reply.status == _TOO_MANY or b"rate limit" in reply.body.lower():
        return min(secondary, _LONGEST_LIMIT_PAUSE)
    return None


def _raise_for(reply: Reply, method: str, url: str) -> None:
    what, status = f"{method} {url.partition('?')[0]}", reply.status
    if status in (_OK, _CREATED, _NO_CONTENT, 202) or status == _NOT_MODIFIED:
        return
    said = _message(reply)
    if status == _UNAUTHORIZED:
        raise RightsRefused(f"{what}: GitHub does not accept the token (401 {said}); is it expired or revoked?")
    if status == _FORBIDDEN:
        needed = reply.headers.get("x-accepted-github-permissions")
        hint = f"; it needs {needed.replace('=', ': ')}" if needed else ""
        raise RightsRefused(f"{what}: GitHub refuses what the token may not do (403 {said}){hint}")
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


def _decode(body: bytes, kind: type[T], path: str) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise ApiTrouble(f"{path}: GitHub's reply is not what is documented: {error}") from None
