"""How waits grow."""

import pytest

from anklet_worker.backoff import doubled


@pytest.mark.parametrize(
    ("times", "seconds"), [(0, 2.0), (1, 4.0), (3, 16.0), (9, 600.0), (31, 600.0), (1100, 600.0), (10**6, 600.0)]
)
def test_waits_double_up_to_the_longest(times, seconds):
    """Also after more tries than a float has doublings."""
    assert doubled(2.0, times, 600.0) == seconds
