"""How many VMs the host really runs at once, learned from its refusals, and when to try for one more. Pure.

macOS frees the place of a deleted VM a little late, and sometimes only at the next reboot. So the first refusal with a free slot
means a short wait. From the second refusal on, the host counts as degraded: it gets as many VMs as it has been seen to run, and a
try for one more after growing pauses. A successful try ends the degraded state.
"""

from __future__ import annotations

import msgspec

from anklet_worker.contract.backoff import Backoff

#: Seconds until the first retry, and the pauses after that.
_FIRST = 2.0
_LATER = Backoff(first=15.0, longest=600.0)


class HostLimit(msgspec.Struct, frozen=True, kw_only=True):
    """What refusals have shown.

    `ceiling`: how many VMs, foreign ones included, ran when the host refused one more; None if it never did. `refusals`: refused
    tries in a row. `retry_at`: monotonic seconds of the next try.
    """

    ceiling: int | None = None
    refusals: int = 0
    retry_at: float = 0.0

    @property
    def degraded(self) -> bool:
        """True when a refusal was repeated: it was not just a place that became free late."""
        return self.refusals > 1


def refused(limit: HostLimit, others: int, slots: int, now: float) -> HostLimit:
    """The limit after the host refused a VM while `others` ran. If those fill all `slots`, the refusal shows nothing."""
    if others >= slots:
        return limit
    ceiling = others if limit.ceiling is None else min(limit.ceiling, others)
    if limit.refusals and now < limit.retry_at:
        # This start began before the first refusal was known, so it counts with that one.
        return msgspec.structs.replace(limit, ceiling=ceiling)
    pause = _FIRST if limit.refusals == 0 else _LATER.after(limit.refusals - 1).pause
    return HostLimit(ceiling=ceiling, refusals=limit.refusals + 1, retry_at=now + pause)


def started(limit: HostLimit, running: int) -> HostLimit:
    """The limit after the host started a VM and now runs `running`: more than the ceiling clears it."""
    return limit if limit.ceiling is None or running <= limit.ceiling else HostLimit()


def allowed(limit: HostLimit, slots: int, now: float) -> int:
    """How many VMs may run now, foreign ones included."""
    if limit.ceiling is None:
        return slots
    return min(slots, limit.ceiling + (now >= limit.retry_at))
