"""How long the stages of a job take, told to the supervisor. Owns the stage that the plugin is in."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from anklet_worker.link.channel import SupervisorLink
from anklet_worker.link.messages import StageTook


class Stages:
    """The stages of one attempt; their names are `anklet_worker.link.messages.STAGES`. Times are seconds."""

    def __init__(self, link: SupervisorLink) -> None:
        self._link = link
        #: The plugin's stage that lasts now and when it began (monotonic); None where an earlier process saw it begin.
        self._lasting: tuple[str, float] | None = None

    def took(self, stage: str, seconds: float) -> None:
        """Report a stage that is over."""
        self._link.tell(StageTook(stage=stage, seconds=seconds))

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Report how long the `with` took; an error inside reports nothing."""
        began = time.monotonic()
        yield
        self.took(stage, time.monotonic() - began)

    def enter(self, stage: str | None) -> None:
        """End the plugin's stage that lasts, and begin another one."""
        now = time.monotonic()
        if self._lasting is not None:
            self.took(self._lasting[0], now - self._lasting[1])
        self._lasting = None if stage is None else (stage, now)

    def enter_after(self, earlier: str, stage: str) -> None:
        """Begin a stage if the `earlier` one lasts now."""
        if self._lasting is not None and self._lasting[0] == earlier:
            self.enter(stage)

    def drop(self) -> None:
        """Forget the stage that lasts: it did not come to its end."""
        self._lasting = None
