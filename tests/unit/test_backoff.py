"""Pauses that grow with each failure in a row."""

from itertools import islice

import pytest

from anklet_worker.contract.backoff import Backoff


@pytest.mark.parametrize(
    ("times", "seconds"), [(0, 2.0), (1, 4.0), (3, 16.0), (9, 600.0), (31, 600.0), (1100, 600.0), (10**6, 600.0)]
)
def test_pauses_double_up_to_the_longest(times, seconds):
    """A pause never exceeds the longest, even after more failures than a float has doublings."""
    assert Backoff(first=2.0, longest=600.0).after(times).pause == seconds


def test_first_pause_is_bounded_too():
    """A first pause above the longest is cut to the longest."""
    assert Backoff(first=20.0, longest=5.0).pause == 5.0


def test_each_step_is_a_new_value():
    """A step leaves the value it came from unchanged, and a reset starts again at the first pause."""
    begun = Backoff(first=0.5, longest=10.0)
    grown = begun.next().next()
    assert (begun.pause, grown.pause, grown.reset()) == (0.5, 2.0, begun)


def test_iteration_goes_on_from_the_current_pause():
    """Iterating yields the current pause first, then each following one."""
    assert list(islice(Backoff(first=1.0, longest=5.0).next(), 4)) == [2.0, 4.0, 5.0, 5.0]


@pytest.mark.parametrize(("roll", "seconds"), [(0.0, 8.0), (0.5, 9.0), (1.0, 10.0)])
def test_jitter_lengthens_a_pause_by_its_share_at_most(roll, seconds):
    """Jitter adds between nothing and its share of the pause; the plain pause does not change."""
    backoff = Backoff(first=8.0, longest=600.0, jitter=0.25)
    assert (backoff.jittered(roll), backoff.pause) == (seconds, 8.0)
