"""What is wrong with a configuration, and where.

Owns the form of a problem. Knows no key and no file format. A problem's text never holds the value of a secret: who reports one
sees to that.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from anklet_worker.contract.errors import ConfigError


class Severity(Enum):
    """An error keeps the program from starting; a warning is for the operator to think about."""

    ERROR = "error"
    WARN = "warning"


class Place(msgspec.Struct, frozen=True):
    """Where a value stands: lines and columns count from 1; 0 where there are none (the environment, a file as a whole)."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


class Problem(msgspec.Struct, frozen=True):
    """One thing that is wrong. `service` is the service that it concerns, if it is one (and has a name)."""

    file: str
    line: int
    column: int
    message: str
    severity: Severity = Severity.ERROR
    service: str | None = None

    def __str__(self) -> str:
        return f"{Place(self.file, self.line, self.column)}: {self.message}"


class ConfigErrors(ConfigError):
    """Everything that is wrong with one configuration, in the order of the file; warnings are among `problems`."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("; ".join(str(problem) for problem in problems if problem.severity is Severity.ERROR))
        self.problems = problems

    def lines(self) -> tuple[str, ...]:
        """One line for each problem."""
        return tuple(map(str, self.problems))


class Report:
    """Collects the problems of one load."""

    def __init__(self) -> None:
        self._problems: list[Problem] = []

    def error(self, place: Place, message: str, service: str | None = None) -> None:
        """Note something that keeps the program from starting."""
        self._note(place, message, Severity.ERROR, service)

    def warn(self, place: Place, message: str, service: str | None = None) -> None:
        """Note something that an operator should know."""
        self._note(place, message, Severity.WARN, service)

    @property
    def failed(self) -> bool:
        """True when there is an error among the problems."""
        return any(problem.severity is Severity.ERROR for problem in self._problems)

    def problems(self) -> tuple[Problem, ...]:
        """All of them once, in the order of the file; those of the environment come last."""
        unique = dict.fromkeys(self._problems)
        return tuple(sorted(unique, key=lambda one: (one.file.startswith("environment:"), one.line, one.column)))

    def _note(self, place: Place, message: str, severity: Severity, service: str | None) -> None:
        self._problems.append(Problem(place.file, place.line, place.column, message, severity, service))
