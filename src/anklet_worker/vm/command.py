"""Run one command line tool to its end: time-out, process group, output, orders. The only importer of subprocess.

Owns the child process and nothing of what it means: drivers read the result. A command has a session of its own, so that
Ctrl-C, a dead supervisor or a detach does not end it; (pid, creation time) of the one in flight is handed out, so that a later
process can wait for it or end it before it trusts a listing.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path

import msgspec
import psutil

from anklet_worker.errors import CliUnavailable, ConfigError, Interrupted
from anklet_worker.orders import Orders

#: Output beyond this many bytes: the middle is dropped (a result is in the last lines, a cause in the first).
_KEEP_FIRST, _KEEP_LAST = 64 * 1024, 1024 * 1024
#: Seconds between SIGTERM and SIGKILL, and for which output is awaited after the exit: a grandchild may hold the pipe.
_TERM_GRACE = 3.0
_OUTPUT_GRACE = 2.0
_CHUNK = 65536


class OnStop(Enum):
    """What a stop does to a command in flight."""

    #: End it: it only reads, or may be repeated.
    KILL = "kill"
    #: Let it end, within its time-out: half of its effect would be worse.
    FINISH = "finish"


class CommandResult(msgspec.Struct, frozen=True, kw_only=True):
    """A command that ended. `status` is negative for a signal (a time-out kills); `seconds` is wall time."""

    status: int
    stdout: bytes
    stderr: bytes
    seconds: float
    timed_out: bool


class InFlight(msgspec.Struct, frozen=True, kw_only=True):
    """A command that was started and not yet seen to end. `created` is the process's creation time, Unix seconds."""

    pid: int
    created: float
    verb: str


class CommandSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What all commands of a worker have in common.

    `secrets`: no variable of `env` that contains one of these reaches a child. `in_flight` is told of each start (and, with None,
    of each end); `ended` is told by the drivers: verb, outcome class, seconds.
    """

    env: Mapping[str, str]
    secrets: Sequence[str]
    cwd: Path
    in_flight: Callable[[InFlight | None], None]
    ended: Callable[[str, str, float], None]


class CommandRunner:
    """Runs commands for one worker, one at a time."""

    def __init__(self, orders: Orders, settings: CommandSettings) -> None:
        self.ended = settings.ended
        self._orders = orders
        self._settings = settings
        secrets = [secret for secret in settings.secrets if secret]
        self._env = {
            name: value for name, value in settings.env.items() if not any(secret in value for secret in secrets)
        }

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        stdin: bytes = b"",
        on_stop: OnStop = OnStop.KILL,
        keep_open: Sequence[int] = (),
    ) -> CommandResult:
        """Run `argv` (a list, never a shell line) for at most `timeout` seconds.

        `keep_open` are file descriptors that the child inherits (a lock that shall live as long as it does). Raises
        `CliUnavailable` when it cannot be started, `Interrupted` after a stop (`OnStop.KILL`), `Detached` after a detach (the
        command goes on).
        """
        self._orders.check()
        began = time.monotonic()
        process = self._start(argv, keep_open)
        self._note(process.pid, argv)
        watch = _Watch(process, stdin)
        try:
            self._follow(watch, began + timeout, on_stop)
        finally:
            # After a detach the process lives on, and so must the note of it.
            ended = watch.close()
            if ended:
                self._settings.in_flight(None)
        return CommandResult(
            status=watch.status,
            stdout=watch.stdout.bytes(),
            stderr=watch.stderr.bytes(),
            seconds=time.monotonic() - began,
            timed_out=watch.timed_out,
        )

    def _start(self, argv: Sequence[str], keep_open: Sequence[int]) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                list(argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._env,
                cwd=self._settings.cwd,
                start_new_session=True,
                pass_fds=tuple(keep_open),
            )
        except FileNotFoundError as error:
            if error.filename == str(self._settings.cwd):
                raise CliUnavailable(f"work_dir {self._settings.cwd} does not exist") from None
            raise CliUnavailable(f"{argv[0]} is not on PATH ({self._env.get('PATH', '')}); is it installed?") from None
        except OSError as error:
            raise CliUnavailable(f"{argv[0]} cannot be executed: {error.strerror}") from None

    def _note(self, pid: int, argv: Sequence[str]) -> None:
        # Gone already: nothing to note.
        with contextlib.suppress(psutil.Error):
            created = psutil.Process(pid).create_time()
            verb = next((word for word in argv[1:] if not word.startswith("-")), argv[0])
            self._settings.in_flight(InFlight(pid=pid, created=created, verb=verb))

    def _follow(self, watch: _Watch, deadline: float, on_stop: OnStop) -> None:
        """Move bytes until the process has ended and its output is read, or an order or the deadline comes first."""
        shield = self._orders.shield() if on_stop is OnStop.FINISH else contextlib.nullcontext()
        with shield:
            for fd in self._orders.wake_fds():
                watch.also(fd)
            while not watch.turn(deadline):
                try:
                    self._orders.check()
                except Interrupted:
                    watch.kill()
                    raise
                if time.monotonic() >= deadline:
                    watch.timed_out = True
                    watch.kill()
                    return


class _Watch:
    """A started process, its three pipes and its end, in one selector: nothing is polled."""

    def __init__(self, process: subprocess.Popen[bytes], stdin: bytes) -> None:
        self._process = process
        self._selector = selectors.DefaultSelector()
        self._pending = memoryview(stdin)
        self._exit_read, exit_write = os.pipe()
        self._exited = False
        self._output_until: float | None = None
        self.stdout, self.stderr = _Kept(), _Kept()
        self.timed_out = False
        for stream, kept in ((process.stdout, self.stdout), (process.stderr, self.stderr)):
            if stream is not None:
                os.set_blocking(stream.fileno(), False)
                self._selector.register(stream, selectors.EVENT_READ, kept)
        if process.stdin is not None:
            os.set_blocking(process.stdin.fileno(), False)
            self._selector.register(process.stdin, selectors.EVENT_WRITE, self)
        self._selector.register(self._exit_read, selectors.EVENT_READ, None)
        threading.Thread(target=self._await_exit, args=(exit_write,), name="command", daemon=True).start()

    @property
    def status(self) -> int:
        """Exit status; negative for a signal."""
        return -signal.SIGKILL if self._process.returncode is None else self._process.returncode

    def also(self, fd: int) -> None:
        """Return from `turn` when this becomes readable, too."""
        self._selector.register(fd, selectors.EVENT_READ, None)

    def turn(self, deadline: float) -> bool:
        """Wait for something to happen, at most until `deadline`, and deal with it. True when all is over."""
        now = time.monotonic()
        until = deadline if self._output_until is None else min(deadline, self._output_until)
        for key, _ in self._selector.select(max(0.0, until - now)):
            if key.data is self:
                self._feed()
            elif isinstance(key.data, _Kept):
                self._drain(key.fd, key.data)
            elif key.fd == self._exit_read:
                self._exited = True
                self._output_until = time.monotonic() + _OUTPUT_GRACE
                self._selector.unregister(self._exit_read)
        if not self._exited:
            return False
        reading = any(isinstance(key.data, _Kept) for key in self._selector.get_map().values())
        return not reading or (self._output_until is not None and time.monotonic() >= self._output_until)

    def kill(self) -> None:
        """End the whole session: SIGTERM, then SIGKILL."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)
            end = time.monotonic() + _TERM_GRACE
            while not self._exited and time.monotonic() < end:
                self.turn(end)
            if self._exited:
                return

    def close(self) -> bool:
        """Let go of everything. True when the process has ended."""
        self._selector.close()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        if self._exited:
            os.close(self._exit_read)
        return self._exited

    def _await_exit(self, exit_write: int) -> None:
        # A thread, because no one way to wait for a process and for pipes works on both Linux and macOS.
        self._process.wait()
        os.close(exit_write)

    def _feed(self) -> None:
        stdin = self._process.stdin
        if stdin is None:
            return
        try:
            if self._pending:
                self._pending = self._pending[os.write(stdin.fileno(), self._pending[:_CHUNK]) :]
        except BlockingIOError:
            return
        except OSError:
            # It does not want to read it all.
            self._pending = self._pending[:0]
        if not self._pending:
            self._selector.unregister(stdin)
            with contextlib.suppress(OSError):
                stdin.close()

    def _drain(self, fd: int, kept: _Kept) -> None:
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return
        if data:
            kept.add(data)
        else:
            self._selector.unregister(fd)


class _Kept:
    """The first and the last of an output, bounded."""

    def __init__(self) -> None:
        self._first = bytearray()
        self._last = bytearray()

    def add(self, data: bytes) -> None:
        room = _KEEP_FIRST - len(self._first)
        self._first += data[:room]
        self._last += data[room:] if room < len(data) else b""
        if len(self._last) > 2 * _KEEP_LAST:
            del self._last[:-_KEEP_LAST]

    def bytes(self) -> bytes:
        return bytes(self._first + self._last[-_KEEP_LAST:])


def settle_in_flight(command: InFlight, timeout: float) -> None:
    """A command of an earlier process may still run: wait for it up to `timeout` seconds, then end its session.

    Returns when it is gone. Pids are never compared alone.
    """
    try:
        process = psutil.Process(command.pid)
        if abs(process.create_time() - command.created) > 1.0:
            return
        try:
            process.wait(timeout)
        except psutil.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(command.pid, signal.SIGKILL)
            process.wait(_TERM_GRACE)
    except psutil.NoSuchProcess:
        return
    except psutil.TimeoutExpired:
        # It cannot be killed (it hangs in the kernel); what it holds is not ours to wait for any longer.
        return


def run_capture(command: str, timeout: float = 30.0, *, whole: bool = False) -> str:
    """The first line that a configured command (`token_command`, ...) prints, or the `whole`; no shell.

    Raises `ConfigError`, without output.
    """
    argv = shlex.split(command)
    try:
        done = subprocess.run(argv, capture_output=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired, IndexError) as error:
        what = "took too long" if isinstance(error, subprocess.TimeoutExpired) else "cannot be executed"
        raise ConfigError(f"the command {argv[0] if argv else ''!r} {what}") from None
    if done.returncode != 0:
        raise ConfigError(f"the command {argv[0]!r} ended with exit code {done.returncode}")
    output = done.stdout.decode(errors="replace")
    return output.strip() if whole else output.partition("\n")[0].strip()
