"""YAML as a tree of mappings, lists and scalars, each with its place in the file.

Owns everything about YAML: syntax errors, duplicate keys, merge keys, aliases, the kind of a plain word. Knows no key of ours.
Scalars keep their text as written, because the key decides what `08080` and `no` mean.

Messages about syntax errors quote nothing from the file: it may be half of a secret.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import TypeAlias

import msgspec
import yaml

from anklet_supervisor.config.problems import Location, Problems

#: Quotes from the file in YAML's own messages; single characters and names of tokens may stay.
_QUOTED = re.compile(r" '(?!<[a-z ]+>')[^']{2,}'")
_TAG = "tag:yaml.org,2002:"
_MERGE = f"{_TAG}merge"


class ScalarKind(Enum):
    """How YAML reads a scalar. BROKEN has been reported already."""

    TEXT = "text"
    NUMBER = "a number"
    FLAG = "true or false"
    NULL = "nothing"
    BROKEN = "broken"


class Scalar(msgspec.Struct, frozen=True):
    """A scalar, as written."""

    text: str
    kind: ScalarKind
    place: Location


class Entry(msgspec.Struct, frozen=True):
    """A key's place, and its value."""

    place: Location
    value: Node


class Branch(msgspec.Struct, frozen=True):
    """A mapping."""

    entries: dict[str, Entry]
    place: Location


class Items(msgspec.Struct, frozen=True):
    """A list."""

    items: tuple[Node, ...]
    place: Location


Node: TypeAlias = Scalar | Branch | Items

_KINDS = {
    f"{_TAG}str": ScalarKind.TEXT,
    f"{_TAG}timestamp": ScalarKind.TEXT,
    f"{_TAG}value": ScalarKind.TEXT,
    _MERGE: ScalarKind.TEXT,
    "!": ScalarKind.TEXT,
    f"{_TAG}int": ScalarKind.NUMBER,
    f"{_TAG}float": ScalarKind.NUMBER,
    f"{_TAG}bool": ScalarKind.FLAG,
    f"{_TAG}null": ScalarKind.NULL,
}


def parse(file: str, text: str, problems: Problems) -> Branch | None:
    """The top mapping of the document; None, with an error in `problems`, when there is none."""
    try:
        root = _compose(file, text, problems)
        node = None if root is None else _Builder(file, problems).node(root)
    except RecursionError:
        problems.error(Location(file), "nested too deeply for a configuration")
        return None
    if node is None or isinstance(node, Branch):
        return node
    if not isinstance(node, Scalar) or node.kind is not ScalarKind.BROKEN:
        problems.error(node.place, "the file must hold `key: value` lines, with `services:` among them")
    return None


def is_null(node: Node) -> bool:
    """True for `key:` with nothing behind it."""
    return isinstance(node, Scalar) and node.kind is ScalarKind.NULL


def is_broken(node: Node) -> bool:
    """True for a node whose error has been reported."""
    return isinstance(node, Scalar) and node.kind is ScalarKind.BROKEN


def _compose(file: str, text: str, problems: Problems) -> yaml.Node | None:
    # The parser in Python, not libyaml: its messages and columns are the same everywhere, and a configuration is short.
    try:
        loader = yaml.SafeLoader(text)
        try:
            root = loader.get_single_node()
        except (ValueError, OverflowError):
            problems.error(
                _place(file, loader.get_mark()), "not valid YAML: an escape for a character that does not exist"
            )
            return None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        problems.error(_place(file, error.problem_mark or error.context_mark), f"not valid YAML: {_explained(error)}")
        return None
    except yaml.reader.ReaderError as error:
        line, column = text.count("\n", 0, error.position) + 1, error.position - text.rfind("\n", 0, error.position)
        problems.error(Location(file, line, column), "not valid YAML: a control character")
        return None
    if root is None:
        problems.error(Location(file), "the file is empty; it needs `services:` with at least one service")
    return root


def _explained(error: yaml.MarkedYAMLError) -> str:
    """The parser's own message, without quotes from the file."""
    problem = error.problem or error.context or "unknown syntax error"
    if "undefined alias" in problem:
        return "put a text that begins with * in quotes (bare, it refers to an anchor, and there is none of that name)"
    if "tag" in problem:
        return "put a text that begins with ! in quotes"
    return _QUOTED.sub("", problem)


def _place(file: str, mark: yaml.Mark | None) -> Location:
    return Location(file) if mark is None else Location(file, mark.line + 1, mark.column + 1)


class _Builder:
    """Turns the parser's nodes into ours; a node with several references is made once."""

    def __init__(self, file: str, problems: Problems) -> None:
        self._file = file
        self._problems = problems
        self._made: dict[int, Node] = {}
        self._underway: set[int] = set()

    def node(self, node: yaml.Node) -> Node:
        identity = id(node)
        if identity in self._made:
            return self._made[identity]
        if identity in self._underway:
            return self._broken(node, "this alias refers to a section that contains it")
        self._underway.add(identity)
        made = self._make(node)
        self._underway.discard(identity)
        self._made[identity] = made
        return made

    def _make(self, node: yaml.Node) -> Node:
        if isinstance(node, yaml.ScalarNode):
            if node.tag not in _KINDS:
                return self._unknown_tag(node)
            return Scalar(node.value, _KINDS[node.tag], self._at(node))
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return Branch(self._entries(node), self._at(node))
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return Items(tuple(self.node(item) for item in node.value), self._at(node))
        return self._unknown_tag(node)

    def _entries(self, node: yaml.MappingNode) -> dict[str, Entry]:
        """Own keys, then those merged by `<<`; an own key wins over a merged one, an earlier merge over a later one."""
        entries: dict[str, Entry] = {}
        merges: list[yaml.Node] = []
        for key, value in node.value:
            if key.tag == _MERGE:
                merges.append(value)
            elif not isinstance(key, yaml.ScalarNode):
                self._problems.error(self._at(key), "a key must be a plain word")
            elif key.value in entries:
                first = entries[key.value].place.line
                self._problems.error(self._at(key), f"duplicate key {shown(key.value)}; first on line {first}")
            else:
                entries[key.value] = Entry(self._at(key), self.node(value))
        for merge in merges:
            for source in merge.value if isinstance(merge, yaml.SequenceNode) else [merge]:
                self._merge(entries, source)
        return entries

    def _merge(self, entries: dict[str, Entry], source: yaml.Node) -> None:
        made = self.node(source)
        if isinstance(made, Branch):
            for key, entry in made.entries.items():
                entries.setdefault(key, entry)
        elif not is_broken(made):
            self._problems.error(self._at(source), "<< takes a section, or a list of sections")

    def _unknown_tag(self, node: yaml.Node) -> Scalar:
        return self._broken(node, "put a text that begins with ! in quotes")

    def _broken(self, node: yaml.Node, message: str) -> Scalar:
        self._problems.error(self._at(node), message)
        return Scalar("", ScalarKind.BROKEN, self._at(node))

    def _at(self, node: yaml.Node) -> Location:
        return _place(self._file, node.start_mark)


def shown(word: str) -> str:
    """A word of the file for a message: quoted, on one line, cut when long."""
    return repr(word if len(word) <= _LONGEST_SHOWN else f"{word[:_LONGEST_SHOWN]}...")


_LONGEST_SHOWN = 60
