"""Which effects a job has, which deaths and failures follow from them, and what becomes of each.

One undisturbed run is written down; each of its effects is a point. A case strikes at one point, or at one after another.
"""

from __future__ import annotations

import json
import re
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
#: For so long an effect is held in whose middle somebody dies.
_HELD = 3.0
#: Which of the commands with the same verb are held.
_MATCHES = {"anka run true": " true$", "anka list": "list$"}
#: What a worker does when it comes after one that had done this last, until the next of these.
_SUCCESSION = {
    "hold": ("hold", "anka list", "store claim claim", "record claimed"),
    "record claimed": (
        *("hold", "anka list", "fact JobGivenBack", "record ended", "anka delete", "anka list #2"),
        *("record gone", "fact SlotReleased", "store release claim", "record removed", "store claim claim"),
    ),
    "record started": (
        *("hold", "anka list", "store claim claim", "fact VMAdopted", "fact JobClaimed", "record ended"),
        *(
            "fact JobFinished",
            "anka delete",
            "record gone",
            "fact SlotReleased",
            "store release claim",
            "record removed",
        ),
    ),
    "record ended": (
        "hold",
        "anka list",
        "anka delete",
        "anka list #2",
        "record gone",
        "fact SlotReleased",
        "record removed",
    ),
    "record gone": ("hold", "anka list", "fact SlotReleased", "record removed"),
    "record removed": ("hold", "anka list"),
}
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
    #: Faults of the emulators: (command, how) of Anka, (method, route, how) of GitHub.
    anka: tuple = ()
    github: tuple = ()
    #: Seconds that a lease lives without being renewed.
    lease_ttl: float = 60.0
    #: Whether an operator may have to act.
    fatal: bool = False


class Outcome(NamedTuple):
    """How a case went. `reached`: everything that was to go wrong did."""

    case: Case
    reached: bool
    violations: list[str]
    seconds: float

    @property
    def word(self):
        """One word for a table."""
        return "VIOLATED" if self.violations else "ok" if self.reached else "not reached"


def strike(point, when, act):
    """A strike at a worker's effect."""
    return {"role": seams.WORKER, "name": point.name, "nth": point.nth, "when": when, "act": act}


def _pattern(route):
    """A regular expression for the paths of a route, on any repository."""
    return re.sub(r"\\{id\\}", "[0-9]+", re.escape(route.partition("}/{repo}")[2])) + "$"


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
                # What cannot be given back expires.
                ttl = 2.0 if point.name == "store release claim" else 60.0
                yield Case(name, (strike(point, when, "error"),), fatal=point.name in _PROBES, lease_ttl=ttl)


def orphanings(found):
    """The supervisor dies of each fact, before or after it has acted on it."""
    for point in found:
        if point.name.startswith("fact "):
            for when in ("before", "after"):
                blow = {"name": point.name, "nth": point.nth, "when": when}
                yield Case(f"supervisor dies {when} it acts on {point}", supervisor=(blow,))


def deaths_in_the_middle(found):
    """SIGKILL while a VM command or a request is on its way: it goes on, and has its effect later."""
    for point in found:
        verb = point.name.removeprefix("anka ").partition(" ")[0]
        if point.name.startswith("anka ") and point.name not in _PROBES:
            for when in ("before", "middle", "after"):
                held = ((verb, {"when": when, "delay": _HELD, "times": point.nth, "match": _MATCHES.get(point.name)}),)
                yield Case(
                    f"worker killed during {point}, held {when} its effect",
                    (strike(point, "during", "kill"),),
                    anka=held,
                )
            unnoted = Point(f"note of begin of {point.name}", point.nth)
            held = ((verb, {"when": "before", "delay": _HELD, "times": point.nth, "match": _MATCHES.get(point.name)}),)
            yield Case(
                f"worker killed before {unnoted}, which is held", (strike(unnoted, "before", "kill"),), anka=held
            )
        if point.name.startswith("api "):
            method, route = point.name.split()[1:]
            held = ((method, _pattern(route), {"delay": _HELD, "times": 1}),)
            yield Case(
                f"worker killed during {point}, held before its effect", (strike(point, "during", "kill"),), github=held
            )


def double_deaths(found):
    """The worker is killed in the middle of a job, and its successor in the middle of looking after what is left."""
    follows = _SUCCESSION["hold"]
    for number, first in enumerate(found):
        if first.nth == 1:
            follows = _SUCCESSION.get(first.name, follows)
        name, _, nth = follows[number % len(follows)].partition(" #")
        second = Point(name, int(nth or 1))
        yield Case(
            f"worker killed after {first}, and its successor after {second}",
            (strike(first, "after", "kill"), strike(second, "after", "kill")),
        )


def _is_over(case, folder):
    """Whether what is held has had its effect. A point that has not come by the end of all comes no more: a guest is waited for as
    often as it takes."""
    struck = folder / "struck-0"
    if not (case.anka or case.github) or not struck.exists():
        return True
    return time.time() > struck.stat().st_mtime + _HELD + 1.0


def run(case, folder, github, home):
    """Let it go wrong; serve until all is over; judge."""
    host = Host(folder, github, home, lease_ttl=case.lease_ttl)
    try:
        for verb, how in case.anka:
            host.anka.fault(verb, **how)
        for method, route, how in case.github:
            github.fault(method, f"/{folder.name}{route}", **how)
        host.plan["strikes"] = list(case.worker)
        began = time.monotonic()
        try:
            missed = host.run(lambda: host.is_quiet() and _is_over(case, folder), supervisor_strikes=case.supervisor)
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
