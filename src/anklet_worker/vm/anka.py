"""The VM driver for Veertu's Anka: which commands, with which arguments and time-outs, and what their answers mean.

Argument lists and the order of calls, nothing else: processes are `command.py`'s, texts are `anka_output.py`'s.
Facts: Anka 3.9 documentation.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from anklet_worker.errors import CliUnavailable, RightsRefused
from anklet_worker.orders import Orders
from anklet_worker.vm import (
    DriverInfo,
    GuestResult,
    PullBusy,
    VMError,
    VMFatal,
    VMInfo,
    VMNotFound,
    VMSpec,
    VMState,
    VMTransient,
)
from anklet_worker.vm.anka_output import (
    Envelope,
    error_of,
    is_local,
    one_line,
    outcome_name,
    parse_envelope,
    vms,
)
from anklet_worker.vm.command import CommandResult, CommandRunner, OnStop
from anklet_worker.vm.image_locks import ImageLocks

_PROBE = 30.0
_LIST = 60.0
_CLONE = 120.0
_COPY = 120.0
_DELETE = 120.0
_CHECK_SIZE = 60.0
#: Tens of GiB over a slow line.
_PULL = 2 * 3600.0
_READY_PAUSE_FIRST, _READY_PAUSE_LONGEST = 0.1, 2.0
_MARKER_ROOM = 4096
_OUTPUT_TAIL = 64 * 1024

#: Licences that cannot do this work: one VM only, no registry (Anka documentation).
_REFUSED_LICENCES = frozenset({"com.veertu.anka.run", "com.veertu.anka.develop"})
#: A template's name or uuid, or a tag, as the command line can take it.
_PLAIN = re.compile(r"[^-\s\x00-\x1f\x7f][^\x00-\x1f\x7f]{0,254}")

_MARKER_LABEL = "anka"
_TEMPLATE_LABEL = "anka-template:"
_TAG_LABEL = "anka-template-tag:"


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
        """Check presence, version and licence."""
        if self._run(["anka"], _PROBE).status != 0:
            raise CliUnavailable("anka cannot be used: it does not even start; try `anka version` by hand")
        version = self._probe_body(["-j", "version"])
        licence = self._probe_body(["-j", "license", "show"])
        status, kind = str(licence.get("status", "")), str(licence.get("license_type", ""))
        if status != "valid":
            raise RightsRefused(f"the Anka licence is {status or 'unknown'!r}, not valid; see `anka license show`")
        if kind in _REFUSED_LICENCES:
            raise RightsRefused(f"an Anka licence of type {kind} cannot run CI jobs (one VM, no registry)")
        return DriverInfo(
            product=str(version.get("product", "Anka")),
            version=str(version.get("version", "")).split(" ")[0] or "unknown",
        )

    def _probe_body(self, arguments: list[str]) -> dict[str, object]:
        result = self._run(["anka", *arguments], _PROBE)
        envelope = parse_envelope(result.stdout)
        if envelope is None or not envelope.ok or not isinstance(envelope.body, dict):
            said = one_line((result.stdout or result.stderr).decode(errors="replace")) or "nothing"
            raise CliUnavailable(f"`anka {' '.join(arguments)}` answers what cannot be understood: {said}")
        return envelope.body

    # ---- what a job asks for ----

    def spec_from_labels(self, labels: Sequence[str]) -> VMSpec | None:
        """`anka`, `anka-template:<name or uuid>`, optional `anka-template-tag:<tag>`; the first match counts. GitHub compares
        labels without regard to case, so prefixes are too."""
        if _MARKER_LABEL not in (label.lower() for label in labels):
            return None
        template = _value_of(_TEMPLATE_LABEL, labels)
        return None if not template else VMSpec(template=template, tag=_value_of(_TAG_LABEL, labels) or None)

    def listing(self) -> Sequence[VMInfo]:
        """Everything on this host."""
        return self._list()

    # ---- templates ----

    @contextmanager
    def image(self, spec: VMSpec, on_pull: Callable[[], None]) -> Iterator[str]:
        """Have template and tag present, and keep them so."""
        for word in (spec.template, spec.tag):
            if word is not None and not _PLAIN.fullmatch(word):
                raise VMNotFound(f"{one_line(repr(word))} can be no template or tag")
        pulls, entry = self._locks.pulls_begun(), self._find(spec)
        if entry is None or not self._is_current(spec):
            self._pull(spec, on_pull)
            pulls, entry = self._locks.pulls_begun(), self._find(spec)
        if entry is None:
            raise VMNotFound(f"{_named(spec)} is not on this host, although it was just pulled")
        with self._locks.cloning(entry.uuid):
            if self._locks.pulls_begun() != pulls:
                # A pull began between the listing and the lock, and may have changed what was listed.
                raise PullBusy(f"a pull came between while {_named(spec)} was looked for")
            yield entry.uuid

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
            self._log.warning(
                "the registry cannot say whether the template is current; using the local one",
                extra={"err": str(error)},
            )
            return True

    def _find(self, spec: VMSpec) -> VMInfo | None:
        """The local template, with the wanted tag if one is wanted; None when it is not here or not usable.

        Only the tag that is checked out is listed (as `version`), which is the only one: pulls are made with --shrink.
        """
        try:
            rows = self._list(spec.template)
        except VMNotFound:
            return None
        usable = [row for row in rows if row.state is not VMState.FAILED and spec.tag in (None, row.tag)]
        return usable[0] if usable else None

    def _pull(self, spec: VMSpec, on_pull: Callable[[], None]) -> None:
        """--shrink removes the template's other local tags: the disk of a CI host fills up otherwise. VMs that were cloned
        from them keep their layers."""
        tag = [] if spec.tag is None else ["--tag", spec.tag]
        known = self._local_uuid(spec)
        with self._locks.pulling(known or spec.template) as fds:
            on_pull()
            self._log.info(
                "pulling the template", extra={"ankaTemplate": spec.template, "ankaTemplateTag": spec.tag or ""}
            )
            self._ask(self._registry("pull", "--shrink", spec.template, *tag), _PULL, keep_open=fds)

    def _local_uuid(self, spec: VMSpec) -> str | None:
        try:
            rows = self._list(spec.template)
        except VMNotFound:
            return None
        return rows[0].uuid if rows else None

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
        while True:
            result = self._run(["anka", "-j", "run", vm, "true"], max(1.0, deadline - time.monotonic()))
            if result.status == 0:
                return
            if time.monotonic() + pause >= deadline:
                raise VMTransient(
                    f"the guest of {vm} took no commands within {self._settings.start_timeout:g} s of its start"
                )
            self._orders.wait(pause)
            pause = min(pause * 2, _READY_PAUSE_LONGEST)

    def run(self, vm: str, script: str, timeout: float) -> GuestResult:
        """Run a script in the guest. What -j makes of a guest's output is undocumented, and `anka run` may lose its guest: the
        script's own last line says that it ended, and how."""
        nonce = secrets.token_hex(8)
        result = self._run(["anka", "-j", "run", vm, "bash", "-s"], timeout, stdin=_wrapped(script, nonce))
        output = _guest_output(result.stdout)
        end = re.search(rf"anklet-end-{nonce} ([0-9]{{1,3}})", output[-_MARKER_ROOM:])
        if end is None:
            if result.timed_out:
                raise VMTransient(f"the guest command in {vm} did not end within {timeout:g} s")
            raise error_of(f"guest command in {vm}", result.status, result.stdout, result.stderr)
        text = output[: output.rindex(end[0])].rstrip("\n")
        return GuestResult(status=int(end[1]), output=text[-_OUTPUT_TAIL:])

    def copy_in(self, vm: str, source: Path) -> None:
        """Copy to the guest's home; links are resolved here, for `cp -a` would copy the link."""
        self._ask(["cp", "-a", str(source.resolve()), f"{vm}:"], _COPY, OnStop.FINISH)

    def delete(self, vm: str) -> None:
        """Delete, running or not, and see that it is gone."""
        try:
            self._ask(["delete", "--yes", vm], _DELETE, OnStop.FINISH)
        except VMNotFound:
            return
        try:
            left = [row for row in self._list(vm) if row.name == vm]
        except VMNotFound:
            return
        if left:
            raise VMTransient(f"{vm} is still there after its deletion")

    # ---- commands ----

    def _list(self, *names: str) -> list[VMInfo]:
        envelope = self._ask(["list", *names], _LIST, may_be_silent=True)
        return list(vms(envelope.body))

    def _ask(
        self,
        arguments: Sequence[str],
        timeout: float,
        on_stop: OnStop = OnStop.KILL,
        *,
        keep_open: Sequence[int] = (),
        may_be_silent: bool = False,
    ) -> Envelope:
        """Run a command that answers with an envelope; raise what it failed with, by class of outcome."""
        what = f"anka {_verb(arguments)}"
        result = self._run(["anka", "-j", *arguments], timeout, on_stop=on_stop, keep_open=keep_open, report=False)
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
        return envelope or Envelope(ok=True)

    def _run(
        self,
        argv: Sequence[str],
        timeout: float,
        *,
        stdin: bytes = b"",
        on_stop: OnStop = OnStop.KILL,
        keep_open: Sequence[int] = (),
        report: bool = True,
    ) -> CommandResult:
        self._log.debug("command", extra={"argv": list(argv)})
        result = self._commands.run(argv, timeout=timeout, stdin=stdin, on_stop=on_stop, keep_open=keep_open)
        if report:
            self._commands.ended(_verb(argv[1:]), "transient" if result.timed_out else "done", result.seconds)
        return result


def _value_of(prefix: str, labels: Sequence[str]) -> str:
    return next((label[len(prefix) :] for label in labels if label.lower().startswith(prefix)), "")


def _named(spec: VMSpec) -> str:
    return f"template {spec.template!r}" + ("" if spec.tag is None else f" with tag {spec.tag!r}")


def _verb(arguments: Sequence[str]) -> str:
    """The command's name as metrics know it; two words for the registry's. One of a closed list."""
    words = [word for word in arguments if not word.startswith("-")]
    if not words:
        return "probe"
    return "pull" if words[0] == "registry" else words[0]


def _wrapped(script: str, nonce: str) -> bytes:
    """The script, run by a bash of its own from a descriptor (so that no command in it can read the rest as its input), and
    a last line that tells its status."""
    if not script.endswith("\n"):
        script += "\n"
    lines = (
        f"bash /dev/fd/9 9<<'anklet-script-{nonce}' </dev/null 2>&1\n",
        script,
        f"anklet-script-{nonce}\n",
        f"printf '\\nanklet-end-{nonce} %s\\n' \"$?\"\n",
    )
    return "".join(lines).encode()


def _guest_output(stdout: bytes) -> str:
    """The guest's output, taken out of an envelope where this version of Anka wraps it in one."""
    envelope = parse_envelope(stdout)
    if envelope is not None:
        for text in (envelope.body, envelope.message):
            if isinstance(text, str) and "anklet-end-" in text:
                return text
    return stdout.decode(errors="replace")
