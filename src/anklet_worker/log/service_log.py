"""How a line of the log is made: one JSON object, or for people (`dev`) colours and indentation.

Owns the form of a record and what may be seen in it. Where lines go is the caller's business: a worker sends them to its
supervisor, the one writer of the log file.
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

from pythonjsonlogger.json import JsonFormatter

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
#: A longer text loses its middle; deeper or longer containers lose the rest. A line stays below some 100 KiB.
_LONGEST_TEXT = 16 * 1024
_DEEPEST, _MOST_ITEMS = 6, 256
_MOST_BITS = 1024
#: The frames of a bug, innermost first, that its line names when the traceback is not asked for.
_FRAMES = 4
#: What a terminal could take for an order; names of jobs and branches are not ours.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class ServiceLog(logging.LoggerAdapter[logging.Logger]):
    """A logger whose lines bear fields. `bind` makes another one with more fields and leaves this one as it is."""

    def __init__(self, logger: logging.Logger, fields: Mapping[str, object]) -> None:
        super().__init__(logger, dict(fields))
        self._fields = dict(fields)

    def bind(self, **fields: object) -> ServiceLog:
        """The same log with these fields in each line, besides those it has."""
        return ServiceLog(self.logger, {**self._fields, **fields})

    def process(self, msg: object, kwargs: MutableMapping[str, Any]) -> tuple[object, MutableMapping[str, Any]]:
        """Merge the line's own fields over the bound ones; no key is twice."""
        extra = kwargs.get("extra") or {}
        return msg, {**kwargs, "extra": {"anklet": {**self._fields, **extra}}}


def open_log(
    write: Callable[[bytes], object],
    level: str,
    secrets: Iterable[str],
    fields: Mapping[str, object],
    *,
    name: str = _LOGGER,
) -> ServiceLog:
    """Make the log of this process. `write` gets whole lines; `level` is one of DEBUG, INFO, ERROR, dev.

    Libraries are heard from WARNING on only, and never above it: what an operator must act on is for us to say.
    """
    logger = logging.getLogger(name)
    logger.propagate = False
    logger.setLevel(_LEVELS[level])
    base = {"ankletVersion": __version__, **fields}
    handler = _LineHandler(write, _formatter(level, Redactor(secrets)))
    handler.addFilter(lambda record: _with_base(record, base))
    logger.handlers = [handler]
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(logging.WARNING, _LEVELS[level]))
    return ServiceLog(logger, base)


def one_line(level: str, severity: int, message: str, fields: Mapping[str, object]) -> bytes:
    """A single line, for those who cannot go through a log: the log's own writer. `severity` is `logging`'s."""
    record = logging.LogRecord(_LOGGER, severity, "", 0, message, None, None)
    record.anklet = {"ankletVersion": __version__, **fields}
    return _formatter(level, Redactor(())).format(record).encode() + b"\n"


def _formatter(level: str, redact: Redactor) -> LineFormatter | DevFormatter:
    if level == "dev":
        return DevFormatter(redact)
    return LineFormatter(redact, tracebacks=level == "DEBUG")


def _with_base(record: logging.LogRecord, base: Mapping[str, object]) -> bool:
    """Records of libraries, which know nothing of our fields, bear those of the process."""
    if not hasattr(record, "anklet"):
        record.anklet = {**base, "logger": record.name}
        record.levelno = min(record.levelno, logging.WARNING)
    return True


class _LineHandler(logging.Handler):
    """Formats and hands over one line. Never raises: what cannot be written is lost, the work goes on."""

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
            # The supervisor is gone, and with it the file; the pipe's end says so to those who must know.
            self._last_resort(line)

    def _last_resort(self, line: bytes) -> None:
        try:
            sys.stderr.write(line.decode(errors="replace"))
            sys.stderr.flush()
        except (OSError, ValueError):
            return


class LineFormatter(JsonFormatter):
    """One JSON object a line, by python-json-logger; the fields and their order are ours.

    A bug is one line with its innermost frames; `tracebacks` adds all of them.
    """

    def __init__(self, redact: Redactor, *, tracebacks: bool) -> None:
        super().__init__()
        self._redact = redact
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return self.jsonify_log_record(_fields(record, self._redact, tracebacks=self._tracebacks))


class DevFormatter(logging.Formatter):
    """For people: `[HH:MM:SS.mmm] LEVEL: msg {indented JSON}`, with the place in the source."""

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
    """The record as ordered fields: time, level, msg, what is bound, what is said here, and the error if there is one.

    Plain data without secrets: redacted value by value, so that no secret can break the form of a line.
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
    """The nearest level of ours that is not above."""
    return _NAMES[max((level for level in _NAMES if level <= number), default=logging.DEBUG)]


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001  arguments that do not fit are a bug, but not one to lose the line for
        return f"{_text(record.msg)} (with unfit arguments {_text(record.args)})"


def _innermost(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    return " < ".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in reversed(frames))


def _add_plain(into: dict[str, object], values: Mapping[Any, object], redact: Redactor, depth: int) -> None:
    """Add values as plain data. A key that is there already (two that become one text, or `msg`) gets a mark: nothing is lost."""
    for key, value in list(values.items())[:_MOST_ITEMS]:
        name = _shortened(redact(str(key)))
        while name in into:
            name += "_"
        into[name] = _plain(value, redact, depth)


def _plain(value: object, redact: Redactor, depth: int = 0) -> object:
    """What JSON has, and no secret in it."""
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
    """A number that is a secret is none any more; JSON has no infinity and no NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        return f"<a number of {value.bit_length()} bits>"
    text = _text(value)
    return value if redact(text) == text else MASK


def _text(value: object) -> str:
    """A text for anything. Whatever a stranger's object does when asked for one, the line is written."""
    try:
        if isinstance(value, bytes | bytearray):
            return value.decode(errors="backslashreplace")
        return str(value.value if isinstance(value, Enum) else value)
    except Exception as error:  # noqa: BLE001  see above
        return f"<{type(value).__name__} without a text: {type(error).__name__}>"


def _shortened(text: str) -> str:
    if len(text) <= _LONGEST_TEXT:
        return text
    half = _LONGEST_TEXT // 2
    return f"{text[:half]} ... ({len(text) - 2 * half} characters left out) ... {text[-half:]}"
