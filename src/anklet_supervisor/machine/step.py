"""What the supervisor does when something happens: `step(model, event, now) -> (model, effects)`. Pure.

Owns the order of a step and the supervisor's exit code. The decisions are in `orders`, `reload`, `workers` and `slots`. Knows no
process, signal, clock or file: `daemon/loop.py` feeds it events and performs its effects, and tests feed it histories.
"""

from __future__ import annotations

from anklet_supervisor.machine import allocator, orders, reload, slots, workers
from anklet_supervisor.machine.allocator import Allocation
from anklet_supervisor.machine.events import (
    Began,
    ConfigRead,
    ConfigRefused,
    DrainAsked,
    Effect,
    Event,
    Finish,
    InterruptedBy,
    PublishSlots,
    ReloadAsked,
    RestartAsked,
    StartPutOff,
    StartWorker,
    Terminated,
    Tick,
    WorkerExited,
    WorkerSaid,
    WorkerStarted,
)
from anklet_supervisor.machine.model import Model, Moment, Service
from anklet_supervisor.machine.state import FINAL, Mode
from anklet_supervisor.machine.turn import Turn
from anklet_worker.contract.errors import ExitCode
from anklet_worker.link.slots import SlotState


def initial(services: list[str], allocation: Allocation, *, once: bool, drain_timeout: float | None) -> Model:
    """The model before the first event. `drain_timeout` is in seconds."""
    return Model(
        services={name: Service(name=name) for name in services},
        allocation=allocation,
        once=once,
        drain_timeout=drain_timeout,
    )


def next_deadline(model: Model) -> float | None:
    """Monotonic seconds at which a `Tick` is due, or None."""
    candidates = [service.due for service in model.services.values()] + [model.drain_deadline, model.stop_deadline]
    candidates.append(allocator.slots_due(model.allocation))
    return min((due for due in candidates if due is not None), default=None)


def step(model: Model, event: Event, now: Moment) -> tuple[Model, list[Effect]]:
    """Return the model after `event`, and the effects to perform, in order."""
    turn = Turn(model, now)
    match event:
        case Began():
            turn.effects.append(PublishSlots())
            turn.effects.extend(StartWorker(name) for name in model.services)
        case DrainAsked() | Terminated() | InterruptedBy() | RestartAsked():
            orders.apply(turn, event)
        case ReloadAsked() | ConfigRead() | ConfigRefused():
            reload.apply(turn, event)
        case WorkerStarted(service=name, pid=pid):
            workers.started(turn, name, pid)
        case WorkerSaid(service=name, fact=fact):
            workers.said(turn, name, fact)
        case WorkerExited(service=name, exit_code=code):
            workers.exited(turn, name, code)
        case StartPutOff(service=name, reason=reason):
            workers.start_put_off(turn, name, reason)
        case Tick():
            orders.check_deadlines(turn)
            workers.start_due(turn)
    slots.publish_and_grant(turn)
    _finish_if_over(turn)
    return turn.model, turn.effects


def slots_in_use(model: Model) -> int:
    """How many slots hold a VM, or may hold one."""
    return sum(slot.state in (SlotState.OCCUPIED, SlotState.ORPHANED) for slot in model.allocation.table.slots)


def _finish_if_over(turn: Turn) -> None:
    if turn.model.exit_code is None and _is_over(turn.model):
        turn.set(exit_code=_final_code(turn.model))
    if turn.model.exit_code is not None and turn.before.exit_code is None:
        turn.effects.append(Finish(turn.model.exit_code))


def _is_over(model: Model) -> bool:
    """True when nothing more can happen.

    A host on which every service is fatal stays up, so that its metrics show it. If all of them lack the VM tool it ends: a later
    start, by launchd, may find the tool.
    """
    if not all(service.state in FINAL for service in model.services.values()):
        return False
    ordered = model.mode is not Mode.RUNNING or model.once
    return ordered or all(service.exit_code == ExitCode.UNAVAILABLE for service in model.services.values())


def _final_code(model: Model) -> int:
    if model.restarting:
        return int(ExitCode.TEMPFAIL)
    services = model.services.values()
    if services and all(service.exit_code == ExitCode.UNAVAILABLE for service in services):
        return int(ExitCode.UNAVAILABLE)
    return int(ExitCode.OK)
