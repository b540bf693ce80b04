"""One service's configuration, as its worker and its plugin read it: frozen and typed.

Knows no file and no environment: the supervisor reads those and hands this over. Defaults are the documented ones.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import msgspec

#: Value of a plugin's own key: plain data, as YAML has it.
OptionValue: TypeAlias = "str | int | float | bool | list[OptionValue] | dict[str, OptionValue] | None"


class Secret:
    """A text that must not be seen. Its representation never shows it; `reveal` does, on purpose."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The text itself."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    def __str__(self) -> str:
        return "***"

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)


class Database(msgspec.Struct, frozen=True, kw_only=True):
    """Where claims are kept: in Redis when enabled, else in the embedded store of this host."""

    enabled: bool = False
    host: str = "localhost"
    port: int = 6379
    user: str = ""
    password: Secret | None = None
    database: int = 0
    tls: bool = False


class Runner(msgspec.Struct, frozen=True, kw_only=True):
    """Which runner a guest gets when its image has none. None: the plugin's own choice."""

    version: str | None = None
    sha256: str | None = None
    download_url: str | None = None
    group: str | None = None


class Deadlines(msgspec.Struct, frozen=True, kw_only=True):
    """How long a stage may take, in seconds."""

    vm_start: float = 120.0
    runner_online: float = 120.0
    job_start: float = 120.0
    cleanup: float = 60.0


class Tart(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the tart driver. `memory` is MB; `mounts` are `name:path` or `name:path:ro`."""

    image: str | None = None
    pull: str = "if-not-present"
    cpu: int | None = None
    memory: int | None = None
    display: str | None = None
    network: str = "shared"
    mounts: tuple[str, ...] = ()
    user: str | None = None
    password_file: Path | None = None


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile one regular expression of the configuration. Raises `ValueError` with a reason for people."""
    try:
        with warnings.catch_warnings():
            # Hints at syntax that a later Python may read in another way; this one reads it as intended.
            warnings.simplefilter("ignore")
            return re.compile(pattern)
    except re.error as error:
        raise ValueError(error.msg if error.pos is None else f"{error.msg}, at character {error.pos + 1}") from None
    except (OverflowError, RecursionError):
        raise ValueError("it is too large") from None


class WorkflowFilter(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """Which workflows a service serves, by name; the patterns are regular expressions for the whole name.

    A workflow that any exclude matches is left out, unless any include matches it. Includes without excludes restrict to what
    they match. Empty patterns say nothing.
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
        """True when jobs of the workflow of this name may be run."""
        include, exclude = self._patterns
        if any(pattern.fullmatch(name) for pattern in include):
            return True
        if exclude:
            return not any(pattern.fullmatch(name) for pattern in exclude)
        return not include


class ServiceConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of `services`. `options` are keys that the core does not know: the plugin's own, and none of them a secret.

    `sleep_interval` and `lease_ttl` are seconds; `private_key` is PEM text.
    """

    name: str
    plugin: str
    owner: str = ""
    repo: str = ""
    registration: str = "repo"
    token: Secret | None = None
    private_key: Secret | None = None
    app_id: str | None = None
    installation_id: int | None = None
    registry_url: str = ""
    sleep_interval: float = 10.0
    workflows: WorkflowFilter = WorkflowFilter()
    database: Database = Database()
    vm_driver: str = "anka"
    tart: Tart = Tart()
    api_url: str = "https://api.github.com"
    server_url: str = "https://github.com"
    runner_mode: str = "jit"
    runner: Runner = Runner()
    deadlines: Deadlines = Deadlines()
    script_arguments: str = "settings"
    lease_ttl: float = 60.0
    job_retry_attempts: int = 5
    options: dict[str, OptionValue] = {}

    @property
    def origin(self) -> str:
        """Stands for where this service's jobs come from: equal for services that ask the same origin. No secret is in it."""
        place = (self.plugin, self.api_url, self.registration, self.owner, self.repo, sorted(self.options.items()))
        return hashlib.sha256(msgspec.json.encode(place)).hexdigest()[:16]

    def secrets(self) -> tuple[str, ...]:
        """Every secret value that this service knows, for redaction."""
        held = (self.token, self.private_key, self.database.password)
        return tuple(secret.reveal() for secret in held if secret)
