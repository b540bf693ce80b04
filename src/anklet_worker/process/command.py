"""Runs one command line tool to its end: time-out, process group, output, orders. The only importer of subprocess.

Owns the child process but not its meaning: drivers read the result. Each command has its own session, so that Ctrl-C, the
supervisor's death or a detach does not end it. The pid and creation time of the command in flight are noted, so that a later
process can wait for it, or end it, before it trusts a listing.

A process that lives as long as a VM is launched instead: it goes on when we end.

Output goes to unnamed files, not to pipes. A clone or a pull must survive our death, and a write to a pipe without a reader would
kill it halfway. Nor can a full pipe block a command, or a grandchild keep us waiting for the end of its output.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import IO

import msgspec
import psutil

from anklet_worker.contract.errors import CliUnavailable, ConfigError, Detached, VMTransient
from anklet_worker.process.orders import Orders

#: Bytes of output that a result keeps. The middle is dropped: results are in the last lines, causes in the first.
_KEEP_FIRST, _KEEP_LAST = 64 * 1024, 1024 * 1024
#: Bytes of output after which a command counts as out of control, and seconds between two checks.
_MOST_OUTPUT = 256 * 1024 * 1024
_LOOK_AT_OUTPUT = 1.0
#: Seconds between SIGTERM and SIGKILL, and seconds to wait for the end after SIGKILL.
_TERM_GRACE, _KILL_GRACE = 2.0, 5.0
_PAUSE = 0.05
_CHUNK = 65536
#: Secrets of fewer characters must match a whole value: a password of one letter is part of every PATH.
_SHORT_SECRET = 6
#: Two processes may read the creation time of a third with a difference of the clock's resolution, in seconds.
_SAME_TIME = 1.0
#: Seconds within which an announced command has its process.
_STARTED_WITHIN = 30.0
#: Seconds for which a tool that has run before may be missing or not executable: another version is replacing it.
_REPLACED_WITHIN = 60.0
#: errno of an executable for another processor (macOS).
_EBADARCH = 86
_UNFIT = frozenset(
    {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, _EBADARCH}
)


class OnStop(Enum):
    """What a stop does to a command in flight."""

    #: End it: it only reads, or can be repeated.
    KILL = "kill"
    #: Let it finish within its time-out: half of its effect would be worse.
    FINISH = "finish"
    #: It only waits for something to happen: every order ends it, a detach too, and no later process waits for it.
    DISCARD = "discard"


class CommandResult(msgspec.Struct, frozen=True, kw_only=True):
    """A command that ended. `status` is negative for a signal (a time-out kills); `seconds` is how long it ran."""

    status: int
    stdout: bytes
    stderr: bytes
    seconds: float
    timed_out: bool


class InFlight(msgspec.Struct, frozen=True, kw_only=True):
    """A command that was started and whose end was not seen yet. `created`: the process's creation time, Unix seconds;
    `expendable`: nothing needs to wait for it. Without a `pid` it was about to start at `created`; its `argv` identifies it."""

    pid: int | None
    created: float
    verb: str
    expendable: bool = False
    argv: tuple[str, ...] = ()


#: Called before a command starts, again with its process, and with None after its end. After a detach we do not see the end, so the
#: note stays.
Note = Callable[[InFlight | None], None]


class CommandSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of all commands of a worker.

    `secrets`: a variable of `env` that contains one of these reaches no child. `in_flight`: see `Note`; a command runs even when
    its note cannot be written (a full disk), because it may be the one that makes room. `ended`: drivers call it with a
    command's verb, its outcome and its seconds.
    """

    env: Mapping[str, str]
    secrets: Sequence[str]
    cwd: Path
    in_flight: Note
    ended: Callable[[str, str, float], None]


class Launched:
    """A process that should outlive us. Others find it by `process`; it is reaped when it ends before we do."""

    def __init__(self, process: subprocess.Popen[bytes], verb: str) -> None:
        self._process = process
        created = time.time()
        # It may have ended already, but its pid cannot be reused before it is waited for.
        with contextlib.suppress(psutil.Error):
            created = psutil.Process(process.pid).create_time()
        self.process = InFlight(pid=process.pid, created=created, verb=verb)
        threading.Thread(target=process.wait, name="launched", daemon=True).start()

    @property
    def status(self) -> int | None:
        """Its exit status (negative for a signal); None while it runs."""
        return self._process.poll()


class CommandRunner:
    """Runs commands for one worker, one at a time."""

    def __init__(self, orders: Orders, settings: CommandSettings) -> None:
        self.ended = settings.ended
        self._orders = orders
        self._settings = settings
        self._env = {name: value for name, value in settings.env.items() if not _betrays(value, settings.secrets)}
        #: Tools that have run, and since when they are missing (monotonic seconds; None: they are not).
        self._missing_since: dict[str, float | None] = {}

    def with_env(self, more: Mapping[str, str]) -> CommandRunner:
        """A runner with the same settings, whose commands have these additional variables. None of them may be a secret."""
        return CommandRunner(self._orders, msgspec.structs.replace(self._settings, env={**self._settings.env, **more}))

    def launch(self, argv: Sequence[str], output: Path) -> Launched:
        """Start a process in its own session that goes on when we end, and do not wait for it. Its output is appended to the file
        `output`, which only our user can read.

        It is not a command in flight: listings are trusted while it runs. Raises as `run` does.
        """
        self._orders.check()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(output, flags, 0o600)
        except OSError as error:
            raise VMTransient(f"cannot write {output}: {error.strerror}") from None
        try:
            with self._perhaps_replaced(argv[0]):
                process = _popen(argv, self._env, self._settings.cwd, (), (subprocess.DEVNULL, fd, fd))
        finally:
            os.close(fd)
        return Launched(process, _verb(argv))

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        stdin: bytes = b"",
        on_stop: OnStop = OnStop.KILL,
        keep_open: Sequence[int] = (),
        note: Note | None = None,
    ) -> CommandResult:
        """Run `argv` (a list, never a shell line) for at most `timeout` seconds.

        `keep_open`: file descriptors that the child inherits (a lock that must live as long as the child); `note` replaces the
        usual hook. Raises `CliUnavailable` when the tool cannot be executed (one that has run before: after a minute of that),
        `VMTransient` when the host lacks a resource or the output has no end, `Interrupted` after a stop (except with
        `OnStop.FINISH`), `Detached` after a detach (the command goes on, except with `OnStop.DISCARD`).
        """
        self._orders.check()
        began = time.monotonic()
        timed_out = False
        note = note or self._settings.in_flight
        intent = InFlight(
            pid=None, created=time.time(), verb=_verb(argv), expendable=on_stop is OnStop.DISCARD, argv=tuple(argv)
        )
        with self._announced(intent, note), self._perhaps_replaced(argv[0]):
            child = _Child(argv, stdin, self._env, self._settings.cwd, keep_open)
        with self._noted(child, intent, note):
            if not self._wait_for(child, began + timeout, on_stop):
                timed_out = True
                child.end()
            return CommandResult(
                status=child.status,
                stdout=child.stdout.read(),
                stderr=child.stderr.read(),
                seconds=time.monotonic() - began,
                timed_out=timed_out,
            )

    @contextlib.contextmanager
    def _perhaps_replaced(self, tool: str) -> Iterator[None]:
        """An upgrade removes a tool for a moment. That must not end the service, which may have a job running."""
        try:
            yield
        except CliUnavailable as error:
            if tool not in self._missing_since:
                raise
            since, now = self._missing_since[tool], time.monotonic()
            if since is None:
                self._missing_since[tool] = since = now
            if now - since >= _REPLACED_WITHIN:
                raise
            raise VMTransient(str(error)) from None
        self._missing_since[tool] = None

    @contextlib.contextmanager
    def _announced(self, intent: InFlight, note: Note) -> Iterator[None]:
        """Note the command before it starts: we could die in between and leave a clone that neither a listing nor a note shows."""
        with contextlib.suppress(OSError):
            note(intent)
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError):
                note(None)
            raise

    @contextlib.contextmanager
    def _noted(self, child: _Child, intent: InFlight, note: Note) -> Iterator[None]:
        """Note the child while it lives. Only a detach leaves it alive; every other exception ends it."""
        try:
            if child.created is not None:
                with contextlib.suppress(OSError):
                    note(msgspec.structs.replace(intent, pid=child.pid, created=child.created))
            yield
        except Detached:
            if intent.expendable:
                child.end()
            raise
        except BaseException:
            child.end()
            raise
        finally:
            child.let_go()
            if child.ended:
                with contextlib.suppress(OSError):
                    note(None)

    def _wait_for(self, child: _Child, deadline: float, on_stop: OnStop) -> bool:
        """Wait for the end of the child; False when the deadline came first."""
        with self._orders.shield() if on_stop is OnStop.FINISH else contextlib.nullcontext():
            while not child.wait(deadline, self._orders.wake_fds()):
                self._orders.check()
                if time.monotonic() >= deadline:
                    return False
        return True


def settle_in_flight(command: InFlight, timeout: float, wait: Callable[[float], None] = time.sleep) -> None:
    """Wait up to `timeout` seconds for a command that an earlier process started, then end its session.

    Returns when it is gone. A pid is always compared together with a creation time. `wait` sleeps for some seconds; what it
    raises cuts this short. Raises `VMTransient` when the command cannot be ended (it hangs in the kernel): then no listing can be
    trusted.
    """
    pid = command.pid
    if pid is None:
        command = _started(command) or command
        pid = command.pid
        if pid is None:
            return
    if _gone_within(command, 0.0 if command.expendable else timeout, wait):
        return
    _signal_session(pid, signal.SIGTERM)
    if _gone_within(command, _TERM_GRACE, wait):
        return
    _signal_session(pid, signal.SIGKILL)
    if not _gone_within(command, _KILL_GRACE, wait):
        raise VMTransient(f"the command {command.verb!r} (pid {pid}) of an earlier process cannot be ended")


def launched_with(verb: str, last: str) -> list[InFlight]:
    """All processes whose command line contains this verb and ends with this word."""
    found = []
    for process in psutil.process_iter(["cmdline", "create_time"]):
        line = process.info["cmdline"]
        if line and verb in line and line[-1] == last:
            found.append(InFlight(pid=process.pid, created=process.info["create_time"], verb=verb))
    return found


def run_capture(command: str, timeout: float = 30.0, *, whole: bool = False) -> str:
    """Run a configured command (`token_command`, ...) without a shell; return the first line of its output, or the `whole`.

    Raises `ConfigError`, which quotes neither the command's output nor its arguments.
    """
    try:
        argv = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"the command cannot be split into words: {str(error).lower()}") from None
    if not argv:
        raise ConfigError("the command is empty")
    try:
        child = _Child(argv, b"", os.environ, None, ())
    except (CliUnavailable, VMTransient):
        raise ConfigError(f"the command {argv[0]!r} cannot be executed") from None
    try:
        if not child.wait_through(time.monotonic() + timeout):
            raise ConfigError(f"the command {argv[0]!r} did not end within {timeout:g} s")
        output = child.stdout.read().decode(errors="replace")
    except VMTransient as error:
        raise ConfigError(str(error)) from None
    finally:
        child.end()
        child.let_go()
    if child.status != 0:
        raise ConfigError(f"the command {argv[0]!r} ended with exit code {child.status}")
    return output.strip() if whole else output.partition("\n")[0].strip()


class _Child:
    """A started command: a pipe feeds it, files take its output, and a pipe of our own reports its end."""

    def __init__(
        self, argv: Sequence[str], stdin: bytes, env: Mapping[str, str], cwd: Path | None, keep_open: Sequence[int]
    ) -> None:
        self._name = argv[0]
        self._pending = memoryview(stdin)
        self.stdout, self.stderr = _scratch(), _scratch()
        self._end, end = os.pipe()
        try:
            self._process = _popen(argv, env, cwd, keep_open, (subprocess.PIPE, self.stdout.file, self.stderr.file))
        except BaseException:
            os.close(end)
            self._close(None)
            raise
        self.pid = self._process.pid
        self.created: float | None = None
        self.ended = False
        # It may have ended already, but its pid cannot be reused before it is waited for.
        with contextlib.suppress(psutil.Error):
            self.created = psutil.Process(self.pid).create_time()
        self._stdin = self._process.stdin
        if self._stdin is not None:
            os.set_blocking(self._stdin.fileno(), False)
        threading.Thread(target=_reap, args=(self._process, end), name="command", daemon=True).start()

    @property
    def status(self) -> int:
        """Exit status; negative for a signal."""
        return -signal.SIGKILL if self._process.returncode is None else self._process.returncode

    def wait(self, deadline: float, wake: Sequence[int] = ()) -> bool:
        """Feed it until it ends (True). False when one of `wake` is readable, the deadline has come, or a second has passed."""
        until = min(deadline, time.monotonic() + _LOOK_AT_OUTPUT)
        with selectors.DefaultSelector() as selector:
            for fd in (self._end, *wake):
                selector.register(fd, selectors.EVENT_READ)
            if self._stdin is not None:
                selector.register(self._stdin, selectors.EVENT_WRITE)
            while True:
                left = until - time.monotonic()
                ready = {key.fd for key, _ in selector.select(max(0.0, left))}
                if self._end in ready:
                    self.ended = True
                    return True
                if left <= 0 or ready.intersection(wake):
                    break
                if ready:
                    self._feed(selector)
        self._check_output()
        return False

    def wait_through(self, deadline: float) -> bool:
        """Wait for its end; False when the deadline came first."""
        while not self.wait(deadline):
            if time.monotonic() >= deadline:
                return False
        return True

    def end(self) -> None:
        """End its whole session, unless it has ended: SIGTERM, then SIGKILL for every process that is left."""
        if self.ended:
            return
        for number, grace in ((signal.SIGTERM, _TERM_GRACE), (signal.SIGKILL, _KILL_GRACE)):
            _signal_session(self.pid, number)
            with contextlib.suppress(VMTransient):
                self.wait_through(time.monotonic() + grace)

    def let_go(self) -> None:
        """Close our descriptors. A command that still runs goes on, and reads the end of its input."""
        self._close(self._stdin)

    def _close(self, stdin: IO[bytes] | None) -> None:
        os.close(self._end)
        for file in (stdin, self.stdout.file, self.stderr.file):
            if file is not None:
                with contextlib.suppress(BrokenPipeError):
                    file.close()

    def _feed(self, selector: selectors.BaseSelector) -> None:
        """Write some input, and close it after the last of it."""
        if self._stdin is None:
            return
        try:
            if self._pending:
                self._pending = self._pending[os.write(self._stdin.fileno(), self._pending[:_CHUNK]) :]
        except BlockingIOError:
            return
        except OSError:
            # It does not read all of its input.
            self._pending = self._pending[:0]
        if not self._pending:
            selector.unregister(self._stdin)
            self._stdin.close()
            self._stdin = None

    def _check_output(self) -> None:
        if max(self.stdout.size(), self.stderr.size()) > _MOST_OUTPUT:
            raise VMTransient(f"{self._name} printed more than {_MOST_OUTPUT >> 20} MiB and was ended")


class _Scratch:
    """One output of a command, in an unnamed file."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  closed by its child

    def size(self) -> int:
        """Bytes so far."""
        return os.fstat(self.file.fileno()).st_size

    def read(self) -> bytes:
        """All of it, or its beginning and its end."""
        fd, size = self.file.fileno(), self.size()
        if size <= _KEEP_FIRST + _KEEP_LAST:
            return os.pread(fd, size, 0)
        return os.pread(fd, _KEEP_FIRST, 0) + b"\n" + os.pread(fd, _KEEP_LAST, size - _KEEP_LAST)


def _scratch() -> _Scratch:
    try:
        return _Scratch()
    except OSError as error:
        raise VMTransient(f"no temporary file for a command's output: {error.strerror}") from None


def _popen(
    argv: Sequence[str],
    env: Mapping[str, str],
    cwd: Path | None,
    keep_open: Sequence[int],
    streams: tuple[int, IO[bytes] | int, IO[bytes] | int],
) -> subprocess.Popen[bytes]:
    """`streams` are standard input, output and error."""
    try:
        return subprocess.Popen(
            list(argv),
            bufsize=0,
            stdin=streams[0],
            stdout=streams[1],
            stderr=streams[2],
            env=env,
            cwd=cwd,
            start_new_session=True,
            pass_fds=tuple(keep_open),
        )
    except OSError as error:
        if cwd is not None and str(error.filename) == str(cwd):
            raise CliUnavailable(f"work_dir {cwd} cannot be entered: {error.strerror}") from None
        if error.errno == errno.ENOENT:
            raise CliUnavailable(f"{argv[0]} is not on PATH ({env.get('PATH', '')}); is it installed?") from None
        if error.errno in _UNFIT:
            raise CliUnavailable(f"{argv[0]} cannot be executed: {error.strerror}") from None
        raise VMTransient(f"{argv[0]} cannot be started now: {error.strerror}") from None


def _reap(process: subprocess.Popen[bytes], end: int) -> None:
    # A thread, because Linux and macOS have no common way to wait for a process and for descriptors together.
    process.wait()
    os.close(end)


def _verb(argv: Sequence[str]) -> str:
    return next((word for word in argv[1:] if not word.startswith("-")), argv[0])


def _betrays(value: str, secrets: Sequence[str]) -> bool:
    return any(secret == value or (len(secret) >= _SHORT_SECRET and secret in value) for secret in secrets if secret)


def _signal_session(session: int, number: signal.Signals) -> None:
    """Signal the leader's group, and then every process of its session that is in another group."""
    if session <= 1 or session == os.getsid(0):
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(session, number)
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getsid(pid) == session and os.getpgid(pid) != session:
                os.kill(pid, number)


def _started(intent: InFlight) -> InFlight | None:
    """The process of an announced command, if it lives: these arguments, its own session, created at about that time."""
    if not intent.argv:
        return None
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            created = process.create_time()
            if -_SAME_TIME <= created - intent.created <= _STARTED_WITHIN and os.getsid(process.pid) == process.pid:
                # The command line of a script begins with its interpreter.
                program, *arguments = process.cmdline()[-len(intent.argv) :] or [""]
                if Path(program).name == Path(intent.argv[0]).name and arguments == list(intent.argv[1:]):
                    return msgspec.structs.replace(intent, pid=process.pid, created=created)
    return None


def _gone_within(command: InFlight, seconds: float, wait: Callable[[float], None]) -> bool:
    deadline = time.monotonic() + seconds
    while _lives(command):
        if time.monotonic() >= deadline:
            return False
        wait(_PAUSE)
    return True


def _lives(command: InFlight) -> bool:
    try:
        process = psutil.Process(command.pid)
        same = abs(process.create_time() - command.created) <= _SAME_TIME
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        # Another user's process: not one that we started.
        return False
