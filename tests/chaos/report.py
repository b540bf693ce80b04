"""The report of a chaos run, for people (a table, a page of the documentation) and for machines (JSON).

Owns its words and form. Knows a verdict, a plan and the counts of faults; judges nothing.
"""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

_BEGIN = "<!-- begin: filled in by `make chaos`; do not edit -->"
_END = "<!-- end -->"


@dataclass(frozen=True, kw_only=True)
class Report:
    """One run. `figures` are the checker's; `struck` and `missed` count faults by kind."""

    command: str
    seed: int
    shape: dict
    wall_seconds: float
    figures: dict[str, float]
    struck: dict[str, int]
    missed: dict[str, int]
    violations: list[str]

    @property
    def faults(self) -> int:
        """The number of faults that found a target."""
        return sum(self.struck.values())

    def as_json(self) -> dict:
        """The report as JSON data."""
        return asdict(self) | {"faults": self.faults}

    def rows(self) -> list[tuple[str, str]]:
        """The figures of the table."""
        figures = [
            (name, f"{value:,.1f}" if isinstance(value, float) else f"{value:,}")
            for name, value in self.figures.items()
        ]
        return [
            ("seed", str(self.seed)),
            ("seconds", f"{self.wall_seconds:,.0f}"),
            *figures,
            ("faults", f"{self.faults:,}"),
        ]

    def by_kind(self) -> list[tuple[str, int]]:
        """The faults by kind, sorted by name."""
        return sorted(self.struck.items())

    def text(self) -> str:
        """The report for a terminal."""
        width = max(len(name) for name, _ in self.rows() + [(kind, "") for kind in self.struck])
        lines = [f"  {name:<{width}}  {value:>10}" for name, value in self.rows()]
        lines += ["", *(f"  {kind:<{width}}  {count:>10,}" for kind, count in self.by_kind()), ""]
        if self.violations:
            return "\n".join([*lines, f"{len(self.violations)} VIOLATIONS", *(f"  {one}" for one in self.violations)])
        return "\n".join([*lines, "every rule was kept"])

    def markdown(self) -> str:
        """The report for the documentation."""
        when = datetime.now(UTC).strftime("%Y-%m-%d")
        shape = self.shape
        head = (
            f"`{self.command}`, on {when}, {platform.system()} {platform.machine()}, Python {platform.python_version()}: "
            f"{shape['hosts']} hosts of {shape['services']} services."
        )
        lines = [head, "", "| | |", "|---|---:|", *(f"| {name} | {value} |" for name, value in self.rows())]
        lines += [
            "",
            "| fault | times |",
            "|---|---:|",
            *(f"| {kind} | {count:,} |" for kind, count in self.by_kind()),
            "",
        ]
        broken = [f"- {one}" for one in self.violations]
        return "\n".join([*lines, *(["Broken rules:", "", *broken] if broken else ["Every rule was kept."])])


def fill_in(page: str, block: str) -> str:
    """Return the page with its generated block replaced. Raises `ValueError` when it has no such block."""
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"the page has no lines {_BEGIN} and {_END}")
    return f"{before}{begin}\n\n{block}\n\n{end}{after}"
