"""What the core hands to a plugin for the life of a worker: configuration, log, waits, reports.

Implements `anklet_worker.contract.context.Context`. Knows no attempt; decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from anklet_worker.contract.board import Board
from anklet_worker.contract.figures import Figure
from anklet_worker.contract.guest import NAME_PREFIX
from anklet_worker.contract.job import VMSpec
from anklet_worker.contract.service import ServiceConfig
from anklet_worker.link.channel import SupervisorLink
from anklet_worker.link.messages import ApiBudgetSeen, ApiCalled, FigureReported, Status, StatusChanged
from anklet_worker.link.setup import WorkerSetup
from anklet_worker.log.service_log import ServiceLog
from anklet_worker.process.orders import Orders
from anklet_worker.state_layout import Place
from anklet_worker.vm.driver import VMDriver


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What of the worker stands behind the context."""

    driver: VMDriver
    board: Board
    log: ServiceLog


class WorkerContext:
    """One for the life of a worker."""

    def __init__(self, setup: WorkerSetup, orders: Orders, link: SupervisorLink, surroundings: Surroundings) -> None:
        self._setup = setup
        self._orders = orders
        self._link = link
        self._driver = surroundings.driver
        self._board = surroundings.board
        self._log = surroundings.log
        self._undeclared: set[str] = set()

    @property
    def service(self) -> ServiceConfig:
        """The service's configuration."""
        return self._setup.service

    @property
    def log(self) -> ServiceLog:
        """The service's log."""
        return self._log

    @property
    def plugins_path(self) -> Path:
        """Where the operator's replacements for files of plugins stand."""
        return self._setup.plugins_path

    @property
    def state_dir(self) -> Path:
        """A directory of this service that survives restarts."""
        return self._setup.service_dir

    @property
    def board(self) -> Board:
        """What services with the same store tell each other."""
        return self._board

    @property
    def vm_prefix(self) -> str:
        """What the names of this host's VMs begin with."""
        return f"{NAME_PREFIX}{self._setup.install_id}-"

    def known_vms(self) -> set[str]:
        """Names of VMs of ours that exist, or that are on record."""
        # Records first: a VM is on record before it exists.
        names = {path.stem for path in self._setup.state_dir.glob(Place.RECORD.pattern)}
        return names | {vm.name for vm in self._driver.listing() if vm.name.startswith(self.vm_prefix)}

    @property
    def draining(self) -> bool:
        """True when no new job may be taken."""
        return self._orders.draining

    def check(self) -> None:
        """Raise `Interrupted` or `Detached` if ordered so."""
        self._orders.check()

    def wait(self, seconds: float) -> None:
        """Sleep, unless an order cuts it short."""
        self._orders.wait(seconds)

    @contextmanager
    def limit_paused(self) -> Iterator[None]:
        """Report that the service waits for an API's limit; afterwards report again what it did before."""
        before = self._link.status
        self._link.tell(StatusChanged(status=Status.LIMIT_PAUSED))
        yield
        self._link.tell(StatusChanged(status=before))

    def api_called(self, route: str, outcome: str, seconds: float) -> None:
        """Count and measure a call of the origin's API."""
        self._link.tell(ApiCalled(route=route, outcome=outcome, seconds=seconds))

    def report(self, figure: Figure, value: float) -> None:
        """Report a figure that the plugin's rules declare; drops others, and values that no message can hold (NaN, infinity)."""
        if figure not in self._setup.service.figures:
            if figure.name not in self._undeclared:
                self._undeclared.add(figure.name)
                self._log.warning(
                    "the plugin reports a figure that its rules do not declare", extra={"figure": figure.name}
                )
        elif math.isfinite(value):
            self._link.tell(FigureReported(figure=figure.name, value=value))

    def api_budget(self, left: float, limit: float, resets_at: float) -> None:
        """Report the API's limit; dropped when a value is not finite."""
        if all(map(math.isfinite, (left, limit, resets_at))):
            self._link.tell(ApiBudgetSeen(left=left, limit=limit, resets_at=resets_at))

    def spec_from_labels(self, labels: Sequence[str]) -> VMSpec | None:
        """What these labels ask of this service's VM driver."""
        return self._driver.spec_from_labels(labels)
