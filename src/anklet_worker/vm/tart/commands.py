"""Runs commands of Tart's for one worker: what is logged, reported and raised of each. Knows no command by name."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from anklet_worker.contract.errors import RightsRefused, VMError, VMTransient
from anklet_worker.process.command import CommandResult, CommandRunner, OnStop
from anklet_worker.vm.image_locks import PullHold
from anklet_worker.vm.tart.output import error_of
from anklet_worker.vm.wording import outcome_name


class TartCommands:
    """`runner` has the environment that the commands need."""

    def __init__(self, runner: CommandRunner, log: logging.LoggerAdapter[logging.Logger]) -> None:
        self.runner = runner
        self._log = log

    def ask(
        self,
        arguments: Sequence[str],
        timeout: float,
        on_stop: OnStop = OnStop.KILL,
        *,
        pull: PullHold | None = None,
    ) -> bytes:
        """Run `tart` with these arguments; what it printed. Raises what it failed with, by class of outcome.

        A pull's process inherits the locks and is noted beside them: it may go on for hours after we are gone, and nobody has
        to wait for it before VMs can be listed.
        """
        what = f"tart {arguments[0]}"
        argv = ["tart", *arguments]
        self._log.debug("command", extra={"argv": argv})
        result = self.runner.run(
            argv,
            timeout=timeout,
            on_stop=on_stop,
            keep_open=pull.fds if pull else (),
            note=pull.note if pull else None,
        )
        error: VMError | RightsRefused | None = None
        if result.timed_out:
            error = VMTransient(f"{what} did not end within {timeout:g} s")
        elif result.status != 0:
            error = error_of(what, result.status, result.stderr, result.stdout)
        self.runner.ended(arguments[0], outcome_name(error), result.seconds)
        if error is not None:
            raise error
        return result.stdout

    def run(
        self,
        argv: Sequence[str],
        timeout: float,
        *,
        verb: str = "exec",
        stdin: bytes = b"",
        on_stop: OnStop = OnStop.KILL,
        runner: CommandRunner | None = None,
    ) -> CommandResult:
        """Run a command whose end is for the caller to judge. `verb` is what metrics call it."""
        self._log.debug("command", extra={"argv": list(argv)})
        result = (runner or self.runner).run(argv, timeout=timeout, stdin=stdin, on_stop=on_stop)
        self.runner.ended(verb, "transient" if result.timed_out else "done", result.seconds)
        return result
