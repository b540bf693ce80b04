"""Keeps GitHub's last replies, so that GitHub can confirm one with a 304, which does not count against the rate limit.

Owns the replies kept in memory and on the board. Sends nothing.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections import OrderedDict

import msgspec

from anklet_github.http import Reply
from anklet_worker.contract.context import Context

#: The most replies in memory, and their most bytes in all: a page of a large matrix's jobs has nearly a million bytes.
_KEPT, _MOST_BYTES = 512, 64 * 1024 * 1024
#: The largest reply in bytes that is posted on the board, and for how many seconds: another service or a restarted one uses it.
_LARGEST_POSTED, _POSTED_FOR = 512 * 1024, 3600.0


class Known(msgspec.Struct, frozen=True):
    """A reply that GitHub can confirm instead of sending it again."""

    etag: str
    body: bytes


class KnownReplies:
    """The last reply to each GET, in memory and on the board. Services share it by login, because an ETag depends on that."""

    def __init__(self, identity: str, context: Context) -> None:
        self._prefix = f"anklet:{{{hashlib.sha256(identity.encode()).hexdigest()[:24]}/etag}}:"
        self._board = context.board
        self._last: OrderedDict[str, Known] = OrderedDict()
        self._empty: dict[str, Known] = {}
        self._bytes = 0

    def of(self, url: str) -> Known | None:
        """The last reply to this URL, or None."""
        known = self._last.get(url)
        if known is None:
            known = self._posted(url)
            if known is not None:
                self._keep(url, known)
        else:
            self._last.move_to_end(url)
        return known

    def learn(self, url: str, reply: Reply) -> None:
        """Keep a new reply."""
        etag = reply.headers.get("etag")
        if not etag:
            self._drop(url)
            return
        self._keep(url, Known(etag, reply.body))
        if len(reply.body) <= _LARGEST_POSTED:
            text = f"{etag}\n{base64.b85encode(zlib.compress(reply.body, 1)).decode()}"
            self._board.post(self._key(url), text, _POSTED_FOR)

    def is_empty(self, url: str) -> None:
        """Note that the last reply to this URL was an empty list."""
        if url in self._last:
            self._empty[url] = self._last[url]

    def expect_empty(self, url: str) -> None:
        """Let the next request ask whether the list is empty again: an ETag stands for a content, whenever it was seen."""
        if url in self._empty:
            self._keep(url, self._empty[url])

    def _keep(self, url: str, known: Known) -> None:
        self._drop(url)
        self._last[url] = known
        self._bytes += len(known.body)
        while len(self._last) > _KEPT or (self._bytes > _MOST_BYTES and len(self._last) > 1):
            oldest = next(iter(self._last))
            self._drop(oldest)
            self._empty.pop(oldest, None)

    def _drop(self, url: str) -> None:
        known = self._last.pop(url, None)
        self._bytes -= 0 if known is None else len(known.body)

    def _posted(self, url: str) -> Known | None:
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
