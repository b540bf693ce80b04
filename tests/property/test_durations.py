"""Any text is a duration, or is refused; a duration means its number times its unit."""

import math
import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anklet_supervisor.config.duration import parse_duration

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}
NUMBERS = st.integers(0, 10**12 - 1).map(str) | st.decimals(0, 10**6, places=3).map(str)


@given(number=NUMBERS, unit=st.sampled_from(sorted(UNITS)))
def test_a_number_and_a_unit(number, unit):
    """Each unit is what it says."""
    assert parse_duration(number + unit) == pytest.approx(float(number) * UNITS[unit])


@given(text=st.text(max_size=12) | st.text(alphabet="0123456789.smh+- ", max_size=8))
def test_any_text(text):
    """Nothing but these forms is accepted, and nothing else than `ValueError` is raised."""
    with suppress(ValueError):
        seconds = parse_duration(text)
        assert math.isfinite(seconds)
        assert seconds >= 0
        assert re.fullmatch(r"[0-9]+(\.[0-9]+)?[smh]?", text, re.ASCII)
