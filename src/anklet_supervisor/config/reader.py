"""One mapping of the file, and the environment's word on its keys -> typed values, by a table of keys.

Owns the order of precedence (environment over file), `${NAME}`, unknown keys, and that each problem names its service and place.
`values` owns the meaning of a single text; the caller owns what the values mean together.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from anklet_supervisor.config.problems import Location, Problems
from anklet_supervisor.config.secrets import Fetched, RunCommand, fetch
from anklet_supervisor.config.tree import Branch, Items, Node, Scalar, ScalarKind, is_broken, is_null, shown
from anklet_supervisor.config.values import Given, Roots, Unfit, convert, text_of
from anklet_worker.contract.settings import Key, Kind, Moved, Secret, Section, compile_pattern

_VARIABLE = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)\}|\$\{")
_LISTS = (Kind.PATTERNS, Kind.TEXTS)
_SECRETS = (Kind.SECRET, Kind.PRIVATE_KEY)


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """A mapping of the configuration: its place, its service, the path of its keys, and their prefix in the environment (None:
    the environment cannot override them). `title` begins every message."""

    place: Location
    prefix: str | None
    service: str | None = None
    title: str = ""
    path: str = ""

    def inside(self, name: str, place: Location) -> Position:
        """The position of the mapping under the key `name`."""
        prefix = None if self.prefix is None else f"{self.prefix}{name.upper()}_"
        return msgspec.structs.replace(self, place=place, prefix=prefix, path=f"{self.path}{name}.")


class Values(msgspec.Struct):
    """The contents of a section: typed values by key, the places of those given, and the keys that were wrong."""

    place: Location
    fields: dict[str, Any] = {}
    places: dict[str, Location] = {}
    wrong: set[str] = set()

    def at(self, key: str) -> Location:
        """The place for a message about `key` (`section.key` for one further in): its value, else the section."""
        head, _, rest = key.partition(".")
        inner = self.fields.get(head)
        return inner.at(rest) if rest and isinstance(inner, Values) else self.places.get(key, self.place)

    def is_wrong(self, key: str) -> bool:
        """True when a problem with `key` (`section.key` for one further in) has been reported."""
        head, _, rest = key.partition(".")
        inner = self.fields.get(head)
        return inner.is_wrong(rest) if rest and isinstance(inner, Values) else key in self.wrong


class _Mapping(msgspec.Struct, frozen=True):
    """One mapping while it is read."""

    branch: Branch | None
    position: Position
    values: Values

    def node(self, name: str) -> Node | None:
        """The file's value for a key."""
        entry = None if self.branch is None else self.branch.entries.get(name)
        return None if entry is None else entry.value


class Reader:
    """Reads sections. Afterwards `literal_secret` is the place of a secret that stands in the file itself, if there is one."""

    def __init__(self, problems: Problems, env: Mapping[str, str], roots: Roots, run_command: RunCommand) -> None:
        self._problems = problems
        self._env = env
        self._roots = roots
        self._run_command = run_command
        self._exposed: set[Path] = set()
        self.literal_secret: Location | None = None

    def section(self, section: Section, node: Node | None, position: Position) -> Values:
        """The values of one mapping, and of those inside it. Unknown keys are left to `unknown_keys`."""
        mapping = _Mapping(self._branch(node, position), position, Values(position.place))
        for key in section.keys:
            if key.kind is Kind.SERVICES or key.unused:
                continue
            if key.section is not None:
                self._nested(key, key.section, mapping)
            elif key.kind in _SECRETS:
                self._secret(key, mapping)
            elif key.kind in _LISTS:
                self._list(key, mapping)
            else:
                self._one(key, mapping)
        return mapping.values

    def unknown_keys(
        self, section: Section, node: Node | None, position: Position
    ) -> Iterator[tuple[str, Location, Node]]:
        """The keys of a mapping that its table does not have; warns about keys that are no longer used."""
        known = section.names()
        for name, entry in node.entries.items() if isinstance(node, Branch) else ():
            if name not in known:
                yield name, entry.place, entry.value
            elif known[name].unused:
                self._warn(entry.place, position, f"{name} is no longer used; {known[name].doc}")

    def refuse(self, section: Section, name: str, place: Location, position: Position) -> None:
        """Report an unknown key, with its replacement if the original's files have it, else with the nearest known key."""
        moved = section.moved.get(name)
        if moved is None:
            nearest = difflib.get_close_matches(name[:60], sorted(section.names()), n=1, cutoff=0.0)[0]
            moved = Moved(f"{position.path}{nearest}")
        self._error(place, position, f"unknown key {shown(position.path + name)}; {moved.explained()}")

    def given(self, key: Key, branch: Branch | None, position: Position) -> Given | None:
        """The text given for a key that takes one text, by the environment or else the file; None when nothing is given."""
        entry = None if branch is None else branch.entries.get(key.name)
        node = None if entry is None else entry.value
        return self._variable(key, key.name, position) or self.text(node, position, key.name)

    def text(self, node: Node | None, position: Position, name: str) -> Given | None:
        """A scalar with its `${NAME}`s replaced. None when nothing is given, or (reported) when it is not a scalar."""
        if node is None or is_null(node) or is_broken(node):
            return None
        if not isinstance(node, Scalar):
            self._error(node.place, position, f"{position.path}{name} must be a single value, not a {_form(node)}")
            return None
        try:
            text = self._expand(node.text)
        except Unfit as error:
            self._error(node.place, position, f"{position.path}{name} {error}")
            return None
        kind = node.kind if text == node.text else ScalarKind.TEXT
        return Given(text, kind, node.place, quotable="${" not in node.text)

    # ---- one key ----

    def _one(self, key: Key, mapping: _Mapping) -> None:
        values = mapping.values
        given = self.given(key, mapping.branch, mapping.position)
        if given is None:
            if _is_given(mapping.node(key.name)):
                # It was there, and its error has been reported.
                values.wrong.add(key.name)
            return
        values.places[key.name] = given.place
        if not given.text:
            return
        try:
            value = convert(key, given, self._roots)
        except Unfit as error:
            self._wrong(key, given.place, str(error), mapping)
            return
        if not key.unset or str(value) != key.unset:
            values.fields[key.name] = value

    def _nested(self, key: Key, section: Section, mapping: _Mapping) -> None:
        node = mapping.node(key.name)
        inner = mapping.position.inside(key.name, mapping.position.place if node is None else node.place)
        for name, place, _ in self.unknown_keys(section, node, inner):
            self.refuse(section, name, place, inner)
        mapping.values.fields[key.name] = self.section(section, node, inner)

    def _list(self, key: Key, mapping: _Mapping) -> None:
        node = mapping.node(key.name)
        variable = self._variable(key, key.name, mapping.position)
        if variable is None and (node is None or is_null(node)):
            return
        if key.single and variable is None and isinstance(node, Scalar):
            self._one(key, mapping)
            return
        entries = self._from_commas(variable) if variable is not None else self._from_items(key, node, mapping)
        fit = [self._entry(key, given, mapping) for given in entries if given.text]
        mapping.values.fields[key.name] = tuple(text for text in fit if text is not None)

    def _from_commas(self, variable: Given) -> list[Given]:
        return [msgspec.structs.replace(variable, text=part.strip()) for part in variable.text.split(",")]

    def _from_items(self, key: Key, node: Node | None, mapping: _Mapping) -> list[Given]:
        if node is None or is_broken(node):
            return []
        mapping.values.places[key.name] = node.place
        if not isinstance(node, Items):
            self._wrong(key, node.place, "must be a list (one `- ` line for each entry)", mapping)
            return []
        read = [self.text(item, mapping.position, key.name) for item in node.items]
        return [given for given in read if given is not None]

    def _entry(self, key: Key, given: Given, mapping: _Mapping) -> str | None:
        try:
            return _pattern(given) if key.kind is Kind.PATTERNS else text_of(key, given)
        except Unfit as error:
            self._wrong(key, given.place, str(error), mapping)
            return None

    def _secret(self, key: Key, mapping: _Mapping) -> None:
        """A secret under one of its spellings; a spelling in the environment replaces all those of the file."""
        position, values = mapping.position, mapping.values
        found = {name: given for name in key.spellings() if (given := self._variable(key, name, position))}
        if not found:
            for name in key.spellings():
                given = self.text(mapping.node(name), position, name)
                if given is None and _is_given(mapping.node(name)):
                    values.wrong.add(key.name)
                elif given is not None and given.text:
                    found[name] = given
        if not found:
            return
        name, given = next(iter(found.items()))
        values.places[key.name] = given.place
        if len(found) > 1:
            listed = " and ".join(position.path + name for name in found)
            self._error(given.place, position, f"{listed} are given; one of them is enough")
            values.wrong.add(key.name)
            return
        try:
            fetched = fetch(key, name, given, self._roots, self._run_command)
        except Unfit as error:
            self._wrong(key, given.place, str(error), mapping, name)
            return
        values.fields[key.name] = self._noted(fetched, given, position)

    def _noted(self, fetched: Fetched, given: Given, position: Position) -> Secret:
        if fetched.literal and self.literal_secret is None:
            self.literal_secret = given.place
        if fetched.exposed is not None and fetched.exposed not in self._exposed:
            self._exposed.add(fetched.exposed)
            self._warn(given.place, position, "others can read the file that holds this secret; chmod 600 it")
        return fetched.secret

    # ---- where a text comes from ----

    def _variable(self, key: Key, name: str, position: Position) -> Given | None:
        """The environment's text; an empty variable counts as absent."""
        if position.prefix is None or not key.from_environment:
            return None
        variable = f"{position.prefix}{name.upper()}"
        text = self._env.get(variable, "")
        place = Location(f"environment:{variable}")
        return Given(text, ScalarKind.TEXT, place, quotable=False) if text else None

    def _expand(self, text: str) -> str:
        def replaced(match: re.Match[str]) -> str:
            if match[0] == "$${":
                return "${"
            if match[1] is None:
                raise Unfit("holds ${ without a variable's name and }; write $${ for a literal ${")
            if match[1] not in self._env:
                raise Unfit(f"uses the environment variable {match[1]}, which is not set")
            return self._env[match[1]]

        return _VARIABLE.sub(replaced, text)

    # ---- problems ----

    def _branch(self, node: Node | None, position: Position) -> Branch | None:
        if node is None or is_null(node) or is_broken(node) or isinstance(node, Branch):
            return node if isinstance(node, Branch) else None
        what = position.path.rstrip(".") or "this"
        self._error(node.place, position, f"{what} must be a section of `key: value` lines, not a {_form(node)}")
        return None

    def _wrong(self, key: Key, place: Location, message: str, mapping: _Mapping, spelling: str = "") -> None:
        mapping.values.wrong.add(key.name)
        self._error(place, mapping.position, f"{mapping.position.path}{spelling or key.name} {message}")

    def _error(self, place: Location, position: Position, message: str) -> None:
        self._problems.error(place, position.title + message, position.service)

    def _warn(self, place: Location, position: Position, message: str) -> None:
        self._problems.warn(place, position.title + message, position.service)


def _pattern(given: Given) -> str:
    try:
        compile_pattern(given.text)
    except ValueError as error:
        raise Unfit(f"holds a bad regular expression: {error}") from None
    return given.text


def _is_given(node: Node | None) -> bool:
    return node is not None and not is_null(node)


def _form(node: Node) -> str:
    return "list" if isinstance(node, Items) else "section" if isinstance(node, Branch) else "single value"
