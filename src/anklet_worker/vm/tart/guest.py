"""Guests of Tart: wait until one answers, run scripts, copy files; by the guest agent, or by ssh for an image without one.

Everything goes to `bash -s` on standard input: both ways work alike, and nothing needs quoting for a remote shell. Scripts linger
after their last line, because the agent waits for the end of a command but not for the end of its output.
"""

from __future__ import annotations

import base64
import binascii
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from anklet_worker.contract.errors import CliUnavailable, FileUnusable, VMError, VMNotFound, VMTransient
from anklet_worker.contract.guest import GuestResult
from anklet_worker.process.command import CommandResult, OnStop
from anklet_worker.process.orders import Orders
from anklet_worker.vm.guest_script import end_line, new_nonce
from anklet_worker.vm.guests import Answer, feed, never_ready, not_a_file, run_script, source_file, wait_until_ready
from anklet_worker.vm.tart.commands import printed
from anklet_worker.vm.tart.output import address_in, classify, exec_words
from anklet_worker.vm.tart.runs import Access, TartRuns
from anklet_worker.vm.tart.ssh import Ssh, ssh_words
from anklet_worker.vm.tool import Tool
from anklet_worker.vm.wording import one_line

_IP = 15.0
_COPY = 120.0
#: A guest agent starts with the desktop session, some seconds after sshd: seconds for which an ssh that answers waits for it.
_AGENT_GRACE = 10.0
#: Bytes of the largest file to copy, and of one piece of a file that is copied out.
_LARGEST_COPY, _PIECE = 128 * 1024 * 1024, 512 * 1024
_SSH_FAILED = 255

#: The file follows the braces on standard input. One that breaks off is not put in place.
_COPY_IN = """\
{{
cd ~ || exit
part=$(mktemp "$PWD/.anklet.XXXXXXXX") || exit
cat >"$part" && [ "$(($(wc -c <"$part")))" -eq {size} ] && chmod {mode:o} "$part" && mv -f "$part" {name}
status=$?
rm -f "$part"
{end}
exit 0
}}
"""
#: The size of the whole file, and one piece of it. No link is followed: a guest gives away only its own files.
_COPY_OUT = """\
{{
cd ~ || exit
status=66
if [ -f {path} ] && [ ! -h {path} ]; then
    echo "$(($(wc -c <{path})))" && dd if={path} bs={piece} skip={number} count=1 2>/dev/null | base64
    status=$?
fi
{end}
exit 0
}}
"""
_NO_ADDRESS = (
    "its guest agent does not answer and macOS gave it no address (the image does not boot, or DHCP has none left, as after "
    "some 250 VMs a day: set bootpd's DHCPLeaseTimeSecs to 600, see `anklet-supervisor doctor`)"
)


class _SshTries(msgspec.Struct):
    """How the tries to reach a starting guest by ssh went. `answered`: since when it answers, monotonic seconds."""

    address: str | None = None
    answered: float | None = None
    said: str = ""


class TartGuests:
    """The guests of our VMs on this host."""

    def __init__(self, tool: Tool, runs: TartRuns, ssh: Ssh, orders: Orders) -> None:
        self._tool = tool
        self._runs = runs
        self._ssh = ssh
        self._orders = orders
        self._ssh_tool: Tool | None = None

    # ---- from the start until it answers ----

    def wait_for(self, vm: str, check: Callable[[], None], timeout: float, *, has_agent: bool | None) -> Access:
        """Wait until the guest takes commands, and return by which way. `check` raises when waiting is useless; `has_agent` is
        None when it is unknown.

        Raises `VMTransient` when the guest took no command within `timeout` seconds.
        """
        tries = _SshTries()
        grace = 0.0 if has_agent is False else _AGENT_GRACE

        def answers(seconds: float) -> Access | None:
            check()
            if self._tool.run(["tart", "exec", vm, "true"], seconds, "exec").status == 0:
                return Access.AGENT
            if tries.answered is None:
                self._try_ssh(vm, tries, seconds)
            waited = tries.answered is not None and time.monotonic() >= tries.answered + grace
            return Access.SSH if waited else None

        def give_up() -> Access:
            if tries.answered is not None:
                return Access.SSH
            why = f"neither its guest agent nor ssh at {tries.address} answers ({tries.said})"
            raise never_ready(vm, timeout, _NO_ADDRESS if tries.address is None else why)

        return wait_until_ready(answers, give_up, time.monotonic() + timeout, self._orders)

    def _try_ssh(self, vm: str, tries: _SshTries, seconds: float) -> None:
        try:
            tries.address = self._address(vm)
            result = self._by_ssh(tries.address, b"exit 0\n", seconds, OnStop.KILL)
        except (VMError, CliUnavailable) as error:
            tries.said = str(error)
            return
        if result.status == 0:
            tries.answered = time.monotonic()
        tries.said = ssh_words(result.stderr)

    # ---- commands ----

    def run(self, vm: str, script: str, timeout: float, *, looks_only: bool) -> GuestResult:
        """Run a script. Raises `VMTransient` when its end was not seen, `VMNotFound` when there is no such VM."""
        return run_script(self._shell, vm, script, timeout, looks_only=looks_only, lingers=True)

    def copy_in(self, vm: str, source: Path) -> None:
        """Copy one file to the home, under its own name and mode; it arrives completely or not at all."""
        resolved = source_file(source)
        try:
            mode, size = resolved.stat().st_mode & 0o777, resolved.stat().st_size
            if size > _LARGEST_COPY:
                raise FileUnusable(
                    f"cannot copy {source} to the guest: larger than {_LARGEST_COPY >> 20} MiB; let the job download it"
                )
            data = resolved.read_bytes()
        except OSError as error:
            raise VMTransient(f"cannot read {source}: {error.strerror}") from None
        nonce = new_nonce()
        script = _COPY_IN.format(
            size=len(data), mode=mode, name=shlex.quote(f"./{source.name}"), end=end_line(nonce, lingers=True)
        )
        stdin = script.encode(errors="surrogateescape") + data
        result = feed(self._shell, vm, stdin, nonce, _COPY, OnStop.FINISH)
        if result.status != 0:
            raise VMTransient(f"copying {source.name} to {vm} ended with status {result.status}")

    def copy_out(self, vm: str, path: str, target: Path) -> None:
        """Copy one file of the home (`path`: plain words and slashes) to the host, completely or not at all."""
        try:
            with tempfile.TemporaryFile() as aside:
                for piece in self._pieces(vm, path):
                    aside.write(piece)
                aside.seek(0)
                with target.open("wb") as file:
                    shutil.copyfileobj(aside, file)
        except OSError as error:
            raise VMTransient(f"cannot write {target}: {error.strerror}") from None

    def _pieces(self, vm: str, path: str) -> Iterator[bytes]:
        deadline = time.monotonic() + _COPY
        size, number = 1, 0
        while number * _PIECE < size:
            if time.monotonic() >= deadline:
                raise VMTransient(f"copying {path} from {vm} did not end within {_COPY:g} s")
            size, piece = self._piece(vm, path, number)
            if size > _LARGEST_COPY:
                raise FileUnusable(f"cannot copy {path} from {vm}: larger than {_LARGEST_COPY >> 20} MiB")
            yield piece
            number += 1

    def _piece(self, vm: str, path: str, number: int) -> tuple[int, bytes]:
        nonce = new_nonce()
        script = _COPY_OUT.format(path=f"./{path}", piece=_PIECE, number=number, end=end_line(nonce, lingers=True))
        result = feed(self._shell, vm, script.encode(), nonce, _COPY, OnStop.FINISH)
        if result.status != 0:
            raise not_a_file(path, vm)
        size, _, encoded = result.output.partition("\n")
        try:
            return int(size), base64.b64decode("".join(encoded.split()), validate=True)
        except (ValueError, binascii.Error):
            raise VMTransient(f"cannot read what came from copying {path} from {vm}") from None

    # ---- the two ways ----

    def _shell(self, vm: str, stdin: bytes, timeout: float, on_stop: OnStop) -> Answer:
        known = self._runs.of(vm)
        by_ssh = known is not None and known.access is Access.SSH
        if by_ssh:
            result = self._by_ssh(self._address(vm), stdin, timeout, on_stop)
        else:
            argv = ["tart", "exec", "-i", vm, "bash", "-s"]
            result = self._tool.run(argv, timeout, "exec", stdin=stdin, on_stop=on_stop)
        return Answer(
            result=result,
            texts=(result.stdout.decode(errors="replace"),),
            lost=lambda: self._lost(vm, result, by_ssh=by_ssh),
        )

    def _by_ssh(self, address: str, stdin: bytes, timeout: float, on_stop: OnStop) -> CommandResult:
        if self._ssh_tool is None:
            try:
                self._ssh_tool = self._tool.with_env(self._ssh.env())
            except OSError as error:
                raise VMTransient(f"cannot write the files for ssh: {error.strerror}") from None
        argv = self._ssh.argv(address, "bash", "-s")
        return self._ssh_tool.run(argv, timeout, "exec", stdin=stdin, on_stop=on_stop)

    def _address(self, vm: str) -> str:
        """Raises `VMTransient` while the guest has no address."""
        address = address_in(self._tool.ask(["ip", vm], _IP, printed))
        if address is None:
            raise VMTransient(f"tart ip prints no address of {vm}")
        return address

    def _lost(self, vm: str, result: CommandResult, *, by_ssh: bool) -> VMError:
        """Both streams may hold what the guest printed, secrets included: only the tools' own words are quoted."""
        if by_ssh:
            words = ssh_words(result.stderr) if result.status == _SSH_FAILED else ""
            kind: type[VMError] = VMTransient
        else:
            words = exec_words(result.stderr)
            kind = classify(words) if words else VMTransient
        said = self._runs.last_words(vm) if kind is not VMNotFound else ""
        cause = words or f"exit status {result.status}"
        return kind(
            f"guest command in {vm}: its end was not seen ({cause})" + (f"; tart run: {one_line(said)}" if said else "")
        )
