"""The github plugin's own settings, typed. `rules` declares their keys; every module of the plugin reads them from here."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path

import msgspec

from anklet_worker.contract.service import ServiceConfig
from anklet_worker.contract.settings import Secret, compile_pattern


class WorkflowFilter(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """Which workflows a service serves, by name; the patterns are regular expressions for the whole name.

    A workflow that matches an exclude is left out, unless it matches an include. Includes without excludes allow only what they
    match. Empty patterns mean nothing.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @cached_property
    def _patterns(self) -> tuple[tuple[re.Pattern[str], ...], tuple[re.Pattern[str], ...]]:
        return (
            tuple(compile_pattern(pattern) for pattern in self.include if pattern),
            tuple(compile_pattern(pattern) for pattern in self.exclude if pattern),
        )

    def allows(self, name: str) -> bool:
        """True when the service may run jobs of the workflow of this name."""
        include, exclude = self._patterns
        if any(pattern.fullmatch(name) for pattern in include):
            return True
        if exclude:
            return not any(pattern.fullmatch(name) for pattern in exclude)
        return not include


class RunnerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The runner program for images without one (None: the plugin's choice), and the group for runners of an organization."""

    version: str | None = None
    sha256: str | None = None
    download_url: str | None = None
    group: str | None = None


class GithubSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One service's settings. `private_key` is PEM text; `repos` names repositories of an organization, or patterns of names."""

    registration: str = "repo"
    token: Secret | None = None
    private_key: Secret | None = None
    app_id: str | None = None
    installation_id: int | None = None
    repos: str | tuple[str, ...] | None = None
    workflows: WorkflowFilter = WorkflowFilter()
    runner_mode: str = "jit"
    runner: RunnerSettings = RunnerSettings()
    api_url: str = "https://api.github.com"
    server_url: str = "https://github.com"
    ca_file: Path | None = None
    script_arguments: str = "settings"

    @property
    def org(self) -> bool:
        """True when runners are registered with an organization."""
        return self.registration == "org"


def settings_of(service: ServiceConfig) -> GithubSettings:
    """The plugin's settings of a service."""
    return service.settings_as(GithubSettings)
