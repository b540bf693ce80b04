"""What each service's plugin allows: which keys there are, and whether others are accepted.

Owns the search for a plugin's rules, the checks on what they declare, and the messages about both. Knows no plugin by name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from anklet_supervisor.config.metric_names import FAMILIES
from anklet_supervisor.config.service_keys import SERVICE
from anklet_supervisor.config.tree import shown
from anklet_supervisor.config.values import Unfit
from anklet_worker import plugins
from anklet_worker.contract.errors import ConfigError
from anklet_worker.contract.figures import Figure
from anklet_worker.contract.rules import ServiceRules
from anklet_worker.contract.settings import Key, Kind, Section


class Allowed(msgspec.Struct, frozen=True):
    """The keys of one service: the core's and its plugin's. `rules`: the plugin's, if it has any. `judged`: False when the plugin's
    keys cannot be known, because the plugin or its rules have an error."""

    section: Section
    rules: ServiceRules | None = None
    judged: bool = True


_CORE_KINDS = (Kind.REDIS, Kind.SERVICES)
#: For a service whose plugin is unknown.
UNJUDGED = Allowed(SERVICE, judged=False)


class PluginRules:
    """The rules of all plugins, each loaded once. Raises `OSError` when `plugins_path` cannot be read."""

    def __init__(self, plugins_path: Path) -> None:
        self._path = plugins_path
        self._available = sorted(plugins.names(plugins_path))
        self._known: dict[str, Allowed | Unfit] = {}
        self._figures: dict[str, tuple[str, Figure]] = {}

    def of(self, name: str, *, quotable: bool = True) -> Allowed:
        """What the plugin of this name allows. Raises `Unfit`, with a message that goes on from "service NAME: "."""
        if name not in self._available:
            raise Unfit(self._unknown(name, quotable=quotable))
        if name not in self._known:
            try:
                self._known[name] = self._loaded(name)
            except Unfit as error:
                self._known[name] = error
        found = self._known[name]
        if isinstance(found, Unfit):
            raise found
        return found

    def _unknown(self, name: str, *, quotable: bool) -> str:
        available = f"available: {', '.join(self._available) or 'none'}"
        if not name:
            return f"plugin is missing; {available}"
        retired = plugins.retired_plugins()
        if name in retired:
            return f"plugin {name} {retired[name]}"
        near = difflib.get_close_matches(name[:60], self._available, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"unknown plugin {shown(name) if quotable else ''}".rstrip() + f"; {available}{hint}"

    def _loaded(self, name: str) -> Allowed:
        try:
            rules = plugins.load_rules(name, self._path)
        except ConfigError as error:
            raise Unfit(str(error)) from None
        if rules is None:
            return Allowed(SERVICE)
        try:
            fault = next(self._faults(name, rules), None)
        except Exception as error:  # noqa: BLE001  a plugin's data: what it makes of msgspec or re may raise anything
            fault = f"{type(error).__name__}: {error}"
        if fault is not None:
            raise Unfit(f"the rules of plugin {name} are wrong: {fault}")
        self._figures.update({figure.name: (name, figure) for figure in rules.figures})
        keys = (*SERVICE.keys, *rules.settings.keys)
        moved = {**SERVICE.moved, **rules.settings.moved}
        return Allowed(Section(name=SERVICE.name, keys=keys, values=SERVICE.values, moved=moved), rules)

    def _faults(self, name: str, rules: ServiceRules) -> Iterator[str]:
        """A plugin author's mistakes."""
        yield from _faults_of_section(rules.settings)
        taken = {*SERVICE.variables(""), *(key.upper() for key in SERVICE.names())}
        for variable in rules.settings.variables(""):
            if variable in taken:
                yield f"the key {variable.lower()} is declared twice, or is the core's"
            taken.add(variable)
        fields = {field.name for field in msgspec.structs.fields(rules.settings.values)}
        secrets = {key.name for key in rules.settings.keys if key.kind in (Kind.SECRET, Kind.PRIVATE_KEY)}
        for origin_key in rules.origin_keys:
            if origin_key not in fields:
                yield f"origin_keys names {origin_key}, which is no key of the plugin"
            if origin_key in secrets:
                yield f"origin_keys names {origin_key}, which is a secret"
        for figure in rules.figures:
            if figure.family in FAMILIES:
                yield f"the metric of figure {figure.name}, {figure.family}, is the core's"
            other, known = self._figures.get(figure.name, (name, figure))
            if known != figure:
                yield f"plugin {other} declares figure {figure.name} differently"


def _faults_of_section(section: Section) -> Iterator[str]:
    fields = {field.name: field for field in msgspec.structs.fields(section.values)}
    for key in section.keys:
        if key.name not in fields:
            yield f"{section.values.__name__} has no field for the key {key.name}"
        if key.kind in _CORE_KINDS:
            yield f"the key {key.name} is of a kind that only the core has"
        if (key.kind is Kind.SECTION) != (key.section is not None):
            yield f"the key {key.name} must have Kind.SECTION and a section, or neither"
        re.compile(key.form)
        if key.section is not None:
            yield from _faults_of_section(key.section)


def missing_keys(section: Section, given: Mapping[str, Any]) -> Iterator[Key]:
    """The section's required keys that are not given."""
    required = {field.name for field in msgspec.structs.fields(section.values) if field.required}
    yield from (key for key in section.keys if key.name in required and key.name not in given)
