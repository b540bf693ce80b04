"""The VM driver for Tart: which commands, with which arguments and time-outs, in which order.

Processes are `command.py`'s, texts are `tart_output.py`'s, and what happens inside a guest is in `tart_guest.py`. A `tart run` is
no command but the VM itself, a process for as long as it lives: it is launched, noted beside its output, and ends with `tart stop`.
Facts: Tart's source (2.32).
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from anklet_worker.contract.errors import (
    CliUnavailable,
    InfrastructureError,
    TemporaryError,
    VMError,
    VMFatal,
    VMNameExists,
    VMNotFound,
    VMTransient,
)
from anklet_worker.contract.guest import NAME_PREFIX, GuestResult
from anklet_worker.contract.job import VMSpec
from anklet_worker.contract.service import Tart
from anklet_worker.files import make_private_dir
from anklet_worker.process.command import CommandRunner, Launched, OnStop
from anklet_worker.process.orders import Orders
from anklet_worker.state_layout import Place
from anklet_worker.vm.driver import DriverInfo, VMInfo, VMState
from anklet_worker.vm.image_locks import ImageLocks
from anklet_worker.vm.tart.commands import TartCommands
from anklet_worker.vm.tart.guest import TartGuests
from anklet_worker.vm.tart.output import error_of, version, vms
from anklet_worker.vm.tart.runs import Access, TartRun, TartRuns
from anklet_worker.vm.tart.ssh import Ssh
from anklet_worker.vm.wording import one_line, outcome_name

#: `tart exec` came with this version.
_OLDEST = (2, 27)

_PROBE = 30.0
_LIST = 60.0
_CLONE = 120.0
_SET = 30.0
_STOP = 40.0
_DELETE = 120.0
#: Tens of GiB over a slow line.
_PULL = 2 * 3600.0
#: Seconds that `tart stop` gives a VM before it kills it, and a `tart run` to end after that.
_STOP_GRACE, _RUN_GRACE = 10, 5.0

_LONGEST_NAME = 255
#: A local VM's name is a directory's; the others are names in a registry, as Tart's parser takes them.
_LOCAL_NAME = re.compile(r"(?!\.{1,2}$)[^-/\s\x00-\x1f\x7f](?:[^/\x00-\x1f\x7f]*[^/\s\x00-\x1f\x7f])?")
_REMOTE_NAME = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9.-]*(?::[0-9]{1,5})?(?:/[A-Za-z0-9][A-Za-z0-9._-]*)+"
    r"(?P<reference>:[A-Za-z0-9_][A-Za-z0-9._-]*|@sha256:[0-9a-f]{64})?"
)
_DIGEST = re.compile(r"@(sha256:[0-9a-f]{64})\s*$")
#: A path inside the guest's home.
_GUEST_PATH = re.compile(r"(?!.*\.\.)[A-Za-z0-9_.][A-Za-z0-9_./-]*")

_MARKER_LABEL = "tart"
_IMAGE_LABEL = "tart-image:"


class TartSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a service configures of it. `start_timeout` is seconds from `tart run` until the guest takes commands; `folder` is for
    this driver's own files."""

    tart: Tart
    start_timeout: float
    folder: Path


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
        self._commands = TartCommands(commands, log)
        self._locks = locks
        self._orders = orders
        self._log = log
        self._runs = TartRuns(Place.TART_RUNS.in_folder(settings.folder))
        ssh = Ssh(settings.folder, settings.tart.user, settings.tart.password_file)
        self._guests = TartGuests(self._commands, self._runs, ssh, orders)
        #: The image that each VM of this worker was cloned from, and whether guests of an image have turned out to have an agent.
        self._image_of: dict[str, str] = {}
        self._has_agent: dict[str | None, bool] = {}

    # ---- the tool itself ----

    def probe(self) -> DriverInfo:
        """Check presence and version. Raises `TemporaryError` when Tart takes its time."""
        result = self._commands.run(["tart", "--version"], _PROBE, verb="probe")
        if result.timed_out:
            raise TemporaryError(f"`tart --version` did not end within {_PROBE:g} s")
        found = version(result.stdout) if result.status == 0 else None
        if found is None:
            said = one_line((result.stdout + b" " + result.stderr).decode(errors="replace")) or "nothing"
            return DriverInfo(product="Tart", version=self._version_of_a_build(result.status, said))
        if found[1] < _OLDEST:
            raise CliUnavailable(
                f"tart {found[0]} is too old: {_OLDEST[0]}.{_OLDEST[1]} or newer is needed, for `tart exec`; "
                "brew upgrade cirruslabs/cli/tart"
            )
        return DriverInfo(product="Tart", version=found[0])

    def _version_of_a_build(self, status: int, said: str) -> str:
        """One built from source calls itself SNAPSHOT: that it lists its VMs has to do."""
        try:
            self.listing()
        except VMError:
            raise CliUnavailable(
                f"`tart --version` answers what cannot be understood (exit status {status}): {said}; is Tart installed whole?"
            ) from None
        self._log.warning("the version of tart is not known; 2.27 or newer is needed", extra={"version": said})
        return said

    # ---- what a job asks for ----

    def spec_from_labels(self, labels: Sequence[str]) -> VMSpec | None:
        """`tart` and `tart-image:<name>`, or the service's own image; the first match counts. GitHub compares labels without
        regard to case, so prefixes are too."""
        if _MARKER_LABEL not in (label.lower() for label in labels):
            return None
        named = (label[len(_IMAGE_LABEL) :] for label in labels if label.lower().startswith(_IMAGE_LABEL))
        image = next(named, self._tart.image)
        return None if image is None else VMSpec(template=image)

    def listing(self) -> Sequence[VMInfo]:
        """Everything on this host, pulled images included."""
        return list(vms(self._commands.ask(["list", "--format", "json"], _LIST)))

    # ---- images ----

    @contextmanager
    def image(self, spec: VMSpec, on_pull: Callable[[], None]) -> Iterator[str]:
        """Have the image present, and keep it as it is."""
        name = _full_name(spec.template)
        if self._is_to_be_pulled(name):
            self._pull(name, on_pull)
        with self._locks.cloning(name):
            row = self._find(name)
            if row is None:
                raise VMNotFound(f"image {name!r} is not found on this host" + self._why_not_pulled(name))
            if row.state is not VMState.STOPPED:
                raise VMTransient(f"image {name!r} is {row.state.value}: a copy of it would not be whole; shut it down")
            yield name

    def _find(self, name: str) -> VMInfo | None:
        return next((row for row in self.listing() if row.name == name), None)

    def _is_to_be_pulled(self, name: str) -> bool:
        if "/" not in name or self._tart.pull == "never":
            return False
        # What a digest names never changes.
        return (self._tart.pull == "always" and "@" not in name) or self._find(name) is None

    def _why_not_pulled(self, name: str) -> str:
        if "/" not in name:
            return ""
        return ", and tart.pull is never" if self._tart.pull == "never" else ", although it was pulled"

    def _pull(self, name: str, on_pull: Callable[[], None]) -> None:
        """Pull, once the host has no other pull of Tart's going."""
        with self._locks.pulling(name) as hold:
            on_pull()
            self._log.info("pulling the image", extra={"tartImage": name})
            try:
                self._commands.ask(["pull", name], _PULL, pull=hold)
            except VMError as error:
                if self._find(name) is None:
                    raise
                self._log.warning(
                    "the registry does not give the newest of the image; using what is here",
                    extra={"tartImage": name, "err": str(error)},
                )

    def _digest(self, name: str) -> str:
        """Which content a name stands for now; empty where Tart does not tell, and for a local VM."""
        if "/" not in name:
            return ""
        with contextlib.suppress(VMError):
            found = _DIGEST.search(self._commands.ask(["fqn", name], _LIST).decode(errors="replace"))
            return "" if found is None else found[1]
        return ""

    # ---- a VM's life ----

    def clone(self, source: str, vm: str) -> None:
        """Make a stopped VM. Tart replaces a VM that has the name already without a word, so that is asked first."""
        if self._find(vm) is not None:
            raise VMNameExists(f"a VM named {vm} exists already")
        self._image_of = {vm: source}
        with self._orders.shield():
            self._commands.ask(["clone", source, vm], _CLONE, OnStop.FINISH)
            self._commands.ask(["set", vm, *self._own_settings()], _SET, OnStop.FINISH)
            self._log.info("VM cloned", extra={"vmName": vm, "tartImage": source, "tartDigest": self._digest(source)})

    def _own_settings(self) -> list[str]:
        """What a VM has otherwise than its image. An address of its own, for one: the DHCP server may still have one on lease
        for the image's."""
        options = ["--random-mac"]
        wanted = {"--cpu": self._tart.cpu, "--memory": self._tart.memory, "--display": self._tart.display}
        for option, value in wanted.items():
            if value is not None:
                options += [option, str(value)]
        return options

    def start(self, vm: str) -> None:
        """Start it, and wait until the guest answers by its agent, or by ssh where there is none."""
        began = time.monotonic()
        image = self._image_of.get(vm)
        try:
            launched = self._launch(vm)
            access = self._guests.wait_for(
                vm,
                lambda: self._check_runs(vm, launched),
                self._settings.start_timeout,
                has_agent=self._has_agent.get(image),
            )
        except InfrastructureError as error:
            self._commands.runner.ended("run", outcome_name(error), time.monotonic() - began)
            raise
        self._commands.runner.ended("run", "done", time.monotonic() - began)
        self._has_agent[image] = access is Access.AGENT
        self._note(vm, TartRun(process=launched.process, access=access))
        if access is Access.SSH:
            self._log.info("the guest has no agent that answers; using ssh", extra={"vmName": vm})

    def _launch(self, vm: str) -> Launched:
        network = ["--net-softnet"] if self._tart.network == "softnet" else []
        mounts = [word for mount in self._tart.mounts for word in ("--dir", mount)]
        argv = ["tart", "run", "--no-graphics", *network, *mounts, vm]
        self._log.debug("command", extra={"argv": argv})
        launched = self._commands.runner.launch(argv, self._runs.output(vm))
        self._note(vm, TartRun(process=launched.process))
        return launched

    def _note(self, vm: str, run: TartRun) -> None:
        """A full disk does not keep a VM from running: its process is found without a note, too."""
        try:
            self._runs.note(vm, run)
        except OSError as error:
            self._log.warning("a `tart run` could not be noted", extra={"vmName": vm, "err": str(error.strerror)})

    def _check_runs(self, vm: str, launched: Launched) -> None:
        """Raise what ended the `tart run`, when it has ended."""
        status = launched.status
        if status is None:
            return
        error = error_of("tart run", status, self._runs.last_words(vm).encode())
        if type(error) is VMTransient and self._find(vm) is None:
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
        if not _GUEST_PATH.fullmatch(path):
            raise VMFatal(f"{one_line(repr(path))} is no path that can be copied from a guest")
        self._guests.copy_out(vm, path, target)

    def delete(self, vm: str) -> None:
        """Stop it (Tart deletes no running VM), delete it, and see that it is gone: a listing of everything without it."""
        if not vm.startswith(NAME_PREFIX):
            raise VMFatal(f"{one_line(repr(vm))} is no VM of ours to delete")
        # Whatever keeps it from being stopped, keeps it from being deleted: the deletion tells.
        with contextlib.suppress(VMError):
            self._commands.ask(["stop", vm, "--timeout", str(_STOP_GRACE)], _STOP, OnStop.FINISH)
        # A `tart run` that has not come as far as to be seen as running must not find its files gone.
        self._runs.settle(vm, _RUN_GRACE, self._orders.wait)
        with contextlib.suppress(VMNotFound):
            self._commands.ask(["delete", vm], _DELETE, OnStop.FINISH)
        if self._find(vm) is not None:
            raise VMTransient(f"{vm} is still there after its deletion")
        self._runs.forget(vm)


def _full_name(image: str) -> str:
    """An image's name as Tart lists it: one in a registry has a tag or a digest. Raises `VMNotFound` for what can be none."""
    remote = _REMOTE_NAME.fullmatch(image) if "/" in image else None
    if len(image) > _LONGEST_NAME or (remote is None and not _LOCAL_NAME.fullmatch(image)):
        raise VMNotFound(f"{one_line(repr(image))} can be no image")
    if image.startswith(NAME_PREFIX):
        # A job could otherwise look into the VM of another.
        raise VMNotFound(f"{image!r} is a job's VM, no image")
    return f"{image}:latest" if remote is not None and remote["reference"] is None else image
