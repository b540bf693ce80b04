"""Draws log lines for people: time, level in colour, service, message, then the other fields.

Chooses no line: that is `log.reader`. No line can control the terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import datetime

from rich.console import Console
from rich.text import Text

from anklet_supervisor.console.drawing import plain, printable

#: Fields that are drawn elsewhere, or are the same on every line.
_LEFT_OUT = frozenset({"time", "level", "msg", "serviceName", "ankletVersion", "plugin", "owner", "repo", "jobId"})
_STYLES = {"DEBUG": "dim", "INFO": "cyan", "WARN": "yellow", "ERROR": "bold red"}


class LineWriter:
    """Writes lines to standard output, or to `console`. Without a terminal: whole lines, no colour."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, soft_wrap=not sys.stdout.isatty())

    def write(self, line: bytes, record: Mapping[str, object] | None) -> None:
        """Write one line. `record` is its parsed form; without one the line is shown as it is."""
        # This removes the colours of LOG_LEVEL=dev together with every other escape sequence.
        text = plain(line.decode(errors="replace")) if record is None else _text(record)
        self._console.print(text, soft_wrap=not self._console.is_terminal)


def _text(record: Mapping[str, object]) -> Text:
    level = str(record.get("level", ""))
    text = Text(f"{_time(record.get('time'))} ")
    text.append(f"{level:5} ", style=_STYLES.get(level, ""))
    service = record.get("serviceName")
    if service:
        text.append(f"{printable(str(service))}: ", style="bold")
    text.append(printable(str(record.get("msg", ""))))
    for key, value in record.items():
        if key not in _LEFT_OUT:
            text.append(f" {printable(key)}=", style="dim")
            text.append(printable(_value(value)))
    return text


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{key}:{_value(inner)}" for key, inner in value.items())
    text = str(value)
    return f'"{text}"' if " " in text else text


def _time(moment: object) -> str:
    """The local time of day, with the date unless it is today."""
    try:
        when = datetime.fromisoformat(str(moment)).astimezone()
    except ValueError:
        return "--:--:--"
    today = datetime.now().astimezone().date()
    return f"{when:%H:%M:%S}" if when.date() == today else f"{when:%Y-%m-%d %H:%M:%S}"
