"""The VM driver for Tart: a VM's life by the `tart` command, in which order, and what each answer means for it.

Images are in `images.py`, guests in `guest.py`, texts in `output.py`, processes in `vm/tool.py`. `tart run` is not a command that
ends but the VM itself, a process for as long as the VM runs: it is launched, noted beside its output, and ended by `tart stop`.
Facts: Tart's source (2.32).
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from anklet_worker.contract.errors import (
    CliUnavailable,
    InfrastructureError,
    VMError,
    VMNameExists,
    VMNotFound,
    VMTransient,
)
from anklet_worker.contract.guest import GuestResult
from anklet_worker.contract.job import VMSpec
from anklet_worker.contract.service import ServiceConfig, Tart
from anklet_worker.files import make_private_dir
from anklet_worker.process.command import CommandRunner, Launched, OnStop
from anklet_worker.process.orders import Orders
from anklet_worker.state_layout import Place
from anklet_worker.vm.driver import DriverInfo, VMInfo
from anklet_worker.vm.guests import check_guest_path
from anklet_worker.vm.image_locks import ImageLocks
from anklet_worker.vm.labels import has_marker, value_after
from anklet_worker.vm.names import check_deletable
from anklet_worker.vm.tart.commands import printed, tart_tool
from anklet_worker.vm.tart.guest import TartGuests
from anklet_worker.vm.tart.images import Images
from anklet_worker.vm.tart.output import error_of, version
from anklet_worker.vm.tart.runs import Access, TartRun, TartRuns
from anklet_worker.vm.tart.ssh import Ssh
from anklet_worker.vm.wording import quoted

#: `tart exec` came with this version.
_OLDEST = (2, 27)

_PROBE = 30.0
_CLONE = 120.0
_SET = 30.0
_STOP = 40.0
_DELETE = 120.0
#: Seconds that `tart stop` gives a VM before it kills it, and that a `tart run` then has to end.
_STOP_GRACE, _RUN_GRACE = 10, 5.0

_MARKER_LABEL = "tart"
_IMAGE_LABEL = "tart-image:"


class TartSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The driver's part of a service's configuration. `start_timeout`: seconds from `tart run` until the guest takes commands;
    `folder`: for this driver's own files."""

    tart: Tart
    start_timeout: float
    folder: Path


def open_driver(
    service: ServiceConfig,
    state_dir: Path,
    commands: CommandRunner,
    orders: Orders,
    log: logging.LoggerAdapter[logging.Logger],
) -> TartDriver:
    """The driver for one service. Its files are in `tart` of the state directory."""
    folder = Place.TART.path(state_dir)
    settings = TartSettings(tart=service.tart, start_timeout=service.deadlines.vm_start, folder=folder)
    return TartDriver(settings, commands, ImageLocks(Place.TART_LOCKS.path(state_dir)), orders, log)


class TartDriver:
    """Implements `VMDriver` on the `tart` command."""

    name = "tart"

    def __init__(
        self,
        settings: TartSettings,
        commands: CommandRunner,
        locks: ImageLocks,
        orders: Orders,
        log: logging.LoggerAdapter[logging.Logger],
    ) -> None:
        make_private_dir(settings.folder)
        self._settings = settings
        self._tart = settings.tart
        self._tool = tart_tool(commands, log)
        self._orders = orders
        self._locks = locks
        self._log = log
        self._images = Images(self._tool, locks, settings.tart.pull, log)
        self._runs = TartRuns(Place.TART_RUNS.in_folder(settings.folder))
        ssh = Ssh(settings.folder, settings.tart.user, settings.tart.password_file)
        self._guests = TartGuests(self._tool, self._runs, ssh, orders)
        #: The image of this worker's VM, and for each image whether its guests have turned out to have an agent.
        self._image_of: dict[str, str] = {}
        self._has_agent: dict[str | None, bool] = {}

    # ---- the tool itself ----

    def probe(self) -> DriverInfo:
        """Check presence and version. Raises `TemporaryError` when Tart is slow."""
        result = self._tool.probe(["--version"], _PROBE)
        found = version(result.stdout) if result.status == 0 else None
        if found is None:
            said = quoted(result.stdout + b" " + result.stderr)
            return DriverInfo(product="Tart", version=self._version_of_a_build(result.status, said))
        if found[1] < _OLDEST:
            raise CliUnavailable(
                f"tart {found[0]} is too old: {_OLDEST[0]}.{_OLDEST[1]} or newer is needed, for `tart exec`; "
                "brew upgrade cirruslabs/cli/tart"
            )
        return DriverInfo(product="Tart", version=found[0])

    def _version_of_a_build(self, status: int, said: str) -> str:
        """A build from source calls itself SNAPSHOT. It is accepted when it lists its VMs."""
        try:
            self.listing()
        except VMError:
            raise CliUnavailable(
                f"cannot read the answer of `tart --version` (exit status {status}): {said}; is Tart installed completely?"
            ) from None
        self._log.warning("unknown version of tart; 2.27 or newer is needed", extra={"version": said})
        return said

    # ---- what a job asks for ----

    def spec_from_labels(self, labels: Sequence[str]) -> VMSpec | None:
        """`tart` and `tart-image:<name>`, or the service's own image; the first match counts."""
        if not has_marker(_MARKER_LABEL, labels):
            return None
        named = value_after(_IMAGE_LABEL, labels)
        image = self._tart.image if named is None else named
        return None if image is None else VMSpec(template=image)

    def listing(self) -> Sequence[VMInfo]:
        """Everything on this host, pulled images included."""
        return self._images.listing()

    def image(self, spec: VMSpec, on_pull: Callable[[], None]) -> AbstractContextManager[str]:
        """Make the image present, and keep pulls away from it."""
        return self._images.held(spec, on_pull)

    def pulling(self) -> bool:
        """True while a pull runs on this host."""
        return self._locks.pull_runs()

    # ---- a VM's life ----

    def clone(self, source: str, vm: str) -> None:
        """Make a stopped VM. Tart silently replaces a VM of the same name, so look for one first."""
        if self._images.find_lately(vm) is not None:
            raise VMNameExists(f"a VM named {vm} exists already")
        self._image_of = {vm: source}
        self._images.changed()
        with self._orders.shield():
            self._tool.ask(["clone", source, vm], _CLONE, printed, OnStop.FINISH)
            self._tool.ask(["set", vm, *self._own_settings()], _SET, printed, OnStop.FINISH)
            digest = self._images.digest(source)
            self._log.info("VM cloned", extra={"vmName": vm, "tartImage": source, "tartDigest": digest})

    def _own_settings(self) -> list[str]:
        """How a VM differs from its image. It needs its own MAC address: the DHCP server may still lease one to the image's."""
        options = ["--random-mac"]
        wanted = {"--cpu": self._tart.cpu, "--memory": self._tart.memory, "--display": self._tart.display}
        for option, value in wanted.items():
            if value is not None:
                options += [option, str(value)]
        return options

    def start(self, vm: str) -> None:
        """Start it, and wait until the guest answers: by its agent, or by ssh when it has none."""
        began = time.monotonic()
        image = self._image_of.get(vm)
        self._images.changed()
        try:
            launched = self._launch(vm)
            access = self._guests.wait_for(
                vm,
                lambda: self._check_runs(vm, launched),
                self._settings.start_timeout,
                has_agent=self._has_agent.get(image),
            )
        except InfrastructureError as error:
            self._tool.report("run", error, time.monotonic() - began)
            raise
        self._tool.report("run", None, time.monotonic() - began)
        self._has_agent[image] = access is Access.AGENT
        self._note(vm, TartRun(process=launched.process, access=access))
        if access is Access.SSH:
            self._log.info("no guest agent answers; using ssh", extra={"vmName": vm})

    def _launch(self, vm: str) -> Launched:
        network = ["--net-softnet"] if self._tart.network == "softnet" else []
        mounts = [word for mount in self._tart.mounts for word in ("--dir", mount)]
        launched = self._tool.launch(["run", "--no-graphics", *network, *mounts, vm], self._runs.output(vm))
        self._note(vm, TartRun(process=launched.process))
        return launched

    def _note(self, vm: str, run: TartRun) -> None:
        """A full disk does not keep a VM from running: its process can be found without a note."""
        try:
            self._runs.note(vm, run)
        except OSError as error:
            self._log.warning("cannot note a `tart run`", extra={"vmName": vm, "err": str(error.strerror)})

    def _check_runs(self, vm: str, launched: Launched) -> None:
        """Raise the reason when the `tart run` has ended."""
        status = launched.status
        if status is None:
            return
        error = error_of("tart run", status, self._runs.last_words(vm).encode())
        if type(error) is VMTransient and self._images.find(vm) is None:
            raise VMNotFound(f"{vm} was deleted while it started")
        raise error

    def run(self, vm: str, script: str, timeout: float, *, looks_only: bool = False) -> GuestResult:
        """Run a script in the guest."""
        return self._guests.run(vm, script, timeout, looks_only=looks_only)

    def copy_in(self, vm: str, source: Path) -> None:
        """Copy to the guest's home; a link's target under the link's name."""
        self._guests.copy_in(vm, source)

    def copy_out(self, vm: str, path: str, target: Path) -> None:
        """Copy from the guest's home."""
        check_guest_path(path)
        self._guests.copy_out(vm, path, target)

    def delete(self, vm: str) -> None:
        """Stop it (Tart deletes no running VM), delete it, and check that it is gone: a listing of everything without it."""
        check_deletable(vm)
        # What keeps a VM from being stopped also keeps it from being deleted: the deletion reports it.
        with contextlib.suppress(VMError):
            self._tool.ask(["stop", vm, "--timeout", str(_STOP_GRACE)], _STOP, printed, OnStop.FINISH)
        # A `tart run` that does not count as running yet must not find its files gone.
        self._runs.settle(vm, _RUN_GRACE, self._orders.wait)
        with contextlib.suppress(VMNotFound):
            self._tool.ask(["delete", vm], _DELETE, printed, OnStop.FINISH)
        if self._images.find(vm) is not None:
            raise VMTransient(f"{vm} is still there after its deletion")
        self._runs.forget(vm)
