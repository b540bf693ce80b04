"""YAML as a tree of mappings, lists and scalars, each with its place in the file.

Owns everything that is YAML's: syntax errors, duplicate keys, merge keys, aliases, what kind of value a plain word is. Knows no
key of ours. Scalars keep the text as it is written: `08080` and `no` are for the reader to judge.

Syntax errors are told without what stands in the file at that place: it may be half of a secret.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import TypeAlias

import msgspec
import yaml

from anklet_supervisor.config.problems import Place, Report

#: What YAML's own messages put in quotes, unless it is one character or the name of a token.
_QUOTED = re.compile(r" '(?!<[a-z ]+>')[^']{2,}'")
_TAG = "tag:yaml.org,2002:"
_MERGE = f"{_TAG}merge"


class ScalarKind(Enum):
    """What YAML takes a scalar for. BROKEN has been reported already."""

    TEXT = "text"
    NUMBER = "a number"
    FLAG = "true or false"
    NULL = "nothing"
    BROKEN = "broken"


class Scalar(msgspec.Struct, frozen=True):
    """A scalar, as it is written."""

    text: str
    kind: ScalarKind
    place: Place


class Entry(msgspec.Struct, frozen=True):
    """A key's place, and its value."""

    place: Place
    value: Node


class Branch(msgspec.Struct, frozen=True):
    """A mapping."""

    entries: dict[str, Entry]
    place: Place


class Items(msgspec.Struct, frozen=True):
    """A list."""

    items: tuple[Node, ...]
    place: Place


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


def parse(file: str, text: str, report: Report) -> Branch | None:
    """The document's top mapping. None, with an error in `report`, when there is none."""
    try:
        root = _compose(file, text, report)
        node = None if root is None else _Builder(file, report).node(root)
    except RecursionError:
        report.error(Place(file), "this is nested too deeply to be a configuration")
        return None
    if node is None or isinstance(node, Branch):
        return node
    if not isinstance(node, Scalar) or node.kind is not ScalarKind.BROKEN:
        report.error(node.place, "the file must hold `key: value` lines, with `services:` among them")
    return None


def is_null(node: Node) -> bool:
    """True for `key:` with nothing behind it."""
    return isinstance(node, Scalar) and node.kind is ScalarKind.NULL


def is_broken(node: Node) -> bool:
    """True for what has been reported already."""
    return isinstance(node, Scalar) and node.kind is ScalarKind.BROKEN


def _compose(file: str, text: str, report: Report) -> yaml.Node | None:
    # The parser in Python, not libyaml's: a configuration is short, and its messages and columns are the same everywhere.
    try:
        loader = yaml.SafeLoader(text)
        try:
            root = loader.get_single_node()
        except (ValueError, OverflowError):
            report.error(_place(file, loader.get_mark()), "not valid YAML: an escape that stands for no character")
            return None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        report.error(_place(file, error.problem_mark or error.context_mark), f"not valid YAML: {_told(error)}")
        return None
    except yaml.reader.ReaderError as error:
        line, column = text.count("\n", 0, error.position) + 1, error.position - text.rfind("\n", 0, error.position)
        report.error(Place(file, line, column), "not valid YAML: a control character")
        return None
    if root is None:
        report.error(Place(file), "the file is empty; it needs `services:` with at least one service")
    return root


def _told(error: yaml.MarkedYAMLError) -> str:
    """The parser's own words, without what it quotes from the file."""
    problem = error.problem or error.context or "unknown syntax error"
    if "undefined alias" in problem:
        return "a text that begins with * must stand in quotes (bare, it refers to an anchor, and there is none)"
    if "tag" in problem:
        return "a text that begins with ! must stand in quotes"
    return _QUOTED.sub("", problem)


def _place(file: str, mark: yaml.Mark | None) -> Place:
    return Place(file) if mark is None else Place(file, mark.line + 1, mark.column + 1)


class _Builder:
    """Turns the parser's nodes into ours. A node that is referred to twice is made once."""

    def __init__(self, file: str, report: Report) -> None:
        self._file = file
        self._report = report
        self._made: dict[int, Node] = {}
        self._underway: set[int] = set()

    def node(self, node: yaml.Node) -> Node:
        identity = id(node)
        if identity in self._made:
            return self._made[identity]
        if identity in self._underway:
            return self._broken(node, "this refers to a part of the file that it is itself a part of")
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
        """Own keys first, then what `<<` brings; an own key wins over a merged one, an earlier merge over a later one."""
        entries: dict[str, Entry] = {}
        merges: list[yaml.Node] = []
        for key, value in node.value:
            if key.tag == _MERGE:
                merges.append(value)
            elif not isinstance(key, yaml.ScalarNode):
                self._report.error(self._at(key), "a key must be a plain word")
            elif key.value in entries:
                first = entries[key.value].place.line
                self._report.error(self._at(key), f"the key {shown(key.value)} is here twice; first on line {first}")
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
            self._report.error(self._at(source), "<< takes a section, or a list of sections")

    def _unknown_tag(self, node: yaml.Node) -> Scalar:
        return self._broken(node, "a text that begins with ! must stand in quotes")

    def _broken(self, node: yaml.Node, message: str) -> Scalar:
        self._report.error(self._at(node), message)
        return Scalar("", ScalarKind.BROKEN, self._at(node))

    def _at(self, node: yaml.Node) -> Place:
        return _place(self._file, node.start_mark)


def shown(word: str) -> str:
    """A key or name of the file, fit for a message: in quotes, on one line, not too long."""
    return repr(word if len(word) <= _LONGEST_SHOWN else f"{word[:_LONGEST_SHOWN]}...")


_LONGEST_SHOWN = 60
