"""How a job's labels ask for a driver and its image: a marker label, and prefixes with a value. Pure.

GitHub compares labels without regard to case, so markers and prefixes are compared in the same way; values keep their case.
"""

from __future__ import annotations

from collections.abc import Sequence


def has_marker(marker: str, labels: Sequence[str]) -> bool:
    """True when one of the labels is the marker (given in lower case)."""
    return marker in (label.lower() for label in labels)


def value_after(prefix: str, labels: Sequence[str]) -> str | None:
    """The rest of the first label that starts with the prefix (given in lower case); None without such a label."""
    return next((label[len(prefix) :] for label in labels if label.lower().startswith(prefix)), None)
