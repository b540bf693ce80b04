"""The command line: turns arguments into one command, and its result into an exit code and one line of text.

Imports lazily, so that `status` answers at once. Must not know how a command does its work.
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
    """An argument parser whose errors end in exit code 64 and one line."""

    def error(self, message: str) -> NoReturn:
        """Raise `UsageError` instead of exiting with 2."""
        raise UsageError(f"{message} (see {_PROGRAM} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code; never raises."""
    _fill_closed_streams()
    try:
        return _run(sys.argv[1:] if argv is None else list(argv))
    except Exception:  # noqa: BLE001  a bug: its report needs the traceback, scripts need the exit code
        _print_error(traceback.format_exc().rstrip())
        return int(ExitCode.SOFTWARE)


def _run(arguments: list[str]) -> int:
    """Run one command, and turn an exception into an exit code and one line."""
    try:
        options = command_line(arguments)
        command: Callable[[argparse.Namespace], int] = options.run
        return command(options)
    except UsageError as error:
        _print_error(f"{_PROGRAM}: {error}")
        # Another start by launchd would not fix a wrong command line.
        return int(ExitCode.OK if "--agent" in arguments else error.exit_code)
    except ConfigError as error:
        for line in error.lines():
            _print_error(line)
        return int(error.exit_code)
    except AnkletError as error:
        _print_error(f"{_PROGRAM}: {error}")
        return int(error.exit_code)
    except KeyboardInterrupt:
        # Ctrl-C at a question or in a short command; `start` has its own handlers.
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output closed the pipe (`status | head`).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.OK)


def _fill_closed_streams() -> None:
    """Open /dev/null in place of each standard stream that the caller closed.

    Otherwise the next file we open, the lock or a pipe, would take its number and receive what we print.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            # open() takes the lowest free number, which is this one. Workers inherit it like any standard stream.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115  open for as long as the process
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def _print_error(line: str) -> None:
    print(line, file=sys.stderr)  # noqa: T201  the command line's own output


def _original_spelling(arguments: list[str]) -> list[str]:
    """Translate the original's `-s drain|stop` and `-version`; without a command, insert `start`."""
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
    """Parse the arguments. Raises `UsageError`."""
    return parser().parse_args(_original_spelling(arguments))


def parser() -> argparse.ArgumentParser:
    """The parser of every command; docs/commands.md is generated from it."""
    top = _Parser(
        prog=_PROGRAM,
        description="Run every CI job in a fresh macOS virtual machine on this Mac.",
        epilog="To begin: init writes a configuration, doctor checks this host, agent install lets launchd run it.",
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    def command(name: str, run: Callable[[argparse.Namespace], int], summary: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary)
        sub.add_argument(
            "--config",
            type=Path,
            metavar="FILE",
            help="the configuration (default: ANKLET_CONFIG, else ~/.config/anklet/config.yml)",
        )
        sub.set_defaults(run=run)
        return sub

    _add_start(command)
    _add_remote(command)
    command("check", _check, "report every error in the configuration")
    operator_commands.add(command, _config_path)
    return top


def _add_start(command: operator_commands.AddCommand) -> None:
    start = command("start", _start, "run in the foreground; this is the default command")
    start.add_argument("--once", action="store_true", help="run at most one job per service, then exit")
    start.add_argument(
        "--agent", action="store_true", help="for launchd: exit 0 on an error that a new start cannot fix"
    )


def _add_remote(command: operator_commands.AddCommand) -> None:
    """The commands to a supervisor that is already running."""
    for name, run, summary in (
        ("drain", _drain, "take no new jobs, finish the claimed ones, then exit"),
        ("stop", _stop, "interrupt jobs, clean up, give back unstarted claims, then exit"),
    ):
        command(name, run, summary).add_argument(
            "--wait",
            type=operator_commands.duration,
            metavar="DURATION",
            help="wait this long for the exit (90, 90s, 5m, 1h), else return 75",
        )
    command("restart", _restart, "detach from VMs and jobs and exit 75; the next start, by launchd, adopts them")
    command("reload", _reload, "read the configuration again; apply it to the services that changed").add_argument(
        "--wait",
        type=operator_commands.duration,
        metavar="DURATION",
        help="wait this long for the result (90, 90s, 5m, 1h), and print the configuration's errors",
    )
    for name, run, summary in (
        ("pause", _pause, "take no new jobs for a service until it is resumed; its current job finishes"),
        ("resume", _resume, "take jobs for a paused service again"),
    ):
        command(name, run, summary).add_argument("service", metavar="SERVICE", help="the service's name")
    status = command("status", _status, "show services, slots and jobs")
    form = status.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON with stable keys")
    form.add_argument("--watch", action="store_true", help="keep the view up to date until Ctrl-C")


def _config_path(options: argparse.Namespace) -> Path:
    if options.config is not None:
        return Path(options.config)
    from_environment = os.environ.get("ANKLET_CONFIG")
    return Path(from_environment) if from_environment else Path.home() / ".config" / "anklet" / "config.yml"


def _start(options: argparse.Namespace) -> int:
    from anklet_supervisor.daemon.start import start, start_for_launchd

    run = start_for_launchd if options.agent else start
    return run(_config_path(options), _show_log, once=options.once)


def _show_log(path: Path) -> Callable[[], None]:
    """Show the log at `path` on this terminal until the returned function is called. Imports what draws only then."""
    from anklet_supervisor.console.foreground import Foreground

    return Foreground(path).stop


def _check(options: argparse.Namespace) -> int:
    from anklet_supervisor.daemon.start import load_config

    config, warnings = load_config(_config_path(options))
    for warning in warnings:
        _print_error(str(warning))
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
