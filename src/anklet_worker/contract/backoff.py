"""Pauses that grow with each failure in a row: exponential backoff as a value.

Pure arithmetic. Knows no clock, no random source and nothing of what is retried.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

#: A failure may repeat for weeks, and a float overflows after 1023 doublings.
_MOST_DOUBLINGS = 30


class Backoff(msgspec.Struct, frozen=True, kw_only=True):
    """A pause in seconds that doubles from `first` up to `longest`. Immutable: each step gives a new value.

    `doublings` counts the steps made so far. `jitter` is the largest share of a pause that `jittered` adds: 0.25 makes a
    pause of 10 s last between 10 s and 12.5 s.

    Step by hand where the pauses belong to a state that is kept:

        backoff = Backoff(first=0.5, longest=10.0)
        wait(backoff.pause)
        backoff = backoff.next()

    Iterate where one loop owns them all: `for pause in Backoff(first=0.5, longest=10.0)` never ends by itself.
    """

    first: float
    longest: float
    jitter: float = 0.0
    doublings: int = 0

    @property
    def pause(self) -> float:
        """Seconds to wait now, without jitter."""
        return min(self.first * 2.0 ** min(self.doublings, _MOST_DOUBLINGS), self.longest)

    def jittered(self, roll: float) -> float:
        """Seconds to wait now, with jitter. `roll` is a random number from 0 to 1, as `random.random()` gives it."""
        return self.pause * (1 + self.jitter * roll)

    def next(self) -> Backoff:
        """The backoff after one more failure."""
        return self.after(self.doublings + 1)

    def after(self, doublings: int) -> Backoff:
        """The backoff after this many doublings, counted from `first`."""
        return msgspec.structs.replace(self, doublings=doublings)

    def reset(self) -> Backoff:
        """The backoff after a success: it starts again at `first`."""
        return self.after(0)

    def __iter__(self) -> Iterator[float]:
        """All pauses from now on, without jitter and without end."""
        backoff = self
        while True:
            yield backoff.pause
            backoff = backoff.next()
