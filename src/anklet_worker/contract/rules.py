"""A plugin's rules: the settings it takes, what it asks of them, and the figures it reports.

The supervisor reads the rules when it reads the configuration, so `anklet-supervisor check` reports every mistake before
anything starts. Rules are found by the entry point group `anklet.plugin_rules` under the plugin's name, or in `rules.py` beside a
plugin's `plugin.py`, as `RULES`. Their module should import quickly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from anklet_worker.contract.figures import Figure
from anklet_worker.contract.service import ServiceConfig
from anklet_worker.contract.settings import Section, SettingValue

#: Entry point group of `ServiceRules`.
RULES_GROUP = "anklet.plugin_rules"


class Complaint(msgspec.Struct, frozen=True):
    """A problem in a service's settings: the key to point at, and a message that goes on from the key's name, without secrets.

    A key in a section is `section.key`. `instead`: keys that would do as well; a complaint about a missing key is dropped when one
    of them is there and wrong. `warning`: the service starts all the same.
    """

    key: str
    message: str
    instead: tuple[str, ...] = ()
    warning: bool = False


class NoSettings(msgspec.Struct, frozen=True):
    """The settings of a plugin that takes none."""


#: For a plugin without keys of its own.
NO_SETTINGS = Section(name="", keys=(), values=NoSettings)

#: Takes a service and its plugin's typed settings (`Section.values`). Pure.
Check = Callable[[ServiceConfig, Any], Iterable[Complaint]]


def _no_complaints(_service: ServiceConfig, _settings: object) -> Iterable[Complaint]:
    return ()


class ServiceRules(msgspec.Struct, frozen=True, kw_only=True):
    """What a plugin declares about itself.

    `settings`: its keys, and the struct they become. A key that neither the core nor the plugin declares is an error; for a
    plugin without rules it becomes plain data. `check`: what the keys mean together. `origin_keys`: the keys that say where
    jobs come from, beside owner and repo. `figures`: what it reports. `retired`: names of other programs' plugins, each with
    advice that goes on from "plugin NAME".
    """

    settings: Section = NO_SETTINGS
    check: Check = _no_complaints
    origin_keys: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    retired: Mapping[str, str] = {}


def origin_of(service: ServiceConfig, rules: ServiceRules | None) -> str:
    """A hash that is equal for services whose jobs come from the same place. No secret is in it.

    It stands in records on disk. Keys with a default always count; the others only when they are given, so that a new key changes
    no existing hash. Without rules every setting counts.
    """
    given = service.settings
    always: list[SettingValue] = []
    if rules is not None:
        values = rules.settings.values
        defaults = {field.name: _default(field) for field in msgspec.structs.fields(values)}
        always = [given.get(key, defaults[key]) for key in rules.origin_keys if defaults[key] is not None]
        given = {key: given[key] for key in rules.origin_keys if defaults[key] is None and key in given}
    place = (service.plugin, *always, service.owner, service.repo, sorted(given.items(), key=lambda item: item[0]))
    return hashlib.sha256(msgspec.json.encode(place, enc_hook=_path)).hexdigest()[:16]


def _default(field: msgspec.structs.FieldInfo) -> Any:
    """A field's default, also one that is made for each struct, such as an empty list."""
    if field.default is msgspec.NODEFAULT and field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default


def _path(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"an origin key holds a {type(value).__name__}")
