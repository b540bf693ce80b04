"""How a line of the log is made: one JSON object, or for people (`dev`) colours and indentation.

Owns the form of a record and who may see what in it. Where lines go is the caller's business: a worker sends them to its
supervisor, the one writer of the log file.
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from anklet_worker import __version__
from anklet_worker.redaction import Redactor

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

    Libraries are heard from WARNING on only.
    """
    logger = logging.getLogger(name)
    logger.propagate = False
    logger.setLevel(_LEVELS[level])
    base = {"ankletVersion": __version__, **fields}
    handler = _LineHandler(write, DevFormatter() if level == "dev" else LineFormatter(), Redactor(secrets))
    handler.addFilter(lambda record: _with_base(record, base))
    logger.handlers = [handler]
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    return ServiceLog(logger, base)


def _with_base(record: logging.LogRecord, base: Mapping[str, object]) -> bool:
    """Records of libraries, which know nothing of our fields, bear those of the process."""
    if not hasattr(record, "anklet"):
        record.anklet = {**base, "logger": record.name}
    return True


class _LineHandler(logging.Handler):
    """Formats, redacts, and hands over one line. Never raises: what cannot be written is lost, the work goes on."""

    def __init__(self, write: Callable[[bytes], object], formatter: logging.Formatter, redact: Redactor) -> None:
        super().__init__()
        self._write = write
        self._redact = redact
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            self._write(self._redact(self.format(record)).encode(errors="replace") + b"\n")
        except OSError:
            # The supervisor is gone, and with it the file; the pipe's end says so to those who must know.
            return


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """The record as ordered fields: time, level, msg, what is bound, what is said here, and the error if there is one."""
    fields: dict[str, object] = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "level": _NAMES.get(record.levelno, record.levelname),
        "msg": record.getMessage(),
    }
    said: Mapping[str, object] = getattr(record, "anklet", {})
    fields.update({key: value for key, value in said.items() if key not in fields})
    if record.exc_info and record.exc_info[1] is not None:
        error = record.exc_info[1]
        fields.setdefault("err", f"{type(error).__name__}: {error}")
        fields["traceback"] = "".join(traceback.format_exception(error))
    return fields


class LineFormatter(JsonFormatter):
    """One JSON object a line, by python-json-logger; the fields and their order are ours."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return self.jsonify_log_record(fields_of(record))


class DevFormatter(logging.Formatter):
    """For people: `[HH:MM:SS.mmm] LEVEL: msg {indented JSON}`."""

    def format(self, record: logging.LogRecord) -> str:
        """The lines."""
        fields = fields_of(record)
        level, message = str(fields.pop("level")), fields.pop("msg")
        del fields["time"]
        moment = datetime.fromtimestamp(record.created).astimezone()
        clock = f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03d}"
        body = json.dumps(fields, indent=2, default=str, ensure_ascii=False, sort_keys=True)
        colour = _COLOURS[level]
        return f"{_GREY}[{clock}]{_RESET} {colour}{level}:{_RESET} {message} {colour}{body}{_RESET}"
