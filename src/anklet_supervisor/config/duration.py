"""Durations as people write them: a number of seconds, or a number and s, m or h. The only parser of them; pure."""

from __future__ import annotations

import re

#: What is accepted, for error messages.
ACCEPTED = "a duration such as 90, 90s, 5m or 1h"

_FORM = re.compile(r"(?P<number>[0-9]{1,12}(?:\.[0-9]{1,9})?)(?P<unit>[smh]?)")
_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: str) -> float:
    """Seconds in a duration. No sign, no blank, no combination of units. Raises `ValueError` with what is accepted."""
    found = _FORM.fullmatch(text)
    if found is None:
        raise ValueError(f"must be {ACCEPTED}")
    return float(found["number"]) * _SECONDS[found["unit"]]
