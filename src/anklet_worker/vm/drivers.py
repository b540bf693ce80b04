"""Which VM drivers there are, by their name in the configuration. The only place that knows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from anklet_worker.contract.errors import ConfigError
from anklet_worker.contract.service import ServiceConfig
from anklet_worker.process.command import CommandRunner
from anklet_worker.process.orders import Orders
from anklet_worker.state_layout import Place
from anklet_worker.vm.driver import VMDriver

_Opener = Callable[[ServiceConfig, Path, CommandRunner, Orders, "logging.LoggerAdapter[logging.Logger]"], VMDriver]


def _open_anka(
    service: ServiceConfig,
    state_dir: Path,
    commands: CommandRunner,
    orders: Orders,
    log: logging.LoggerAdapter[logging.Logger],
) -> VMDriver:
    from anklet_worker.vm.anka.driver import AnkaDriver, AnkaSettings
    from anklet_worker.vm.image_locks import ImageLocks

    settings = AnkaSettings(registry_url=service.registry_url, start_timeout=service.deadlines.vm_start)
    return AnkaDriver(settings, commands, ImageLocks(Place.ANKA_LOCKS.path(state_dir)), orders, log)


def _open_tart(
    service: ServiceConfig,
    state_dir: Path,
    commands: CommandRunner,
    orders: Orders,
    log: logging.LoggerAdapter[logging.Logger],
) -> VMDriver:
    from anklet_worker.vm.image_locks import ImageLocks
    from anklet_worker.vm.tart.driver import TartDriver, TartSettings

    folder = Place.TART.path(state_dir)
    settings = TartSettings(tart=service.tart, start_timeout=service.deadlines.vm_start, folder=folder)
    return TartDriver(settings, commands, ImageLocks(Place.TART_LOCKS.path(state_dir)), orders, log)


_OPENERS: dict[str, _Opener] = {"anka": _open_anka, "tart": _open_tart}


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


def open_among(
    in_use: Iterable[str],
    service: ServiceConfig,
    state_dir: Path,
    commands: CommandRunner,
    orders: Orders,
    log: logging.LoggerAdapter[logging.Logger],
) -> VMDriver:
    """The driver that the service asks for, on a host on which these drivers are in use. Raises `ConfigError` as `open_driver`."""
    from anklet_worker.vm.side_by_side import SideBySide

    own = open_driver(service, state_dir, commands, orders, log)
    others = [
        open_driver(msgspec.structs.replace(service, vm_driver=name), state_dir, commands, orders, log)
        for name in dict.fromkeys(in_use)
        if name != own.name and name in _OPENERS
    ]
    return SideBySide(own, others, log) if others else own
