"""When a worker that died is started again, and when it is given up. Pure arithmetic on seconds.

The n-th death in a row waits 1, 2, 4, ... up to 60 s. A worker that stayed ready for `FORGIVE_AFTER` starts from the
beginning again; more than `MAX_CRASHES` deaths within `PERIOD` are too many. Trouble that may pass (a signal from outside, say)
must also have lasted for `PASSING_TROUBLE`.
"""

from __future__ import annotations

from anklet_worker.contract.backoff import Backoff

#: Longest pause before a restart, seconds.
LONGEST = 60.0
_BACKOFF = Backoff(first=1.0, longest=LONGEST)
FORGIVE_AFTER = 60.0
MAX_CRASHES = 5
PERIOD = 600.0
#: Seconds for which trouble that may pass must have lasted before a service is given up.
PASSING_TROUBLE = 60.0
#: Seconds after which a service that was given up is started again, as long as a VM of it may exist.
CLEAN_UP_AFTER = 300.0


def delay(crashes_in_a_row: int) -> float:
    """Seconds to wait after the n-th crash in a row (n from 1)."""
    return _BACKOFF.after(crashes_in_a_row - 1).pause


def remember(crashes: tuple[float, ...], now: float, ready_since: float | None) -> tuple[float, ...]:
    """The crashes that still count, including this one. All times are seconds of one monotonic clock."""
    if ready_since is not None and now - ready_since >= FORGIVE_AFTER:
        return (now,)
    return (*(crash for crash in crashes if now - crash < PERIOD), now)


def spent(crashes: tuple[float, ...], *, may_pass: bool) -> bool:
    """True when the budget of restarts is used up. `may_pass`: the last death was of a kind that may end by itself."""
    lasted = crashes[-1] - crashes[0]
    return len(crashes) > MAX_CRASHES and (not may_pass or lasted >= PASSING_TROUBLE)
