"""Drawing shared by every view: the console on standard output, its widths, and text that cannot control a terminal.

Knows no document: each view decides what it shows.
"""

from __future__ import annotations

import re
import sys
from datetime import datetime

from rich.console import Console
from rich.text import Text

#: Columns below which a table would wrap too much to be read.
NARROW = 100
#: Columns when standard output is not a terminal: `status | grep` needs whole lines.
_PIPED = 500
#: Job names come from outside; a terminal would obey their escape sequences.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def open_console() -> Console:
    """A console on standard output, wide enough for whole lines when that is a pipe."""
    return Console(width=None if sys.stdout.isatty() else _PIPED, highlight=False)


def printable(text: str) -> str:
    """The text with every control character replaced."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def plain(text: str) -> Text:
    """The text without style, markup or control characters."""
    return Text(printable(text))


def local_time(seconds: float) -> str:
    """Unix seconds as date and time of day in the local time zone."""
    return f"{datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d %H:%M:%S}"
