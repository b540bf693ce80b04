"""The life of one attempt at a job: phases, events, and the table of transitions. Pure.

Decides what may follow what in an attempt. Does no I/O and knows no plugin and no driver.
"""

from __future__ import annotations

from enum import Enum


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
