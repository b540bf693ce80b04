"""The VM driver for Veertu's Anka: a VM's life by the `anka` command, and what each answer means for it.

Owns the argument lists and the order of calls. Templates and their registry are in `templates.py`, texts in `output.py`,
processes in `vm/tool.py`. Facts: Anka 3.9 documentation.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import msgspec

from anklet_worker.contract.errors import (
    CliUnavailable,
    RightsRefused,
    VMError,
    VMLimitReached,
    VMNotFound,
    VMTransient,
)
from anklet_worker.contract.guest import GuestResult
from anklet_worker.contract.job import VMSpec
from anklet_worker.contract.service import ServiceConfig
from anklet_worker.process.command import CommandRunner, OnStop
from anklet_worker.process.orders import Orders
from anklet_worker.state_layout import Place
from anklet_worker.vm.anka.commands import SILENCE, anka_tool, envelope, envelope_or_silence, listed
from anklet_worker.vm.anka.output import Envelope, guest_error, guest_texts, parse_envelope
from anklet_worker.vm.anka.templates import Templates
from anklet_worker.vm.driver import DriverInfo, VMInfo
from anklet_worker.vm.guests import (
    Answer,
    check_guest_path,
    never_ready,
    not_a_file,
    run_script,
    source_file,
    wait_until_ready,
)
from anklet_worker.vm.image_locks import ImageLocks
from anklet_worker.vm.labels import has_marker, value_after
from anklet_worker.vm.listings import LastListing
from anklet_worker.vm.names import check_deletable
from anklet_worker.vm.wording import one_line, quoted

_PROBE = 30.0
_LIST = 60.0
_CLONE = 120.0
_COPY = 120.0
_DELETE = 120.0

#: A listing that printed nothing is repeated after these pauses before it counts as empty.
_SILENCES = (0.5, 2.0)

#: Licences that cannot do this work: one VM only, no registry (Anka documentation).
_REFUSED_LICENCES = frozenset({"com.veertu.anka.run", "com.veertu.anka.develop"})

_MARKER_LABEL = "anka"
_TEMPLATE_LABEL = "anka-template:"
_TAG_LABEL = "anka-template-tag:"


class AnkaSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The driver's part of a service's configuration. `start_timeout`: seconds from `anka start` until the guest takes commands."""

    registry_url: str
    start_timeout: float


def open_driver(
    service: ServiceConfig,
    state_dir: Path,
    commands: CommandRunner,
    orders: Orders,
    log: logging.LoggerAdapter[logging.Logger],
) -> AnkaDriver:
    """The driver for one service. Its locks are in `locks` of the state directory."""
    settings = AnkaSettings(registry_url=service.registry_url, start_timeout=service.deadlines.vm_start)
    return AnkaDriver(settings, commands, ImageLocks(Place.ANKA_LOCKS.path(state_dir)), orders, log)


class AnkaDriver:
    """Implements `VMDriver` on the `anka` command."""

    name = "anka"

    def __init__(
        self,
        settings: AnkaSettings,
        commands: CommandRunner,
        locks: ImageLocks,
        orders: Orders,
        log: logging.LoggerAdapter[logging.Logger],
    ) -> None:
        self._settings = settings
        self._orders = orders
        self._locks = locks
        self._tool = anka_tool(commands, log)
        self._listing = LastListing(locks)
        self._templates = Templates(self._tool, locks, self._listing, settings.registry_url, log)

    # ---- the tool itself ----

    def probe(self) -> DriverInfo:
        """Check presence, version and licence. Raises `TemporaryError` when Anka is slow, as on a host that has just booted."""
        alone = self._tool.probe([], _PROBE)
        if alone.status != 0:
            raise CliUnavailable(
                f"`anka` does not start (exit status {alone.status}): {quoted(alone.stderr)}; is Anka installed completely?"
            )
        version = self._probed("-j", "version")
        if not version.ok or not isinstance(version.body, dict):
            raise CliUnavailable(f"cannot read the answer of `anka -j version`: {one_line(str(version.body))}")
        self._check_licence(self._probed("-j", "license", "show"))
        return DriverInfo(
            product=str(version.body.get("product") or "Anka"),
            version=str(version.body.get("version") or "unknown").split(" ")[0],
        )

    def _check_licence(self, answer: Envelope) -> None:
        if not answer.ok:
            raise RightsRefused(f"the Anka licence cannot be used: {one_line(answer.message)}; see `anka license show`")
        licence = answer.body if isinstance(answer.body, dict) else {}
        status, kind = str(licence.get("status") or "unknown"), str(licence.get("license_type") or "")
        if status != "valid":
            raise RightsRefused(f"the Anka licence is {status!r}, not valid; see `anka license show`")
        if kind in _REFUSED_LICENCES:
            raise RightsRefused(f"an Anka licence of type {kind} cannot run CI jobs (one VM, no registry)")

    def _probed(self, *arguments: str) -> Envelope:
        result = self._tool.probe(arguments, _PROBE)
        answer = parse_envelope(result.stdout)
        if answer is None:
            said = quoted(result.stdout or result.stderr)
            raise CliUnavailable(f"cannot read the answer of `anka {' '.join(arguments)}`: {said}")
        return answer

    # ---- what a job asks for ----

    def spec_from_labels(self, labels: Sequence[str]) -> VMSpec | None:
        """`anka`, `anka-template:<name or uuid>`, optional `anka-template-tag:<tag>`; the first match counts."""
        template = value_after(_TEMPLATE_LABEL, labels)
        if template is None or not has_marker(_MARKER_LABEL, labels):
            return None
        return VMSpec(template=template, tag=value_after(_TAG_LABEL, labels) or None)

    def listing(self) -> Sequence[VMInfo]:
        """Everything on this host. A listing that prints nothing may mean that there is nothing; but a job is given up when its
        VM is not listed, so an empty answer counts only when it lasts."""
        return self._listing.take(self._list_all)

    def _list_all(self) -> Sequence[VMInfo]:
        for pause in _SILENCES:
            answer = self._tool.ask(["list"], _LIST, envelope_or_silence)
            if answer is not SILENCE:
                return listed(answer)
            self._orders.wait(pause)
        return listed(self._tool.ask(["list"], _LIST, envelope_or_silence))

    def image(self, spec: VMSpec, on_pull: Callable[[], None]) -> AbstractContextManager[str]:
        """Make template and tag present, and keep pulls away from them."""
        return self._templates.held(spec, on_pull)

    def pulling(self) -> bool:
        """True while a pull runs on this host."""
        return self._locks.pull_runs()

    # ---- a VM's life ----

    def clone(self, source: str, vm: str) -> None:
        """Make a stopped VM."""
        try:
            self._tool.ask(["clone", source, vm], _CLONE, envelope, OnStop.FINISH)
        except VMNotFound as error:
            seen = self._listing.fresh()
            if seen is None or all(source not in (row.name, row.uuid) for row in seen.rows):
                raise
            # The template came from a listing that is some seconds old. The next try looks again, and may pull it.
            raise VMTransient(f"{error}; it was there some seconds ago") from None
        finally:
            self._listing.forget()

    def start(self, vm: str) -> None:
        """Start it. `anka start` returns as soon as the hypervisor runs, so wait until the guest answers."""
        timeout = self._settings.start_timeout
        deadline = time.monotonic() + timeout
        self._listing.forget()
        self._tool.ask(["start", vm], timeout, envelope, OnStop.FINISH)

        def give_up() -> bool:
            raise never_ready(vm, timeout)

        wait_until_ready(lambda seconds: self._answers(vm, seconds), give_up, deadline, self._orders)

    def _answers(self, vm: str, seconds: float) -> bool | None:
        """True when the guest takes a command. Raises what waiting cannot mend: the VM is gone, or may not run."""
        result = self._tool.run(["anka", "-j", "run", vm, "true"], seconds, "run")
        if result.status == 0:
            return True
        error = guest_error(f"anka run in {vm}", result.status, result.stdout, result.stderr)
        if isinstance(error, VMLimitReached | VMNotFound):
            raise error
        return None

    def run(self, vm: str, script: str, timeout: float, *, looks_only: bool = False) -> GuestResult:
        """Run a script in the guest."""
        return run_script(self._shell, vm, script, timeout, looks_only=looks_only)

    def _shell(self, vm: str, stdin: bytes, timeout: float, on_stop: OnStop) -> Answer:
        """How `-j` wraps a guest's output is undocumented, and `anka run` may lose its guest."""
        argv = ["anka", "-j", "run", vm, "bash", "-s"]
        result = self._tool.run(argv, timeout, "run", stdin=stdin, on_stop=on_stop)

        def lost() -> VMError:
            return guest_error(f"guest command in {vm}", result.status, result.stdout, result.stderr)

        return Answer(result=result, texts=guest_texts(result.stdout), lost=lost)

    def copy_in(self, vm: str, source: Path) -> None:
        """Copy to the guest's home. `cp -a` copies a link as a link, so it is resolved here; the file keeps the link's name."""
        resolved = source_file(source)
        with contextlib.ExitStack() as stack:
            if resolved.name != source.name or ":" in str(resolved):
                # `cp` keeps the file's name, and takes what is before a colon for a VM.
                try:
                    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="anklet-"))
                    resolved = Path(shutil.copy2(resolved, Path(folder) / source.name))
                except OSError as error:
                    raise VMTransient(f"cannot copy {source} aside: {error.strerror}") from None
            self._tool.ask(["cp", "-a", str(resolved), f"{vm}:"], _COPY, envelope, OnStop.FINISH)

    def copy_out(self, vm: str, path: str, target: Path) -> None:
        """Copy from the guest's home, into a new folder first, because `cp` keeps the file's name."""
        check_guest_path(path)
        with _beside(target) as folder:
            self._tool.ask(["cp", "-a", f"{vm}:{path}", str(folder)], _COPY, envelope, OnStop.FINISH)
            copied = folder / Path(path).name
            # Do not follow what a guest gives away: a link in it could name any file of the host.
            if copied.is_symlink() or not copied.is_file():
                raise not_a_file(path, vm)
            shutil.move(copied, target)

    def delete(self, vm: str) -> None:
        """Delete, running or not, and check that it is gone."""
        check_deletable(vm)
        self._listing.forget()
        with contextlib.suppress(VMNotFound):
            self._tool.ask(["delete", "--yes", vm], _DELETE, envelope, OnStop.FINISH)
        if not self._is_gone(vm):
            raise VMTransient(f"{vm} is still there after its deletion")

    def _is_gone(self, vm: str) -> bool:
        """Proof, on which a slot is freed: a listing of everything without the VM; when that prints nothing, a plain
        "not found"."""
        answer = self._tool.ask(["list"], _LIST, envelope_or_silence)
        if answer is not SILENCE:
            return all(row.name != vm for row in listed(answer))
        try:
            self._tool.ask(["list", vm], _LIST, envelope_or_silence)
        except VMNotFound:
            return True
        return False


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A folder for what will become `target`, beside it and under a fixed name: what a killed worker or a late command left there
    is found by the next try, and is deleted with the target's folder."""
    if ":" in str(target):  # `cp` takes what is before a colon for a VM
        with tempfile.TemporaryDirectory(prefix="anklet-") as folder:
            yield Path(folder)
        return
    beside = target.with_name(f".{target.name}.copying")
    _remove(beside)
    beside.mkdir(mode=0o700)
    try:
        yield beside
    finally:
        _remove(beside)


def _remove(path: Path) -> None:
    """Remove a folder and its content, or what a late `cp` made in its place. Links are not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
