"""A service's driver on a host where other drivers run VMs too. Is itself a `VMDriver`; knows no driver by name.

A service makes its VMs with its own driver. But all drivers share one VM limit, and a service that changed its driver must still
clean up the VM that it made with the former one. So the listing covers all drivers, and a call for a VM goes to the driver that
has it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from anklet_worker.contract.errors import CliUnavailable, VMError, VMTransient
from anklet_worker.contract.guest import GuestResult
from anklet_worker.contract.job import VMSpec
from anklet_worker.vm.driver import DriverInfo, VMDriver, VMInfo


class SideBySide:
    """Implements `VMDriver` by the service's `own` driver and the `others` of the host."""

    def __init__(self, own: VMDriver, others: Sequence[VMDriver], log: logging.LoggerAdapter[logging.Logger]) -> None:
        self._own = own
        self._others = tuple(others)
        self._log = log
        #: VMs that this process made with its own driver.
        self._made: set[str] = set()
        #: Drivers that cannot list now: each outage is logged once.
        self._silent: set[str] = set()

    @property
    def name(self) -> str:
        """The name of the service's own driver."""
        return self._own.name

    def probe(self) -> DriverInfo:
        """Probe the service's own driver only: the service can run without the others."""
        return self._own.probe()

    def spec_from_labels(self, labels: Sequence[str]) -> VMSpec | None:
        """What the labels ask of the service's own driver."""
        return self._own.spec_from_labels(labels)

    def listing(self) -> Sequence[VMInfo]:
        """Everything on this host. When another driver cannot list, its VMs are missing here but the service goes on: the count of
        the host's processes still includes them, and the host refuses one VM too many."""
        rows = list(self._own.listing())
        for other in self._others:
            rows += self._listed_by(other) or ()
        return rows

    def _listed_by(self, other: VMDriver) -> Sequence[VMInfo] | None:
        """The other driver's listing; None when it cannot list."""
        try:
            rows = other.listing()
        except (VMError, CliUnavailable) as error:
            if other.name not in self._silent:
                self._silent.add(other.name)
                self._log.warning(
                    "another VM driver of this host cannot list its VMs",
                    extra={"driver": other.name, "err": str(error)},
                )
            # Without its tool, none of its VMs can run.
            return () if isinstance(error, CliUnavailable) else None
        self._silent.discard(other.name)
        return rows

    def image(self, spec: VMSpec, on_pull: Callable[[], None]) -> AbstractContextManager[str]:
        """The image of the service's own driver."""
        return self._own.image(spec, on_pull)

    def pulling(self) -> bool:
        """True while the service's own driver runs a pull: only such a pull can be in its way."""
        return self._own.pulling()

    def clone(self, source: str, vm: str) -> None:
        """By the service's own driver."""
        self._made.add(vm)
        self._own.clone(source, vm)

    def start(self, vm: str) -> None:
        """By the driver that has it."""
        self._with(vm).start(vm)

    def run(self, vm: str, script: str, timeout: float, *, looks_only: bool = False) -> GuestResult:
        """By the driver that has it."""
        return self._with(vm).run(vm, script, timeout, looks_only=looks_only)

    def copy_in(self, vm: str, source: Path) -> None:
        """By the driver that has it."""
        self._with(vm).copy_in(vm, source)

    def copy_out(self, vm: str, path: str, target: Path) -> None:
        """By the driver that has it."""
        self._with(vm).copy_out(vm, path, target)

    def delete(self, vm: str) -> None:
        """By the driver that has it. A VM that the service's own driver does not list may belong to another driver."""
        self._with(vm).delete(vm)
        self._made.discard(vm)

    def _with(self, vm: str) -> VMDriver:
        """The driver that has the VM; the service's own when none has it. Raises `VMTransient` when a driver cannot list."""
        if vm in self._made or any(row.name == vm for row in self._own.listing()):
            return self._own
        for other in self._others:
            rows = self._listed_by(other)
            if rows is None:
                raise VMTransient(f"cannot find the driver of {vm}: {other.name} cannot list its VMs now")
            if any(row.name == vm for row in rows):
                return other
        return self._own
