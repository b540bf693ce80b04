"""One service's configuration, as its worker and its plugin read it: frozen and typed.

Holds the keys that the core understands. A plugin's own keys are in `settings`, as plain data, because the worker unpickles the
configuration before it loads the plugin. Knows no file and no environment: the supervisor reads those. Defaults are the
documented ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from anklet_worker.contract.errors import ConfigError
from anklet_worker.contract.figures import Figure
from anklet_worker.contract.settings import Secret, SettingValue, secrets_in

T = TypeVar("T", bound=msgspec.Struct)


class Database(msgspec.Struct, frozen=True, kw_only=True):
    """The store of claims: Redis when enabled, else the embedded store of this host."""

    enabled: bool = False
    host: str = "localhost"
    port: int = 6379
    user: str = ""
    password: Secret | None = None
    database: int = 0
    tls: bool = False


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


class ServiceConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of `services`. `sleep_interval` and `lease_ttl` are seconds.

    `owner` and `repo` say whose jobs these are, in logs and metrics. `settings` are the plugin's own keys, as far as they are
    given. `origin` (see `rules.origin_of`) and `figures` come from the plugin's rules.
    """

    name: str
    plugin: str
    owner: str = ""
    repo: str = ""
    registry_url: str = ""
    sleep_interval: float = 10.0
    database: Database = Database()
    vm_driver: str = "anka"
    tart: Tart = Tart()
    deadlines: Deadlines = Deadlines()
    lease_ttl: float = 60.0
    job_retry_attempts: int = 5
    settings: Mapping[str, SettingValue] = {}
    origin: str = ""
    figures: tuple[Figure, ...] = ()

    def settings_as(self, kind: type[T]) -> T:
        """The plugin's settings as its own struct; keys that the struct does not have are ignored.

        Raises `ConfigError` for a missing key or a value of another type, which only a plugin without rules can meet.
        """
        try:
            return msgspec.convert(self.settings, kind)
        except msgspec.ValidationError as error:
            raise ConfigError(f"service {self.name}: settings of plugin {self.plugin}: {error}") from None

    def secrets(self) -> tuple[str, ...]:
        """Every secret text of this service, for redaction."""
        return tuple(dict.fromkeys(secrets_in([*self.settings.values(), self.database.password])))
