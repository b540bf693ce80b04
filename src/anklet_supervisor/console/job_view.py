"""Timelines of jobs, drawn for people: the steps of one attempt, or one line for each of many. Draws, and knows no file."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from datetime import datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from anklet_supervisor.report.timelines import STEPS, Timeline, durations

#: Columns below which a table would be more breaks than text, and columns for what is not a terminal.
_NARROW, _PIPED = 100, 500
_STYLES = {"success": "green", "failure": "bold red", "given back": "yellow", "cancelled": "yellow"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def show(lines: Sequence[Timeline], console: Console | None = None) -> None:
    """Each attempt with its steps, on standard output (`console` stands for it in tests)."""
    where = console or _console()
    for number, line in enumerate(lines):
        if number:
            where.print()
        where.print(Text.assemble("job ", _plain(line.job_id), ": ", _plain(line.job_name), style="bold"))
        where.print(_plain(f"{line.job_url}"))
        where.print(_plain(f"{line.service}, attempt {line.attempt}, VM {line.vm}"))
        table = Table.grid(padding=(0, 2, 0, 0))
        took = durations(line)
        for step in STEPS:
            when = line.steps.get(step)
            if when is not None:
                moment = datetime.fromtimestamp(when).astimezone()
                table.add_row(step, f"{moment:%Y-%m-%d %H:%M:%S}", f"+{took[step]:.1f} s" if step in took else "")
        where.print(table)
        where.print(_ended(line))


def show_list(lines: Sequence[Timeline], console: Console | None = None) -> None:
    """One line for each attempt; where there is no room for that, a few."""
    where = console or _console()
    if where.width < _NARROW:
        for line in lines:
            where.print(Text.assemble(_plain(line.job_id), " ", _plain(line.job_name), style="bold"))
            where.print(Text.assemble(f"  {_claimed(line)}, {_took(line)}, ", _plain(line.service), ", ", _ended(line)))
        return
    table = Table("JOB", "NAME", "SERVICE", "CLAIMED", "TOOK", "ENDED", box=None, pad_edge=False)
    for line in lines:
        table.add_row(
            _plain(line.job_id),
            _plain(line.job_name),
            _plain(line.service),
            _claimed(line),
            _took(line),
            _ended(line),
        )
    where.print(table)


def _claimed(line: Timeline) -> str:
    claimed = line.steps.get("claimed")
    return "-" if claimed is None else f"{datetime.fromtimestamp(claimed).astimezone():%Y-%m-%d %H:%M:%S}"


def _took(line: Timeline) -> str:
    begin, end = line.steps.get("claimed"), line.steps.get("cleaned")
    return "-" if begin is None or end is None else f"{max(0.0, end - begin):.0f} s"


def _ended(line: Timeline) -> Text:
    if not line.ended:
        return Text("in hand", style="cyan")
    text = Text(line.ended, style=_STYLES.get(line.ended, ""))
    if line.reason:
        text.append_text(_plain(f": {line.reason}"))
    return text


def _plain(text: str) -> Text:
    return Text(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", text))


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else _PIPED, highlight=False)
