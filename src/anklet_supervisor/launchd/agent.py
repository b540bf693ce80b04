"""The launchd agent: its property list, made from the configuration, and the few things done with launchctl.

Owns the label, the property list and its file. What launchd demands is from launchd.plist(5) and launchctl(1): a job stays in the
foreground, does not change its session or directory by itself, and has an absolute program path. Knows no service and no VM.
"""

from __future__ import annotations

import os
import plistlib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from anklet_supervisor.config.load import SupervisorConfig
from anklet_worker.contract.errors import AnkletError, CliUnavailable, ConfigError, ExitCode, TemporaryError
from anklet_worker.files import remove, write_atomically
from anklet_worker.process.command import CommandResult

LABEL = "com.anklet.supervisor"
#: launchd's own PATH has none of the places where VM tools are installed.
PATH = "/usr/local/bin:/opt/homebrew/bin:/usr/bin:/bin:/usr/sbin:/sbin"
#: launchd's SIGTERM is a drain, which lasts as long as the longest job: a day, where no drain_timeout says less.
_LONGEST_DRAIN = 86_400
#: What comes after a drain_timeout: the stop that it becomes, with every clean-up.
_STOP_MARGIN = 600
_THROTTLE = 10
#: Octal 077, as the number that launchd.plist(5) wants.
_UMASK = 0o077
_PATIENCE = 60.0
#: launchctl: the service is not there (ESRCH, as launchctl tells it); the same for `print` (113: could not find service).
_NOT_LOADED = frozenset({3, 113})
#: launchctl bootout: it has been asked to end, and has not yet (EINPROGRESS of macOS).
_IN_PROGRESS = 36
_PRINTED = re.compile(r"^\t(state|pid|last exit code|runs) = (.+)$", re.MULTILINE)

#: Runs launchctl with these arguments.
Launchctl = Callable[[Sequence[str]], CommandResult]


class Installation(msgspec.Struct, frozen=True, kw_only=True):
    """What the property list is made from. Every path is absolute; `config` None: the usual place, nothing need be said."""

    python: Path
    home: Path
    config: Path | None
    log_dir: Path
    drain_timeout: float | None = None


def installation(config_path: Path, config: SupervisorConfig, home: Path, python: Path | None = None) -> Installation:
    """This program's, for a configuration. `python` stands for the running interpreter in tests.

    The interpreter is named as it was called, not where links lead: only so does it know its virtual environment.
    """
    usual = home / ".config" / "anklet" / "config.yml"
    path = config_path.absolute()
    return Installation(
        python=python or Path(sys.executable),
        home=home,
        config=None if path == usual else path,
        log_dir=config.log.file_dir or home / "Library" / "Logs",
        drain_timeout=config.drain_timeout,
    )


def list_path(home: Path) -> Path:
    """The property list's file, where launchd looks for those of a user."""
    return home / "Library" / "LaunchAgents" / f"{LABEL}.plist"


def target(uid: int) -> str:
    """The agent's name for launchctl, in the login session of this user."""
    return f"gui/{uid}/{LABEL}"


def property_list(of: Installation) -> bytes:
    """The agent as launchd reads it. No secret is in it: anybody on the host may read it."""
    drain = _LONGEST_DRAIN if of.drain_timeout is None else int(of.drain_timeout) + _STOP_MARGIN
    where = [] if of.config is None else ["--config", str(of.config)]
    return plistlib.dumps(
        {
            "Label": LABEL,
            # Not the console script: with it each worker's interpreter would import the command line again.
            "ProgramArguments": [str(of.python), "-m", "anklet_supervisor", "start", "--agent", *where],
            "EnvironmentVariables": {"PATH": PATH},
            "LimitLoadToSessionType": "Aqua",
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ExitTimeOut": drain,
            "ThrottleInterval": _THROTTLE,
            "ProcessType": "Interactive",
            "Umask": _UMASK,
            "StandardOutPath": str(of.log_dir / "anklet-supervisor.out.log"),
            "StandardErrorPath": str(of.log_dir / "anklet-supervisor.err.log"),
        },
        sort_keys=False,
    )


def newsyslog_rule(log_dir: Path, user: str) -> str:
    """A file for /etc/newsyslog.d: the log is moved aside at 100 MB, seven are kept. Nobody is signalled (N): the program
    notices within a second that its file was moved, and makes it anew; so it is not compressed, which would lose what is written
    until then. Nor is a line of newsyslog's own put in (B). newsyslog.conf(5)."""
    return (
        "# Rotates the log of anklet-supervisor. To be put into /etc/newsyslog.d/ by root, with log.max_megabytes: 0 in the\n"
        "# configuration, so that not both rotate. Sizes are in KiB.\n"
        "# logfilename                          [owner:group]    mode count size   when  flags\n"
        f"{log_dir}/anklet.log    {user}:staff    640  7     102400 *     NB\n"
    )


class Agent:
    """The agent of one user. `path` is its property list's file."""

    def __init__(self, path: Path, launchctl: Launchctl, uid: int | None = None) -> None:
        self.path = path
        self._launchctl = launchctl
        self._uid = os.getuid() if uid is None else uid

    def install(self, content: bytes) -> str:
        """Write the property list and load it, replacing one that is there; says what was done.

        The same list that is loaded already is left alone: nobody is drained for nothing; what has ended since (by a drain) is
        started. Raises `TemporaryError` when the one before still drains, `ConfigError` when launchd refuses.
        """
        printed = self._ask("print", target(self._uid))
        loaded = printed.status == 0
        if loaded and self.path.is_file() and self.path.read_bytes() == content:
            if _facts(printed).get("state") != "not running":
                return f"{LABEL} is loaded, and {self.path} is as it should be"
            started = self._ask("kickstart", target(self._uid))
            if started.status != 0:
                raise TemporaryError(f"launchd does not start {LABEL}: {_said(started)}")
            return f"{LABEL} was loaded and not running; it is started"
        if loaded:
            self._unload()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, content, mode=0o644)
        self._ask("enable", target(self._uid))
        done = self._ask("bootstrap", f"gui/{self._uid}", str(self.path))
        if done.status != 0:
            raise ConfigError(f"launchd does not load {self.path}: {_said(done)}; are you logged in to the desktop?")
        return f"{LABEL} is loaded from {self.path}"

    def uninstall(self) -> str:
        """Unload the agent and remove its file; says what was done. A supervisor with jobs drains first.

        Raises `TemporaryError` while it drains: then nothing is removed yet.
        """
        loaded = self._is_loaded()
        if loaded:
            self._unload()
        there = self.path.exists()
        remove(self.path)
        return f"{LABEL} is unloaded and removed" if loaded or there else f"{LABEL} was not installed"

    def status(self) -> tuple[int, str]:
        """Exit code (0: loaded, 3: not) and what launchd says of it."""
        printed = self._ask("print", target(self._uid))
        if printed.status in _NOT_LOADED:
            hint = f"; {self.path} exists" if self.path.exists() else ""
            return int(ExitCode.NOT_RUNNING), f"{LABEL} is not loaded{hint}"
        if printed.status != 0:
            raise TemporaryError(f"launchctl print {target(self._uid)} failed: {_said(printed)}")
        facts = _facts(printed)
        told = ", ".join(
            f"{name} {facts[name]}" for name in ("state", "pid", "runs", "last exit code") if name in facts
        )
        return int(ExitCode.OK), f"{LABEL} is loaded: {told or 'launchd says no more'}"

    def pid(self) -> int | None:
        """The process that launchd runs for the agent, if it runs one."""
        pid = _facts(self._ask("print", target(self._uid))).get("pid", "")
        return int(pid) if pid.isdigit() else None

    def _is_loaded(self) -> bool:
        return self._ask("print", target(self._uid)).status == 0

    def _unload(self) -> None:
        done = self._ask("bootout", target(self._uid))
        if done.timed_out or done.status == _IN_PROGRESS:
            raise TemporaryError(
                "the supervisor drains: its jobs finish first; try again then, or interrupt them by `anklet-supervisor stop`"
            )
        if done.status not in (0, *_NOT_LOADED):
            raise TemporaryError(f"launchd does not unload {LABEL}: {_said(done)}")

    def _ask(self, *arguments: str) -> CommandResult:
        try:
            return self._launchctl(arguments)
        except CliUnavailable as error:
            raise CliUnavailable("launchctl is not on PATH; only a Mac has launchd") from error
        except AnkletError as error:
            raise TemporaryError(str(error)) from None


def _facts(printed: CommandResult) -> dict[str, str]:
    return dict(_PRINTED.findall(printed.stdout.decode(errors="replace")))


def _said(result: CommandResult) -> str:
    text = (result.stderr or result.stdout).decode(errors="replace").strip()
    return " ".join(text.split()) or f"exit status {result.status}"
