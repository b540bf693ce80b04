"""The life of one attempt at a job as a table: phases, events, and what to do at each. Pure.

An attempt borrows a VM, whose own life is in `vm_phases.py`. `attempt.py` performs the actions; nothing here does I/O or knows a
plugin.

    CLAIMED -> DRIVING -> STARTED -> ENDED -> (record gone)
"""

from __future__ import annotations

from enum import Enum


class Phase(Enum):
    """Where an attempt stands. The record on disk says so before the effect."""

    #: The lease is ours. The VM is being made.
    CLAIMED = "claimed"
    #: The plugin has the VM: from now on anything that it registers may exist at the origin.
    DRIVING = "driving"
    #: The origin says that a job runs in our VM.
    STARTED = "started"
    #: The job is over, or the attempt is given up: everything that is left must go.
    ENDED = "ended"


class Event(Enum):
    """What happens to an attempt."""

    #: The claim is on record.
    BEGUN = "begun"
    #: The VM takes commands and the job is still ours.
    VM_READY = "vm ready"
    #: The plugin says that the origin runs a job in our VM.
    JOB_STARTED = "job started"
    #: The plugin says how the job ended.
    OUTCOME = "outcome"
    #: An error kept the job from running, or from being watched.
    FAILED = "failed"
    #: The origin refuses us until an operator acts.
    REFUSED = "refused"
    #: A stop interrupted us.
    STOPPED = "stopped"
    #: The answers to a withdrawal: a job runs in the VM; none can land (or the origin does not answer); asked because of a stop.
    LANDED = "landed"
    WITHDRAWN = "withdrawn"
    WITHDRAWN_FOR_STOP = "withdrawn for stop"
    #: An earlier process left this attempt: its VM runs, or not.
    LEFT_RUNNING = "left running"
    LEFT_DEAD = "left dead"
    #: A job may run in the VM that an earlier process left.
    ADOPTABLE = "adoptable"
    #: This process watches the job of an earlier one from now on.
    ADOPTED = "adopted"
    #: Another try to clean up what could not be removed.
    RETRIED = "retried"


class Action(Enum):
    """What `Attempt` does after an event, in the order of the table. Only the last one of a row may cause the next event."""

    MAKE_VM = "make VM"
    DRIVE = "drive"
    ADOPT = "adopt"
    #: Adopt after a pause that grows: it may fail again the same way.
    ADOPT_LANDED = "adopt landed job"
    WITHDRAW = "withdraw"
    WITHDRAW_FOR_STOP = "withdraw for stop"
    WITHDRAW_LEFT = "withdraw what was left"
    TIME_RUN = "time the run"
    REPORT_START = "report start"
    TELL_OUTCOME = "tell outcome"
    RETELL_OUTCOME = "tell outcome again"
    GIVE_BACK = "give back"
    COLLECT = "collect"
    CLEAN = "clean"
    CLEAN_ONCE = "clean once"
    #: Raise what ended the attempt.
    RAISE = "raise"


class ImpossibleEvent(ValueError):
    """An event that cannot happen in this phase: a bug of ours, never ignored."""


Row = tuple[Phase, tuple[Action, ...]]

_GIVE_UP: Row = (Phase.ENDED, (Action.GIVE_BACK, Action.CLEAN, Action.RAISE))
_COLLECT_AND_GIVE_UP: Row = (Phase.ENDED, (Action.GIVE_BACK, Action.COLLECT, Action.CLEAN, Action.RAISE))
_CONCLUDE: Row = (Phase.ENDED, (Action.TELL_OUTCOME, Action.COLLECT, Action.CLEAN))
_CLEAN_UP_AFTER: Row = (Phase.ENDED, (Action.GIVE_BACK, Action.CLEAN))
_CLEAN_AGAIN: Row = (Phase.ENDED, (Action.RETELL_OUTCOME, Action.CLEAN_ONCE))

TABLE: dict[tuple[Phase, Event], Row] = {
    (Phase.CLAIMED, Event.BEGUN): (Phase.CLAIMED, (Action.MAKE_VM,)),
    (Phase.CLAIMED, Event.VM_READY): (Phase.DRIVING, (Action.DRIVE,)),
    (Phase.CLAIMED, Event.FAILED): _GIVE_UP,
    (Phase.CLAIMED, Event.REFUSED): _GIVE_UP,
    (Phase.CLAIMED, Event.STOPPED): _GIVE_UP,
    (Phase.CLAIMED, Event.LEFT_RUNNING): _CLEAN_UP_AFTER,
    (Phase.CLAIMED, Event.LEFT_DEAD): _CLEAN_UP_AFTER,
    # A registration without a job goes before its VM. If a job has landed on it meanwhile, that job is watched to its end.
    (Phase.DRIVING, Event.JOB_STARTED): (Phase.STARTED, (Action.TIME_RUN, Action.REPORT_START)),
    (Phase.DRIVING, Event.OUTCOME): _CONCLUDE,
    (Phase.DRIVING, Event.FAILED): (Phase.DRIVING, (Action.WITHDRAW,)),
    (Phase.DRIVING, Event.REFUSED): (Phase.DRIVING, (Action.WITHDRAW,)),
    (Phase.DRIVING, Event.LANDED): (Phase.DRIVING, (Action.ADOPT_LANDED,)),
    (Phase.DRIVING, Event.WITHDRAWN): _COLLECT_AND_GIVE_UP,
    (Phase.DRIVING, Event.STOPPED): (Phase.DRIVING, (Action.WITHDRAW_FOR_STOP,)),
    (Phase.DRIVING, Event.WITHDRAWN_FOR_STOP): _GIVE_UP,
    (Phase.DRIVING, Event.LEFT_RUNNING): (Phase.DRIVING, (Action.WITHDRAW_LEFT,)),
    (Phase.DRIVING, Event.ADOPTABLE): (Phase.DRIVING, ()),
    (Phase.DRIVING, Event.LEFT_DEAD): _CLEAN_UP_AFTER,
    (Phase.DRIVING, Event.ADOPTED): (Phase.DRIVING, (Action.ADOPT,)),
    (Phase.STARTED, Event.JOB_STARTED): (Phase.STARTED, (Action.REPORT_START,)),
    (Phase.STARTED, Event.OUTCOME): _CONCLUDE,
    (Phase.STARTED, Event.FAILED): _COLLECT_AND_GIVE_UP,
    # The job runs on without us, on record, to be adopted when an operator has acted.
    (Phase.STARTED, Event.REFUSED): (Phase.STARTED, (Action.RAISE,)),
    (Phase.STARTED, Event.STOPPED): _GIVE_UP,
    (Phase.STARTED, Event.LEFT_RUNNING): (Phase.STARTED, ()),
    (Phase.STARTED, Event.LEFT_DEAD): _CLEAN_UP_AFTER,
    (Phase.STARTED, Event.ADOPTED): (Phase.STARTED, (Action.ADOPT,)),
    (Phase.ENDED, Event.LEFT_RUNNING): _CLEAN_AGAIN,
    (Phase.ENDED, Event.LEFT_DEAD): _CLEAN_AGAIN,
    (Phase.ENDED, Event.RETRIED): (Phase.ENDED, (Action.CLEAN_ONCE,)),
}


def advance(phase: Phase, event: Event) -> Row:
    """Return the next phase and the actions to perform in it. Raises `ImpossibleEvent` for a cell that the table leaves out."""
    try:
        return TABLE[phase, event]
    except KeyError:
        raise ImpossibleEvent(f"{event.value} cannot happen to an attempt that is {phase.value}") from None
