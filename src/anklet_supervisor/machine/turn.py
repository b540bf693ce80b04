"""One step of the machine in the making: a model that changes by replacement, and the effects so far. Pure; decides nothing."""

from __future__ import annotations

import msgspec

from anklet_supervisor.machine.events import Effect, Report
from anklet_supervisor.machine.model import Model, Moment
from anklet_supervisor.machine.state import Trigger, follow


class Turn:
    """What the deciding functions work on. `before` is the model at the step's begin."""

    def __init__(self, model: Model, now: Moment) -> None:
        self.before = model
        self.model = model
        self.now = now
        self.effects: list[Effect] = []

    def set(self, **changes: object) -> None:
        """Replace fields of the model."""
        self.model = msgspec.structs.replace(self.model, **changes)

    def update(self, name: str, **changes: object) -> None:
        """Replace fields of a service."""
        service = msgspec.structs.replace(self.model.services[name], **changes)
        self.set(services={**self.model.services, name: service})

    def trigger(self, name: str, trigger: Trigger, **changes: object) -> None:
        """Let a service follow a trigger to its next state. Raises `ImpossibleTrigger`."""
        self.update(name, state=follow(self.model.services[name].state, trigger), **changes)

    def _report(self, level: str, message: str, service: str | None = None) -> None:
        self.effects.append(Report(level, message, service))
