"""The settings that a worker process starts with, and their form on the pipe. Nothing of them is ever in an argv.

They are the first message on the pipe, and the only one that is pickled: settings hold secrets and paths, and both ends are one
installation. The version stands in front, so a worker of another version refuses the rest unread.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import msgspec

from anklet_worker import __version__
from anklet_worker.contract.errors import TemporaryError
from anklet_worker.contract.service import ServiceConfig
from anklet_worker.state_layout import Place


def pause_file(state_dir: Path, service: str) -> Path:
    """The mark that a service is paused; it outlasts restarts."""
    return Place.PAUSE_MARK.path(state_dir, service)


class WorkerSetup(msgspec.Struct, frozen=True, kw_only=True):
    """The service's configuration, and the facts of the host that its worker needs.

    `services` are the names of all configured services: a VM of ours whose name bears none of their tags belongs to a service
    that was removed, and the service with `sweeps_strays` looks after it. `drivers` are the VM drivers that this host uses or
    has used: all their VMs count against one limit. `plugin_at` says where an installed plugin is (`module:attribute`); it is empty
    for one in a file.
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
    plugin_at: str = ""

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


def encode_setup(setup: WorkerSetup) -> bytes:
    """The bytes of the first message to a worker."""
    return __version__.encode() + b"\n" + pickle.dumps(setup)


def decode_setup(data: bytes) -> WorkerSetup:
    """Read the first message. Raises `TemporaryError` when the supervisor is of another version than this worker."""
    version, _, content = data.partition(b"\n")
    if version != __version__.encode():
        raise TemporaryError(
            f"the supervisor runs version {version.decode(errors='replace')}, but version {__version__} is installed; "
            "restart the supervisor"
        )
    setup: WorkerSetup = pickle.loads(content)  # noqa: S301  from our supervisor, over a pipe that only it can write to
    return setup
