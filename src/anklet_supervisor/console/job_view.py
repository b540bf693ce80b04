"""Draws timelines of jobs: the steps of one attempt, or one row for each of many. Knows no file."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from anklet_supervisor.console.drawing import NARROW, local_time, open_console, plain
from anklet_supervisor.report.timelines import STEPS, Timeline, durations

_STYLES = {"success": "green", "failure": "bold red", "given back": "yellow", "cancelled": "yellow"}


def show(lines: Sequence[Timeline], console: Console | None = None) -> None:
    """Print each attempt with its steps on standard output, or on `console`."""
    where = console or open_console()
    for number, line in enumerate(lines):
        if number:
            where.print()
        where.print(Text.assemble("job ", plain(line.job_id), ": ", plain(line.job_name), style="bold"))
        where.print(plain(line.job_url))
        where.print(plain(f"{line.service}, attempt {line.attempt}, VM {line.vm}"))
        where.print(_steps(line))
        where.print(_ended(line))


def _steps(line: Timeline) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    took = durations(line)
    for step in STEPS:
        when = line.steps.get(step)
        if when is not None:
            table.add_row(step, local_time(when), f"+{took[step]:.1f} s" if step in took else "")
    return table


def show_list(lines: Sequence[Timeline], console: Console | None = None) -> None:
    """Print one row per attempt on standard output, or on `console`; a narrow terminal gets two lines instead."""
    where = console or open_console()
    if where.width < NARROW:
        for line in lines:
            where.print(Text.assemble(plain(line.job_id), " ", plain(line.job_name), style="bold"))
            where.print(Text.assemble(f"  {_claimed(line)}, {_took(line)}, ", plain(line.service), ", ", _ended(line)))
        return
    table = Table("JOB", "NAME", "SERVICE", "CLAIMED", "TOOK", "ENDED", box=None, pad_edge=False)
    for line in lines:
        table.add_row(
            plain(line.job_id),
            plain(line.job_name),
            plain(line.service),
            _claimed(line),
            _took(line),
            _ended(line),
        )
    where.print(table)


def _claimed(line: Timeline) -> str:
    claimed = line.steps.get("claimed")
    return "-" if claimed is None else local_time(claimed)


def _took(line: Timeline) -> str:
    begin, end = line.steps.get("claimed"), line.steps.get("cleaned")
    return "-" if begin is None or end is None else f"{max(0.0, end - begin):.0f} s"


def _ended(line: Timeline) -> Text:
    if not line.ended:
        return Text("in progress", style="cyan")
    text = Text(line.ended, style=_STYLES.get(line.ended, ""))
    if line.reason:
        text.append_text(plain(f": {line.reason}"))
    return text
