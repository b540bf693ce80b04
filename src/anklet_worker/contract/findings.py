"""The findings of an examination: the words that `anklet-supervisor doctor` shares with plugins.

Owns the form of a finding, and the entry point of a plugin's own examination. Examines nothing itself.
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

    #: Nothing to do.
    OK = "ok"
    #: It works, but an operator should know about it.
    WARNING = "warning"
    #: The host cannot run jobs until this is fixed.
    PROBLEM = "problem"
    #: Could not be examined on this host, or now.
    NOT_CHECKED = "not checked"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one check. `said` and `remedy` are sentences for people, without secrets.

    `service`: the name of the service that it is about; empty for the host.
    """

    check: str
    verdict: Verdict
    said: str
    remedy: str = ""
    service: str = ""


class PluginDoctor(Protocol):
    """Examines what a plugin needs outside this host: rights, limits, the other side's clock.

    `doctor` calls it for each service of the plugin, outside any worker, whether or not a supervisor runs. It takes ten seconds at
    most, leaves nothing behind, and raises nothing: a failure is a finding.
    """

    def __call__(self, service: ServiceConfig) -> Iterable[Finding]:
        """Examine the things that `service` depends on."""
        ...
