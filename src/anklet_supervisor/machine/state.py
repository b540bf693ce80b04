"""The states of a service and of the whole, and what leads from one to the other. Pure tables; everything else follows them.

starting --ready--> ready --ordered to end--> stopping --exited--> stopped
    |                 |                          |
    +----crashed------+--------(owes clean-up)---+--> backoff --time is up--> starting
    +----cannot run---+--------------------------+--> fatal

A reload that changes a service's settings leads from backoff, stopped and fatal to starting, with a fresh budget of restarts; one
that removes the service takes it out of the table, once no process of it lives.
"""

from __future__ import annotations

from enum import Enum


class Mode(Enum):
    """What the supervisor as a whole is about."""

    #: Takes jobs.
    RUNNING = "running"
    #: Takes no new job; claimed ones finish.
    DRAINING = "draining"
    #: Interrupts jobs and cleans up.
    STOPPING = "stopping"


class ServiceState(Enum):
    """Where one service's worker process stands."""

    #: The process runs and recovers what an earlier one left.
    STARTING = "starting"
    #: It has announced that it takes jobs.
    READY = "ready"
    #: It died; the next start waits.
    BACKOFF = "backoff"
    #: It has been ordered to drain or stop.
    STOPPING = "stopping"
    #: It ended as ordered.
    STOPPED = "stopped"
    #: A new start cannot cure it, or its restarts are used up. An operator must act.
    FATAL = "fatal"


class Trigger(Enum):
    """What happens to a service."""

    #: The worker announced readiness.
    ANNOUNCED = "announced"
    #: It was ordered to drain or stop.
    ORDERED = "ordered"
    #: The process ended as it should.
    ENDED = "ended"
    #: The process ended otherwise, and a new one is to follow.
    CRASHED = "crashed"
    #: The process ended in a way that no new start cures, or once too often.
    GAVE_UP = "gave_up"
    #: The back-off is over.
    DUE = "due"
    #: A reload has given it new settings, and no process of it lives: it begins afresh.
    RENEWED = "renewed"


#: Cells that are missing are impossible: reaching one is a bug (`ImpossibleTrigger`), never silently ignored.
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
        # A service that owes no clean-up need not be started again only to be stopped; the machine decides that.
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
    """Something happened to a service that cannot happen in its state: a bug of ours."""


def follow(state: ServiceState, trigger: Trigger) -> ServiceState:
    """Return the state that follows. Raises `ImpossibleTrigger`."""
    try:
        return TRANSITIONS[state][trigger]
    except KeyError:
        raise ImpossibleTrigger(f"{trigger.value} cannot happen to a service that is {state.value}") from None
