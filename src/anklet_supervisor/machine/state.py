"""The states of a service and of the supervisor, and the transitions between them. Pure tables.

starting --ready--> ready --drain or stop--> stopping --exited--> stopped
    |                 |                         |
    +----crashed------+-------(owes clean-up)---+--> backoff --pause is over--> starting
    +----cannot run---+-------------------------+--> fatal

A reload with new settings leads from backoff, stopped and fatal to starting, with a fresh budget of restarts. A reload that removes
the service removes it from the model once its process has exited.
"""

from __future__ import annotations

from enum import Enum


class Mode(Enum):
    """What the supervisor as a whole does."""

    #: Takes jobs.
    RUNNING = "running"
    #: Takes no new jobs; claimed jobs finish.
    DRAINING = "draining"
    #: Interrupts jobs and cleans up.
    STOPPING = "stopping"


class ServiceState(Enum):
    """The state of one service's worker process."""

    #: The process runs and reconciles what an earlier one left.
    STARTING = "starting"
    #: It takes jobs.
    READY = "ready"
    #: It crashed; the next start waits.
    BACKOFF = "backoff"
    #: It was ordered to drain, stop or detach.
    STOPPING = "stopping"
    #: It exited as ordered.
    STOPPED = "stopped"
    #: A restart cannot help, or the budget of restarts is used up. An operator must act.
    FATAL = "fatal"


class Trigger(Enum):
    """What happens to a service."""

    #: The worker announced readiness.
    ANNOUNCED = "announced"
    #: It was ordered to drain, stop or detach.
    ORDERED = "ordered"
    #: The process exited as it should.
    ENDED = "ended"
    #: The process exited otherwise; another one is due after a pause.
    CRASHED = "crashed"
    #: The process exited in a way that a restart cannot help, or crashed too often.
    GAVE_UP = "gave_up"
    #: The pause before the next start is over.
    DUE = "due"
    #: A reload brought new settings, and its process has exited.
    RENEWED = "renewed"


#: A missing cell is impossible: reaching it is a bug and raises `ImpossibleTrigger`.
TRANSITIONS: dict[ServiceState, dict[Trigger, ServiceState]] = {
    ServiceState.STARTING: {
        Trigger.ANNOUNCED: ServiceState.READY,
        Trigger.ORDERED: ServiceState.STOPPING,
        Trigger.ENDED: ServiceState.STOPPED,
        Trigger.CRASHED: ServiceState.BACKOFF,
        Trigger.GAVE_UP: ServiceState.FATAL,
    },
    ServiceState.READY: {
        Trigger.ANNOUNCED: ServiceState.READY,
        Trigger.ORDERED: ServiceState.STOPPING,
        Trigger.ENDED: ServiceState.STOPPED,
        Trigger.CRASHED: ServiceState.BACKOFF,
        Trigger.GAVE_UP: ServiceState.FATAL,
    },
    ServiceState.BACKOFF: {
        # Without clean-up to do, the machine ends the service at once (ENDED) instead of starting it again.
        Trigger.ORDERED: ServiceState.BACKOFF,
        Trigger.ENDED: ServiceState.STOPPED,
        Trigger.DUE: ServiceState.STARTING,
        Trigger.RENEWED: ServiceState.STARTING,
        Trigger.GAVE_UP: ServiceState.FATAL,
    },
    ServiceState.STOPPING: {
        Trigger.ANNOUNCED: ServiceState.STOPPING,
        Trigger.ORDERED: ServiceState.STOPPING,
        Trigger.ENDED: ServiceState.STOPPED,
        Trigger.CRASHED: ServiceState.BACKOFF,
        Trigger.GAVE_UP: ServiceState.FATAL,
    },
    ServiceState.STOPPED: {Trigger.ORDERED: ServiceState.STOPPED, Trigger.RENEWED: ServiceState.STARTING},
    ServiceState.FATAL: {
        Trigger.ORDERED: ServiceState.FATAL,
        # One that owes clean-up is started again, after a longer pause.
        Trigger.DUE: ServiceState.STARTING,
        Trigger.RENEWED: ServiceState.STARTING,
    },
}

#: States in which a worker process exists.
ALIVE = frozenset({ServiceState.STARTING, ServiceState.READY, ServiceState.STOPPING})
#: States without a worker. New settings lead on from them, and a FATAL service that owes clean-up is started again later.
FINAL = frozenset({ServiceState.STOPPED, ServiceState.FATAL})


class ImpossibleTrigger(ValueError):
    """A trigger that cannot happen in the service's state: a bug of ours."""


def transition(state: ServiceState, trigger: Trigger) -> ServiceState:
    """Return the next state. Raises `ImpossibleTrigger`."""
    try:
        return TRANSITIONS[state][trigger]
    except KeyError:
        raise ImpossibleTrigger(f"{trigger.value} cannot happen to a service that is {state.value}") from None
