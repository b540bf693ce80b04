"""What an examination of a host finds: the words that `anklet-supervisor doctor` shares with plugins.

Owns the form of a finding and how a plugin's own examination is found. Examines nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Protocol

import msgspec

from anklet_worker.contract.service import ServiceConfig

#: Entry point group of `PluginDoctor`s, each under its plugin's name.
DOCTOR_GROUP = "anklet.plugin_doctor"


class Verdict(Enum):
    """What a finding means for the host."""

    #: As it should be.
    OK = "ok"
    #: It works, but an operator should know.
    WARNING = "warning"
    #: The host is not fit to run jobs until this is mended.
    PROBLEM = "problem"
    #: Cannot be told on this host or now.
    NOT_CHECKED = "not checked"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at. `said` and `remedy` are a sentence for people each, with no secret in them.

    `service`: the one that it concerns; empty when it is the host.
    """

    check: str
    verdict: Verdict
    said: str
    remedy: str = ""
    service: str = ""


class PluginDoctor(Protocol):
    """Says whether what a plugin needs outside of this host is there: rights, limits, the other side's clock.

    Called by `doctor` for each service of the plugin, in no worker: with a supervisor running or not. It must be quick (some ten
    seconds at most), leave nothing behind, and raise nothing: what goes wrong is a finding.
    """

    def __call__(self, service: ServiceConfig) -> Iterable[Finding]:
        """Examine what `service` depends on."""
        ...
