"""The life of one VM of ours as a table: phases, events, and what to do at each. Pure.

A VM lives apart from the attempt that borrows it. `owned_vm.py` performs the actions; nothing here does I/O or knows a driver.

    PLANNED -> MAKING -> STARTING -> READY -> GOING -> GONE
"""

from __future__ import annotations

from enum import Enum


class VMPhase(Enum):
    """How far a VM has come. The record on disk says so before the effect."""

    #: It has a name, and perhaps a slot; nothing is made yet.
    PLANNED = "planned"
    #: A VM of this name may exist from now on.
    MAKING = "making"
    #: It may be running from now on.
    STARTING = "starting"
    #: Its guest takes commands.
    READY = "ready"
    #: It is being removed; nothing may use it any longer.
    GOING = "going"
    #: A listing proved that it does not exist.
    GONE = "gone"


class VMEvent(Enum):
    """What happens to a VM."""

    CLONE = "clone"
    START = "start"
    ANSWERED = "answered"
    REMOVE = "remove"
    REMOVED = "removed"


class VMAction(Enum):
    """What `OwnedVM` does after an event, in the order of the table."""

    #: Tell the supervisor that the slot now holds this VM, and see the slot table confirm it.
    OCCUPY_SLOT = "occupy slot"
    CLONE = "clone"
    #: Make sure that the slot is still ours.
    CHECK_SLOT = "check slot"
    #: Start it and wait until the guest takes commands.
    BOOT = "boot"
    #: Delete it, running or not, until a listing proves it gone.
    DELETE = "delete"
    RELEASE_SLOT = "release slot"


class ImpossibleVMEvent(ValueError):
    """An event that cannot happen in this phase: a bug of ours, never ignored."""


Row = tuple[VMPhase, tuple[VMAction, ...]]

_DELETE: Row = (VMPhase.GOING, (VMAction.DELETE,))
TABLE: dict[tuple[VMPhase, VMEvent], Row] = {
    (VMPhase.PLANNED, VMEvent.CLONE): (
        VMPhase.MAKING,
        (VMAction.OCCUPY_SLOT, VMAction.CLONE, VMAction.CHECK_SLOT),
    ),
    (VMPhase.PLANNED, VMEvent.REMOVE): (VMPhase.GONE, (VMAction.RELEASE_SLOT,)),
    (VMPhase.MAKING, VMEvent.START): (VMPhase.STARTING, (VMAction.BOOT,)),
    (VMPhase.MAKING, VMEvent.REMOVE): _DELETE,
    (VMPhase.STARTING, VMEvent.ANSWERED): (VMPhase.READY, ()),
    (VMPhase.STARTING, VMEvent.REMOVE): _DELETE,
    (VMPhase.READY, VMEvent.REMOVE): _DELETE,
    (VMPhase.GOING, VMEvent.REMOVE): _DELETE,
    (VMPhase.GOING, VMEvent.REMOVED): (VMPhase.GONE, (VMAction.RELEASE_SLOT,)),
    (VMPhase.GONE, VMEvent.REMOVE): (VMPhase.GONE, (VMAction.RELEASE_SLOT,)),
}


def advance(phase: VMPhase, event: VMEvent) -> Row:
    """Return the next phase and the actions to perform in it. Raises `ImpossibleVMEvent` for a cell that the table leaves out."""
    try:
        return TABLE[phase, event]
    except KeyError:
        raise ImpossibleVMEvent(f"{event.value} cannot happen to a VM that is {phase.value}") from None


def may_exist(phase: VMPhase) -> bool:
    """Return True when a VM of this name may exist."""
    return phase not in (VMPhase.PLANNED, VMPhase.GONE)
