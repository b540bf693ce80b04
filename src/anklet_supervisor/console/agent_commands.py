"""`agent print|install|uninstall|status`: reads the configuration, calls launchctl, prints the result.

Must not know what a property list holds: that is `launchd.agent`.
"""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from anklet_supervisor.config.load import ConfigErrors, SupervisorConfig, load, overriding_variables
from anklet_supervisor.daemon.host import running_supervisor
from anklet_supervisor.daemon.start import load_config
from anklet_supervisor.doctor.facts import commands
from anklet_supervisor.launchd.agent import (
    PATH,
    Agent,
    Installation,
    installation,
    list_path,
    newsyslog_rule,
    property_list,
)
from anklet_worker.contract.errors import ConfigError, ExitCode
from anklet_worker.process.command import CommandResult

#: Seconds for launchctl. `bootout` waits for the agent's exit, which a drain can delay for a day.
_PATIENCE = 60.0


def act(action: str, config_path: Path, *, newsyslog: bool = False) -> int:
    """Run one of the four actions. Returns the exit code; raises `AnkletError`."""
    home = Path.home()
    agent = Agent(list_path(home), _launchctl)
    if action == "status":
        code, said = agent.status()
        _say(said)
        return code
    if action == "uninstall":
        _say(agent.uninstall())
        return int(ExitCode.OK)
    config = _config_under_launchd(config_path, home)
    what = installation(config_path, config, home)
    if action == "print":
        _say(newsyslog_rule(what.log_dir, getpass.getuser()) if newsyslog else property_list(what).decode())
    else:
        _install(agent, what, config)
    return int(ExitCode.OK)


def _config_under_launchd(path: Path, home: Path) -> SupervisorConfig:
    """The configuration as the agent will read it.

    Raises `ConfigError` for one that is wrong or needs this shell's environment: the agent would exit at once.
    """
    load_config(path)
    try:
        return load(path, {"PATH": PATH, "HOME": str(home)}, home=home, platform=sys.platform)[0]
    except ConfigErrors as error:
        raise ConfigError(
            f"launchd starts the agent without this shell's environment: {error} (write the value into the configuration, or use "
            "a _file or _command key)"
        ) from None


def _install(agent: Agent, what: Installation, config: SupervisorConfig) -> None:
    what.log_dir.mkdir(parents=True, exist_ok=True)
    running = running_supervisor(config.state_dir)
    ours = None if running is None else agent.pid()
    _say(agent.install(property_list(what)))
    overrides = sorted(overriding_variables(config) & os.environ.keys())
    if overrides:
        _say(f"the agent does not see what this shell's environment overrides: {', '.join(overrides)}")
    if running != ours:
        _say(
            f"another supervisor, which launchd did not start, is running (pid {running}), so the agent exited: run "
            "`anklet-supervisor drain`, then `anklet-supervisor agent install` again"
        )


def _launchctl(arguments: Sequence[str]) -> CommandResult:
    return commands().run(["launchctl", *arguments], timeout=_PATIENCE)


def _say(text: str) -> None:
    sys.stdout.write(text.rstrip("\n") + "\n")
