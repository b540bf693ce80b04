"""Implements `anklet_worker.contract.context.Context`, which a plugin gets for the life of a worker.

Passes each call on to the part of the worker that can answer it. Knows no attempt; decides nothing.
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
    """The parts of the worker that a context needs besides its orders and its link."""

    driver: VMDriver
    board: Board
    log: ServiceLog


class WorkerContext:
    """The context of one worker."""

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
        """The configuration of this service."""
        return self._setup.service

    @property
    def log(self) -> ServiceLog:
        """The log of this service."""
        return self._log

    @property
    def plugins_path(self) -> Path:
        """The operator's folder for plugins."""
        return self._setup.plugins_path

    @property
    def state_dir(self) -> Path:
        """A directory of this service that survives restarts."""
        return self._setup.service_dir

    @property
    def board(self) -> Board:
        """Notes, counters and turns that all services with the same store share."""
        return self._board

    @property
    def vm_prefix(self) -> str:
        """The start of the name of every VM of this host."""
        return f"{NAME_PREFIX}{self._setup.install_id}-"

    def known_vms(self) -> set[str]:
        """Return the names of this host's VMs, existing or on record. Raises `VMError`."""
        # Records first: a VM announced after this line is in the listing as soon as it exists.
        names = {path.stem for path in self._setup.state_dir.glob(Place.RECORD.pattern)}
        return names | {vm.name for vm in self._driver.listing() if vm.name.startswith(self.vm_prefix)}

    @property
    def draining(self) -> bool:
        """True when the service must take no new job."""
        return self._orders.draining

    def check(self) -> None:
        """Raise `Interrupted` after a stop, `Detached` after a detach."""
        self._orders.check()

    def wait(self, seconds: float) -> None:
        """Sleep for `seconds`, unless a stop or a detach ends the sleep."""
        self._orders.wait(seconds)

    @contextmanager
    def limit_paused(self) -> Iterator[None]:
        """Report the status `limit_paused` during the `with` block, and the previous status after it."""
        before = self._link.status
        self._link.tell(StatusChanged(status=Status.LIMIT_PAUSED))
        yield
        self._link.tell(StatusChanged(status=before))

    def api_called(self, route: str, outcome: str, seconds: float) -> None:
        """Report a call of the origin's API."""
        self._link.tell(ApiCalled(route=route, outcome=outcome, seconds=seconds))

    def report(self, figure: Figure, value: float) -> None:
        """Report a figure that the plugin's rules declare. Drops others, and NaN and infinity, which JSON cannot carry."""
        if figure not in self._setup.service.figures:
            if figure.name not in self._undeclared:
                self._undeclared.add(figure.name)
                self._log.warning(
                    "the plugin reports a figure that its rules do not declare", extra={"figure": figure.name}
                )
        elif math.isfinite(value):
            self._link.tell(FigureReported(figure=figure.name, value=value))

    def api_budget(self, left: float, limit: float, resets_at: float) -> None:
        """Report the API calls that are left. Dropped when a value is not finite."""
        if all(map(math.isfinite, (left, limit, resets_at))):
            self._link.tell(ApiBudgetSeen(left=left, limit=limit, resets_at=resets_at))

    def spec_from_labels(self, labels: Sequence[str]) -> VMSpec | None:
        """Return the VM that a job's labels ask for."""
        return self._driver.spec_from_labels(labels)
