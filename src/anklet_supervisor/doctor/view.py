"""What `doctor` found, drawn for people: the findings in order, each with its remedy below. Draws, and judges nothing."""

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
    """Draw on standard output (`console` stands for a terminal in tests); without a terminal a finding is a line."""
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
    if fit(findings):
        return "this host is fit to run jobs"
    problems = sum(finding.verdict is Verdict.PROBLEM for finding in findings)
    return f"this host is not fit to run jobs: {problems} to be mended, from the top down"
