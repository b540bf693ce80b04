"""The clock for the loop's deadlines: it counts the seconds in which this process could act. Pure except for the given clock."""

from __future__ import annotations

from collections.abc import Callable


class AwakeClock:
    """A clock that never goes back, and leaves out the time during which this process did not run.

    The loop turns every few seconds. A longer gap means that the process was stopped or starved. It may not have read the events of
    that time yet, so no deadline may pass in the gap. `mono` is a monotonic clock; one gap counts at most `longest_gap` seconds.
    """

    def __init__(self, mono: Callable[[], float], longest_gap: float) -> None:
        self._mono = mono
        self._longest_gap = longest_gap
        self._read_at = mono()
        self._now = self._read_at

    def __call__(self) -> float:
        """Seconds since an arbitrary point in time."""
        here = self._mono()
        self._now += max(0.0, min(here - self._read_at, self._longest_gap))
        self._read_at = here
        return self._now
