"""Keys of the configuration as data: name, kind, bounds, and a line of documentation, in one table per section.

The core and each plugin declare their keys in these words. One loader in the supervisor obeys every table, so a plugin's keys
get the same checks, messages, environment variables and secrets as the core's. Knows no file and no environment.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, TypeAlias

import msgspec


class Secret:
    """A text that no log, message or representation shows; `reveal` returns it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The text itself."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    def __str__(self) -> str:
        return "***"

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)


#: The value of one setting, as it travels to the worker: plain data of these types, however deep.
SettingValue: TypeAlias = str | int | float | bool | Path | Secret | Sequence[Any] | Mapping[str, Any] | None


class Kind(Enum):
    """The type of a value; the words are those of the documentation."""

    TEXT = "text"
    CHOICE = "one of"
    LEVEL = "log level"
    INTEGER = "whole number"
    DURATION = "duration"
    FLAG = "true or false"
    DIRECTORY = "directory"
    FILE = "file"
    URL = "URL"
    REDIS = "Redis address"
    PATTERNS = "list of regular expressions"
    TEXTS = "list of texts"
    SECRET = "secret"  # noqa: S105  a kind of value, not one
    PRIVATE_KEY = "PEM file or text"
    SERVICES = "list of services"
    SECTION = "section"


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """One key of a section.

    `default` is for the documentation, where the typed value does not say it. `least` and `most` bound a number, `above` excludes
    its bound; durations are in seconds. `form` is a regular expression for the whole text, which `wanted` says in words.
    `unset`: a value that means "not given". `lower`: upper and lower case are the same, and lower case is kept. `single`: a
    list may be written as one text, and is then kept as one. `quoted`: a bare number is refused. `unused`: accepted with a warning.
    """

    name: str
    kind: Kind
    doc: str
    default: str = ""
    choices: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None
    above: float | None = None
    form: str = ""
    wanted: str = ""
    section: Section | None = None
    unset: str = ""
    lower: bool = False
    single: bool = False
    quoted: bool = False
    unused: bool = False
    from_environment: bool = True

    def spellings(self) -> tuple[str, ...]:
        """Every name that gives this key. A secret has three: its own, `_file` and `_command`."""
        if self.kind in (Kind.SECRET, Kind.PRIVATE_KEY):
            return (self.name, f"{self.name}_file", f"{self.name}_command")
        return (self.name,)


class Moved(msgspec.Struct, frozen=True):
    """A key of another program's file: `to` is the key that replaces it here (empty: none does), `advice` what to do about it."""

    to: str = ""
    advice: str = ""

    def explained(self) -> str:
        """The end of an error line about an unknown key."""
        if not self.to:
            return f"it belongs to a later Anklet and has no counterpart here; {self.advice}"
        return f"the nearest known key is {self.to}{'; ' if self.advice else ''}{self.advice}"


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """One mapping of the file. `values` is the frozen struct that it becomes, with a field for each key; a field without a default
    is a required key. `moved` explains keys of other programs' files."""

    name: str
    keys: tuple[Key, ...]
    values: type[msgspec.Struct]
    moved: Mapping[str, Moved] = {}

    def names(self) -> dict[str, Key]:
        """Every name that is accepted in the mapping, with its key."""
        return {name: key for key in self.keys for name in key.spellings()}

    def variables(self, prefix: str) -> Iterator[str]:
        """Every environment variable that overrides a key of the section, for services with this prefix."""
        for key in self.keys:
            if key.section is not None and key.kind is Kind.SECTION:
                yield from key.section.variables(f"{prefix}{key.name.upper()}_")
            elif key.from_environment:
                yield from (f"{prefix}{name.upper()}" for name in key.spellings())


_YEAR = 366 * 24 * 3600.0
#: Least and most of a TCP port.
PORTS = (1, 65535)


def duration(name: str, doc: str, *, least: float | None = None, above: float | None = None, default: str = "") -> Key:
    """A key for a duration of at most a year; the value is seconds."""
    return Key(name=name, kind=Kind.DURATION, doc=doc, least=least, above=above, most=_YEAR, default=default)


def choice(name: str, doc: str, *choices: str, default: str = "") -> Key:
    """A key for one word of a closed list."""
    return Key(name=name, kind=Kind.CHOICE, doc=doc, choices=choices, default=default)


def nested(section: Section, doc: str) -> Key:
    """A key for a section within a section, under the section's own name."""
    return Key(name=section.name, kind=Kind.SECTION, doc=doc, section=section)


def secrets_in(value: object) -> Iterator[str]:
    """Every secret in a setting, however deep."""
    if isinstance(value, Secret):
        if value:
            yield value.reveal()
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from secrets_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from secrets_in(inner)


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile one regular expression of the configuration. Raises `ValueError` with a reason for people."""
    try:
        with warnings.catch_warnings():
            # Python warns of syntax that a later version may read differently; this version reads it as intended.
            warnings.simplefilter("ignore")
            return re.compile(pattern)
    except re.error as error:
        raise ValueError(error.msg if error.pos is None else f"{error.msg}, at character {error.pos + 1}") from None
    except (OverflowError, RecursionError):
        raise ValueError("it is too large") from None
