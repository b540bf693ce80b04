"""The VM driver contract. Knows no driver and starts no process."""

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

    Each call blocks, is bounded in time, raises a `VMError` for anything but done, `Interrupted` when a stop cuts it short, and
    `Detached` when the worker must let go (a command in flight is then left running). All names are VM names of ours.
    """

    @property
    def name(self) -> str:
        """The driver's name in the configuration."""
        ...

    def probe(self) -> DriverInfo:
        """Check that the tool is present, licensed and understood.

        Raises `CliUnavailable` (missing, not executable, garbage) or `RightsRefused` (licence).
        """
        ...

    def spec_from_labels(self, labels: Sequence[str]) -> VMSpec | None:
        """What the labels of a job ask of this driver, or None when they do not ask for this driver. Pure; runs no command."""
        ...

    def listing(self) -> Sequence[VMInfo]:
        """Everything on this host: templates and VMs, ours and others'."""
        ...

    def image(self, spec: VMSpec, on_pull: Callable[[], None]) -> AbstractContextManager[str]:
        """Make the template or image present, pulling it if need be; the value is the id to clone from.

        It stays what it is until the `with` ends: nobody pulls over it. `on_pull` is called once just before a pull begins.
        Raises `PullBusy`, `VMNotFound` (nowhere to be had), `VMTransient`.
        """
        ...

    def clone(self, source: str, vm: str) -> None:
        """Make a stopped VM named `vm` from what `image` gave. Raises `VMNameExists`."""
        ...

    def start(self, vm: str) -> None:
        """Start it and wait until the guest takes commands. Raises `VMLimitReached`."""
        ...

    def run(self, vm: str, script: str, timeout: float, *, looks_only: bool = False) -> GuestResult:
        """Run a bash script in the guest, handed over on standard input, at most `timeout` seconds. A script that `looks_only`
        waits for something and changes nothing: any order ends it, a detach too, and a successor need not wait for it.

        Raises `VMTransient` when the script's end was not seen; a script that ended with any status is a result.
        """
        ...

    def copy_in(self, vm: str, source: Path) -> None:
        """Copy one host file to the guest's home, under its own name, with its mode."""
        ...

    def copy_out(self, vm: str, path: str, target: Path) -> None:
        """Copy one file of the guest to `target` on the host. `path` is relative to the guest's home: plain words and slashes."""
        ...

    def delete(self, vm: str) -> None:
        """Delete it, running or not, and return only when it is gone. A VM that does not exist is done."""
        ...
