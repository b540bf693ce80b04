"""Inside a guest of Tart's: wait until it answers, run scripts, copy files; by its guest agent, or by ssh where it has none.

Everything goes to `bash -s` on standard input, so that both ways are one, and nothing needs quoting for a remote shell. Scripts
linger after their last line: the agent waits for a command's end, not for that of its output.
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

from anklet_worker.contract.errors import CliUnavailable, VMError, VMFatal, VMNotFound, VMTransient
from anklet_worker.contract.guest import GuestResult
from anklet_worker.process.command import CommandResult, CommandRunner, OnStop
from anklet_worker.process.orders import Orders
from anklet_worker.vm.guest_script import end_line, new_nonce, result_in, wrapped
from anklet_worker.vm.tart.commands import TartCommands
from anklet_worker.vm.tart.output import address_in, classify, exec_words
from anklet_worker.vm.tart.runs import Access, TartRuns
from anklet_worker.vm.tart.ssh import Ssh, ssh_words
from anklet_worker.vm.wording import one_line

_IP = 15.0
_COPY = 120.0
#: One try to reach a starting guest, and the pauses between two of them.
_READY_TRY = 30.0
_READY_PAUSE_FIRST, _READY_PAUSE_LONGEST = 0.1, 2.0
#: A guest agent starts with the desktop session, some seconds after sshd: for so long it is preferred to an ssh that answers.
_AGENT_GRACE = 10.0
#: Bytes of the largest file that is copied, and of one piece of a file that is copied out.
_LARGEST_COPY, _PIECE = 128 * 1024 * 1024, 512 * 1024
_SSH_FAILED = 255

#: What follows the braces on standard input is the file. One that breaks off is not put in place.
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
#: A piece of a file, and how many bytes it has in all. What a guest gives away is a file of its own: no link is followed.
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
    """What the tries to reach a starting guest by ssh have come to. `answered`: since when it answers, monotonic seconds."""

    address: str | None = None
    answered: float | None = None
    said: str = ""


class TartGuests:
    """The guests of this host's VMs of ours."""

    def __init__(self, commands: TartCommands, runs: TartRuns, ssh: Ssh, orders: Orders) -> None:
        self._commands = commands
        self._runs = runs
        self._ssh = ssh
        self._orders = orders
        self._ssh_runner: CommandRunner | None = None

    # ---- from the start until it answers ----

    def wait_for(self, vm: str, check: Callable[[], None], timeout: float, *, has_agent: bool | None) -> Access:
        """Wait until the guest takes commands; how. `check` raises when waiting is in vain; `has_agent` None: not known.

        Raises `VMTransient` when it took none within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        tries = _SshTries()
        pause = _READY_PAUSE_FIRST
        grace = 0.0 if has_agent is False else _AGENT_GRACE
        while True:
            check()
            if self._agent_answers(vm, deadline):
                return Access.AGENT
            if tries.answered is None:
                self._try_ssh(vm, tries, deadline)
            is_last = time.monotonic() + pause >= deadline
            if tries.answered is not None and (is_last or time.monotonic() >= tries.answered + grace):
                return Access.SSH
            if is_last:
                why = f"neither its guest agent nor ssh at {tries.address} answers ({tries.said})"
                raise VMTransient(
                    f"the guest of {vm} took no commands within {timeout:g} s of its start: "
                    + (_NO_ADDRESS if tries.address is None else why)
                )
            self._orders.wait(pause)
            pause = min(pause * 2, _READY_PAUSE_LONGEST)

    def _agent_answers(self, vm: str, deadline: float) -> bool:
        return self._commands.run(["tart", "exec", vm, "true"], _patience(deadline)).status == 0

    def _try_ssh(self, vm: str, tries: _SshTries, deadline: float) -> None:
        try:
            tries.address = self._address(vm)
            result = self._by_ssh(tries.address, b"exit 0\n", _patience(deadline), OnStop.KILL)
        except (VMError, CliUnavailable) as error:
            tries.said = str(error)
            return
        if result.status == 0:
            tries.answered = time.monotonic()
        tries.said = ssh_words(result.stderr)

    # ---- commands ----

    def run(self, vm: str, script: str, timeout: float, *, looks_only: bool) -> GuestResult:
        """Run a script. Raises `VMTransient` when its end was not seen, `VMNotFound` for no VM."""
        on_stop = OnStop.DISCARD if looks_only else OnStop.KILL
        nonce = new_nonce()
        return self._ended(vm, wrapped(script, nonce, lingers=True), nonce, timeout, on_stop)

    def copy_in(self, vm: str, source: Path) -> None:
        """Copy one file to the home, under its own name and mode; it is there whole or not at all."""
        resolved = source.resolve()
        if not resolved.is_file():
            raise VMFatal(f"{source} cannot be copied to the guest: it is no file")
        try:
            mode, size = resolved.stat().st_mode & 0o777, resolved.stat().st_size
            if size > _LARGEST_COPY:
                raise VMFatal(f"{source} cannot be copied to the guest: it has more than {_LARGEST_COPY >> 20} MiB")
            data = resolved.read_bytes()
        except OSError as error:
            raise VMTransient(f"{source} cannot be read: {error.strerror}") from None
        nonce = new_nonce()
        script = _COPY_IN.format(
            size=len(data), mode=mode, name=shlex.quote(f"./{source.name}"), end=end_line(nonce, lingers=True)
        )
        result = self._ended(vm, script.encode(errors="surrogateescape") + data, nonce, _COPY, OnStop.FINISH)
        if result.status != 0:
            raise VMTransient(f"copying {source.name} to {vm} ended with status {result.status}")

    def copy_out(self, vm: str, path: str, target: Path) -> None:
        """Copy one file of the home (`path`: plain words and slashes) to the host. What is not whole is not there."""
        try:
            with tempfile.TemporaryFile() as aside:
                for piece in self._pieces(vm, path):
                    aside.write(piece)
                aside.seek(0)
                with target.open("wb") as file:
                    shutil.copyfileobj(aside, file)
        except OSError as error:
            raise VMTransient(f"{target} cannot be written: {error.strerror}") from None

    def _pieces(self, vm: str, path: str) -> Iterator[bytes]:
        deadline = time.monotonic() + _COPY
        size, number = 1, 0
        while number * _PIECE < size:
            if time.monotonic() >= deadline:
                raise VMTransient(f"copying {path} from {vm} did not end within {_COPY:g} s")
            size, piece = self._piece(vm, path, number)
            if size > _LARGEST_COPY:
                raise VMFatal(f"{path} in {vm} has more than {_LARGEST_COPY >> 20} MiB")
            yield piece
            number += 1

    def _piece(self, vm: str, path: str, number: int) -> tuple[int, bytes]:
        nonce = new_nonce()
        script = _COPY_OUT.format(path=f"./{path}", piece=_PIECE, number=number, end=end_line(nonce, lingers=True))
        result = self._ended(vm, script.encode(), nonce, _COPY, OnStop.FINISH)
        if result.status != 0:
            raise VMFatal(f"{one_line(repr(path))} in {vm} is no file")
        size, _, encoded = result.output.partition("\n")
        try:
            return int(size), base64.b64decode("".join(encoded.split()), validate=True)
        except (ValueError, binascii.Error):
            raise VMTransient(f"copying {path} from {vm}: what came cannot be understood") from None

    # ---- the two ways ----

    def _ended(self, vm: str, stdin: bytes, nonce: str, timeout: float, on_stop: OnStop) -> GuestResult:
        known = self._runs.of(vm)
        by_ssh = known is not None and known.access is Access.SSH
        if by_ssh:
            result = self._by_ssh(self._address(vm), stdin, timeout, on_stop)
        else:
            argv = ["tart", "exec", "-i", vm, "bash", "-s"]
            result = self._commands.run(argv, timeout, stdin=stdin, on_stop=on_stop)
        ended = result_in(result.stdout.decode(errors="replace"), nonce)
        if ended is not None:
            return ended
        if result.timed_out:
            raise VMTransient(f"the guest command in {vm} did not end within {timeout:g} s")
        raise self._lost(vm, result, by_ssh=by_ssh)

    def _by_ssh(self, address: str, stdin: bytes, timeout: float, on_stop: OnStop) -> CommandResult:
        if self._ssh_runner is None:
            try:
                self._ssh_runner = self._commands.runner.with_env(self._ssh.env())
            except OSError as error:
                raise VMTransient(f"the files for ssh cannot be written: {error.strerror}") from None
        argv = self._ssh.argv(address, "bash", "-s")
        return self._commands.run(argv, timeout, stdin=stdin, on_stop=on_stop, runner=self._ssh_runner)

    def _address(self, vm: str) -> str:
        """Raises `VMTransient` while it has none."""
        address = address_in(self._commands.ask(["ip", vm], _IP))
        if address is None:
            raise VMTransient(f"tart ip tells no address of {vm}")
        return address

    def _lost(self, vm: str, result: CommandResult, *, by_ssh: bool) -> VMError:
        """Both streams may hold what the guest printed, secrets included: nothing is quoted but words of the tools' own."""
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


def _patience(deadline: float) -> float:
    return min(_READY_TRY, max(1.0, deadline - time.monotonic()))
