"""The form of a problem in a configuration: place, message, severity.

Knows no key and no file format. A message never holds a secret; the code that reports a problem keeps it out.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from anklet_worker.contract.errors import ConfigError


class Severity(Enum):
    """An error keeps the program from starting; a warning does not."""

    ERROR = "error"
    WARN = "warning"


class Location(msgspec.Struct, frozen=True):
    """Where a value is: lines and columns count from 1; 0 for the environment, or a file as a whole."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


class Problem(msgspec.Struct, frozen=True):
    """One problem. `service`: the name of the service that it is about, if any."""

    file: str
    line: int
    column: int
    message: str
    severity: Severity = Severity.ERROR
    service: str | None = None

    def __str__(self) -> str:
        return f"{Location(self.file, self.line, self.column)}: {self.message}"


class ConfigErrors(ConfigError):
    """All problems of one configuration, warnings included, in the order of the file."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("; ".join(str(problem) for problem in problems if problem.severity is Severity.ERROR))
        self.problems = problems

    def lines(self) -> tuple[str, ...]:
        """One line for each problem."""
        return tuple(map(str, self.problems))


class Problems:
    """Collects the problems of one load."""

    def __init__(self) -> None:
        self._problems: list[Problem] = []

    def error(self, place: Location, message: str, service: str | None = None) -> None:
        """Add an error."""
        self._add(place, message, Severity.ERROR, service)

    def warn(self, place: Location, message: str, service: str | None = None) -> None:
        """Add a warning."""
        self._add(place, message, Severity.WARN, service)

    @property
    def failed(self) -> bool:
        """True when there is an error."""
        return any(problem.severity is Severity.ERROR for problem in self._problems)

    def in_order(self) -> tuple[Problem, ...]:
        """Each problem once, in the order of the file; those of the environment come last."""
        unique = dict.fromkeys(self._problems)
        return tuple(sorted(unique, key=lambda one: (one.file.startswith("environment:"), one.line, one.column)))

    def _add(self, place: Location, message: str, severity: Severity, service: str | None) -> None:
        self._problems.append(Problem(place.file, place.line, place.column, message, severity, service))
