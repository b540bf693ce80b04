"""One mapping of the file, and what the environment says about its keys -> typed values, by a table of keys.

Owns the order of precedence (environment over file), `${NAME}`, unknown keys, and that each problem names its service and place.
What a single text means is in `config_values`, what the values mean together is the caller's.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from anklet_supervisor.config.moved import Moved
from anklet_supervisor.config.problems import Place, Report
from anklet_supervisor.config.schema import Key, Kind, Section, spellings
from anklet_supervisor.config.secrets import Fetched, RunCommand, fetch
from anklet_supervisor.config.tree import Branch, Items, Node, Scalar, ScalarKind, is_broken, is_null, shown
from anklet_supervisor.config.values import Given, Roots, Unfit, convert, text_of
from anklet_worker.contract.service import OptionValue, Secret, compile_pattern

_VARIABLE = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)\}|\$\{")
_NUMBERS = re.compile(r"-?(?:0|[1-9][0-9]{0,17})(?P<fraction>\.[0-9]{1,17})?")
#: Aliases can make a file of a few lines mean millions of values, or values nested without end.
_MOST_OPTION_VALUES, _DEEPEST_OPTION = 10_000, 20


class Scope(msgspec.Struct, frozen=True, kw_only=True):
    """Where in the configuration we are: whose section, at which place, under which prefix of the environment (None: none)."""

    place: Place
    prefix: str | None
    service: str | None = None
    title: str = ""
    path: str = ""

    def inside(self, name: str, place: Place) -> Scope:
        """The scope of the mapping under the key `name`."""
        prefix = None if self.prefix is None else f"{self.prefix}{name.upper()}_"
        return msgspec.structs.replace(self, place=place, prefix=prefix, path=f"{self.path}{name}.")


class Values(msgspec.Struct):
    """What a section holds: typed values by key, the places of what was given, and the keys that were wrong."""

    place: Place
    fields: dict[str, Any] = {}
    places: dict[str, Place] = {}
    wrong: set[str] = set()

    def at(self, key: str) -> Place:
        """Where to point at for `key` (`section.key` for one further in): its value, or else the section."""
        head, _, rest = key.partition(".")
        inner = self.fields.get(head)
        return inner.at(rest) if rest and isinstance(inner, Values) else self.places.get(key, self.place)

    def is_wrong(self, key: str) -> bool:
        """True when something has been reported about `key` (`section.key` for one further in)."""
        head, _, rest = key.partition(".")
        inner = self.fields.get(head)
        return inner.is_wrong(rest) if rest and isinstance(inner, Values) else key in self.wrong


class Reader:
    """Reads sections. Afterwards, `literal_secret` is the place of a secret that stands in the file itself, if any does."""

    def __init__(self, report: Report, env: Mapping[str, str], roots: Roots, run_command: RunCommand) -> None:
        self._report = report
        self._env = env
        self._roots = roots
        self._run_command = run_command
        self._exposed: set[Path] = set()
        self.literal_secret: Place | None = None

    def section(self, section: Section, node: Node | None, scope: Scope) -> Values:
        """The values of one mapping, and of those inside it; unknown keys are for `unknown_keys`."""
        branch = self._branch(node, scope)
        values = Values(scope.place)
        for key in section.keys:
            if key.kind is Kind.SERVICES:
                continue
            if key.section is not None:
                self._nested(key, key.section, branch, scope, values)
            elif key.kind in (Kind.SECRET, Kind.PRIVATE_KEY):
                self._secret(key, branch, scope, values)
            else:
                self._one(key, branch, scope, values)
        return values

    def unknown_keys(self, section: Section, node: Node | None, scope: Scope) -> Iterator[tuple[str, Place, Node]]:
        """The keys of a mapping that its table does not have; warns of those that have no use any more."""
        known = section.names()
        for name, entry in node.entries.items() if isinstance(node, Branch) else ():
            if name not in known:
                yield name, entry.place, entry.value
            elif known[name].unused:
                self._warn(entry.place, scope, f"{name} has no use any more; {known[name].doc}")

    def refuse(
        self, section: Section, name: str, place: Place, scope: Scope, more: frozenset[str] = frozenset()
    ) -> None:
        """Report an unknown key, with what the original's is here, or else the known one that is nearest to it."""
        moved = section.moved.get(name)
        if moved is None:
            candidates = sorted({*section.names(), *more})
            nearest = difflib.get_close_matches(name[:60], candidates, n=1, cutoff=0.0)[0]
            moved = Moved(f"{scope.path}{nearest}")
        self._error(place, scope, f"unknown key {shown(scope.path + name)}; {moved.told()}")

    def text(self, node: Node | None, scope: Scope, name: str) -> Given | None:
        """A scalar with its `${NAME}`s replaced. None when nothing is given, or (reported) when it is no scalar."""
        if node is None or is_null(node) or is_broken(node):
            return None
        if not isinstance(node, Scalar):
            self._error(node.place, scope, f"{scope.path}{name} must be a single value, not a {_form(node)}")
            return None
        try:
            text = self._expand(node.text)
        except Unfit as error:
            self._error(node.place, scope, f"{scope.path}{name} {error}")
            return None
        kind = node.kind if text == node.text else ScalarKind.TEXT
        return Given(text, kind, node.place, quotable="${" not in node.text)

    def option(self, node: Node, scope: Scope, name: str) -> OptionValue:
        """The plain value of a plugin's own key."""
        try:
            return _Option(self, scope, name).plain(node, 0)
        except Unfit as error:
            self._error(node.place, scope, f"{shown(name)} {error}")
            return None

    # ---- one key ----

    def _one(self, key: Key, branch: Branch | None, scope: Scope, values: Values) -> None:
        node = _value(branch, key.name)
        variable = self._variable(key, key.name, scope)
        if key.unused:
            return
        if key.kind in (Kind.PATTERNS, Kind.TEXTS):
            fits = self._is_pattern if key.kind is Kind.PATTERNS else self._is_text
            listed = self._listed(key, variable, node, scope)
            values.fields[key.name] = tuple(given.text for given in listed if given.text and fits(key, given, scope))
            return
        given = variable or self.text(node, scope, key.name)
        if given is None:
            self._note_absence(key, node, values)
            return
        values.places[key.name] = given.place
        if not given.text:
            return
        try:
            values.fields[key.name] = convert(key, given, self._roots)
        except Unfit as error:
            self._wrong(key.name, given.place, scope, str(error), values)

    def _nested(self, key: Key, section: Section, branch: Branch | None, scope: Scope, values: Values) -> None:
        node = _value(branch, key.name)
        inner = scope.inside(key.name, scope.place if node is None else node.place)
        for name, place, _ in self.unknown_keys(section, node, inner):
            self.refuse(section, name, place, inner)
        values.fields[key.name] = self.section(section, node, inner)

    def _secret(self, key: Key, branch: Branch | None, scope: Scope, values: Values) -> None:
        """A secret: one of its spellings, all of the environment or all of the file."""
        names = spellings(key)
        found = {name: given for name in names if (given := self._variable(key, name, scope))}
        if not found:
            read = {name: self.text(_value(branch, name), scope, name) for name in names}
            values.wrong |= {key.name for name in names if read[name] is None and _given(_value(branch, name))}
            found = {name: given for name, given in read.items() if given is not None and given.text}
        if not found:
            return
        name, given = next(iter(found.items()))
        values.places[key.name] = given.place
        if len(found) > 1:
            listed = " and ".join(scope.path + name for name in found)
            self._error(given.place, scope, f"{listed} are given; one of them is enough")
            values.wrong.add(key.name)
            return
        try:
            values.fields[key.name] = self._noted(fetch(key, name, given, self._roots, self._run_command), given, scope)
        except Unfit as error:
            values.wrong.add(key.name)
            self._wrong(name, given.place, scope, str(error), values)

    def _noted(self, fetched: Fetched, given: Given, scope: Scope) -> Secret:
        if fetched.literal and self.literal_secret is None:
            self.literal_secret = given.place
        if fetched.exposed is not None and fetched.exposed not in self._exposed:
            self._exposed.add(fetched.exposed)
            self._warn(given.place, scope, "others can read the file that holds this secret; chmod 600 it")
        return fetched.secret

    def _listed(self, key: Key, variable: Given | None, node: Node | None, scope: Scope) -> list[Given]:
        """The entries of a list; in the environment they are separated by commas."""
        if variable is not None:
            return [msgspec.structs.replace(variable, text=part.strip()) for part in variable.text.split(",")]
        if node is None or is_null(node) or is_broken(node):
            return []
        if not isinstance(node, Items):
            self._error(node.place, scope, f"{scope.path}{key.name} must be a list (one `- ` line for each entry)")
            return []
        read = [self.text(item, scope, key.name) for item in node.items]
        return [given for given in read if given is not None]

    def _is_pattern(self, key: Key, given: Given, scope: Scope) -> bool:
        try:
            compile_pattern(given.text)
        except ValueError as error:
            self._error(given.place, scope, f"{scope.path}{key.name} holds a bad regular expression: {error}")
            return False
        return True

    def _is_text(self, key: Key, given: Given, scope: Scope) -> bool:
        try:
            text_of(key, given)
        except Unfit as error:
            self._error(given.place, scope, f"{scope.path}{key.name} {error}")
            return False
        return True

    # ---- where a text comes from ----

    def _variable(self, key: Key, name: str, scope: Scope) -> Given | None:
        """What the environment says; an empty variable says nothing."""
        if scope.prefix is None or not key.from_environment:
            return None
        variable = f"{scope.prefix}{name.upper()}"
        text = self._env.get(variable, "")
        place = Place(f"environment:{variable}")
        return Given(text, ScalarKind.TEXT, place, quotable=False) if text else None

    def _expand(self, text: str) -> str:
        def replaced(match: re.Match[str]) -> str:
            if match[0] == "$${":
                return "${"
            if match[1] is None:
                raise Unfit("holds ${ without a variable's name and }; a literal ${ is written $${")
            if match[1] not in self._env:
                raise Unfit(f"names {match[1]}, and the environment has no such variable")
            return self._env[match[1]]

        return _VARIABLE.sub(replaced, text)

    # ---- problems ----

    def _branch(self, node: Node | None, scope: Scope) -> Branch | None:
        if node is None or is_null(node) or is_broken(node) or isinstance(node, Branch):
            return node if isinstance(node, Branch) else None
        what = scope.path.rstrip(".") or "this"
        self._error(node.place, scope, f"{what} must be a section of `key: value` lines, not a {_form(node)}")
        return None

    def _note_absence(self, key: Key, node: Node | None, values: Values) -> None:
        if _given(node):
            # It was there, and has been reported.
            values.wrong.add(key.name)

    def _wrong(self, name: str, place: Place, scope: Scope, message: str, values: Values) -> None:
        values.wrong.add(name)
        self._error(place, scope, f"{scope.path}{name} {message}")

    def _error(self, place: Place, scope: Scope, message: str) -> None:
        self._report.error(place, scope.title + message, scope.service)

    def _warn(self, place: Place, scope: Scope, message: str) -> None:
        self._report.warn(place, scope.title + message, scope.service)


class _Option:
    """One of a plugin's own keys, as plain data."""

    def __init__(self, reader: Reader, scope: Scope, name: str) -> None:
        self._reader = reader
        self._scope = scope
        self._name = name
        self._left = _MOST_OPTION_VALUES

    def plain(self, node: Node, depth: int) -> OptionValue:
        self._left -= 1
        if self._left < 0 or depth > _DEEPEST_OPTION:
            raise Unfit(f"holds more than {_MOST_OPTION_VALUES} values, or is nested more than {_DEEPEST_OPTION} deep")
        if isinstance(node, Items):
            return [self.plain(item, depth + 1) for item in node.items]
        if isinstance(node, Branch):
            return {word: self.plain(entry.value, depth + 1) for word, entry in node.entries.items()}
        return self._scalar(node)

    def _scalar(self, node: Scalar) -> OptionValue:
        given = self._reader.text(node, self._scope, self._name)
        if given is None:
            return None
        if given.kind is ScalarKind.FLAG:
            return given.text.lower() in ("true", "yes", "on")
        number = _NUMBERS.fullmatch(given.text) if given.kind is ScalarKind.NUMBER else None
        if number is None:
            return given.text
        return float(given.text) if number["fraction"] else int(given.text)


def _value(branch: Branch | None, name: str) -> Node | None:
    entry = None if branch is None else branch.entries.get(name)
    return None if entry is None else entry.value


def _given(node: Node | None) -> bool:
    return node is not None and not is_null(node)


def _form(node: Node) -> str:
    return "list" if isinstance(node, Items) else "section" if isinstance(node, Branch) else "single value"
