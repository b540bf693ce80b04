"""One text of the configuration -> one typed value, by the kind of its key.

Owns what each kind accepts, and the words that say so. Pure, except that a file must be readable. A message quotes a text only
when the text stands in the file itself and its key holds no secret.
"""

from __future__ import annotations

import math
import re
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import msgspec

from anklet_supervisor.config.duration import parse_duration
from anklet_supervisor.config.problems import Location
from anklet_supervisor.config.tree import ScalarKind, shown
from anklet_worker.contract.settings import Key, Kind

_WHOLE = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_ZEROS_AHEAD = re.compile(r"-?0[0-9]+")
#: Control characters, and halves of surrogate pairs, which no UTF-8 file or JSON line can hold.
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]")
_FLAGS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_LEVELS = ("DEBUG", "INFO", "ERROR")
_REDIS_SCHEMES = {"redis": False, "rediss": True}


class Unfit(ValueError):
    """A text that the key does not accept; the message goes on from the key's name ("must be ...")."""


class Given(msgspec.Struct, frozen=True):
    """The text given for a key, how YAML reads it, and whether a message may quote it."""

    text: str
    kind: ScalarKind
    place: Location
    quotable: bool = True


class Roots(msgspec.Struct, frozen=True):
    """What paths in the file are relative to: `~` to `home`, all others to the folder of the file."""

    home: Path
    folder: Path

    def resolve(self, text: str) -> Path:
        """The absolute path. A trailing slash makes no difference."""
        if text == "~" or text.startswith("~/"):
            return self.home / text[2:].lstrip("/")
        return self.folder / text


class RedisAddress(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of `database.url`; absent ones are None."""

    host: str
    port: int | None = None
    user: str = ""
    password: str = ""
    database: int | None = None
    tls: bool = False


def convert(key: Key, given: Given, roots: Roots) -> object:
    """The value of `key`. Raises `Unfit`."""
    return _CONVERTERS[key.kind](key, given, roots)


def plain_text(key: Key, given: Given) -> str:
    """A text of one line. A bare number counts as the text written; a bare yes or no is refused."""
    if given.kind is ScalarKind.FLAG:
        raise Unfit(f"must be text, and YAML reads {shown(given.text)} as true or false: put it in quotes")
    if given.kind is ScalarKind.NUMBER and key.quoted:
        raise Unfit("must be text, and YAML reads a number here: put it in quotes")
    if _UNFIT.search(given.text):
        raise Unfit("must be one line of text without control characters")
    return given.text


def parse_redis(text: str) -> RedisAddress:
    """Parse `host`, `host:port`, or a redis:// or rediss:// URL. Raises `Unfit` without a quote (the URL may hold a password)."""
    wanted = "must be a host, host:port, or a redis:// or rediss:// URL"
    if "://" not in text and text.count(":") > 1 and not text.startswith("["):
        text = f"[{text}]"
    try:
        parts = urllib.parse.urlsplit(text if "://" in text else f"redis://{text}")
        port = parts.port
    except ValueError:
        raise Unfit(wanted) from None
    number = parts.path.strip("/")
    if parts.scheme not in _REDIS_SCHEMES or not parts.hostname or parts.query or parts.fragment or port == 0:
        raise Unfit(wanted)
    if " " in text or not re.fullmatch("[0-9]{0,5}", number):
        raise Unfit(wanted)
    return RedisAddress(
        host=parts.hostname,
        port=port,
        user=urllib.parse.unquote(parts.username or ""),
        password=urllib.parse.unquote(parts.password or ""),
        database=int(number) if number else None,
        tls=_REDIS_SCHEMES[parts.scheme],
    )


def text_of(key: Key, given: Given) -> str:
    """A text in the form of its key. Raises `Unfit`."""
    text = plain_text(key, given)
    if key.lower:
        text = text.lower()
    if key.form and not re.fullmatch(key.form, text):
        raise Unfit(f"must be {key.wanted}{_not(given)}")
    return text


def _text(key: Key, given: Given, _roots: Roots) -> str:
    return text_of(key, given)


def _choice(key: Key, given: Given, _roots: Roots) -> str:
    if given.text not in key.choices:
        raise Unfit(f"must be {' or '.join(key.choices)}{_not(given)}")
    return given.text


def _level(_key: Key, given: Given, _roots: Roots) -> str:
    level = log_level(given.text)
    if level is None:
        raise Unfit(f"must be {', '.join(_LEVELS)} or dev{_not(given)}")
    return level


def log_level(text: str) -> str | None:
    """The log level that a text means: DEBUG, INFO and ERROR in any case, `dev` exactly so; None for others."""
    if text == "dev":
        return text
    return text.upper() if text.upper() in _LEVELS else None


def _integer(key: Key, given: Given, _roots: Roots) -> int:
    if _ZEROS_AHEAD.fullmatch(given.text):
        raise Unfit("must be a whole number without leading zeros (YAML may read it as octal)")
    if not _WHOLE.fullmatch(given.text):
        raise Unfit(f"must be a whole number{_not(given)}")
    value = int(given.text)
    _in_range(key, value)
    return value


def _duration(key: Key, given: Given, _roots: Roots) -> float:
    text = given.text.removeprefix("-")
    try:
        value = parse_duration(text)
    except ValueError as error:
        raise Unfit(f"{error}{_not(given)}") from None
    if text != given.text:
        # The key's own bound says more than the form of a duration.
        _in_range(key, -value)
        raise Unfit("must not be negative")
    _in_range(key, value)
    return value


def _in_range(key: Key, value: float) -> None:
    most = key.most if key.most is not None else math.inf
    if key.least is not None and value < key.least and key.kind is Kind.DURATION:
        raise Unfit(f"must be at least {key.least:g}")
    if key.least is not None and not key.least <= value <= most:
        raise Unfit(_between(key.least, most))
    if key.above is not None and value <= key.above:
        raise Unfit(f"must be more than {key.above:g}")
    if value > most:
        raise Unfit(f"must be at most {most:.0f}")


def _between(least: float, most: float) -> str:
    return f"must be at least {least:g}" if math.isinf(most) else f"must be from {least:.0f} to {most:.0f}"


def _flag(_key: Key, given: Given, _roots: Roots) -> bool:
    try:
        return _FLAGS[given.text.lower()]
    except KeyError:
        raise Unfit(f"must be true or false{_not(given)}") from None


def _directory(key: Key, given: Given, roots: Roots) -> Path:
    return roots.resolve(plain_text(key, given))


def _file(key: Key, given: Given, roots: Roots) -> Path:
    path = roots.resolve(plain_text(key, given))
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise Unfit(f"names a file that cannot be read: {error.strerror}") from None
    return path


def _url(key: Key, given: Given, _roots: Roots) -> str:
    text = plain_text(key, given)
    try:
        parts = urllib.parse.urlsplit(text)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and " " not in text
    except ValueError:
        usable = False
    if not usable:
        # Never quoted: it may hold a password.
        raise Unfit("must be an http:// or https:// URL")
    if "@" in parts.netloc:
        raise Unfit("must hold no user or password: process lists and logs would show it")
    return text.rstrip("/")


def _redis(key: Key, given: Given, _roots: Roots) -> RedisAddress:
    return parse_redis(plain_text(key, given))


def _not(given: Given) -> str:
    return f", not {shown(given.text)}" if given.quotable else ""


_CONVERTERS: dict[Kind, Callable[[Key, Given, Roots], object]] = {
    Kind.TEXT: _text,
    Kind.CHOICE: _choice,
    Kind.LEVEL: _level,
    Kind.INTEGER: _integer,
    Kind.DURATION: _duration,
    Kind.FLAG: _flag,
    Kind.DIRECTORY: _directory,
    Kind.FILE: _file,
    Kind.URL: _url,
    Kind.REDIS: _redis,
    Kind.TEXTS: _text,  # a list that is written as one text (`Key.single`)
}
