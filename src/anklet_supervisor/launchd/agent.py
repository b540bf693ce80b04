"""The launchd agent: its property list, made from the configuration, and how launchctl loads and unloads it.

Owns the label, the property list and its file. Follows launchd.plist(5) and launchctl(1): a job stays in the foreground, does not
change its session or directory, and has an absolute program path. Must not know any service or VM.
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
#: VM tools are installed in places that launchd's own PATH lacks.
PATH = "/usr/local/bin:/opt/homebrew/bin:/usr/bin:/bin:/usr/sbin:/sbin"
#: Seconds from launchd's SIGTERM, a drain, to its SIGKILL without a drain_timeout: longer than the longest job.
_LONGEST_DRAIN = 86_400
#: Seconds that the stop after a drain_timeout gets for every clean-up.
_STOP_MARGIN = 600
_THROTTLE = 10
#: Octal 077; launchd.plist(5) takes a number.
_UMASK = 0o077
#: launchctl's exit codes for a service that is not loaded: 3 (ESRCH) from most commands, 113 from `print`.
_NOT_LOADED = frozenset({3, 113})
#: launchctl bootout's exit code while the service is still ending (EINPROGRESS on macOS).
_IN_PROGRESS = 36
_PRINTED = re.compile(r"^\t(state|pid|last exit code|runs) = (.+)$", re.MULTILINE)

#: Runs launchctl with these arguments.
Launchctl = Callable[[Sequence[str]], CommandResult]


class Installation(msgspec.Struct, frozen=True, kw_only=True):
    """The values in the property list. Every path is absolute; `config` is None for the default place."""

    python: Path
    home: Path
    config: Path | None
    log_dir: Path
    drain_timeout: float | None = None


def installation(config_path: Path, config: SupervisorConfig, home: Path, python: Path | None = None) -> Installation:
    """The installation of this program for a configuration, run by `python` or else by the current interpreter.

    Keeps the interpreter's path as it was called, with its links: Python finds its virtual environment by that path.
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
    """The property list's file, in the user's LaunchAgents folder."""
    return home / "Library" / "LaunchAgents" / f"{LABEL}.plist"


def target(uid: int) -> str:
    """The agent's name for launchctl, in this user's login session."""
    return f"gui/{uid}/{LABEL}"


def property_list(of: Installation) -> bytes:
    """The property list. It holds no secret: every user of the host can read it."""
    drain = _LONGEST_DRAIN if of.drain_timeout is None else int(of.drain_timeout) + _STOP_MARGIN
    where = [] if of.config is None else ["--config", str(of.config)]
    return plistlib.dumps(
        {
            "Label": LABEL,
            # Not the console script: each worker's interpreter would import the command line again.
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
    """A file for /etc/newsyslog.d: move the log aside at 100 MB and keep seven. See newsyslog.conf(5).

    Flag N: send no signal, because the log's writer notices the move within a second. No compression: it would lose the lines
    written until then. Flag B: newsyslog adds no line of its own.
    """
    return (
        "# Rotates the log of anklet-supervisor. Install it as root in /etc/newsyslog.d/, and set log.max_megabytes: 0 in the\n"
        "# configuration, so that only newsyslog rotates. Sizes are in KiB.\n"
        "# logfilename                          [owner:group]    mode count size   when  flags\n"
        f"{log_dir}/anklet.log    {user}:staff    640  7     102400 *     NB\n"
    )


class Agent:
    """One user's agent. `path` is its property list's file."""

    def __init__(self, path: Path, launchctl: Launchctl, uid: int | None = None) -> None:
        self.path = path
        self._launchctl = launchctl
        self._uid = os.getuid() if uid is None else uid

    def install(self, content: bytes) -> str:
        """Write the property list and load it in place of an earlier one. Returns what was done.

        A list that is already loaded stays loaded, so that nothing drains needlessly; if its program has ended, by a drain, it
        starts again. Raises `TemporaryError` while the earlier one drains, `ConfigError` when launchd refuses the list.
        """
        printed = self._ask("print", target(self._uid))
        loaded = printed.status == 0
        if loaded and self.path.is_file() and self.path.read_bytes() == content:
            if _facts(printed).get("state") != "not running":
                return f"{LABEL} is already loaded, and {self.path} is up to date"
            started = self._ask("kickstart", target(self._uid))
            if started.status != 0:
                raise TemporaryError(f"launchd did not start {LABEL}: {_said(started)}")
            return f"started {LABEL}, which was loaded but not running"
        if loaded:
            self._unload()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, content, mode=0o644)
        self._ask("enable", target(self._uid))
        done = self._ask("bootstrap", f"gui/{self._uid}", str(self.path))
        if done.status != 0:
            raise ConfigError(f"launchd did not load {self.path}: {_said(done)}; are you logged in at the desktop?")
        return f"{LABEL} is loaded from {self.path}"

    def uninstall(self) -> str:
        """Unload the agent and remove its file. Returns what was done. A supervisor with jobs drains first.

        Raises `TemporaryError` while it drains; nothing is removed then.
        """
        loaded = self._is_loaded()
        if loaded:
            self._unload()
        there = self.path.exists()
        remove(self.path)
        return f"{LABEL} is unloaded and removed" if loaded or there else f"{LABEL} was not installed"

    def status(self) -> tuple[int, str]:
        """The exit code (0: loaded, 3: not loaded) and what launchd reports."""
        printed = self._ask("print", target(self._uid))
        if printed.status in _NOT_LOADED:
            hint = f"; {self.path} exists" if self.path.exists() else ""
            return int(ExitCode.NOT_RUNNING), f"{LABEL} is not loaded{hint}"
        if printed.status != 0:
            raise TemporaryError(f"launchctl print {target(self._uid)} failed: {_said(printed)}")
        facts = _facts(printed)
        shown = ", ".join(
            f"{name} {facts[name]}" for name in ("state", "pid", "runs", "last exit code") if name in facts
        )
        return int(ExitCode.OK), f"{LABEL} is loaded: {shown or 'launchd gives no details'}"

    def pid(self) -> int | None:
        """The pid of the agent's process; None when launchd runs none."""
        pid = _facts(self._ask("print", target(self._uid))).get("pid", "")
        return int(pid) if pid.isdigit() else None

    def _is_loaded(self) -> bool:
        return self._ask("print", target(self._uid)).status == 0

    def _unload(self) -> None:
        done = self._ask("bootout", target(self._uid))
        if done.timed_out or done.status == _IN_PROGRESS:
            raise TemporaryError(
                "the supervisor is draining: its jobs finish first; try again later, or end them with `anklet-supervisor stop`"
            )
        if done.status not in (0, *_NOT_LOADED):
            raise TemporaryError(f"launchd did not unload {LABEL}: {_said(done)}")

    def _ask(self, *arguments: str) -> CommandResult:
        try:
            return self._launchctl(arguments)
        except CliUnavailable as error:
            raise CliUnavailable("launchctl is not on PATH; launchd needs macOS") from error
        except AnkletError as error:
            raise TemporaryError(str(error)) from None


def _facts(printed: CommandResult) -> dict[str, str]:
    return dict(_PRINTED.findall(printed.stdout.decode(errors="replace")))


def _said(result: CommandResult) -> str:
    text = (result.stderr or result.stdout).decode(errors="replace").strip()
    return " ".join(text.split()) or f"exit status {result.status}"
