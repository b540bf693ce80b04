"""The settings of each service: those in force, and those from the last reload.

A service keeps the settings that its worker started with until the machine renews them. Keys that apply only at the next start of
the supervisor are reported and stay as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from anklet_supervisor.config.load import SupervisorConfig
from anklet_supervisor.machine.events import ConfigRead
from anklet_worker.contract.service import ServiceConfig
from anklet_worker.files import is_there
from anklet_worker.link.setup import WorkerSetup
from anklet_worker.link.slots import room_for

#: Makes the setup of each service's worker.
MakeSetups = Callable[[SupervisorConfig], Mapping[str, WorkerSetup]]

#: Keys that are read only when the supervisor starts.
_AT_START: dict[str, Callable[[SupervisorConfig], object]] = {
    "state_dir": lambda config: config.state_dir,
    "pid_file_dir": lambda config: config.pid_file_dir,
    "metrics.host": lambda config: config.metrics.host,
    "metrics.port": lambda config: config.metrics.port,
    "log.file_dir": lambda config: config.log.file_dir,
    "log.max_megabytes": lambda config: config.log.max_megabytes,
    "log.keep": lambda config: config.log.keep,
    # Applied at once, as far as the mapped slot table has room.
    "vm_limit": lambda config: config.vm_limit,
}


class Settings:
    """The settings of all services. `config` is what the supervisor started with."""

    def __init__(self, config: SupervisorConfig, make: MakeSetups) -> None:
        self._config = self._read = config
        self._room = room_for(config.vm_limit)
        self._make = make
        self._newest = dict(make(config))
        self._in_force = dict(self._newest)

    @property
    def log_level(self) -> str:
        """The log level."""
        return self._config.log.level

    @property
    def plugins(self) -> dict[str, str]:
        """The plugin of each service."""
        return {name: setup.service.plugin for name, setup in self._in_force.items()}

    def paused(self) -> set[str]:
        """The services that an operator has paused. Reads the disk."""
        return {name for name, setup in self._in_force.items() if is_there(setup.pause_file)}

    def secrets(self) -> tuple[str, ...]:
        """Every secret value, including those in old settings that are still in force."""
        held = {secret for setup in self._in_force.values() for secret in setup.service.secrets()}
        return tuple(held.union(self._config.secrets()))

    def compare(self, config: SupervisorConfig) -> ConfigRead:
        """What a configuration would change. Changes nothing yet."""
        self._read = config
        setups = self._make(self._at_start(config))
        changed = (name for name, setup in setups.items() if name in self._newest and self._differ(name, setup))
        return ConfigRead(
            services=tuple(setups),
            changed=frozenset(changed),
            vm_limit=self._at_start(config).vm_limit,
            drain_timeout=config.drain_timeout,
        )

    def take(self) -> Iterator[str]:
        """Adopt the configuration that was compared last. Returns the changed keys that apply only at the next start."""
        self._config = self._at_start(self._read)
        self._newest = dict(self._make(self._config))
        return (key for key, value in _AT_START.items() if value(self._read) != value(self._config))

    def renew(self, name: str) -> ServiceConfig:
        """Give a service its newest settings, from its next worker on, and return them."""
        self._in_force[name] = self._newest[name]
        return self._newest[name].service

    def forget(self, name: str) -> None:
        """Drop the settings of a removed service."""
        self._in_force.pop(name, None)

    def for_start(self, name: str, services: tuple[str, ...]) -> WorkerSetup:
        """The setup for a worker that starts now. `services`: all services, including those that leave."""
        return msgspec.structs.replace(
            self._in_force[name],
            services=services,
            sweeps_strays=name == services[0],
            log_level=self.log_level,
        )

    def _differ(self, name: str, setup: WorkerSetup) -> bool:
        """True if a worker must start again for these settings.

        The list of services matters only at its start, and the log level can change while it runs.
        """
        indifferent: dict[str, Any] = {"services": (), "sweeps_strays": False, "log_level": ""}
        before = msgspec.structs.replace(self._newest[name], **indifferent)
        if set(setup.drivers) < set(before.drivers):
            # The last VM of a driver that no service uses is gone: no reason for a new worker.
            indifferent["drivers"] = before.drivers
        return before != msgspec.structs.replace(setup, **indifferent)

    def _at_start(self, config: SupervisorConfig) -> SupervisorConfig:
        """The configuration, with the keys that cannot change while the supervisor runs as they were at its start."""
        started = self._config
        return msgspec.structs.replace(
            config,
            state_dir=started.state_dir,
            pid_file_dir=started.pid_file_dir,
            metrics=started.metrics,
            log=msgspec.structs.replace(started.log, level=config.log.level),
            vm_limit=min(config.vm_limit, self._room),
        )
