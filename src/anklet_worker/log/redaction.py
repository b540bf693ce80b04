"""Takes secrets out of text, by value. Pure.

Owns the forms in which a secret could appear. Knows no log and no file.
"""

from __future__ import annotations

import base64
import json
import re
import urllib.parse
from collections.abc import Iterable, Iterator

MASK = "***"
#: A shorter secret would be found by chance in every second line; nobody can want that.
_SHORTEST = 4
#: Of an encoded form that its surroundings shape at both ends, less than this many characters is not looked for.
_SHORTEST_CORE = 8
#: GitHub's own kinds of tokens, also ones that we were never told: the stateless ghs_<app>_<jwt> has some 520 characters.
_GITHUB_TOKEN = re.compile(r"\b(?:gh[opsur]_[A-Za-z0-9._-]{20,}|github_pat_[A-Za-z0-9_]{20,})")


class Redactor:
    """Replaces every known secret, in each form in which it could appear in a text."""

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = {form for secret in secrets for form in _forms(secret)}
        # The longest first: one secret may be part of another.
        ordered = sorted(forms, key=len, reverse=True)
        self._pattern = re.compile("|".join(re.escape(form) for form in ordered)) if ordered else None

    def __call__(self, text: str) -> str:
        """The text without secrets."""
        return self._without_known(_GITHUB_TOKEN.sub(MASK, self._without_known(text)))

    def _without_known(self, text: str) -> str:
        # Again and again, because what stood left and right of a secret may be one by now. Each round shortens the text.
        while self._pattern is not None and self._pattern.search(text):
            text = self._pattern.sub(MASK, text)
        return text


def _forms(secret: str) -> Iterator[str]:
    """As it is, and as programs write it down: escaped (JSON, Python), quoted for a URL, base64, hex. A PEM text: each line."""
    for part in {secret, secret.strip(), *(line.strip() for line in secret.splitlines())}:
        if len(part) < _SHORTEST or part.startswith("-----"):
            continue
        yield part
        yield json.dumps(part)[1:-1]
        yield json.dumps(part, ensure_ascii=False)[1:-1]
        raw = part.encode(errors="surrogatepass")
        # Which quotes a Python literal escapes depends on what else is in it.
        yield from (repr(part)[1:-1], repr("'\"" + part)[4:-1], repr(raw)[2:-1], repr(b"'\"" + raw)[5:-1])
        quoted = urllib.parse.quote(raw, safe="")
        yield from (quoted, quoted.replace("%20", "+"), re.sub("%..", lambda match: match[0].lower(), quoted))
        yield from (raw.hex(), raw.hex().upper())
        yield from _base64_forms(raw)


def _base64_forms(raw: bytes) -> Iterator[str]:
    """Base64 alone and within something longer (`user:secret`): where it begins in a group of three bytes shapes it, and the
    characters at its ends also depend on its neighbours, so those are left out."""
    for encode in (base64.standard_b64encode, base64.urlsafe_b64encode):
        yield encode(raw).decode().rstrip("=")
        for before in range(3):
            # Four characters for three bytes: those before the first whole character of ours, and after the last one.
            begin, end = -(-before * 8 // 6), (before + len(raw)) * 8 // 6
            core = encode(bytes(before) + raw).decode()[begin:end]
            if len(core) >= _SHORTEST_CORE:
                yield core
