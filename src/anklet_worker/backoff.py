"""How waits grow, try by try. Pure arithmetic."""

from __future__ import annotations

#: What goes wrong may go wrong for weeks, and a float ends at two to the 1024th.
_MOST_DOUBLINGS = 30


def doubled(first: float, times: int, longest: float) -> float:
    """`first` seconds, doubled so many times, at most `longest`."""
    return min(first * 2.0 ** min(times, _MOST_DOUBLINGS), longest)
