"""The table of VM drivers, by their name in the configuration. The only file that knows them all.

A new driver is a folder with a module that offers `open_driver`, and one line here. A driver's module is imported when the driver
is opened: the supervisor only needs the names, and a worker only its own driver.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec

from anklet_worker.contract.errors import ConfigError
from anklet_worker.contract.service import ServiceConfig

if TYPE_CHECKING:
    # Types only: `names` is for the supervisor, which must not load what runs commands.
    from anklet_worker.process.command import CommandRunner
    from anklet_worker.process.orders import Orders
    from anklet_worker.vm.driver import VMDriver

    _Opener = Callable[[ServiceConfig, Path, CommandRunner, Orders, "logging.LoggerAdapter[logging.Logger]"], VMDriver]

_DRIVERS = {
    "anka": "anklet_worker.vm.anka.driver",
    "tart": "anklet_worker.vm.tart.driver",
}


def names() -> frozenset[str]:
    """The drivers of this program, as the configuration names them."""
    return frozenset(_DRIVERS)


def open_driver(
    service: ServiceConfig,
    state_dir: Path,
    commands: CommandRunner,
    orders: Orders,
    log: logging.LoggerAdapter[logging.Logger],
) -> VMDriver:
    """The driver that the service asks for. Raises `ConfigError` for an unknown one."""
    try:
        module = _DRIVERS[service.vm_driver]
    except KeyError:
        raise ConfigError(f"unknown VM driver {service.vm_driver!r}; available: {', '.join(_DRIVERS)}") from None
    opener = cast("_Opener", importlib.import_module(module).open_driver)
    return opener(service, state_dir, commands, orders, log)


def open_among(
    in_use: Iterable[str],
    service: ServiceConfig,
    state_dir: Path,
    commands: CommandRunner,
    orders: Orders,
    log: logging.LoggerAdapter[logging.Logger],
) -> VMDriver:
    """The driver that the service asks for, on a host that uses the drivers `in_use`. Raises `ConfigError` as `open_driver`."""
    from anklet_worker.vm.side_by_side import SideBySide

    own = open_driver(service, state_dir, commands, orders, log)
    others = [
        open_driver(msgspec.structs.replace(service, vm_driver=name), state_dir, commands, orders, log)
        for name in dict.fromkeys(in_use)
        if name != own.name and name in _DRIVERS
    ]
    return SideBySide(own, others, log) if others else own
