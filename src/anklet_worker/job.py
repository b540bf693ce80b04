"""A job and the life of one attempt at it: states, events, and the table of transitions. Pure.

Everything that decides what may follow what in an attempt is in this file. It does no I/O and knows no plugin and no driver.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from anklet_worker.vm import VMSpec


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A job as its plugin describes it to the core.

    `id` is unique in its `keyspace` (what hosts share: the keys in the store begin with it) and stable; `vm` is what it wants
    to run in; `log_fields` go into every log line about it (public facts only); `details` are the plugin's own, kept in the
    record so that a later process can go on (never a secret). `queued_at`: since when it waits, Unix seconds; 0: not known.
    """

    id: str
    name: str
    url: str
    keyspace: str
    vm: VMSpec
    log_fields: dict[str, str | int] = {}
    details: dict[str, str | int | list[str]] = {}
    queued_at: float = 0.0

    def key(self, kind: str) -> str:
        """The job's key in the store: `claim` (its lease), `attempts` (a counter), and what `retries.py` keeps of its failures."""
        return f"{self.keyspace}:{kind}:{self.id}"


class Conclusion(Enum):
    """How a job ended, in the words of its origin as far as the core tells them apart."""

    #: The job did what it was to do.
    SUCCESS = "success"
    #: The job itself failed.
    FAILURE = "failure"
    #: Its user (or their automation) cancelled it.
    CANCELLED = "cancelled"
    #: Anything else: skipped, timed out, neutral.
    OTHER = "other"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a job that ran in our VM. `job` may differ from the one asked for, where the origin dealt another one."""

    conclusion: Conclusion
    job_id: str
    job_name: str
    job_url: str


class Phase(Enum):
    """Where an attempt stands. The record on disk bears it; it is written before the effect that the phase announces.

    CLAIMED -> VM_INTENDED -> VM_STARTING -> DRIVING -> STARTED -> ENDED -> VM_GONE -> (record gone)
    """

    #: The lease is ours; nothing is made yet.
    CLAIMED = "claimed"
    #: A VM of the derived name may exist from now on.
    VM_INTENDED = "vm_intended"
    #: It may be running from now on.
    VM_STARTING = "vm_starting"
    #: The plugin has the VM: whatever it registers outside may exist from now on.
    DRIVING = "driving"
    #: The origin says that the job runs in our VM.
    STARTED = "started"
    #: The job is over, or this attempt is given up; everything is to be removed.
    ENDED = "ended"
    #: The VM is gone for certain; what the plugin registered outside may remain as a debt.
    VM_GONE = "vm_gone"


class Event(Enum):
    """What can happen to an attempt."""

    CLONE = "clone"
    START = "start"
    DRIVE = "drive"
    JOB_STARTED = "job_started"
    END = "end"
    VM_REMOVED = "vm_removed"


class ImpossibleTransition(ValueError):
    """An event that cannot happen in this phase: a bug of ours, never to be ignored."""


_TABLE: dict[Phase, dict[Event, Phase]] = {
    Phase.CLAIMED: {Event.CLONE: Phase.VM_INTENDED, Event.END: Phase.ENDED},
    Phase.VM_INTENDED: {Event.START: Phase.VM_STARTING, Event.END: Phase.ENDED},
    Phase.VM_STARTING: {Event.DRIVE: Phase.DRIVING, Event.END: Phase.ENDED},
    Phase.DRIVING: {Event.JOB_STARTED: Phase.STARTED, Event.END: Phase.ENDED},
    Phase.STARTED: {Event.JOB_STARTED: Phase.STARTED, Event.END: Phase.ENDED},
    Phase.ENDED: {Event.END: Phase.ENDED, Event.VM_REMOVED: Phase.VM_GONE},
    Phase.VM_GONE: {Event.END: Phase.VM_GONE, Event.VM_REMOVED: Phase.VM_GONE},
}


def advance(phase: Phase, event: Event) -> Phase:
    """Return the phase that follows. Raises `ImpossibleTransition` for a cell that the table leaves empty on purpose."""
    try:
        return _TABLE[phase][event]
    except KeyError:
        raise ImpossibleTransition(f"{event.value} cannot happen in phase {phase.value}") from None


def may_have_vm(phase: Phase) -> bool:
    """True when a VM of the derived name may exist."""
    return phase not in (Phase.CLAIMED, Phase.VM_GONE)
