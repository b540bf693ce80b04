"""Orders to the whole supervisor: drain, stop, restart, and the deadlines that follow from them. Pure.

Knows which order overrides which. The workers carry the orders out; `workers.py` decides what their exits mean.
"""

from __future__ import annotations

from anklet_supervisor.machine import allocator
from anklet_supervisor.machine.events import (
    DetachWorker,
    DrainAsked,
    InterruptedBy,
    KillWorker,
    RestartAsked,
    Tell,
    Terminated,
)
from anklet_supervisor.machine.state import ALIVE, Mode, ServiceState, Trigger
from anklet_supervisor.machine.turn import Turn
from anklet_worker.contract.errors import ExitCode
from anklet_worker.link import messages as m

#: Seconds that workers get to exit after a stop or a restart. Their own clean-up is limited to far less.
STOP_PATIENCE = 300.0


def apply(turn: Turn, order: DrainAsked | Terminated | InterruptedBy | RestartAsked) -> None:
    """Apply an order from a signal."""
    match order:
        case DrainAsked():
            _drain(turn)
        case Terminated():
            _terminated(turn)
        case InterruptedBy():
            _interrupted(turn)
        case RestartAsked():
            _restart(turn)


def check_deadlines(turn: Turn) -> None:
    """Turn an overdue drain into a stop, and kill the workers that outlast an overdue stop."""
    if turn.model.drain_deadline is not None and turn.model.drain_deadline <= turn.now.mono:
        turn.report("WARN", "the drain took longer than drain_timeout; stopping")
        _stop(turn)
    if turn.model.stop_deadline is not None and turn.model.stop_deadline <= turn.now.mono:
        turn.set(stop_deadline=None)
        for service in turn.model.services.values():
            if service.state in ALIVE:
                turn.report("ERROR", f"the worker did not exit within {STOP_PATIENCE:.0f} s; killed it", service.name)
                turn.effects.append(KillWorker(service.name))
            elif service.state is ServiceState.BACKOFF:
                turn.trigger(service.name, Trigger.ENDED, due=None)


def _terminated(turn: Turn) -> None:
    if _is_restarting(turn):
        return
    if turn.model.terminated:
        _stop(turn)
    turn.set(terminated=True)
    _drain(turn)


def _interrupted(turn: Turn) -> None:
    if turn.model.interrupted:
        turn.set(exit_code=int(ExitCode.INTERRUPTED))
    turn.set(interrupted=True)
    if not _is_restarting(turn):
        _stop(turn)


def _drain(turn: Turn) -> None:
    if turn.model.mode is not Mode.RUNNING:
        _is_restarting(turn)
        return
    deadline = None if turn.model.drain_timeout is None else turn.now.mono + turn.model.drain_timeout
    turn.set(mode=Mode.DRAINING, drain_deadline=deadline)
    turn.report("INFO", "draining: no new jobs, claimed jobs finish")
    _order_all(turn, m.Drain())


def _stop(turn: Turn) -> None:
    if turn.model.mode is Mode.STOPPING:
        return
    turn.set(mode=Mode.STOPPING, drain_deadline=None, stop_deadline=turn.now.mono + STOP_PATIENCE)
    turn.report("INFO", "stopping: interrupting jobs and cleaning up")
    _order_all(turn, m.Stop())


def _restart(turn: Turn) -> None:
    if turn.model.mode is Mode.STOPPING:
        if not turn.model.restarting:
            turn.report("WARN", "not restarting: already stopping")
        return
    turn.set(mode=Mode.STOPPING, restarting=True, drain_deadline=None, stop_deadline=turn.now.mono + STOP_PATIENCE)
    turn.report("INFO", "restarting: VMs and their jobs keep running; the next start adopts them")
    for service in turn.model.services.values():
        turn.trigger(service.name, Trigger.ORDERED)
        if service.state in ALIVE:
            turn.effects.append(DetachWorker(service.name))
        elif service.state is ServiceState.BACKOFF:
            turn.trigger(service.name, Trigger.ENDED, due=None)


def _is_restarting(turn: Turn) -> bool:
    """True, with a warning, if a restart came first. The workers detach, so no job is left here to drain or stop."""
    if turn.model.restarting:
        turn.report("WARN", "already restarting; repeat the order after the next start")
    return turn.model.restarting


def _order_all(turn: Turn, command: m.Command) -> None:
    for service in turn.model.services.values():
        turn.trigger(service.name, Trigger.ORDERED)
        if service.state in ALIVE:
            turn.effects.append(Tell(service.name, command))
        elif service.state is ServiceState.BACKOFF and not allocator.owes(turn.model.allocation, service.name):
            turn.trigger(service.name, Trigger.ENDED, due=None)
