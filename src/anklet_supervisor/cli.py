"""The command line: what was asked for, and by which exit code and one line it is answered.

Imports lazily: with the console script each worker's interpreter imports this module too (the spawn start method runs the
main script again), and `status` must answer at once.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from anklet_supervisor.console import operator_commands
from anklet_worker import __version__
from anklet_worker.contract.errors import AnkletError, ConfigError, ExitCode, UsageError

_PROGRAM = "anklet-supervisor"


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are exit code 64 and one line."""

    def error(self, message: str) -> NoReturn:
        """Raise `UsageError` instead of exiting with 2."""
        raise UsageError(f"{message} (see {_PROGRAM} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code; never raises."""
    _complete_standard_streams()
    try:
        return _answer(sys.argv[1:] if argv is None else list(argv))
    except Exception:  # noqa: BLE001  a bug: whoever reports it needs all of it, and scripts its exit code
        _complain(traceback.format_exc().rstrip())
        return int(ExitCode.SOFTWARE)


def _answer(arguments: list[str]) -> int:
    """Run one command, and turn what ends it into an exit code and one line."""
    try:
        options = command_line(arguments)
        command: Callable[[argparse.Namespace], int] = options.run
        return command(options)
    except UsageError as error:
        _complain(f"{_PROGRAM}: {error}")
        # For launchd a wrong command line is nothing that another start would cure.
        return int(ExitCode.OK if "--agent" in arguments else error.exit_code)
    except ConfigError as error:
        for line in error.lines():
            _complain(line)
        return int(error.exit_code)
    except AnkletError as error:
        _complain(f"{_PROGRAM}: {error}")
        return int(error.exit_code)
    except KeyboardInterrupt:
        # At a question, or while something is asked; `start` has its own handlers.
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has seen enough (`status | head`).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.OK)


def _complete_standard_streams() -> None:
    """Where the caller has closed one of the three, nothing stands in its place: else the next file that is opened, the lock, a
    pipe, would take its number, and what is printed would go there."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            # The lowest number that is free, which is this one; workers inherit it, as they would what was there.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115  open for as long as the process
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def _complain(line: str) -> None:
    print(line, file=sys.stderr)  # noqa: T201  the command line's own output


def _original_spelling(arguments: list[str]) -> list[str]:
    """`-s drain|stop` and `-version`, as the original had them; no command at all is `start`."""
    if "-s" in arguments or "--s" in arguments:
        at = next(index for index, word in enumerate(arguments) if word in ("-s", "--s"))
        word = "".join(arguments[at + 1 : at + 2])
        if word not in ("drain", "stop"):
            raise UsageError(f"-s takes drain or stop, not {word!r} (see {_PROGRAM} --help)")
        return [word, *arguments[:at], *arguments[at + 2 :]]
    if arguments[:1] == ["-version"]:
        return ["--version"]
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version")):
        return ["start", *arguments]
    return arguments


def command_line(arguments: list[str]) -> argparse.Namespace:
    """What these arguments ask for. Raises `UsageError`."""
    return parser().parse_args(_original_spelling(arguments))


def parser() -> argparse.ArgumentParser:
    """The parser of every command; docs/commands.md is made from it."""
    top = _Parser(
        prog=_PROGRAM,
        description="Runs every CI job in a fresh macOS virtual machine on this Mac.",
        epilog="New here? init writes a configuration, doctor says what is missing, agent install leaves it to launchd.",
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    def command(name: str, run: Callable[[argparse.Namespace], int], summary: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary)
        sub.add_argument(
            "--config",
            type=Path,
            metavar="FILE",
            help="default: ~/.config/anklet/config.yml; ANKLET_CONFIG overrides it",
        )
        sub.set_defaults(run=run)
        return sub

    start = command("start", _start, "run in the foreground (also without any command)")
    start.add_argument("--once", action="store_true", help="every service makes one pass (at most one job), then exit")
    start.add_argument(
        "--agent", action="store_true", help="for launchd: an error that a new start cannot cure exits 0"
    )
    for name, run, summary in (
        ("drain", _drain, "take no new jobs, finish the claimed ones, then exit"),
        ("stop", _stop, "interrupt jobs, clean up, give unstarted claims back, exit"),
    ):
        command(name, run, summary).add_argument(
            "--wait", type=operator_commands.seconds, metavar="SECONDS", help="wait for the exit, else return 75"
        )
    command("restart", _restart, "let go of VMs and jobs and exit 75; the next start (launchd's) goes on with them")
    command("reload", _reload, "read the configuration again; touch only the services that changed").add_argument(
        "--wait",
        type=operator_commands.seconds,
        metavar="SECONDS",
        help="wait until it is done, and say what is wrong with the configuration",
    )
    for name, run, summary in (
        ("pause", _pause, "let a service take no more jobs, until it is resumed; the one in hand finishes"),
        ("resume", _resume, "let a paused service take jobs again"),
    ):
        command(name, run, summary).add_argument("service", metavar="SERVICE", help="the service's name")
    status = command("status", _status, "what the services, slots and jobs are doing")
    form = status.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as JSON, in a stable form")
    form.add_argument("--watch", action="store_true", help="a live view, until Ctrl-C")
    command("check", _check, "report every error of the configuration at once")
    operator_commands.add(command, _config_path)
    return top


def _config_path(options: argparse.Namespace) -> Path:
    if options.config is not None:
        return Path(options.config)
    from_environment = os.environ.get("ANKLET_CONFIG")
    return Path(from_environment) if from_environment else Path.home() / ".config" / "anklet" / "config.yml"


def _start(options: argparse.Namespace) -> int:
    from anklet_supervisor.daemon.start import start, start_for_launchd

    run = start_for_launchd if options.agent else start
    return run(_config_path(options), once=options.once)


def _check(options: argparse.Namespace) -> int:
    from anklet_supervisor.daemon.start import load_config

    config, warnings = load_config(_config_path(options))
    for warning in warnings:
        _complain(str(warning))
    print(f"{_config_path(options)}: no errors; services: {len(config.services)}")  # noqa: T201  the command's answer
    return int(ExitCode.OK)


def _drain(options: argparse.Namespace) -> int:
    from anklet_supervisor.console.remote import signal_and_wait

    # SIGQUIT, not SIGTERM: a second `drain` must not become a stop.
    return signal_and_wait(_config_path(options), signal.SIGQUIT, options.wait)


def _stop(options: argparse.Namespace) -> int:
    from anklet_supervisor.console.remote import signal_and_wait

    return signal_and_wait(_config_path(options), signal.SIGINT, options.wait)


def _restart(options: argparse.Namespace) -> int:
    from anklet_supervisor.console.remote import signal_and_wait

    return signal_and_wait(_config_path(options), signal.SIGUSR2, None)


def _reload(options: argparse.Namespace) -> int:
    from anklet_supervisor.console.remote import reload

    return reload(_config_path(options), options.wait)


def _pause(options: argparse.Namespace) -> int:
    from anklet_supervisor.console.remote import set_paused

    return set_paused(_config_path(options), options.service, paused=True)


def _resume(options: argparse.Namespace) -> int:
    from anklet_supervisor.console.remote import set_paused

    return set_paused(_config_path(options), options.service, paused=False)


def _status(options: argparse.Namespace) -> int:
    from anklet_supervisor.console.remote import show_status

    return show_status(_config_path(options), as_json=options.json, watch=options.watch)
