"""Keys of a plugin without rules -> plain data, as YAML has it.

Owns the limits of such data, and refuses keys that look like secrets: undeclared, they would not be kept out of logs.
"""

from __future__ import annotations

import re

from anklet_supervisor.config.problems import Location
from anklet_supervisor.config.reader import Position, Reader
from anklet_supervisor.config.tree import Branch, Items, Node, Scalar, ScalarKind, shown
from anklet_supervisor.config.values import Unfit
from anklet_worker.contract.settings import SettingValue

_NUMBERS = re.compile(r"-?(?:0|[1-9][0-9]{0,17})(?P<fraction>\.[0-9]{1,17})?")
#: Aliases can make a few lines of a file mean millions of values, or values nested without end.
_MOST_VALUES, _DEEPEST = 10_000, 20
_SECRET = re.compile(r"(?:.*_)?(?P<key>token|password|secret|private_key)(?:_file|_command)?", re.IGNORECASE)


class Undeclared(Unfit):
    """A key that looks like a secret, at its own place."""

    def __init__(self, name: str, place: Location) -> None:
        super().__init__(name)
        self.place = place


class PlainData:
    """Reads one key of a plugin without rules."""

    def __init__(self, reader: Reader, position: Position, name: str, place: Location) -> None:
        self._reader = reader
        self._position = position
        self._name = name
        self._place = place
        self._left = _MOST_VALUES

    def value(self, node: Node) -> SettingValue:
        """The key's value. Raises `Unfit`; `Undeclared` for a key, however deep, that looks like a secret."""
        _refuse_secret(self._name, self._place)
        return self._plain(node, 0)

    def _plain(self, node: Node, depth: int) -> SettingValue:
        self._left -= 1
        if self._left < 0 or depth > _DEEPEST:
            raise Unfit(f"holds more than {_MOST_VALUES} values, or is nested more than {_DEEPEST} deep")
        if isinstance(node, Items):
            return [self._plain(item, depth + 1) for item in node.items]
        if isinstance(node, Branch):
            for word, entry in node.entries.items():
                _refuse_secret(word, entry.place)
            return {word: self._plain(entry.value, depth + 1) for word, entry in node.entries.items()}
        return self._scalar(node)

    def _scalar(self, node: Scalar) -> SettingValue:
        given = self._reader.text(node, self._position, self._name)
        if given is None:
            return None
        if given.kind is ScalarKind.FLAG:
            return given.text.lower() in ("true", "yes", "on")
        number = _NUMBERS.fullmatch(given.text) if given.kind is ScalarKind.NUMBER else None
        if number is None:
            return given.text
        return float(given.text) if number["fraction"] else int(given.text)


def _refuse_secret(name: str, place: Location) -> None:
    found = _SECRET.fullmatch(name)
    if found is not None:
        key = re.sub("_(?:file|command)$", "", name, flags=re.IGNORECASE)
        kind = "PRIVATE_KEY" if found["key"].lower() == "private_key" else "SECRET"
        raise Undeclared(
            f"{shown(name)} looks like a secret, and the plugin declares none, so logs could show it; "
            f"declare Key(name={shown(key)}, kind=Kind.{kind}, ...) in the plugin's rules.py",
            place,
        )
