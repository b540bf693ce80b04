"""The operator's commands init, doctor, agent, logs and job: the arguments of each, and the function that runs it.

Imports lazily, as `cli` does. Must not know how a command does its work.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from anklet_supervisor.config.duration import parse_duration
from anklet_worker.contract.errors import ExitCode

#: Adds a command by its name, the function that runs it, and its summary; returns its parser.
AddCommand = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]
FindConfig = Callable[[argparse.Namespace], Path]

_AGENT_ACTIONS = ("print", "install", "uninstall", "status")


def add(command: AddCommand, find_config: FindConfig) -> None:
    """Add the commands to the parser. `find_config` returns the configuration's path from the parsed options."""
    _add_init(command, find_config)
    doctor = command("doctor", lambda options: _doctor(options, find_config), "check whether this host can run jobs")
    doctor.add_argument("--json", action="store_true", help="print JSON with stable keys")
    agent = command("agent", lambda options: _agent(options, find_config), "manage the launchd agent")
    agent.add_argument(
        "action", choices=_AGENT_ACTIONS, help="print its property list, load it, unload it, or show its state"
    )
    agent.add_argument("--newsyslog", action="store_true", help="with print: print the rule for newsyslog instead")
    logs = command("logs", lambda options: _logs(options, find_config), "show the log in readable form")
    logs.add_argument("-f", "--follow", action="store_true", help="keep showing new lines until Ctrl-C")
    logs.add_argument("-n", "--lines", type=_count, default=50, metavar="N", help="show the last N lines (default: 50)")
    logs.add_argument("--service", metavar="NAME", help="only lines of this service")
    logs.add_argument("--job", metavar="ID", help="only lines of this job: its ID or its VM's name")
    logs.add_argument("--level", choices=("DEBUG", "INFO", "WARN", "ERROR"), help="only lines of this level or above")
    job = command("job", lambda options: _job(options, find_config), "show what happened to a job, step by step")
    job.add_argument("action", choices=("show", "list"), help="show one job, or list the latest")
    job.add_argument("id", nargs="?", metavar="ID", help="with show: the job's ID or its VM's name")
    job.add_argument("--json", action="store_true", help="print JSON with stable keys")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of lines")
    return min(int(text), sys.maxsize)


def duration(text: str) -> float:
    """An argument's duration in seconds."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, not {text!r}") from None


def _add_init(command: AddCommand, find_config: FindConfig) -> None:
    init = command(
        "init", lambda options: _init(options, find_config), "write a first configuration, asking for what it needs"
    )
    init.add_argument("--owner", help="user or organization that owns the repository")
    init.add_argument("--repo", help="repository whose jobs to run")
    init.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="file with the token; without it, init asks, or reads standard input",
    )
    init.add_argument("--plugin", help="source of jobs; needed only when several plugins are installed")
    init.add_argument("--services", type=int, choices=(1, 2), default=2, help="jobs at the same time (default: 2)")
    init.add_argument(
        "--vm-driver", choices=("anka", "tart"), default="anka", help="tool that runs VMs (default: anka)"
    )
    init.add_argument("--registry-url", metavar="URL", help="Anka registry to pull templates from")
    init.add_argument("--api-url", metavar="URL", help="for GitHub Enterprise Server: https://HOST/api/v3")
    init.add_argument(
        "--log-dir", type=Path, metavar="DIR", help="directory for anklet.log (default on a Mac: ~/Library/Logs)"
    )


def _init(options: argparse.Namespace, find_config: FindConfig) -> int:
    from anklet_supervisor.console.init import Answers, ask_for_missing, write

    answers = Answers(
        owner=options.owner or "",
        repo=options.repo or "",
        token_file=options.token_file,
        plugin=options.plugin or "",
        services=options.services,
        vm_driver=options.vm_driver,
        registry_url=options.registry_url or "",
        api_url=options.api_url or "",
        log_dir=options.log_dir,
    )
    path = find_config(options)
    for line in write(path, ask_for_missing(answers, path)):
        _say(line)
    return int(ExitCode.OK)


def _doctor(options: argparse.Namespace, find_config: FindConfig) -> int:
    from anklet_supervisor.doctor.doctor import fit, judge
    from anklet_supervisor.doctor.facts import gather

    findings = judge(gather(find_config(options), Path.home()))
    if options.json:
        from anklet_supervisor.doctor.doctor import as_json

        _say(as_json(findings))
    else:
        from anklet_supervisor.doctor.view import show

        show(findings)
    return int(ExitCode.OK if fit(findings) else ExitCode.NEGATIVE)


def _agent(options: argparse.Namespace, find_config: FindConfig) -> int:
    from anklet_supervisor.console.agent_commands import act

    return act(options.action, find_config(options), newsyslog=options.newsyslog)


def _logs(options: argparse.Namespace, find_config: FindConfig) -> int:
    from anklet_supervisor.console.log_commands import show
    from anklet_supervisor.log.reader import LineFilter

    wanted = LineFilter(service=options.service, job=options.job, level=options.level)
    return show(find_config(options), wanted, lines=options.lines, follow=options.follow)


def _job(options: argparse.Namespace, find_config: FindConfig) -> int:
    from anklet_supervisor.console.job_commands import list_jobs, show_job
    from anklet_worker.contract.errors import UsageError

    if options.action == "list":
        if options.id is not None:
            raise UsageError(f"job list takes no ID; did you mean: job show {options.id}?")
        return list_jobs(find_config(options), as_json=options.json)
    if options.id is None:
        raise UsageError("job show needs the ID of a job (see anklet-supervisor job --help)")
    return show_job(find_config(options), options.id, as_json=options.json)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
