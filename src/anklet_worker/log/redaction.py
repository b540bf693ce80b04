"""Redacts secrets in text, by value.

Owns the encodings in which a secret may appear. Knows no log and no file.
"""

from __future__ import annotations

import base64
import json
import re
import urllib.parse
from collections.abc import Iterable, Iterator

MASK = "***"
#: Shorter secrets are not redacted: they would match ordinary words in many lines.
_SHORTEST = 4
#: Shortest part of a base64 text to look for inside a longer base64 text.
_SHORTEST_CORE = 8
#: GitHub's token formats, for tokens that are in no configuration. A stateless ghs_<app>_<jwt> has about 520 characters.
_GITHUB_TOKEN = re.compile(r"\b(?:gh[opsur]_[A-Za-z0-9._-]{20,}|github_pat_[A-Za-z0-9_]{20,})")


class Redactor:
    """Replaces every known secret, in each encoding, and every GitHub token by `MASK`."""

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = {form for secret in secrets for form in _forms(secret)}
        # Longest first, because one secret may contain another.
        ordered = sorted(forms, key=len, reverse=True)
        self._pattern = re.compile("|".join(re.escape(form) for form in ordered)) if ordered else None

    def __call__(self, text: str) -> str:
        """The text without secrets."""
        return self._without_known(_GITHUB_TOKEN.sub(MASK, self._without_known(text)))

    def _without_known(self, text: str) -> str:
        # Repeat: the text left and right of a mask may form another secret. Each round shortens the text, so this ends.
        while self._pattern is not None and self._pattern.search(text):
            text = self._pattern.sub(MASK, text)
        return text


def _forms(secret: str) -> Iterator[str]:
    """Each encoding of a secret: plain, JSON, Python literal, URL, hex and base64. Each line of a text of several lines."""
    for part in {secret, secret.strip(), *(line.strip() for line in secret.splitlines())}:
        if len(part) < _SHORTEST or part.startswith("-----"):
            continue
        yield part
        yield json.dumps(part)[1:-1]
        yield json.dumps(part, ensure_ascii=False)[1:-1]
        raw = part.encode(errors="surrogatepass")
        # A Python literal escapes one kind of quote, depending on the rest of the text.
        yield from (repr(part)[1:-1], repr("'\"" + part)[4:-1], repr(raw)[2:-1], repr(b"'\"" + raw)[5:-1])
        quoted = urllib.parse.quote(raw, safe="")
        yield from (quoted, quoted.replace("%20", "+"), re.sub("%..", lambda match: match[0].lower(), quoted))
        yield from (raw.hex(), raw.hex().upper())
        yield from _base64_forms(raw)


def _base64_forms(raw: bytes) -> Iterator[str]:
    """Base64 of the secret alone, and the part that is certain inside a longer text such as `user:secret`.

    Base64 encodes groups of three bytes, so there is one form per start position within a group. Characters at both ends also
    depend on the neighbouring bytes and are left out.
    """
    for encode in (base64.standard_b64encode, base64.urlsafe_b64encode):
        yield encode(raw).decode().rstrip("=")
        for before in range(3):
            # Four characters encode three bytes: skip characters that also encode bytes of the neighbours.
            begin, end = -(-before * 8 // 6), (before + len(raw)) * 8 // 6
            core = encode(bytes(before) + raw).decode()[begin:end]
            if len(core) >= _SHORTEST_CORE:
                yield core
