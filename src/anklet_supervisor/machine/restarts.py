"""When a crashed worker is started again, and when it is given up. Pure arithmetic on monotonic seconds.

The n-th crash in a row waits 1, 2, 4, ... up to 60 s. A worker that stayed ready for `FORGIVE_AFTER` starts from the beginning
again. More than `MAX_CRASHES` crashes within `PERIOD` use up the budget.
"""

from __future__ import annotations

from anklet_worker.contract.backoff import Backoff

_BACKOFF = Backoff(first=1.0, longest=60.0)
FORGIVE_AFTER = 60.0
MAX_CRASHES = 5
PERIOD = 600.0


def delay(crashes_in_a_row: int) -> float:
    """Seconds to wait after the n-th crash in a row (n from 1)."""
    return _BACKOFF.after(crashes_in_a_row - 1).pause


def remember(crashes: tuple[float, ...], now: float, ready_since: float | None) -> tuple[float, ...]:
    """The crashes that still count, including this one. All times are seconds of one monotonic clock."""
    if ready_since is not None and now - ready_since >= FORGIVE_AFTER:
        return (now,)
    return (*(crash for crash in crashes if now - crash < PERIOD), now)


def spent(crashes: tuple[float, ...]) -> bool:
    """True when the budget of restarts is used up."""
    return len(crashes) > MAX_CRASHES
