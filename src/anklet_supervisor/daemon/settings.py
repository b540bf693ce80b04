"""Which settings each service's workers are given: those in force, and those that a reload brought.

A service keeps the settings with which its worker began until the machine says that it is renewed. What can only be applied at
the next start of the supervisor is named, and left as it was.
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

#: Makes what each service's worker is given at birth.
MakeSetups = Callable[[SupervisorConfig], Mapping[str, WorkerSetup]]

#: Keys of the file that are looked at only when the supervisor starts.
_AT_START: dict[str, Callable[[SupervisorConfig], object]] = {
    "state_dir": lambda config: config.state_dir,
    "pid_file_dir": lambda config: config.pid_file_dir,
    "metrics.host": lambda config: config.metrics.host,
    "metrics.port": lambda config: config.metrics.port,
    "log.file_dir": lambda config: config.log.file_dir,
    "log.max_megabytes": lambda config: config.log.max_megabytes,
    "log.keep": lambda config: config.log.keep,
    # Applied at once as far as the mapped slot table has room.
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
        """The log's level."""
        return self._config.log.level

    @property
    def plugins(self) -> dict[str, str]:
        """The plugin of each service that there is."""
        return {name: setup.service.plugin for name, setup in self._in_force.items()}

    def paused(self) -> set[str]:
        """The services that an operator has paused; looks at the disk."""
        return {name for name, setup in self._in_force.items() if is_there(setup.pause_file)}

    def secrets(self) -> tuple[str, ...]:
        """Every secret value, of old settings that are still in force, too."""
        held = {secret for setup in self._in_force.values() for secret in setup.service.secrets()}
        return tuple(held.union(self._config.secrets()))

    def compare(self, config: SupervisorConfig) -> ConfigRead:
        """What a configuration would change. Nothing is changed yet."""
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
        """What was compared last is the configuration; returns the keys that take effect at the next start only."""
        self._config = self._at_start(self._read)
        self._newest = dict(self._make(self._config))
        return (key for key, value in _AT_START.items() if value(self._read) != value(self._config))

    def renew(self, name: str) -> ServiceConfig:
        """From its next worker on a service has its newest settings; returns them."""
        self._in_force[name] = self._newest[name]
        return self._newest[name].service

    def forget(self, name: str) -> None:
        """The service is no more."""
        self._in_force.pop(name, None)

    def for_start(self, name: str, services: tuple[str, ...]) -> WorkerSetup:
        """What a service's worker is given now. `services`: all that there are, those that are to leave included."""
        return msgspec.structs.replace(
            self._in_force[name],
            services=services,
            sweeps_strays=name == services[0],
            log_level=self.log_level,
        )

    def _differ(self, name: str, setup: WorkerSetup) -> bool:
        """Whether a worker would have to begin anew for these settings. Who else there is concerns only its beginning, and the
        log's level can be changed under way."""
        indifferent: dict[str, Any] = {"services": (), "sweeps_strays": False, "log_level": ""}
        before = msgspec.structs.replace(self._newest[name], **indifferent)
        if set(setup.drivers) < set(before.drivers):
            # The last VM of a driver that is in no service's settings has gone: no reason to begin anew.
            indifferent["drivers"] = before.drivers
        return before != msgspec.structs.replace(setup, **indifferent)

    def _at_start(self, config: SupervisorConfig) -> SupervisorConfig:
        """The configuration, with what the supervisor has started with where that cannot change any more."""
        started = self._config
        return msgspec.structs.replace(
            config,
            state_dir=started.state_dir,
            pid_file_dir=started.pid_file_dir,
            metrics=started.metrics,
            log=msgspec.structs.replace(started.log, level=config.log.level),
            vm_limit=min(config.vm_limit, self._room),
        )
