"""Which VM drivers there are, by their name in the configuration. The only place that knows."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from anklet_worker.config import ServiceConfig
from anklet_worker.errors import ConfigError
from anklet_worker.orders import Orders
from anklet_worker.vm import VMDriver
from anklet_worker.vm.command import CommandRunner

_Opener = Callable[[ServiceConfig, Path, CommandRunner, Orders, "logging.LoggerAdapter[logging.Logger]"], VMDriver]


def _open_anka(
    service: ServiceConfig,
    state_dir: Path,
    commands: CommandRunner,
    orders: Orders,
    log: logging.LoggerAdapter[logging.Logger],
) -> VMDriver:
    from anklet_worker.vm.anka import AnkaDriver, AnkaSettings
    from anklet_worker.vm.image_locks import ImageLocks

    settings = AnkaSettings(registry_url=service.registry_url, start_timeout=service.deadlines.vm_start)
    return AnkaDriver(settings, commands, ImageLocks(state_dir / "locks"), orders, log)


_OPENERS: dict[str, _Opener] = {"anka": _open_anka}


def names() -> frozenset[str]:
    """The drivers that this program has."""
    return frozenset(_OPENERS)


def open_driver(
    service: ServiceConfig,
    state_dir: Path,
    commands: CommandRunner,
    orders: Orders,
    log: logging.LoggerAdapter[logging.Logger],
) -> VMDriver:
    """The driver that the service asks for. Raises `ConfigError` for one that this program does not have."""
    try:
        opener = _OPENERS[service.vm_driver]
    except KeyError:
        raise ConfigError(f"no VM driver named {service.vm_driver!r}") from None
    return opener(service, state_dir, commands, orders, log)
