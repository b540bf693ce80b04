"""What the host's own refusals say of its limit of running VMs: how many it takes, and when to try for more. Pure.

macOS sometimes keeps the place of a VM that is gone until the next reboot, and a little longer than the VM always. So a refusal
with room left means, at first, a short wait. After the next one the host counts as degraded: it gets no more VMs than it has been
seen to run, and now and then one try for another. A start that succeeds beyond that ends it.
"""

from __future__ import annotations

import msgspec

from anklet_worker.backoff import doubled

#: Seconds until the next try: after the first refusal, after the second, and at most (doubled in between).
_FIRST, _SECOND, _LONGEST = 2.0, 15.0, 600.0


class HostLimit(msgspec.Struct, frozen=True, kw_only=True):
    """`ceiling`: how many VMs (others' among them) the host has run when it refused one more; None: as many as it should.
    `refusals`: tries in a row that it refused; `retry_at`: when to try again, monotonic seconds."""

    ceiling: int | None = None
    refusals: int = 0
    retry_at: float = 0.0

    @property
    def degraded(self) -> bool:
        """True when it was more than a slot that came a moment late."""
        return self.refusals > 1


def refused(limit: HostLimit, others: int, slots: int, now: float) -> HostLimit:
    """The host refused a VM while `others` ran. With all of its `slots` taken by others it is right, and nothing is learned."""
    if others >= slots:
        return limit
    ceiling = others if limit.ceiling is None else min(limit.ceiling, others)
    if limit.refusals and now < limit.retry_at:
        # Begun before the first refusal was known: the same news.
        return msgspec.structs.replace(limit, ceiling=ceiling)
    pause = _FIRST if limit.refusals == 0 else doubled(_SECOND, limit.refusals - 1, _LONGEST)
    return HostLimit(ceiling=ceiling, refusals=limit.refusals + 1, retry_at=now + pause)


def started(limit: HostLimit, running: int) -> HostLimit:
    """The host started a VM, and now runs so many: more than it was thought to take, and all is well."""
    return limit if limit.ceiling is None or running <= limit.ceiling else HostLimit()


def allowed(limit: HostLimit, slots: int, now: float) -> int:
    """How many VMs may run, others' among them."""
    if limit.ceiling is None:
        return slots
    return min(slots, limit.ceiling + (now >= limit.retry_at))
