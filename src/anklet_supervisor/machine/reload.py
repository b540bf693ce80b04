"""What a reload does to each service: who goes on, who finishes and begins anew, who comes, who leaves. Pure.

Nobody is interrupted. A worker keeps the settings that it was born with to its end; a successor that has to finish what it left has
the same. New settings come into force when no process of the service lives. The last of several reloads wins.
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
    Report,
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


def follow(turn: Turn, event: ReloadAsked | ConfigRead | ConfigRefused) -> None:
    """Decide what follows from an event of a reload."""
    match event:
        case ReloadAsked():
            _asked(turn)
        case ConfigRead():
            _read(turn, event)
        case ConfigRefused(problems=problems):
            _refused(turn, problems)


def _asked(turn: Turn) -> None:
    asked = turn.model.reload.asked + 1
    turn.set(reload=msgspec.structs.replace(turn.model.reload, asked=asked))
    refusal = _why_no_reload(turn)
    if refusal:
        turn.effects.append(Report("WARN", refusal))
        _answer(turn, (refusal,), refused=True)
    elif turn.model.reload.reading is None:
        _read_again(turn)


def _read(turn: Turn, event: ConfigRead) -> None:
    if not _is_wanted(turn):
        return
    _answer(turn, ())
    turn.effects.append(TakeConfig())
    turn.effects.append(Report("INFO", _describe_changes(turn, event)))
    allocation = allocator.resize(turn.model.allocation, event.vm_limit)
    turn.set(drain_timeout=event.drain_timeout, allocation=allocation)
    before = turn.model.services
    for name, service in before.items():
        if name not in event.services:
            _dismiss(turn, service, Fate.LEAVES)
        elif _is_to_change(service, event):
            _dismiss(turn, service, Fate.REPLACED)
    for name in event.services:
        if name not in before:
            turn.set(services={**turn.model.services, name: Service(name=name)})
            turn.effects += [RenewSettings(name), StartWorker(name)]
    turn.set(services=_in_order(turn.model.services, event.services))


def _refused(turn: Turn, problems: tuple[str, ...]) -> None:
    if _is_wanted(turn):
        turn.effects.append(Report("ERROR", "the configuration cannot be used; nothing has changed", None, problems))
        _answer(turn, problems)


def _is_wanted(turn: Turn) -> bool:
    """Whether what has just been read is to be used: nothing ends, and nobody has asked again since it was looked at."""
    reload = turn.model.reload
    begun = reload.reading or 0
    turn.set(reload=msgspec.structs.replace(reload, reading=None))
    refusal = _why_no_reload(turn)
    if refusal:
        if reload.answered < begun:
            turn.effects.append(Report("WARN", refusal))
            _answer(turn, (refusal,), refused=True)
        return False
    if reload.asked > begun:
        _read_again(turn)
        return False
    return True


def _why_no_reload(turn: Turn) -> str:
    if turn.model.mode is not Mode.RUNNING:
        return f"not reloaded: the supervisor is {turn.model.mode.value}"
    return "not reloaded: with --once each service makes but one pass" if turn.model.once else ""


def _read_again(turn: Turn) -> None:
    turn.set(reload=msgspec.structs.replace(turn.model.reload, reading=turn.model.reload.asked))
    turn.effects.append(ReadConfig())


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
        "changed": [name for name in event.services if name in before and _is_to_change(before[name], event)],
        "removed": [
            one.name for one in before.values() if one.name not in event.services and one.fate is not Fate.LEAVES
        ],
    }
    told = "; ".join(f"{word}: {', '.join(names)}" for word, names in groups.items() if names)
    return f"reloaded: {told}" if told else "reloaded: no service has changed"


def _dismiss(turn: Turn, service: Service, fate: Fate) -> None:
    """A service's worker is to finish what it has in hand, under the settings that it has."""
    name = service.name
    if service.state in ALIVE:
        turn.trigger(name, Trigger.ORDERED, fate=fate)
        if service.fate is Fate.STAYS:
            turn.effects.append(Tell(name, m.Drain()))
    elif service.state is ServiceState.BACKOFF and allocator.owes(turn.model.allocation, name):
        # A job may run in its VM, which the new settings might not find: once more under the old ones, with a fresh budget.
        turn.trigger(name, Trigger.DUE, fate=fate, due=None, crashes=(), status=Status.IDLE)
        turn.effects.append(StartWorker(name))
    else:
        turn.update(name, fate=fate)
        follow_fate(turn, name)


def follow_fate(turn: Turn, name: str) -> None:
    """No process of the service lives, nor need one under its old settings: what a reload has decided comes true."""
    service = turn.model.services[name]
    if turn.model.mode is not Mode.RUNNING:
        return
    if service.fate is Fate.REPLACED:
        fresh = Service(name=name, state=service.state, restarts=service.restarts)
        turn.set(services={**turn.model.services, name: fresh})
        turn.trigger(name, Trigger.RENEWED)
        turn.effects += [
            RenewSettings(name),
            Report("INFO", "the service begins anew, with its new settings", name),
            StartWorker(name),
        ]
    elif service.fate is Fate.LEAVES:
        turn.set(services={key: one for key, one in turn.model.services.items() if key != name})
        turn.effects += [ForgetService(name), Report("INFO", "the service has ended and is configured no more", name)]
        for slot in turn.model.allocation.table.slots:
            if slot.service == name and slot.state is SlotState.ORPHANED:
                turn.effects.append(
                    Report("ERROR", f"the service is configured no more, and nobody looks after its VM {slot.vm}", name)
                )


def _is_to_change(service: Service, event: ConfigRead) -> bool:
    """Whether a configured service gets other settings; one that was to leave has been told to end, and begins anew."""
    return service.name in event.changed or service.fate is Fate.LEAVES


def _in_order(services: dict[str, Service], names: tuple[str, ...]) -> dict[str, Service]:
    """The services as they are configured, and after them those that are to leave."""
    return {name: services[name] for name in (*names, *(name for name in services if name not in names))}
