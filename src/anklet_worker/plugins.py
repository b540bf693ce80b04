"""Finds and loads plugins and their rules: installed ones by entry point, the operator's own from files.

Knows no plugin by name.
"""

from __future__ import annotations

import importlib
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast

from anklet_worker.contract.errors import ConfigError
from anklet_worker.contract.plugin import API_VERSION, PluginFactory
from anklet_worker.contract.rules import RULES_GROUP, ServiceRules

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ENTRY_POINT_GROUP = "anklet.plugins"


def names(plugins_path: Path) -> set[str]:
    """Return the names of all available plugins: entry points and `plugins_path/<name>/plugin.py`. Loads none of them."""
    found = {point.name for point in _entry_points(ENTRY_POINT_GROUP)}
    if plugins_path.is_dir():
        found |= {entry.name for entry in plugins_path.iterdir() if (entry / "plugin.py").is_file()}
    return found


def load_rules(name: str, plugins_path: Path) -> ServiceRules | None:
    """Load a plugin's rules, by its entry point or else from `plugins_path/<name>/rules.py`, which is read again at each call.

    None when the plugin has no rules. Raises `ConfigError` when group or others can write the file, or when the rules are broken.
    """
    rules = _rules_from_entry_point(name)
    if rules is None and not installed_at(name):
        rules = _from_file(name, plugins_path, "rules", "RULES")
    if rules is not None and not isinstance(rules, ServiceRules):
        raise ConfigError(f"the rules of plugin {name} are not ServiceRules")
    return rules


def retired_plugins() -> dict[str, str]:
    """Return the names of other programs' plugins, each with advice, as the rules of the installed plugins list them."""
    found: dict[str, str] = {}
    for point in _entry_points(RULES_GROUP):
        try:
            rules = _rules_from_entry_point(point.name)
        except ConfigError:
            # Reported for the services that use this plugin.
            continue
        if isinstance(rules, ServiceRules):
            found.update(rules.retired)
    return found


def installed_at(name: str) -> str:
    """Return where an installed plugin's factory is, as `module:attribute`; empty for a plugin in a file."""
    return next((point.value for point in _entry_points(ENTRY_POINT_GROUP, name)), "")


def load(name: str, at: str, plugins_path: Path) -> PluginFactory:
    """Load a plugin's factory. `at` is what `installed_at` found; a file never shadows an installed plugin.

    Raises `ConfigError` when there is no such plugin, when group or others can write the file, when the file does not load, or when
    the plugin was written for another version of the contract.
    """
    if at:
        module, _, attribute = at.partition(":")
        factory = cast("PluginFactory | None", attrgetter(attribute)(importlib.import_module(module)))
    else:
        factory = cast("PluginFactory | None", _from_file(name, plugins_path, "plugin", "plugin"))
    if factory is None:
        raise ConfigError(f"no plugin named {name!r}: neither installed nor at {plugins_path / name / 'plugin.py'}")
    version = getattr(factory, "api_version", None)
    if version != API_VERSION:
        raise ConfigError(f"plugin {name!r} is written for plugin API {version!r}; this program has {API_VERSION}")
    return factory


def _entry_points(group: str, name: str | None = None) -> Iterable[EntryPoint]:
    # Imported here, because it costs a process 1.5 MB and the supervisor alone looks plugins up.
    from importlib.metadata import entry_points  # noqa: PLC0415

    return entry_points(group=group) if name is None else entry_points(group=group, name=name)


def _rules_from_entry_point(name: str) -> object | None:
    for point in _entry_points(RULES_GROUP, name):
        try:
            return cast("object", point.load())
        except (Exception, SystemExit) as error:  # a plugin's module: it may raise anything
            raise ConfigError(f"the rules of plugin {name} do not load: {type(error).__name__}") from error
    return None


def _from_file(name: str, plugins_path: Path, module: str, wanted: str) -> object | None:
    """`wanted` of a plugin's `module`.py; None when there is no such file."""
    path = plugins_path / name / f"{module}.py"
    if not path.is_file():
        return None
    for guarded in _importable(path.parent):
        _refuse_if_others_may_write(guarded)
    try:
        loaded = importlib.import_module(f"{_package(name, path.parent)}.{module}")
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{path} does not load: {type(error).__name__}: {error}") from error
    found: object | None = getattr(loaded, wanted, None)
    if found is None:
        raise ConfigError(f"{path} defines no {wanted!r}")
    return found


def _package(name: str, folder: Path) -> str:
    """Name of a new package whose modules are the folder's files, so that plugin.py can say `from .rules import ...`."""
    package = f"anklet_plugin_{re.sub(r'[^A-Za-z0-9_]', '_', name)}"
    for known in [known for known in sys.modules if known == package or known.startswith(f"{package}.")]:
        del sys.modules[known]
    spec = ModuleSpec(package, None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    module: ModuleType = module_from_spec(spec)
    sys.modules[package] = module
    importlib.invalidate_caches()
    return package


def _importable(folder: Path) -> Iterator[Path]:
    """What the module that is asked for can import from its folder: each Python file, and each folder that may hold one."""
    yield folder
    for path in folder.rglob("*"):
        # The interpreter writes `__pycache__`, with the permissions that the umask leaves.
        if path.suffix == ".py" or (path.is_dir() and path.name != "__pycache__"):
            yield path


def _refuse_if_others_may_write(path: Path) -> None:
    info = path.stat()
    if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or info.st_uid not in (os.geteuid(), 0):
        raise ConfigError(f"{path} can be changed by other users; chmod go-w it, or chown it to yourself")
