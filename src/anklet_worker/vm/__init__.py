"""The VM driver contract, what a VM is asked to be, and how VMs of ours are named.

Owns the words that runner and plugins use about VMs. Knows no driver and starts no process.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from enum import Enum
from pathlib import Path
from typing import Protocol

import msgspec

from anklet_worker.errors import InfrastructureError

#: Every VM of any Anklet bears this prefix; ours bear our install id behind it.
NAME_PREFIX = "anklet-vm-"
_NAME = re.compile(
    r"anklet-vm-(?P<install>[0-9a-f]{8})-(?P<service>[0-9a-f]{6})-(?P<job>[a-z0-9]{1,24})-(?P<attempt>[0-9]{1,6})"
)
_PLAIN_JOB_ID = re.compile(r"[a-z0-9]{1,24}")


class VMState(Enum):
    """State of a VM as its driver lists it."""

    RUNNING = "running"
    STOPPED = "stopped"
    SUSPENDED = "suspended"
    FAILED = "failed"


class VMSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a job asks for: a template (name or uuid) or image, and for drivers that have them, a tag."""

    template: str
    tag: str | None = None


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


class GuestResult(msgspec.Struct, frozen=True, kw_only=True):
    """A guest command that ran to its end: its exit status and the tail of its output (merged, UTF-8 with replacement)."""

    status: int
    output: str


class VMError(InfrastructureError):
    """A VM command did not do what it was asked to. The subclass is the class of outcome; the message is one line for people."""


class VMNotFound(VMError):
    """The named VM, template or tag does not exist (locally, or for a pull: in the registry)."""


class VMNameExists(VMError):
    """A VM of that name exists already."""


class VMLimitReached(VMError):
    """The host refuses another running VM."""


class VMTransient(VMError):
    """It may work the next time: a time-out, a registry that does not answer, a lost guest."""


class VMFatal(VMError):
    """It will not work by trying again: garbage on output, an unusable template, a refused option."""


class PullBusy(VMError):
    """Another pull runs on this host, and there is never a second one at once."""


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


def vm_name(install_id: str, service: str, job_id: str, attempt: int) -> str:
    """Derive the VM's (and runner's) name: same inputs, same name; at most 63 characters of [a-z0-9-].

    A job id that is not plain (a plugin of a stranger may use anything) is replaced by its hash.
    """
    job = job_id if _PLAIN_JOB_ID.fullmatch(job_id) else hashlib.sha256(job_id.encode()).hexdigest()[:24]
    return f"{NAME_PREFIX}{install_id}-{service_tag(service)}-{job}-{attempt}"


def service_tag(service: str) -> str:
    """Six hex digits that stand for a service's name inside VM names."""
    return hashlib.sha256(service.encode()).hexdigest()[:6]


class ParsedName(msgspec.Struct, frozen=True):
    """The parts of a VM name that follows our scheme."""

    install_id: str
    service_tag: str
    job: str
    attempt: int


def parse_vm_name(name: str) -> ParsedName | None:
    """Take a name apart; None says "not by this scheme" (which is never ours to delete)."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    return ParsedName(match["install"], match["service"], match["job"], int(match["attempt"]))
