"""`agent print|install|uninstall|status`: reads the configuration, asks launchctl, says what came of it."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Sequence
from pathlib import Path

from anklet_supervisor.agent import Agent, installation, list_path, newsyslog_rule, property_list
from anklet_supervisor.doctor_facts import commands
from anklet_supervisor.host import running_supervisor
from anklet_supervisor.start import load_config
from anklet_worker.errors import ExitCode
from anklet_worker.vm.command import CommandResult

#: launchctl bootout waits for the agent's end; a drain may take a day, a command not.
_PATIENCE = 60.0


def act(action: str, config_path: Path, *, newsyslog: bool = False) -> int:
    """Do one of the four; the exit code. Raises `AnkletError`."""
    home = Path.home()
    agent = Agent(list_path(home), _launchctl)
    if action == "status":
        code, said = agent.status()
        _say(said)
        return code
    if action == "uninstall":
        _say(agent.uninstall())
        return int(ExitCode.OK)
    # A configuration that is wrong would make an agent that ends at once.
    config, _ = load_config(config_path)
    what = installation(config_path, config, home)
    if action == "print":
        _say(newsyslog_rule(what.log_dir, getpass.getuser()) if newsyslog else property_list(what).decode())
    else:
        what.log_dir.mkdir(parents=True, exist_ok=True)
        running = running_supervisor(config.state_dir)
        ours = None if running is None else agent.pid()
        _say(agent.install(property_list(what)))
        if running != ours:
            _say(
                f"a supervisor that launchd has not started is running (pid {running}), so the agent's has ended at once: "
                "end it by `anklet-supervisor drain`, then `anklet-supervisor agent install` again"
            )
    return int(ExitCode.OK)


def _launchctl(arguments: Sequence[str]) -> CommandResult:
    return commands().run(["launchctl", *arguments], timeout=_PATIENCE)


def _say(text: str) -> None:
    sys.stdout.write(text.rstrip("\n") + "\n")
