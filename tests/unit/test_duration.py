"""Durations: what is one, and what it means in seconds."""

import pytest

from anklet_supervisor.config.duration import parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("90", 90), ("90s", 90), ("5m", 300), ("1h", 3600), ("0.5", 0.5), ("1.5h", 5400), ("007", 7)],
)
def test_durations(text, seconds):
    """A number of seconds, or a number and its unit."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "s", "5 m", " 5m", "5m ", "+5", "-5", "-5m", "1h30m", "5d", "5M", "5min", ".5", "5.",
     "1e3", "1_000", "nan", "inf", "٣", "9" * 13],
)  # fmt: skip
def test_what_is_no_duration(text):
    """No sign, no blank, no combination, no other unit; the message says what is accepted."""
    with pytest.raises(ValueError, match="must be a duration such as 90, 90s, 5m or 1h"):
        parse_duration(text)
