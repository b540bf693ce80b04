"""File and environment -> `SupervisorConfig`, with every problem at once, each at its place.

Owns the order of the work, and what the host's keys mean together. `host_keys` and `service_keys` hold the keys, `tree` reads YAML,
`reader` reads a section, `services` the services.
"""

from __future__ import annotations

import itertools
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from anklet_supervisor.config.host_keys import HOST, LogConfig, MetricsConfig, SupervisorConfig
from anklet_supervisor.config.plugin_rules import PluginRules
from anklet_supervisor.config.problems import ConfigErrors, Location, Problem, Problems, Severity
from anklet_supervisor.config.reader import Position, Reader, Values
from anklet_supervisor.config.secrets import RunCommand
from anklet_supervisor.config.services import HOST_PREFIX, ServicesLoader, environment_prefix
from anklet_supervisor.config.tree import Branch, Items, parse
from anklet_supervisor.config.values import Roots, log_level
from anklet_worker.process.command import run_capture

__all__ = [
    "ConfigErrors",
    "LogConfig",
    "MetricsConfig",
    "Problem",
    "Severity",
    "SupervisorConfig",
    "default_state_dir",
    "environment_prefix",
    "find_state_dir",
    "load",
    "load_host",
    "overriding_variables",
    "service_names",
]

#: A configuration is a few kilobytes; more is the wrong file (or a device without end).
_LARGEST_FILE = 1 << 20
_MACOS_VM_LIMIT = 2
#: A key with this prefix holds what anchors and aliases share; the loader skips it.
_SHELF = "x-"
_MUST_EXIST = ("work_dir", "pid_file_dir")


def overriding_variables(config: SupervisorConfig) -> set[str]:
    """Every environment variable that can override a key of this configuration."""
    rules = PluginRules(config.plugins_path)
    own = (rules.of(one.plugin).section.variables(environment_prefix(one.name)) for one in config.services)
    return {"LOG_LEVEL", *HOST.variables(HOST_PREFIX), *itertools.chain.from_iterable(own)}


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        # The name is too long, links form a loop, or the folder is not ours to look into.
        return False


def load(
    path: Path,
    env: Mapping[str, str],
    *,
    home: Path,
    platform: str,
    run_command: RunCommand = run_capture,
    is_dir: Callable[[Path], bool] = _is_directory,
) -> tuple[SupervisorConfig, tuple[Problem, ...]]:
    """Read the configuration at `path`, overridden by `env`; returns it with its warnings.

    `platform` is `sys.platform`; `run_command` runs a `token_command` and the like; `is_dir` says whether a directory exists.
    Raises `ConfigErrors`, which holds every problem, warnings included.
    """
    work = _Load(path.absolute(), env, home, platform)
    branch = work.read_file()
    if branch is not None:
        config = work.host(branch, run_command, is_dir)
        config = work.services(branch, config)
        work.check_exposure()
        if not work.problems.failed:
            return config, work.problems.in_order()
    raise ConfigErrors(work.problems.in_order())


def load_host(path: Path, env: Mapping[str, str], *, home: Path, platform: str) -> SupervisorConfig:
    """The host's part alone, without services: for commands that only need the running supervisor's directories.

    Runs no command and reads no other file. Raises `ConfigErrors` for problems with the host's own keys.
    """
    work = _Load(path.absolute(), env, home, platform)
    branch = work.read_file()
    if branch is not None:
        config = work.host(branch, run_capture, lambda _: True)
        if not work.problems.failed:
            return config
    raise ConfigErrors(work.problems.in_order())


def find_state_dir(path: Path, env: Mapping[str, str], *, home: Path, platform: str) -> Path:
    """The state directory of a supervisor of this configuration, however broken the file is by now. Raises nothing."""
    work = _Load(path.absolute(), env, home, platform)
    branch = work.read_file() or work.state_dir_alone()
    return work.host(branch, run_capture, lambda _: True).state_dir


def service_names(path: Path, env: Mapping[str, str], *, home: Path, platform: str) -> list[str]:
    """The names of the services, without a look at their other keys; runs no command. Raises as `load_host`."""
    work = _Load(path.absolute(), env, home, platform)
    branch = work.read_file()
    if branch is not None:
        work.host(branch, run_capture, lambda _: True)
        names = work.names(branch)
        if not work.problems.failed:
            return names
    raise ConfigErrors(work.problems.in_order())


def default_state_dir(env: Mapping[str, str], *, home: Path, platform: str) -> Path:
    """The state directory when the configuration names none."""
    if platform == "darwin":
        return home / "Library" / "Application Support" / "anklet-supervisor"
    base = env.get("XDG_STATE_HOME", "")
    # The XDG specification: a relative path there is to be ignored.
    return (Path(base) if base.startswith("/") else home / ".local" / "state") / "anklet-supervisor"


class _Load:
    """One load of one file."""

    def __init__(self, path: Path, env: Mapping[str, str], home: Path, platform: str) -> None:
        self.problems = Problems()
        self._path = path
        self._env = env
        self._home = home
        self._platform = platform
        self._top = Location(str(path))
        self._mode = 0
        self._reader: Reader | None = None

    def read_file(self) -> Branch | None:
        """The top mapping of the file; None when there is none (reported)."""
        text = self._text()
        return None if text is None else parse(str(self._path), text, self.problems)

    def state_dir_alone(self) -> Branch:
        """From a file that is not YAML: the one line with the state directory, if that line alone is valid."""
        lines = [line for line in (self._text() or "").splitlines() if re.match(r"state_dir\s*:", line)]
        quiet = Problems()
        branch = parse(str(self._path), "\n".join(lines) or "{}", quiet) or parse(str(self._path), "{}", quiet)
        if branch is None:
            raise AssertionError("an empty mapping is one")
        return branch

    def host(self, branch: Branch, run_command: RunCommand, is_dir: Callable[[Path], bool]) -> SupervisorConfig:
        """The host's own keys."""
        roots = Roots(self._home, self._path.parent)
        self._reader = Reader(self.problems, self._env, roots, run_command)
        position = Position(place=branch.place, prefix=HOST_PREFIX)
        for name, place, _ in self._reader.unknown_keys(HOST, branch, position):
            if not name.startswith(_SHELF):
                self._reader.refuse(HOST, name, place, position)
        values = self._reader.section(HOST, branch, position)
        self._check_vm_limit(values)
        self._check_directories(values, is_dir)
        return self._build(values)

    def services(self, branch: Branch, config: SupervisorConfig) -> SupervisorConfig:
        """The configuration with its services."""
        # In a file of the original's later versions, `plugins` holds the services.
        entry = branch.entries.get("services") or branch.entries.get("plugins")
        if self._reader is None:
            raise AssertionError("the host's part comes first")
        rules = self._plugin_rules(branch, config.plugins_path)
        loader = ServicesLoader(self._reader, self.problems, rules, msgspec.structs.asdict(config))
        services = loader.load(None if entry is None else entry.value, branch.place)
        return msgspec.structs.replace(config, services=services)

    def names(self, branch: Branch) -> list[str]:
        """The names of the services that have one."""
        entry = branch.entries.get("services")
        if self._reader is None:
            raise AssertionError("the host's part comes first")
        items = entry.value.items if entry is not None and isinstance(entry.value, Items) else ()
        given = (
            self._reader.text(item.entries["name"].value, Position(place=item.place, prefix=None), "name")
            for item in items
            if isinstance(item, Branch) and "name" in item.entries
        )
        return [one.text for one in given if one is not None]

    def check_exposure(self) -> None:
        """Warn when others can read a file that holds a secret."""
        place = None if self._reader is None else self._reader.literal_secret
        if place is not None and self._mode & (stat.S_IRGRP | stat.S_IROTH):
            self.problems.warn(
                place, "others can read this file, which holds a secret here; chmod 600 it, or use a _file key"
            )

    # ---- the file ----

    def _text(self) -> str | None:
        try:
            with self._path.open("rb") as file:
                self._mode = os.fstat(file.fileno()).st_mode
                data = file.read(_LARGEST_FILE + 1)
        except FileNotFoundError:
            self.problems.error(
                self._top,
                "no such file; create one with `anklet-supervisor init`, or name another with --config or ANKLET_CONFIG",
            )
            return None
        except (OSError, ValueError) as error:
            self.problems.error(self._top, f"cannot be read: {error.strerror if isinstance(error, OSError) else error}")
            return None
        if len(data) > _LARGEST_FILE:
            self.problems.error(self._top, "is too large for a configuration")
            return None
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            column = error.start - data.rfind(b"\n", 0, error.start)
            self.problems.error(Location(str(self._path), line, column), "the file is not UTF-8 text")
            return None

    # ---- the host's keys ----

    def _build(self, values: Values) -> SupervisorConfig:
        fields: dict[str, Any] = dict(values.fields)
        log = fields.pop("log").fields
        named = self._env.get("LOG_LEVEL", "")
        if named:
            log["level"] = self._named_level(named)
        state_dir = fields.setdefault(
            "state_dir", default_state_dir(self._env, home=self._home, platform=self._platform)
        )
        fields.setdefault("pid_file_dir", state_dir)
        fields.setdefault("plugins_path", self._home / ".config" / "anklet" / "plugins")
        metrics = MetricsConfig(**fields.pop("metrics").fields)
        return SupervisorConfig(log=LogConfig(**log), metrics=metrics, **fields)

    def _named_level(self, named: str) -> str:
        level = log_level(named)
        if level is None:
            self.problems.warn(
                Location("environment:LOG_LEVEL"), "LOG_LEVEL must be DEBUG, INFO, ERROR or dev; using INFO"
            )
        return level or "INFO"

    def _check_vm_limit(self, values: Values) -> None:
        if self._platform == "darwin" and values.fields.get("vm_limit", 0) > _MACOS_VM_LIMIT:
            self.problems.error(
                values.at("vm_limit"), f"vm_limit must be 1 or 2: macOS runs {_MACOS_VM_LIMIT} macOS VMs at once"
            )

    def _check_directories(self, values: Values, is_dir: Callable[[Path], bool]) -> None:
        """These must exist already: a misspelt one would otherwise be created in the wrong place."""
        given = [(key, values, key) for key in _MUST_EXIST]
        given.append(("log.file_dir", values.fields["log"], "file_dir"))
        for title, section, key in given:
            directory = section.fields.get(key)
            if directory is not None and not is_dir(directory):
                self.problems.error(section.at(key), f"{title}: no such directory")

    def _plugin_rules(self, branch: Branch, plugins_path: Path) -> PluginRules | None:
        try:
            return PluginRules(plugins_path)
        except OSError as error:
            self.problems.error(branch.place, f"plugins_path cannot be read: {error.strerror}")
            return None
