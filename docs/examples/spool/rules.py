"""The spool plugin's keys. `anklet-supervisor check` reads them, with every other mistake in the configuration."""

from __future__ import annotations

from pathlib import Path

import msgspec

from anklet_worker.contract.rules import ServiceRules
from anklet_worker.contract.settings import Key, Kind, Section


class SpoolSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One service's settings. Neither has a default, so both keys are required."""

    folder: Path
    template: str


RULES = ServiceRules(
    settings=Section(
        name="spool",
        values=SpoolSettings,
        keys=(
            Key(name="folder", kind=Kind.DIRECTORY, doc="folder with inbox, running, done and failed"),
            Key(name="template", kind=Kind.TEXT, doc="VM template for scripts that name none"),
        ),
    ),
    origin_keys=("folder",),
)
