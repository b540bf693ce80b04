"""How plugins are found and loaded: by entry point, or from a file of the operator's. Knows no plugin by name."""

from __future__ import annotations

import importlib
import importlib.util
import os
import stat
import sys
from operator import attrgetter
from pathlib import Path
from typing import cast

from anklet_worker.contract.errors import ConfigError
from anklet_worker.contract.plugin import API_VERSION, PluginFactory

ENTRY_POINT_GROUP = "anklet.plugins"


def names(plugins_path: Path) -> set[str]:
    """Names of all plugins to be had here: entry points and `plugins_path/<name>/plugin.py`. Loads none of them."""
    from importlib.metadata import entry_points  # noqa: PLC0415  no worker needs it, see `_installed`

    found = {point.name for point in entry_points(group=ENTRY_POINT_GROUP)}
    if plugins_path.is_dir():
        found |= {entry.name for entry in plugins_path.iterdir() if (entry / "plugin.py").is_file()}
    return found


def load(name: str, plugins_path: Path) -> PluginFactory:
    """Load a plugin's factory. An entry point comes first; a file never shadows it.

    Raises `ConfigError` when there is none, when others may write the file, when it is broken or of another API version.
    """
    factory = _from_entry_point(name) or _from_file(name, plugins_path)
    if factory is None:
        raise ConfigError(f"no plugin named {name!r}: neither installed nor at {plugins_path / name / 'plugin.py'}")
    version = getattr(factory, "api_version", None)
    if version != API_VERSION:
        raise ConfigError(f"plugin {name!r} is written for plugin API {version!r}; this program has {API_VERSION}")
    return factory


def _from_entry_point(name: str) -> PluginFactory | None:
    place = _installed(name)
    if place is None:
        return None
    module, _, attribute = place.partition(":")
    return cast("PluginFactory", attrgetter(attribute)(importlib.import_module(module)))


def _installed(name: str) -> str | None:
    """The plugin's entry point, as `module:attribute`.

    Read from the files that pip writes (packaging.python.org, "Entry points specification"): importlib.metadata would do the same,
    but costs each worker 1.5 MB.
    """
    for folder in sys.path:
        for path in sorted(Path(folder).glob("*.dist-info/entry_points.txt")):
            section = path.read_text(encoding="utf-8").partition(f"[{ENTRY_POINT_GROUP}]\n")[2].partition("\n[")[0]
            for line in section.splitlines():
                key, _, place = line.partition("=")
                if key.strip() == name:
                    return place.partition("[")[0].strip()
    return None


def _from_file(name: str, plugins_path: Path) -> PluginFactory | None:
    path = plugins_path / name / "plugin.py"
    if not path.is_file():
        return None
    for guarded in (path, path.parent):
        _refuse_if_others_may_write(guarded)
    spec = importlib.util.spec_from_file_location(f"anklet_plugin_{name}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"{path} does not load: {type(error).__name__}: {error}") from error
    factory = getattr(module, "plugin", None)
    if factory is None:
        raise ConfigError(f"{path} defines no 'plugin'")
    return cast("PluginFactory", factory)


def _refuse_if_others_may_write(path: Path) -> None:
    info = path.stat()
    if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or info.st_uid not in (os.geteuid(), 0):
        raise ConfigError(f"{path} can be changed by others than you; chmod go-w it, or chown it to yourself")
