"""Figures that a plugin declares in its rules and reports while it works; each becomes one metric.

Owns their form, which is closed: a name, a line of help, gauge or counter. The only label is the service's name.
"""

from __future__ import annotations

import re
from enum import Enum

import msgspec

_NAME = re.compile(r"[a-z][a-z0-9_]{0,99}")
#: Endings that Prometheus reserves for parts of counters, histograms and the like.
_RESERVED = ("_total", "_count", "_sum", "_bucket", "_created", "_info")


class FigureKind(Enum):
    """A gauge shows the last value reported; a counter adds up all values."""

    GAUGE = "gauge"
    COUNTER = "counter"


class Figure(msgspec.Struct, frozen=True):
    """One figure. `anklet_<name>` is its metric (a counter's ends in `_total`), `help` one line about it for people.

    Raises `ValueError` for a name or help that Prometheus would not take.
    """

    name: str
    help: str
    kind: FigureKind = FigureKind.GAUGE

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"figure {self.name!r}: a name is lower-case letters, digits and _, and begins with a letter"
            )
        if self.name.endswith(_RESERVED):
            raise ValueError(f"figure {self.name!r}: a name must not end in {', '.join(_RESERVED)}")
        if not self.help.strip():
            raise ValueError(f"figure {self.name!r} needs a line of help")

    @property
    def family(self) -> str:
        """Name of the metric family; Prometheus adds `_total` to a counter's samples."""
        return f"anklet_{self.name}"
