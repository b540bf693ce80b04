"""One step in progress: a model that changes by replacement, and the effects decided so far. Pure; makes no decision itself."""

from __future__ import annotations

import msgspec

from anklet_supervisor.machine.events import Effect, Report
from anklet_supervisor.machine.model import Model, Moment
from anklet_supervisor.machine.state import Trigger, transition


class Turn:
    """The working state of a step. `before` is the model at the start of the step."""

    def __init__(self, model: Model, now: Moment) -> None:
        self.before = model
        self.model = model
        self.now = now
        self.effects: list[Effect] = []
        #: Services that announced a VM for their slot in this step. They get an answer once the table is published.
        self.slot_answers: list[str] = []

    def set(self, **changes: object) -> None:
        """Replace fields of the model."""
        self.model = msgspec.structs.replace(self.model, **changes)

    def update(self, name: str, **changes: object) -> None:
        """Replace fields of a service."""
        service = msgspec.structs.replace(self.model.services[name], **changes)
        self.set(services={**self.model.services, name: service})

    def trigger(self, name: str, trigger: Trigger, **changes: object) -> None:
        """Move a service to the state that the trigger leads to, and replace other fields of it. Raises `ImpossibleTrigger`."""
        self.update(name, state=transition(self.model.services[name].state, trigger), **changes)

    def report(self, level: str, message: str, service: str | None = None, problems: tuple[str, ...] = ()) -> None:
        """Write a line to the log, see `Report`."""
        self.effects.append(Report(level, message, service, problems))
