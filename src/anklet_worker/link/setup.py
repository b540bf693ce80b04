"""What a worker process is given at birth, over the pipe that starts it: nothing of it is ever in an argv."""

from __future__ import annotations

from pathlib import Path

import msgspec

from anklet_worker.contract.service import ServiceConfig
from anklet_worker.state_layout import Place


def pause_file(state_dir: Path, service: str) -> Path:
    """The mark that a service is paused; it outlasts restarts."""
    return Place.PAUSE_MARK.path(state_dir, service)


class WorkerSetup(msgspec.Struct, frozen=True, kw_only=True):
    """The service's configuration, and the facts of the host that its worker needs.

    `services` are the names of all configured services: a VM of ours whose name bears none of their tags belongs to a service
    that is no more, and the service with `sweeps_strays` looks after it. `drivers` are the VM drivers in use on this host, or once
    in use: all their VMs count against one limit.
    """

    service: ServiceConfig
    services: tuple[str, ...]
    sweeps_strays: bool
    once: bool
    install_id: str
    host_id: str
    boot_id: str
    state_dir: Path
    work_dir: Path
    plugins_path: Path
    drain_file: Path
    log_level: str
    drivers: tuple[str, ...] = ()

    @property
    def service_dir(self) -> Path:
        """Where this service keeps its records."""
        return Place.SERVICE.path(self.state_dir, self.service.name)

    @property
    def pause_file(self) -> Path:
        """While this file exists, the service takes no job: an operator paused it."""
        return pause_file(self.state_dir, self.service.name)

    @property
    def slots_path(self) -> Path:
        """The slot table."""
        return Place.SLOTS.path(self.state_dir)

    @property
    def owner(self) -> str:
        """Who holds a lease of ours: install id and service, so that an operator can tell which host it is."""
        return f"{self.install_id}:{self.service.name}"
