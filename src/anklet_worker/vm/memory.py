"""A VM driver that keeps its VMs in memory: for tests, demonstrations and load tests, without a VM tool.

Implements the whole contract of `VMDriver` and passes the same contract tests as the drivers of real tools. Not in the table of
drivers: no configuration can choose it. Guests are answered by a callable that the owner gives.
"""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from anklet_worker.contract.errors import (
    PullBusy,
    VMError,
    VMLimitReached,
    VMNameExists,
    VMNotFound,
    VMTransient,
)
from anklet_worker.contract.guest import NAME_PREFIX, GuestResult
from anklet_worker.contract.job import VMSpec
from anklet_worker.vm.driver import DriverInfo, VMInfo, VMState
from anklet_worker.vm.guests import check_guest_path, not_a_file, source_file
from anklet_worker.vm.labels import has_marker, value_after
from anklet_worker.vm.names import check_deletable
from anklet_worker.vm.wording import one_line

#: A name that the drivers of real tools would accept, too.
_PLAIN = re.compile(r"[^-\s\x00-\x1f\x7f][^\x00-\x1f\x7f]{0,254}")


class MemoryVM(msgspec.Struct):
    """One VM or template. `home` is the guest's home on this host, or None when nothing is copied."""

    name: str
    uuid: str
    state: VMState
    tag: str | None = None
    home: Path | None = None


#: Answers a guest script: VM, script, seconds.
Guests = Callable[[MemoryVM, str, float], GuestResult]
#: Called with the name of each step and of its VM: before it (`clone`), and after it where that matters (`cloned`). An exception
#: that it raises ends the step.
Hook = Callable[[str, str], object]


def _silent(_vm: MemoryVM, _script: str, _timeout: float) -> GuestResult:
    return GuestResult(status=0, output="")


def _ignored(_step: str, _vm: str) -> None:
    """The owner does not watch the steps."""


class MemoryHost:
    """The VMs of one host, shared by its drivers. `most_running` is the host's VM limit; `folder` holds the guests' homes."""

    def __init__(self, folder: Path | None = None, *, most_running: int = 2) -> None:
        self.vms: dict[str, MemoryVM] = {}
        #: What can be pulled: image and tag.
        self.registry: set[tuple[str, str | None]] = set()
        self.most_running = most_running
        #: True while a pull runs. An owner may set it, for a pull of another service.
        self.pulling = False
        self._folder = folder

    def add(self, name: str, state: VMState = VMState.STOPPED, *, tag: str | None = None) -> MemoryVM:
        """Put a VM or template on the host."""
        home = None if self._folder is None else self._folder / name
        if home is not None:
            home.mkdir(parents=True)
        self.vms[name] = MemoryVM(name=name, uuid=str(uuid.uuid4()), state=state, tag=tag, home=home)
        return self.vms[name]

    def remove(self, name: str) -> None:
        """Take a VM or template off the host, with its guest's home."""
        vm = self.vms.pop(name, None)
        if vm is not None and vm.home is not None:
            shutil.rmtree(vm.home)

    def running(self) -> list[str]:
        """Names of the running VMs."""
        return [vm.name for vm in self.vms.values() if vm.state is VMState.RUNNING]


class MemoryDriver:
    """Implements `VMDriver` on a `MemoryHost`. `hook` injects faults and records the order of steps; `name` is also the marker
    label by which jobs ask for this driver."""

    def __init__(
        self, host: MemoryHost, guests: Guests = _silent, hook: Hook = _ignored, *, name: str = "memory"
    ) -> None:
        self.host = host
        self.name = name
        self._guests = guests
        self._hook = hook

    def probe(self) -> DriverInfo:
        """Always present."""
        self._hook("probe", "")
        return DriverInfo(product=self.name, version="1")

    def spec_from_labels(self, labels: Sequence[str]) -> VMSpec | None:
        """The driver's name and `<name>-image:<image>`; the first match counts."""
        image = value_after(f"{self.name}-image:", labels)
        return None if image is None or not has_marker(self.name, labels) else VMSpec(template=image)

    def listing(self) -> Sequence[VMInfo]:
        """Everything on the host."""
        self._hook("list", "")
        return [VMInfo(name=vm.name, uuid=vm.uuid, state=vm.state, tag=vm.tag) for vm in self.host.vms.values()]

    @contextmanager
    def image(self, spec: VMSpec, on_pull: Callable[[], None]) -> Iterator[str]:
        """Make the template present: from the host, or from the host's registry."""
        if not _PLAIN.fullmatch(spec.template):
            raise VMNotFound(f"{one_line(repr(spec.template))} is not a possible name of an image")
        if spec.template.startswith(NAME_PREFIX):
            raise VMNotFound(f"{spec.template!r} is a job's VM, not an image")
        self._hook("image", "")
        found = self.host.vms.get(spec.template)
        if found is None or spec.tag not in (None, found.tag):
            if (spec.template, spec.tag) not in self.host.registry:
                raise VMNotFound(f"image {spec.template!r} is neither on this host nor in the registry")
            self._pull(spec, on_pull)
        yield spec.template

    def pulling(self) -> bool:
        """True while a pull runs on the host."""
        return self.host.pulling

    def _pull(self, spec: VMSpec, on_pull: Callable[[], None]) -> None:
        if self.host.pulling:
            raise PullBusy("another pull runs on this host")
        self.host.pulling = True
        try:
            on_pull()
            self._hook("pull", "")
            self.host.remove(spec.template)
            self.host.add(spec.template, tag=spec.tag)
        finally:
            self.host.pulling = False

    def clone(self, source: str, vm: str) -> None:
        """Make a stopped VM."""
        self._hook("clone", vm)
        if vm in self.host.vms:
            raise VMNameExists(f"a VM named {vm} exists already")
        self._existing(source)
        self.host.add(vm)
        self._hook("cloned", vm)

    def start(self, vm: str) -> None:
        """Start it, within the host's limit; the guest answers at once."""
        self._hook("start", vm)
        found = self._existing(vm)
        if len(self.host.running()) >= self.host.most_running:
            raise VMLimitReached(f"the host runs {self.host.most_running} VMs already")
        found.state = VMState.RUNNING
        self._hook("started", vm)

    def run(self, vm: str, script: str, timeout: float, *, looks_only: bool = False) -> GuestResult:  # noqa: ARG002  no orders here
        """Let the owner's callable answer the script."""
        self._hook("run", vm)
        return self._guests(self._running(vm), script, timeout)

    def copy_in(self, vm: str, source: Path) -> None:
        """Copy into the guest's home."""
        self._hook("copy_in", vm)
        resolved = source_file(source)
        shutil.copy(resolved, self._home(vm) / source.name)

    def copy_out(self, vm: str, path: str, target: Path) -> None:
        """Copy from the guest's home. Links are not followed."""
        check_guest_path(path)
        self._hook("copy_out", vm)
        found = self._home(vm) / path
        if found.is_symlink() or not found.is_file():
            raise not_a_file(path, vm)
        shutil.copyfile(found, target)

    def delete(self, vm: str) -> None:
        """Delete it, running or not. A missing VM is a success."""
        check_deletable(vm)
        self._hook("delete", vm)
        self.host.remove(vm)

    def _existing(self, name: str) -> MemoryVM:
        found = self.host.vms.get(name)
        if found is None:
            raise VMNotFound(f"no VM or image named {name}")
        return found

    def _running(self, name: str) -> MemoryVM:
        found = self._existing(name)
        if found.state is not VMState.RUNNING:
            raise VMTransient(f"{name} does not run")
        return found

    def _home(self, name: str) -> Path:
        home = self._running(name).home
        if home is None:
            raise VMError(f"{name} has no home: this host was made without a folder")
        return home
