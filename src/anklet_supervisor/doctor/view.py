"""Draws what `doctor` found: the findings in order, each with its remedy below. Judges nothing."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from anklet_supervisor.doctor.doctor import fit
from anklet_worker.contract.findings import Finding, Verdict

_MARKS = {
    Verdict.OK: ("ok", "green"),
    Verdict.WARNING: ("warn", "yellow"),
    Verdict.PROBLEM: ("FAIL", "bold red"),
    Verdict.NOT_CHECKED: ("-", "dim"),
}
_CHECK_WIDTH = 34


def show(findings: Sequence[Finding], console: Console | None = None) -> None:
    """Print the findings on standard output, or on `console`. Without a terminal each finding is one line."""
    if console is None and not sys.stdout.isatty():
        for finding in findings:
            sys.stdout.write(_line(finding))
        sys.stdout.write(f"\n{_summary(findings)}\n")
        return
    where = console or Console(highlight=False)
    where.print(_table(findings))
    where.print()
    where.print(Text(_summary(findings), style="green" if fit(findings) else "bold red"))


def _line(finding: Finding) -> str:
    word, _ = _MARKS[finding.verdict]
    remedy = f" -> {finding.remedy}" if finding.remedy else ""
    return f"{word:4}  {finding.check:{_CHECK_WIDTH}}  {_said(finding)}{remedy}\n"


def _table(findings: Sequence[Finding]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for finding in findings:
        word, style = _MARKS[finding.verdict]
        table.add_row(Text(word, style=style), Text(finding.check), Text(_said(finding)))
        if finding.remedy:
            table.add_row("", "", Text(f"-> {finding.remedy}", style="bold"))
    return table


def _said(finding: Finding) -> str:
    return f"{finding.service}: {finding.said}" if finding.service else finding.said


def _summary(findings: Sequence[Finding]) -> str:
    problems = sum(finding.verdict is Verdict.PROBLEM for finding in findings)
    warnings = sum(finding.verdict is Verdict.WARNING for finding in findings)
    if problems:
        order = ", starting at the top" if problems > 1 else ""
        return f"not ready: fix {_counted(problems, 'problem')}{order}"
    return f"ready to run jobs, {_counted(warnings, 'warning')}" if warnings else "ready to run jobs"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
