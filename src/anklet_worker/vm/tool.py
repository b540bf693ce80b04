"""Runs the command line tool of one VM product: time-outs, debug log, outcomes for metrics, locks that a pull inherits.

Owns what every driver does around each command. Knows no tool and no command by name: drivers give the argument lists and read
the answers.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from anklet_worker.contract.errors import CliUnavailable, RightsRefused, TemporaryError, VMError, VMTransient
from anklet_worker.process.command import CommandResult, CommandRunner, Launched, OnStop
from anklet_worker.vm.image_locks import PullHold
from anklet_worker.vm.wording import outcome_name

#: Seconds for which a probe may be killed by signals before the tool counts as unusable. One kill is a passing trouble of the
#: host (memory pressure, a tool that is being replaced); a tool that macOS refuses to run is killed every time.
_KILLED_WITHIN = 60.0

_T = TypeVar("_T")


class Tool:
    """One VM tool, for one worker. `prefix` starts each command of `ask` (`anka -j`); `verb_of` names a command for metrics and
    messages, from a closed list."""

    def __init__(
        self,
        prefix: Sequence[str],
        verb_of: Callable[[Sequence[str]], str],
        commands: CommandRunner,
        log: logging.LoggerAdapter[logging.Logger],
    ) -> None:
        self._prefix = tuple(prefix)
        self._verb_of = verb_of
        self._commands = commands
        self._log = log
        #: When probes began to be killed by signals, monotonic seconds; None after one that was not.
        self._killed_since: float | None = None

    @property
    def name(self) -> str:
        """The program."""
        return self._prefix[0]

    def ask(
        self,
        arguments: Sequence[str],
        timeout: float,
        read: Callable[[str, CommandResult], _T],
        on_stop: OnStop = OnStop.KILL,
        *,
        pull: PullHold | None = None,
    ) -> _T:
        """Run a command for at most `timeout` seconds and return what `read` makes of its result.

        `read` gets the command's name for messages, and raises `VMError` or `RightsRefused` for a failure; the outcome is
        reported under the class of that error. Raises `VMTransient` after a time-out.
        """
        verb = self._verb_of(arguments)
        result = self._run([*self._prefix, *arguments], timeout, on_stop=on_stop, pull=pull)
        what = f"{self.name} {verb}"
        try:
            if result.timed_out:
                raise VMTransient(f"{what} did not end within {timeout:g} s")
            answer = read(what, result)
        except (VMError, RightsRefused) as error:
            self.report(verb, error, result.seconds)
            raise
        self.report(verb, None, result.seconds)
        return answer

    def run(
        self,
        argv: Sequence[str],
        timeout: float,
        verb: str,
        *,
        stdin: bytes = b"",
        on_stop: OnStop = OnStop.KILL,
    ) -> CommandResult:
        """Run a command whose result the caller judges. `verb` is its name in metrics."""
        result = self._run(argv, timeout, stdin=stdin, on_stop=on_stop)
        self._commands.ended(verb, "transient" if result.timed_out else "done", result.seconds)
        return result

    def probe(self, arguments: Sequence[str], timeout: float) -> CommandResult:
        """Run a command that checks the tool itself, without the prefix of `ask`.

        Raises `TemporaryError` when it does not end in time or a signal kills it, `CliUnavailable` when signals have killed
        probes for a minute.
        """
        argv = [self.name, *arguments]
        result = self.run(argv, timeout, self._verb_of(arguments))
        if result.timed_out:
            raise TemporaryError(f"`{' '.join(argv)}` did not end within {timeout:g} s")
        if result.status < 0:
            raise self._killed(argv, -result.status)
        self._killed_since = None
        return result

    def _killed(self, argv: Sequence[str], number: int) -> TemporaryError | CliUnavailable:
        now = time.monotonic()
        if self._killed_since is None:
            self._killed_since = now
        said = f"`{' '.join(argv)}` was killed by {_signal_name(number)}"
        if now - self._killed_since < _KILLED_WITHIN:
            return TemporaryError(said)
        return CliUnavailable(f"{said}, every time for {_KILLED_WITHIN:g} s; run it by hand and reinstall {self.name}")

    def launch(self, arguments: Sequence[str], output: Path) -> Launched:
        """Start a process that outlives us; it prints to the file `output`. Raises as `CommandRunner.launch` does."""
        argv = [self.name, *arguments]
        self._log.debug("command", extra={"argv": argv})
        return self._commands.launch(argv, output)

    def report(self, verb: str, error: BaseException | None, seconds: float) -> None:
        """Count a command in the metrics: how it ended, and after how many seconds."""
        self._commands.ended(verb, outcome_name(error), seconds)

    def with_env(self, more: Mapping[str, str]) -> Tool:
        """The same tool, whose commands have these additional variables. None of them may be a secret."""
        return Tool(self._prefix, self._verb_of, self._commands.with_env(more), self._log)

    def _run(
        self,
        argv: Sequence[str],
        timeout: float,
        *,
        stdin: bytes = b"",
        on_stop: OnStop = OnStop.KILL,
        pull: PullHold | None = None,
    ) -> CommandResult:
        """A pull's process inherits the locks and is noted beside them: it may outlive us by hours, and listings need not wait
        for it."""
        self._log.debug("command", extra={"argv": list(argv)})
        return self._commands.run(
            argv,
            timeout=timeout,
            stdin=stdin,
            on_stop=on_stop,
            keep_open=pull.fds if pull else (),
            note=pull.note if pull else None,
        )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
