"""Takes secrets out of text, by value. Pure."""

from __future__ import annotations

import base64
import json
import re
import urllib.parse
from collections.abc import Iterable

_SHORTEST = 4
_MASK = "***"
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
        if self._pattern is not None:
            text = self._pattern.sub(_MASK, text)
        return _GITHUB_TOKEN.sub(_MASK, text)


def _forms(secret: str) -> Iterable[str]:
    """As it is, as JSON escapes it, as a URL quotes it, as base64; and each line of a PEM text."""
    parts = {secret, *(line.strip() for line in secret.splitlines())}
    for part in parts:
        if len(part) < _SHORTEST or part.startswith("-----"):
            continue
        yield part
        yield json.dumps(part)[1:-1]
        yield json.dumps(part, ensure_ascii=False)[1:-1]
        yield urllib.parse.quote(part, safe="")
        encoded = base64.b64encode(part.encode()).decode()
        yield encoded.rstrip("=")
