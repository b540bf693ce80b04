"""Formats log records: one JSON object per line, or colours and indentation for people (`dev`).

Owns the fields of a record, their limits and their redaction. Knows no file: the caller passes a function that writes lines. (A
worker sends them to its supervisor, the only writer of the log file.)
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from anklet_worker import __version__
from anklet_worker.log.redaction import MASK, Redactor

_LEVELS = {"DEBUG": logging.DEBUG, "INFO": logging.INFO, "ERROR": logging.ERROR, "dev": logging.DEBUG}
_NAMES = {
    logging.DEBUG: "DEBUG",
    logging.INFO: "INFO",
    logging.WARNING: "WARN",
    logging.ERROR: "ERROR",
    logging.CRITICAL: "ERROR",
}
#: Foreground colours: light grey, cyan, light yellow, light red.
_COLOURS = {"DEBUG": "\x1b[37m", "INFO": "\x1b[36m", "WARN": "\x1b[93m", "ERROR": "\x1b[91m"}
_GREY, _RESET = "\x1b[37m", "\x1b[0m"
_LOGGER = "anklet"
#: Characters of a text before its middle is cut; depth and items of a container before the rest is cut. Keeps a line below 100 KiB.
_LONGEST_TEXT = 16 * 1024
_DEEPEST, _MOST_ITEMS = 6, 256
#: Longest integer to print in full.
_MOST_BITS = 1024
#: Innermost frames of a bug to name in `where`.
_FRAMES = 4
#: Control characters, which a terminal may obey. Job and branch names come from strangers.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


#: Makes one line of JSON of plain data. The supervisor uses python-json-logger, which a worker need not load.
Encode = Callable[[dict[str, object]], str]


class ServiceLog(logging.LoggerAdapter[logging.Logger]):
    """A logger that adds its bound fields to each line."""

    def __init__(self, logger: logging.Logger, fields: Mapping[str, object]) -> None:
        super().__init__(logger, dict(fields))
        self._fields = dict(fields)

    def bind(self, **fields: object) -> ServiceLog:
        """A new log with these fields added; this one does not change."""
        return ServiceLog(self.logger, {**self._fields, **fields})

    def process(self, msg: object, kwargs: MutableMapping[str, Any]) -> tuple[object, MutableMapping[str, Any]]:
        """Merge the fields of the line over the bound fields."""
        extra = kwargs.get("extra") or {}
        return msg, {**kwargs, "extra": {"anklet": {**self._fields, **extra}}}


def open_log(
    write: Callable[[bytes], object],
    level: str,
    secrets: Iterable[str],
    fields: Mapping[str, object],
    *,
    name: str = _LOGGER,
    encode: Encode = json.dumps,
) -> ServiceLog:
    """Make the log of this process. `write` gets whole lines; `level` is DEBUG, INFO, ERROR or dev; `encode` makes the JSON.

    Lines of libraries appear from WARNING on and are capped at WARNING: an ERROR asks an operator to act, and only this program
    knows when that is needed.
    """
    logger = logging.getLogger(name)
    logger.propagate = False
    logger.setLevel(_LEVELS[level])
    base = {"ankletVersion": __version__, **fields}
    handler = _LineHandler(write, _formatter(level, Redactor(secrets), encode))
    handler.addFilter(lambda record: _with_base(record, base))
    logger.handlers = [handler]
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(logging.WARNING, _LEVELS[level]))
    return ServiceLog(logger, base)


def one_line(
    level: str, severity: int, message: str, fields: Mapping[str, object], encode: Encode = json.dumps
) -> bytes:
    """A single line, for the log writer itself, which has no log. `severity` is a number of `logging`."""
    record = logging.LogRecord(_LOGGER, severity, "", 0, message, None, None)
    record.anklet = {"ankletVersion": __version__, **fields}
    return _formatter(level, Redactor(()), encode).format(record).encode() + b"\n"


def _formatter(level: str, redact: Redactor, encode: Encode) -> LineFormatter | DevFormatter:
    if level == "dev":
        return DevFormatter(redact)
    return LineFormatter(redact, tracebacks=level == "DEBUG", encode=encode)


def _with_base(record: logging.LogRecord, base: Mapping[str, object]) -> bool:
    """Add the fields of the process to a library's record, and cap its level at WARNING."""
    if not hasattr(record, "anklet"):
        record.anklet = {**base, "logger": record.name}
        record.levelno = min(record.levelno, logging.WARNING)
    return True


class _LineHandler(logging.Handler):
    """Formats a record and passes it to `write`. Never raises: a line that cannot be written is lost, and the work goes on."""

    def __init__(self, write: Callable[[bytes], object], formatter: logging.Formatter) -> None:
        super().__init__()
        self._write = write
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        line = self.format(record).encode(errors="backslashreplace") + b"\n"
        try:
            self._write(line)
        except OSError:
            # The supervisor is gone. The channel notices that by itself; here only the line would be lost.
            self._last_resort(line)

    def _last_resort(self, line: bytes) -> None:
        try:
            sys.stderr.write(line.decode(errors="replace"))
            sys.stderr.flush()
        except (OSError, ValueError):
            return


class LineFormatter(logging.Formatter):
    """One JSON object per line. A bug's line names its innermost frames; `tracebacks` adds all of them."""

    def __init__(self, redact: Redactor, *, tracebacks: bool, encode: Encode = json.dumps) -> None:
        super().__init__()
        self._redact = redact
        self._tracebacks = tracebacks
        self._encode = encode

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return self._encode(_fields(record, self._redact, tracebacks=self._tracebacks))


class DevFormatter(logging.Formatter):
    """For people: `[HH:MM:SS.mmm] LEVEL: msg {indented JSON}`, with file, function and line."""

    def __init__(self, redact: Redactor) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        """The lines."""
        fields = _fields(record, self._redact, tracebacks=True)
        level = str(fields.pop("level"))
        message = _CONTROL.sub(lambda match: repr(match[0])[1:-1], str(fields.pop("msg")))
        del fields["time"]
        fields["source"] = {"file": record.pathname, "function": record.funcName, "line": record.lineno}
        moment = datetime.fromtimestamp(record.created).astimezone()
        clock = f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03d}"
        body = json.dumps(fields, indent=2, sort_keys=True)
        colour = _COLOURS[level]
        return f"{_GREY}[{clock}]{_RESET} {colour}{level}:{_RESET} {message} {colour}{body}{_RESET}"


def _fields(record: logging.LogRecord, redact: Redactor, *, tracebacks: bool) -> dict[str, object]:
    """The record as ordered fields: time, level, msg, bound fields, the line's own fields, and the error if there is one.

    Redacts each value before encoding, so that a mask cannot break the JSON.
    """
    fields: dict[str, object] = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "level": _level(record.levelno),
        "msg": _shortened(redact(_message(record))),
    }
    said: dict[str, object] = dict(getattr(record, "anklet", {}))
    if record.exc_info and record.exc_info[1] is not None:
        error = record.exc_info[1]
        said.setdefault("err", f"{type(error).__name__}: {_text(error)}")
        said["where"] = _innermost(error)
        if tracebacks:
            said["traceback"] = "".join(traceback.format_exception(error))
    if isinstance(said.get("err"), str | BaseException):
        said["err"] = " ".join(_text(said["err"]).split())
    _add_plain(fields, said, redact, 0)
    return fields


def _level(number: int) -> str:
    """The name of the nearest level that is not above `number`."""
    return _NAMES[max((level for level in _NAMES if level <= number), default=logging.DEBUG)]


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001  wrong arguments are a bug, but the line must not be lost
        return f"{_text(record.msg)} (with wrong arguments {_text(record.args)})"


def _innermost(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    return " < ".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in reversed(frames))


def _add_plain(into: dict[str, object], values: Mapping[Any, object], redact: Redactor, depth: int) -> None:
    """Add values as plain data. A key that is already taken gets a trailing underscore, so that nothing is lost."""
    for key, value in list(values.items())[:_MOST_ITEMS]:
        name = _shortened(redact(str(key)))
        while name in into:
            name += "_"
        into[name] = _plain(value, redact, depth)


def _plain(value: object, redact: Redactor, depth: int = 0) -> object:
    """The value as JSON data, redacted."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return _plain_number(value, redact)
    if isinstance(value, Mapping) and depth < _DEEPEST:
        inner: dict[str, object] = {}
        _add_plain(inner, value, redact, depth + 1)
        return inner
    if isinstance(value, list | tuple | AbstractSet) and depth < _DEEPEST:
        return [_plain(item, redact, depth + 1) for item in list(value)[:_MOST_ITEMS]]
    return _shortened(redact(_text(value)))


def _plain_number(value: float, redact: Redactor) -> object:
    """The number, redacted if it is a secret; infinity and NaN as text, because JSON has neither."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        return f"<a number of {value.bit_length()} bits>"
    text = _text(value)
    return value if redact(text) == text else MASK


def _text(value: object) -> str:
    """Any value as text. Never raises, whatever a foreign object's `__str__` does."""
    try:
        if isinstance(value, bytes | bytearray):
            return value.decode(errors="backslashreplace")
        return str(value.value if isinstance(value, Enum) else value)
    except Exception as error:  # noqa: BLE001  a foreign `__str__` may raise anything
        return f"<{type(value).__name__} without a text: {type(error).__name__}>"


def _shortened(text: str) -> str:
    if len(text) <= _LONGEST_TEXT:
        return text
    half = _LONGEST_TEXT // 2
    return f"{text[:half]} ... ({len(text) - 2 * half} characters left out) ... {text[-half:]}"
