"""What a reload does to each service: keep it, replace its settings, add it or remove it. Pure.

A reload interrupts no job. A worker keeps the settings that it started with until it exits; a successor that must clean up after
it gets the same. New settings apply once no process of the service runs. The last of several reloads wins.
"""

from __future__ import annotations

import msgspec

from anklet_supervisor.machine import allocator
from anklet_supervisor.machine.events import (
    ConfigRead,
    ConfigRefused,
    ForgetService,
    ReadConfig,
    ReloadAsked,
    RenewSettings,
    StartWorker,
    TakeConfig,
    Tell,
)
from anklet_supervisor.machine.model import Fate, Service
from anklet_supervisor.machine.state import ALIVE, Mode, ServiceState, Trigger
from anklet_supervisor.machine.turn import Turn
from anklet_worker.link import messages as m
from anklet_worker.link.messages import Status
from anklet_worker.link.slots import SlotState


def apply(turn: Turn, event: ReloadAsked | ConfigRead | ConfigRefused) -> None:
    """Apply an event of a reload."""
    match event:
        case ReloadAsked():
            _asked(turn)
        case ConfigRead():
            _read(turn, event)
        case ConfigRefused(problems=problems):
            _refused(turn, problems)


def apply_fate(turn: Turn, name: str) -> None:
    """Carry out a reload's decision on a service that has no process, and needs none for a clean-up with its old settings."""
    service = turn.model.services[name]
    if turn.model.mode is not Mode.RUNNING:
        return
    if service.fate is Fate.REPLACED:
        fresh = Service(name=name, state=service.state, restarts=service.restarts)
        turn.set(services={**turn.model.services, name: fresh})
        turn.trigger(name, Trigger.RENEWED)
        turn.effects.append(RenewSettings(name))
        turn.report("INFO", "the service starts again with its new settings", name)
        turn.effects.append(StartWorker(name))
    elif service.fate is Fate.LEAVES:
        turn.set(services={key: one for key, one in turn.model.services.items() if key != name})
        turn.effects.append(ForgetService(name))
        turn.report("INFO", "the service has ended; it is no longer configured", name)
        for slot in turn.model.allocation.table.slots:
            if slot.service == name and slot.state is SlotState.ORPHANED:
                turn.report(
                    "ERROR", f"the service is no longer configured, and nothing looks after its VM {slot.vm}", name
                )


def _asked(turn: Turn) -> None:
    asked = turn.model.reload.asked + 1
    turn.set(reload=msgspec.structs.replace(turn.model.reload, asked=asked))
    refusal = _why_no_reload(turn)
    if refusal:
        turn.report("WARN", refusal)
        _answer(turn, (refusal,), refused=True)
    elif turn.model.reload.reading is None:
        _start_reading(turn)


def _read(turn: Turn, event: ConfigRead) -> None:
    if not _end_reading(turn):
        return
    _answer(turn, ())
    turn.effects.append(TakeConfig())
    turn.report("INFO", _describe_changes(turn, event))
    allocation = allocator.resize(turn.model.allocation, event.vm_limit)
    turn.set(drain_timeout=event.drain_timeout, allocation=allocation)
    before = turn.model.services
    for name, service in before.items():
        if name not in event.services:
            _dismiss(turn, service, Fate.LEAVES)
        elif _changes(service, event):
            _dismiss(turn, service, Fate.REPLACED)
    for name in event.services:
        if name not in before:
            turn.set(services={**turn.model.services, name: Service(name=name)})
            turn.effects += [RenewSettings(name), StartWorker(name)]
    turn.set(services=_in_order(turn.model.services, event.services))


def _refused(turn: Turn, problems: tuple[str, ...]) -> None:
    if _end_reading(turn):
        turn.report("ERROR", "the configuration has errors; nothing has changed", None, problems)
        _answer(turn, problems)


def _start_reading(turn: Turn) -> None:
    turn.set(reload=msgspec.structs.replace(turn.model.reload, reading=turn.model.reload.asked))
    turn.effects.append(ReadConfig())


def _end_reading(turn: Turn) -> bool:
    """Take note that a reading is done. False if its result is not used: the supervisor is ending, or another reload was
    requested after the reading began, which then starts over."""
    reload = turn.model.reload
    begun = reload.reading or 0
    turn.set(reload=msgspec.structs.replace(reload, reading=None))
    refusal = _why_no_reload(turn)
    if refusal:
        if reload.answered < begun:
            turn.report("WARN", refusal)
            _answer(turn, (refusal,), refused=True)
        return False
    if reload.asked > begun:
        _start_reading(turn)
        return False
    return True


def _why_no_reload(turn: Turn) -> str:
    if turn.model.mode is not Mode.RUNNING:
        return f"not reloaded: the supervisor is {turn.model.mode.value}"
    return "not reloaded: with --once each service makes one pass only" if turn.model.once else ""


def _answer(turn: Turn, problems: tuple[str, ...], *, refused: bool = False) -> None:
    reload = turn.model.reload
    answer = msgspec.structs.replace(
        reload, answered=reload.asked, problems=problems, refused=refused, at=turn.now.wall
    )
    turn.set(reload=answer)


def _describe_changes(turn: Turn, event: ConfigRead) -> str:
    before = turn.model.services
    groups = {
        "new": [name for name in event.services if name not in before],
        "changed": [name for name in event.services if name in before and _changes(before[name], event)],
        "removed": [
            one.name for one in before.values() if one.name not in event.services and one.fate is not Fate.LEAVES
        ],
    }
    changes = "; ".join(f"{word}: {', '.join(names)}" for word, names in groups.items() if names)
    return f"reloaded: {changes}" if changes else "reloaded: no service has changed"


def _dismiss(turn: Turn, service: Service, fate: Fate) -> None:
    """Let a service's worker finish the job in hand with the settings that it has."""
    name = service.name
    if service.state in ALIVE:
        turn.trigger(name, Trigger.ORDERED, fate=fate)
        if service.fate is Fate.STAYS:
            turn.effects.append(Tell(name, m.Drain()))
    elif service.state is ServiceState.BACKOFF and allocator.owes(turn.model.allocation, name):
        # A job may run in its VM, and the new settings might not find it: start once more with the old ones and a fresh budget.
        turn.trigger(name, Trigger.DUE, fate=fate, due=None, crashes=(), status=Status.IDLE)
        turn.effects.append(StartWorker(name))
    else:
        turn.update(name, fate=fate)
        apply_fate(turn, name)


def _changes(service: Service, event: ConfigRead) -> bool:
    """True if a configured service gets new settings. One that was to leave has been drained, so it starts again as well."""
    return service.name in event.changed or service.fate is Fate.LEAVES


def _in_order(services: dict[str, Service], names: tuple[str, ...]) -> dict[str, Service]:
    """The services in the order of the configuration, then those that leave."""
    return {name: services[name] for name in (*names, *(name for name in services if name not in names))}
