"""When a worker that died is started again, and when no more. Pure arithmetic on seconds.

The n-th death in a row waits 1, 2, 4, ... up to 60 s. A worker that stayed ready for `FORGIVE_AFTER` starts from the
beginning again; more than `MAX_CRASHES` deaths within `PERIOD` are one too many.
"""

from __future__ import annotations

from anklet_worker.backoff import doubled

FIRST_DELAY = 1.0
LONGEST_DELAY = 60.0
FORGIVE_AFTER = 60.0
MAX_CRASHES = 5
PERIOD = 600.0


def delay(crashes_in_a_row: int) -> float:
    """Seconds to wait after the n-th death in a row (n from 1)."""
    return doubled(FIRST_DELAY, crashes_in_a_row - 1, LONGEST_DELAY)


def remember(crashes: tuple[float, ...], now: float, ready_since: float | None) -> tuple[float, ...]:
    """The deaths that still count, this one included. `now` and the entries are seconds of one monotonic clock."""
    if ready_since is not None and now - ready_since >= FORGIVE_AFTER:
        return (now,)
    return (*(crash for crash in crashes if now - crash < PERIOD), now)


def spent(crashes: tuple[float, ...]) -> bool:
    """True when the budget of restarts is used up."""
    return len(crashes) > MAX_CRASHES
