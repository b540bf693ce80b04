"""The time by which the loop measures deadlines: seconds in which this process could act. Pure but for the clock it is given."""

from __future__ import annotations

from collections.abc import Callable


class AwakeClock:
    """A clock that never goes back, and that leaves out what this process slept through.

    The loop turns every few seconds. A longer gap means that the process was stopped, or starved: what it waits for may have
    happened meanwhile and is still to be heard, so no deadline may pass in the gap. `mono` is monotonic, in seconds;
    `longest_gap` is what one gap counts at most.
    """

    def __init__(self, mono: Callable[[], float], longest_gap: float) -> None:
        self._mono = mono
        self._longest_gap = longest_gap
        self._read_at = mono()
        self._now = self._read_at

    def __call__(self) -> float:
        """Seconds, since whenever."""
        here = self._mono()
        self._now += max(0.0, min(here - self._read_at, self._longest_gap))
        self._read_at = here
        return self._now
