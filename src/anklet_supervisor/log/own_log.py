"""The supervisor's own log: lines of the workers' form, encoded by python-json-logger.

Owns the choice of the encoder. A worker encodes the same plain data without that library, which would cost each of them 1 MB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from pythonjsonlogger.json import JsonFormatter

from anklet_worker.log import service_log
from anklet_worker.log.service_log import ServiceLog

_encode = JsonFormatter().jsonify_log_record


def open_log(
    write: Callable[[bytes], object], level: str, secrets: Iterable[str], fields: Mapping[str, object]
) -> ServiceLog:
    """Make the log of this process; see `service_log.open_log`."""
    return service_log.open_log(write, level, secrets, fields, encode=_encode)


def one_line(level: str, severity: int, message: str, fields: Mapping[str, object]) -> bytes:
    """A single line, for the log writer itself; see `service_log.one_line`."""
    return service_log.one_line(level, severity, message, fields, _encode)
