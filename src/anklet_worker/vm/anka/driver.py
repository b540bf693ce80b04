"""The VM driver for Veertu's Anka: which commands, with which arguments and time-outs, and what their answers mean.

Argument lists and the order of calls, nothing else: processes are `command.py`'s, texts are `anka_output.py`'s.
Facts: Anka 3.9 documentation.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from anklet_worker.contract.errors import (
    CliUnavailable,
    PullBusy,
    RightsRefused,
    TemporaryError,
    VMError,
    VMFatal,
    VMLimitReached,
    VMNotFound,
    VMTransient,
)
from anklet_worker.contract.guest import NAME_PREFIX, GuestResult
from anklet_worker.contract.job import VMSpec
from anklet_worker.process.command import CommandResult, CommandRunner, OnStop
from anklet_worker.process.orders import Orders
from anklet_worker.vm.anka.output import Envelope, error_of, guest_error, guest_texts, is_local, parse_envelope, vms
from anklet_worker.vm.driver import DriverInfo, VMInfo, VMState
from anklet_worker.vm.guest_script import new_nonce, result_in, wrapped
from anklet_worker.vm.image_locks import ImageLocks, PullHold
from anklet_worker.vm.wording import one_line, outcome_name

_PROBE = 30.0
_LIST = 60.0
_CLONE = 120.0
_COPY = 120.0
_DELETE = 120.0
_CHECK_SIZE = 60.0
#: Tens of GiB over a slow line.
_PULL = 2 * 3600.0
#: One try to reach a starting guest, and the pauses between two of them.
_READY_TRY = 30.0
_READY_PAUSE_FIRST, _READY_PAUSE_LONGEST = 0.1, 2.0

#: A listing that printed nothing is asked for again after these pauses, before it counts as empty.
_SILENCES = (0.5, 2.0)

#: Licences that cannot do this work: one VM only, no registry (Anka documentation).
_REFUSED_LICENCES = frozenset({"com.veertu.anka.run", "com.veertu.anka.develop"})
#: A template's name or uuid, or a tag, as the command line can take it.
_PLAIN = re.compile(r"[^-\s\x00-\x1f\x7f][^\x00-\x1f\x7f]{0,254}")

#: A path inside the guest's home.
_GUEST_PATH = re.compile(r"(?!.*\.\.)[A-Za-z0-9_.][A-Za-z0-9_./-]*")

_MARKER_LABEL = "anka"
_TEMPLATE_LABEL = "anka-template:"
_TAG_LABEL = "anka-template-tag:"

#: What a listing that printed nothing, and failed at nothing, comes to.
_SILENCE = Envelope(ok=True)


class AnkaSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a service configures of it. `start_timeout` is seconds from `start` until the guest takes commands."""

    registry_url: str
    start_timeout: float


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
        self._commands = commands
        self._locks = locks
        self._orders = orders
        self._log = log

    # ---- the tool itself ----

    def probe(self) -> DriverInfo:
        """Check presence, version and licence. Raises `TemporaryError` when Anka takes its time (a host that just booted)."""
        alone = self._probe()
        if alone.status != 0:
            said = one_line(alone.stderr.decode(errors="replace")) or "nothing"
            raise CliUnavailable(
                f"`anka` does not even start (exit status {alone.status}): {said}; is Anka installed whole?"
            )
        version = self._probe_envelope("-j", "version")
        if not version.ok or not isinstance(version.body, dict):
            raise CliUnavailable(f"`anka -j version` answers what cannot be understood: {one_line(str(version.body))}")
        self._check_licence(self._probe_envelope("-j", "license", "show"))
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

    def _probe(self, *arguments: str) -> CommandResult:
        result = self._run(["anka", *arguments], _PROBE)
        if result.timed_out:
            raise TemporaryError(f"`{' '.join(['anka', *arguments])}` did not end within {_PROBE:g} s")
        return result

    def _probe_envelope(self, *arguments: str) -> Envelope:
        result = self._probe(*arguments)
        envelope = parse_envelope(result.stdout)
        if envelope is None:
            said = one_line((result.stdout or result.stderr).decode(errors="replace")) or "nothing"
            raise CliUnavailable(f"`anka {' '.join(arguments)}` answers what cannot be understood: {said}")
        return envelope

    # ---- what a job asks for ----

    def spec_from_labels(self, labels: Sequence[str]) -> VMSpec | None:
        """`anka`, `anka-template:<name or uuid>`, optional `anka-template-tag:<tag>`; the first match counts. GitHub compares
        labels without regard to case, so prefixes are too."""
        if _MARKER_LABEL not in (label.lower() for label in labels):
            return None
        template = _value_of(_TEMPLATE_LABEL, labels)
        return None if template is None else VMSpec(template=template, tag=_value_of(_TAG_LABEL, labels) or None)

    def listing(self) -> Sequence[VMInfo]:
        """Everything on this host. Silence may mean that there is nothing; but a job is given up for a listing without its VM, so
        a silence counts only when it lasts."""
        for pause in _SILENCES:
            answer = self._ask(["list"], _LIST, may_be_silent=True)
            if answer is not _SILENCE:
                return list(vms(answer.body))
            self._orders.wait(pause)
        return self._list()

    # ---- templates ----

    @contextmanager
    def image(self, spec: VMSpec, on_pull: Callable[[], None]) -> Iterator[str]:
        """Have template and tag present, and keep them so."""
        for word in (spec.template, spec.tag):
            if word is not None and not _PLAIN.fullmatch(word):
                raise VMNotFound(f"{one_line(repr(word))} can be no template or tag")
        pulls, entry = self._locks.pulls_begun(), self._find(spec)
        if not _usable(entry, spec) or not self._is_current(spec):
            self._pull(spec, entry, pulls, on_pull)
            pulls, entry = self._locks.pulls_begun(), self._find(spec)
        if entry is None or not _usable(entry, spec):
            raise VMFatal(f"{_named(spec)} cannot be used although it was pulled: {_condition(entry)}")
        with self._locks.cloning(entry.name, entry.uuid):
            if self._locks.pulls_begun() != pulls and self._find(spec) != entry:
                raise PullBusy(f"a pull came between while {_named(spec)} was looked for")
            yield entry.uuid or entry.name

    def _is_current(self, spec: VMSpec) -> bool:
        """A tag that is present is never pulled. Without a tag the registry knows whether there is anything newer."""
        if spec.tag is not None:
            return True
        try:
            return is_local(self._ask(self._registry("pull", "--check-download-size", spec.template), _CHECK_SIZE))
        except VMNotFound:
            # A template of this host only, never pushed.
            return True
        except VMError as error:
            self._use_local(spec, error)
            return True

    def _use_local(self, spec: VMSpec, error: VMError) -> None:
        self._log.warning(
            "the registry does not give the newest of the template; using what is here",
            extra={"ankaTemplate": spec.template, "err": str(error)},
        )

    def _find(self, spec: VMSpec) -> VMInfo | None:
        """The template as it is listed here; None when it is not here.

        Only the tag that is checked out is listed (as `version`), which is the only one: pulls are made with --shrink.
        """
        try:
            rows = self._list(spec.template)
        except VMNotFound:
            return None
        exact = [row for row in rows if spec.template in (row.name, row.uuid)]
        entry = next(iter(exact or rows), None)
        if entry is not None and entry.name.startswith(NAME_PREFIX):
            # A job could otherwise look into the VM of another.
            raise VMNotFound(f"{_named(spec)} is a job's VM, no template")
        return entry

    def _pull(self, spec: VMSpec, entry: VMInfo | None, pulls: int, on_pull: Callable[[], None]) -> None:
        """Pull, once the host has no other pull going. `entry` was listed when `pulls` pulls had begun.

        --shrink removes the template's other local tags. Without it the disk of a CI host fills up with tags of 30 GiB that
        nothing ever removes, and `list` no longer tells which of several is there. VMs that were cloned from a removed tag keep
        their layers; that no clone is being made meanwhile is what the lock is for.
        """
        tag = [] if spec.tag is None else ["--tag", spec.tag]
        known = () if entry is None else (entry.name, entry.uuid)
        with self._locks.pulling(spec.template, *known) as hold:
            if self._locks.pulls_begun() != pulls + 1:
                raise PullBusy(f"a pull came between while {_named(spec)} was looked for")
            on_pull()
            self._log.info(
                "pulling the template", extra={"ankaTemplate": spec.template, "ankaTemplateTag": spec.tag or ""}
            )
            try:
                self._ask(self._registry("pull", "--shrink", spec.template, *tag), _PULL, pull=hold)
            except VMTransient as error:
                if not _usable(entry, spec):
                    raise
                self._use_local(spec, error)

    def _registry(self, *arguments: str) -> list[str]:
        remote = ["--remote", self._settings.registry_url] if self._settings.registry_url else []
        return ["registry", *remote, *arguments]

    # ---- a VM's life ----

    def clone(self, source: str, vm: str) -> None:
        """Make a stopped VM."""
        self._ask(["clone", source, vm], _CLONE, OnStop.FINISH)

    def start(self, vm: str) -> None:
        """Start it; `start` returns when the hypervisor runs, so wait until the guest answers."""
        deadline = time.monotonic() + self._settings.start_timeout
        self._ask(["start", vm], self._settings.start_timeout, OnStop.FINISH)
        pause = _READY_PAUSE_FIRST
        while not self._answers(vm, deadline):
            if time.monotonic() + pause >= deadline:
                raise VMTransient(
                    f"the guest of {vm} took no commands within {self._settings.start_timeout:g} s of its start"
                )
            self._orders.wait(pause)
            pause = min(pause * 2, _READY_PAUSE_LONGEST)

    def _answers(self, vm: str, deadline: float) -> bool:
        """Whether the guest takes a command. Raises what no waiting can cure: the VM is gone, or may not run."""
        patience = min(_READY_TRY, max(1.0, deadline - time.monotonic()))
        result = self._run(["anka", "-j", "run", vm, "true"], patience)
        if result.status == 0:
            return True
        error = guest_error(f"anka run in {vm}", result.status, result.stdout, result.stderr)
        if isinstance(error, VMLimitReached | VMNotFound):
            raise error
        return False

    def run(self, vm: str, script: str, timeout: float, *, looks_only: bool = False) -> GuestResult:
        """Run a script in the guest. What -j makes of a guest's output is undocumented, and `anka run` may lose its guest: the
        script's own last line says that it ended, and how."""
        nonce = new_nonce()
        on_stop = OnStop.DISCARD if looks_only else OnStop.KILL
        argv = ["anka", "-j", "run", vm, "bash", "-s"]
        result = self._run(argv, timeout, stdin=wrapped(script, nonce), on_stop=on_stop)
        for text in guest_texts(result.stdout):
            if (ended := result_in(text, nonce)) is not None:
                return ended
        if result.timed_out:
            raise VMTransient(f"the guest command in {vm} did not end within {timeout:g} s")
        raise guest_error(f"guest command in {vm}", result.status, result.stdout, result.stderr)

    def copy_in(self, vm: str, source: Path) -> None:
        """Copy to the guest's home. Links are resolved here, for `cp -a` would copy the link; the name stays the link's."""
        resolved = source.resolve()
        if not resolved.is_file():
            raise VMFatal(f"{source} cannot be copied to the guest: it is no file")
        with contextlib.ExitStack() as stack:
            if resolved.name != source.name or ":" in str(resolved):
                # Copied under another name it would not be found; a colon in a path separates VM from path.
                try:
                    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="anklet-"))
                    resolved = Path(shutil.copy2(resolved, Path(folder) / source.name))
                except OSError as error:
                    raise VMTransient(f"{source} cannot be copied aside: {error.strerror}") from None
            self._ask(["cp", "-a", str(resolved), f"{vm}:"], _COPY, OnStop.FINISH)

    def copy_out(self, vm: str, path: str, target: Path) -> None:
        """Copy from the guest's home. Into a folder of its own first, for `cp` keeps the file's name."""
        if not _GUEST_PATH.fullmatch(path):
            raise VMFatal(f"{one_line(repr(path))} is no path that can be copied from a guest")
        with _beside(target) as folder:
            self._ask(["cp", "-a", f"{vm}:{path}", str(folder)], _COPY, OnStop.FINISH)
            copied = folder / Path(path).name
            # What a guest gives away is not to be followed: a link in it could name any file of the host.
            if copied.is_symlink() or not copied.is_file():
                raise VMFatal(f"{one_line(repr(path))} in {vm} is no file")
            shutil.move(copied, target)

    def delete(self, vm: str) -> None:
        """Delete, running or not, and see that it is gone."""
        if not vm.startswith(NAME_PREFIX):
            raise VMFatal(f"{one_line(repr(vm))} is no VM of ours to delete")
        with contextlib.suppress(VMNotFound):
            self._ask(["delete", "--yes", vm], _DELETE, OnStop.FINISH)
        if not self._is_gone(vm):
            raise VMTransient(f"{vm} is still there after its deletion")

    def _is_gone(self, vm: str) -> bool:
        """Proof, on which a slot is freed: a listing of everything without it; where that is silent, a plain "not found"."""
        answer = self._ask(["list"], _LIST, may_be_silent=True)
        if answer is not _SILENCE:
            return all(row.name != vm for row in vms(answer.body))
        try:
            self._ask(["list", vm], _LIST, may_be_silent=True)
        except VMNotFound:
            return True
        return False

    # ---- commands ----

    def _list(self, *names: str) -> list[VMInfo]:
        return list(vms(self._ask(["list", *names], _LIST, may_be_silent=True).body))

    def _ask(
        self,
        arguments: Sequence[str],
        timeout: float,
        on_stop: OnStop = OnStop.KILL,
        *,
        pull: PullHold | None = None,
        may_be_silent: bool = False,
    ) -> Envelope:
        """Run a command that answers with an envelope; raise what it failed with, by class of outcome."""
        what = f"anka {_verb(arguments)}"
        result = self._run(["anka", "-j", *arguments], timeout, on_stop=on_stop, pull=pull, report=False)
        envelope = parse_envelope(result.stdout)
        error: VMError | None = None
        if result.timed_out:
            error = VMTransient(f"{what} did not end within {timeout:g} s")
        elif result.status != 0 or (envelope is not None and not envelope.ok):
            error = error_of(what, result.status, result.stdout, result.stderr)
        elif envelope is None and not (may_be_silent and not result.stdout.strip()):
            said = one_line(result.stdout.decode(errors="replace")) or "nothing"
            error = VMFatal(f"{what} answers what cannot be understood: {said}")
        self._commands.ended(_verb(arguments), outcome_name(error), result.seconds)
        if error is not None:
            raise error
        return envelope or _SILENCE

    def _run(
        self,
        argv: Sequence[str],
        timeout: float,
        *,
        stdin: bytes = b"",
        on_stop: OnStop = OnStop.KILL,
        pull: PullHold | None = None,
        report: bool = True,
    ) -> CommandResult:
        """A pull's process inherits the locks and is noted beside them: it may go on for hours after we are gone, and nobody has
        to wait for it before VMs can be listed."""
        self._log.debug("command", extra={"argv": list(argv)})
        result = self._commands.run(
            argv,
            timeout=timeout,
            stdin=stdin,
            on_stop=on_stop,
            keep_open=pull.fds if pull else (),
            note=pull.note if pull else None,
        )
        if report:
            self._commands.ended(_verb(argv[1:]), "transient" if result.timed_out else "done", result.seconds)
        return result


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A folder for what is to become `target`. Beside it, and by a fixed name, so that what a killed worker or a command that
    outlived it left there is found by the next try, and goes with the folder of the target."""
    if ":" in str(target):  # `cp` would take what is before the colon for a VM
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
    """A folder and what is in it; or what `cp` made in its place, when it came late. Links are not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _value_of(prefix: str, labels: Sequence[str]) -> str | None:
    return next((label[len(prefix) :] for label in labels if label.lower().startswith(prefix)), None)


def _usable(entry: VMInfo | None, spec: VMSpec) -> bool:
    return entry is not None and entry.state is not VMState.FAILED and spec.tag in (None, entry.tag)


def _condition(entry: VMInfo | None) -> str:
    if entry is None:
        return "it is not listed"
    if entry.state is VMState.FAILED:
        return f"it is in state failed; remove it with `anka delete {entry.uuid}`"
    return f"its tag is {entry.tag!r}"


def _named(spec: VMSpec) -> str:
    return f"template {spec.template!r}" + ("" if spec.tag is None else f" with tag {spec.tag!r}")


def _verb(arguments: Sequence[str]) -> str:
    """The command's name as metrics know it. One of a closed list."""
    words = [word for word in arguments if not word.startswith("-")]
    if not words:
        return "probe"
    if words[0] != "registry":
        return words[0]
    return "check" if "--check-download-size" in arguments else "pull"
