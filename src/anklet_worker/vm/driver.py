"""The contract of VM drivers. Knows no driver and starts no process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from enum import Enum
from pathlib import Path
from typing import Protocol

import msgspec

from anklet_worker.contract.guest import GuestResult
from anklet_worker.contract.job import VMSpec


class VMState(Enum):
    """State of a VM as its driver lists it."""

    RUNNING = "running"
    STOPPED = "stopped"
    SUSPENDED = "suspended"
    FAILED = "failed"


class VMInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a driver's listing. `tag` is absent for an untagged VM and for most clones."""

    name: str
    uuid: str
    state: VMState
    tag: str | None = None


class DriverInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What the start-up probe learned, for the log."""

    product: str
    version: str


class VMDriver(Protocol):
    """The whole life of a VM, by one driver.

    Each call blocks and is bounded in time. It raises a `VMError` when it fails, `Interrupted` when a stop cuts it short, and
    `Detached` when the worker must let go (a command in flight then goes on). All names are names of our VMs.
    """

    @property
    def name(self) -> str:
        """The driver's name in the configuration."""
        ...

    def probe(self) -> DriverInfo:
        """Check that the tool is present and licensed, and that this program can read its answers.

        Raises `CliUnavailable` (missing, not executable, unreadable answers), `RightsRefused` (licence), or `TemporaryError`
        (slow, or killed by a signal: try again).
        """
        ...

    def spec_from_labels(self, labels: Sequence[str]) -> VMSpec | None:
        """What a job asks for by its labels; None when they do not name this driver. Pure: runs no command."""
        ...

    def listing(self) -> Sequence[VMInfo]:
        """Everything on this host that this driver knows: templates and VMs, ours and others'."""
        ...

    def image(self, spec: VMSpec, on_pull: Callable[[], None]) -> AbstractContextManager[str]:
        """Make the template or image present, with a pull when needed; the value is the id to clone from.

        No pull replaces it until the `with` ends. `on_pull` is called once, just before a pull begins. Raises `PullBusy`,
        `VMNotFound` (neither here nor in the registry), `ImageUnusable`, `VMTransient`.
        """
        ...

    def pulling(self) -> bool:
        """True while a pull runs on this host, by any service with this driver. Cheap: runs no command."""
        ...

    def clone(self, source: str, vm: str) -> None:
        """Make a stopped VM named `vm` from what `image` gave. Raises `VMNameExists`."""
        ...

    def start(self, vm: str) -> None:
        """Start the VM and wait until its guest takes commands. Raises `VMLimitReached`."""
        ...

    def run(self, vm: str, script: str, timeout: float, *, looks_only: bool = False) -> GuestResult:
        """Run a bash script in the guest, passed on standard input, for at most `timeout` seconds. `looks_only`: the script only
        waits for something and changes nothing, so any order ends it (a detach too) and a later process does not wait for it.

        Raises `VMTransient` when the script's end was not seen. A script that ended is a result, whatever its status.
        """
        ...

    def copy_in(self, vm: str, source: Path) -> None:
        """Copy one host file to the guest's home, under its own name, with its mode. Raises `FileUnusable`."""
        ...

    def copy_out(self, vm: str, path: str, target: Path) -> None:
        """Copy one file of the guest to `target` on the host. `path` is relative to the guest's home: plain words and slashes.

        Raises `FileUnusable`.
        """
        ...

    def delete(self, vm: str) -> None:
        """Delete the VM, running or not, and return only when it is gone. A missing VM is a success. Raises `NotOurVM`."""
        ...
