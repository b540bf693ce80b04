"""Lines of the log for people: the time, the level in its colour, the service, the message, then what else is in it.

Draws, and chooses nothing. Names of jobs are not ours: no line gives the terminal orders.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from datetime import datetime

from rich.console import Console
from rich.text import Text

#: Shown elsewhere, or the same on every line.
_LEFT_OUT = frozenset({"time", "level", "msg", "serviceName", "ankletVersion", "plugin", "owner", "repo", "jobId"})
_STYLES = {"DEBUG": "dim", "INFO": "cyan", "WARN": "yellow", "ERROR": "bold red"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class LineWriter:
    """Writes lines to standard output (`console` stands for it in tests). Without a terminal: whole lines, no colour."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, soft_wrap=not sys.stdout.isatty())

    def write(self, line: bytes, record: Mapping[str, object] | None) -> None:
        """One line; `record` is what it says, None for one that is no record of ours."""
        # The colours of LOG_LEVEL=dev are lost with every other escape.
        text = Text(_plain(line.decode(errors="replace"))) if record is None else _drawn(record)
        self._console.print(text, soft_wrap=not self._console.is_terminal)


def _drawn(record: Mapping[str, object]) -> Text:
    level = str(record.get("level", ""))
    text = Text(f"{_clock(record.get('time'))} ", style="")
    text.append(f"{level:5} ", style=_STYLES.get(level, ""))
    service = record.get("serviceName")
    if service:
        text.append(f"{_plain(str(service))}: ", style="bold")
    text.append(_plain(str(record.get("msg", ""))))
    for key, value in record.items():
        if key not in _LEFT_OUT:
            text.append(f" {_plain(key)}=", style="dim")
            text.append(_plain(_value(value)))
    return text


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{key}:{_value(inner)}" for key, inner in value.items())
    text = str(value)
    return f'"{text}"' if " " in text else text


def _clock(moment: object) -> str:
    """The time of day here; the day too, unless it is today."""
    try:
        when = datetime.fromisoformat(str(moment)).astimezone()
    except ValueError:
        return "--:--:--"
    today = datetime.now().astimezone().date()
    return f"{when:%H:%M:%S}" if when.date() == today else f"{when:%Y-%m-%d %H:%M:%S}"


def _plain(text: str) -> str:
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
