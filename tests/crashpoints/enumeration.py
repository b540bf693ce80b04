"""Which effects a job has, which deaths and failures follow from them, and what becomes of each.

One undisturbed run is written down; each of its effects is a point. A case strikes at one point, or at one after another.
"""

from __future__ import annotations

import json
import time
from typing import NamedTuple

import seams
from bench import Host

#: The last effect of a job; what follows is a look at an empty queue.
_LAST = "fact AttemptOver"
#: These only look, or tell what nothing depends on. To die at one of them is to die at the effect before it.
_IDLE = (
    *(f"fact {kind}" for kind in seams.TELLTALES),
    "store read",
    "store holder",
    "store post",
    "store count queue",
    "store count left",
    "store count points",
    "api GET",
    "anka list",
)
#: A tool that fails at the start is for an operator to see to.
_PROBES = ("anka", "anka version", "anka license")


class Point(NamedTuple):
    """One effect of the undisturbed run."""

    name: str
    nth: int

    def __str__(self):
        return self.name if self.nth == 1 else f"{self.name} #{self.nth}"

    @property
    def changes(self):
        """Whether anything depends on it."""
        return not self.name.startswith(_IDLE)

    @property
    def fails(self):
        """Whether it can fail without anybody's death. A fact that is not heard is a supervisor's death; of a note that cannot be
        written nobody hears."""
        return not self.name.startswith(("fact ", "hold", "note of "))


class Case(NamedTuple):
    """What is to go wrong: strikes at the worker, in their order, or at the supervisor."""

    name: str
    worker: tuple = ()
    supervisor: tuple = ()
    #: Switches of the emulated Anka.
    anka: dict | None = None
    #: Whether an operator may have to act.
    fatal: bool = False


class Outcome(NamedTuple):
    """How a case went. `reached`: everything that was to go wrong did."""

    case: Case
    reached: bool
    violations: list
    seconds: float

    @property
    def word(self):
        """One word for a table."""
        return "VIOLATED" if self.violations else "ok" if self.reached else "not reached"


def strike(point, when, act):
    """A strike at a worker's effect."""
    return {"role": seams.WORKER, "name": point.name, "nth": point.nth, "when": when, "act": act}


def trace(folder):
    """What a traced host has written down."""
    return [json.loads(line) for line in (folder / "effects.jsonl").read_text().splitlines()]


def points(lines):
    """The effects of a job, from the start of its worker on."""
    found = [Point(line["name"], line["nth"]) for line in lines if "name" in line]
    return found[: found.index(Point(_LAST, 1)) + 1]


def deaths(found):
    """SIGKILL of the worker before the first effect and after each."""
    yield Case(f"worker killed before {found[0]}", (strike(found[0], "before", "kill"),))
    for point in found:
        yield Case(f"worker killed after {point}", (strike(point, "after", "kill"),))


def detachments(found):
    """The worker is told to let go before each effect."""
    for point in found:
        yield Case(f"worker detached before {point}", (strike(point, "before", "detach"),))


def failures(found):
    """Each effect fails, without having happened, or after it."""
    for point in found:
        if point.fails:
            for when in ("before", "after"):
                name = f"{point} fails {when} its effect"
                yield Case(name, (strike(point, when, "error"),), fatal=point.name in _PROBES)


def orphanings(found):
    """The supervisor dies of each fact, before or after it has acted on it."""
    for point in found:
        if point.name.startswith("fact "):
            for when in ("before", "after"):
                blow = {"name": point.name, "nth": point.nth, "when": when}
                yield Case(f"supervisor dies {when} it acts on {point}", supervisor=(blow,))


def run(case, folder, github, home):
    """Let it go wrong; serve until all is over; judge."""
    host = Host(folder, github, folder.name, home)
    try:
        host.anka.set(**(case.anka or {}))
        host.plan["strikes"] = list(case.worker)
        began = time.monotonic()
        try:
            missed = host.run(host.is_quiet, supervisor_strikes=case.supervisor)
            host.end()
            violations = host.violations()
        except AssertionError as error:
            missed, violations = [], [str(error)]
        if case.fatal:
            violations = [one for one in violations if not one.startswith("given up")]
        reached = not missed and all((folder / f"struck-{number}").exists() for number in range(len(case.worker)))
        return Outcome(case, reached, violations, time.monotonic() - began)
    finally:
        host.close()
