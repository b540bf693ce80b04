"""One request and its reply: parsed query and body, JSON replies, refusals, pages, links.

Owns the conventions that all of GitHub's routes share. Knows no route and no state.
"""

from __future__ import annotations

import dataclasses
import json
import urllib.parse

from emulators.github.engine.render import Urls

DOCS = "https://docs.github.com/rest"
_MOST_PER_PAGE = 100
_PER_PAGE = 30


@dataclasses.dataclass
class Request:
    """An incoming request. `path` is without /api/v3; `headers` is case-insensitive; `query` maps a name to its last value."""

    method: str
    path: str
    query: dict
    headers: object
    body: bytes
    urls: Urls
    prefix: str = ""
    caller: object = None

    def json(self):
        """The body as a JSON object; {} if it is empty."""
        if not self.body.strip():
            return {}
        try:
            value = json.loads(self.body)
        except ValueError:
            raise Refusal(400, "Problems parsing JSON") from None
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise Refusal(400, "Body should be a JSON object")
        return value


@dataclasses.dataclass
class Reply:
    """An outgoing reply. A `body` of None is empty, bytes are sent verbatim, anything else as JSON."""

    status: int = 200
    body: object = None
    headers: dict = dataclasses.field(default_factory=dict)

    def payload(self):
        """The bytes of the body."""
        if self.body is None or isinstance(self.body, bytes):
            return self.body or b""
        return json.dumps(self.body, separators=(",", ":")).encode()


class Refusal(Exception):
    """A reply that ends the request early, in the form of GitHub's errors; `more` are further keys of the body."""

    def __init__(self, status, message, *, headers=None, docs=DOCS, **more):
        super().__init__(message)
        body = {"message": message, **more, "documentation_url": docs, "status": str(status)}
        self.reply = Reply(status, body, headers or {})


def not_found():
    """GitHub's answer for an object that does not exist, or that the token may not see."""
    return Refusal(404, "Not Found")


def invalid(errors):
    """A 422 with these texts."""
    message = "Invalid request.\n\n" + "\n".join(errors)
    return Refusal(422, message, errors=list(errors))


def page(request, items, key, *, extra=None):
    """A page of `items` under `key` (None: a bare list), with the Link header; corrects values out of range."""
    size = min(max(_number(request.query.get("per_page"), _PER_PAGE), 1), _MOST_PER_PAGE)
    number = max(_number(request.query.get("page"), 1), 1)
    last = max((len(items) + size - 1) // size, 1)
    shown = items[(number - 1) * size : number * size]
    links = {}
    if number > 1:
        links.update(prev=min(number - 1, last), first=1)
    if number < last:
        links.update(next=number + 1, last=last)
    headers = {}
    if links:
        order = [rel for rel in ("prev", "next", "last", "first") if rel in links]
        headers["Link"] = ", ".join(f'<{_page_url(request, links[rel])}>; rel="{rel}"' for rel in order)
    body = shown if key is None else {"total_count": len(items), **(extra or {}), key: shown}
    return body, headers


def _page_url(request, number):
    query = urllib.parse.urlencode({**request.query, "page": number})
    return f"{request.urls.api}{request.path}?{query}"


def _number(text, default):
    try:
        return int(text)
    except (TypeError, ValueError):
        return default
