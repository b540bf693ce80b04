"""The effects of a job, the cases of death and failure at each of them, and the result of each case.

Each effect in the trace of one undisturbed run is a point. A case strikes at one point, or at several in their order.
"""

from __future__ import annotations

import json
import re
import time
from typing import NamedTuple

import seams
from bench import Host

#: The last effect of a job. After it, the worker looks at an empty queue.
_LAST = "fact AttemptOver"
#: Effects that only read, or report what nothing depends on. A death at one of them equals a death at the effect before it.
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
#: Seconds for which an effect is held while a process dies in the middle of it.
_HELD = 3.0
#: Which of several commands with the same verb to hold.
_MATCHES = {"anka run true": " true$", "anka list": "list$"}
#: The effects of a worker whose predecessor died after the key, or after any effect up to the next key.
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
#: A tool that fails at the start needs an operator.
_PROBES = ("anka", "anka version", "anka license")


class Point(NamedTuple):
    """One effect of the undisturbed run."""

    name: str
    nth: int

    def __str__(self):
        return self.name if self.nth == 1 else f"{self.name} #{self.nth}"

    @property
    def changes(self):
        """True if something depends on this effect."""
        return not self.name.startswith(_IDLE)

    @property
    def fails(self):
        """True if the effect can fail without the death of a process. A fact fails only if the supervisor dies, and a note that
        cannot be written has no consequence."""
        return not self.name.startswith(("fact ", "hold", "note of "))


class Case(NamedTuple):
    """What goes wrong: strikes at the worker, in their order, or at the supervisor."""

    name: str
    worker: tuple = ()
    supervisor: tuple = ()
    #: Faults of the emulators: (command, how) of Anka, (method, route, how) of GitHub.
    anka: tuple = ()
    github: tuple = ()
    #: Seconds after which a lease expires unless it is renewed.
    lease_ttl: float = 60.0
    #: True if the case may need an operator.
    fatal: bool = False


class Outcome(NamedTuple):
    """The result of a case. `reached`: every strike happened."""

    case: Case
    reached: bool
    violations: list[str]
    seconds: float

    @property
    def word(self):
        """The result in one word, for the table."""
        return "VIOLATED" if self.violations else "ok" if self.reached else "not reached"


def strike(point, when, act):
    """Return a strike at a worker's effect."""
    return {"role": seams.WORKER, "name": point.name, "nth": point.nth, "when": when, "act": act}


def _pattern(route):
    """Return a regular expression for the paths of a route, in any repository."""
    return re.sub(r"\\{id\\}", "[0-9]+", re.escape(route.partition("}/{repo}")[2])) + "$"


def trace(folder):
    """Read the trace of a host."""
    return [json.loads(line) for line in (folder / "effects.jsonl").read_text().splitlines()]


def points(lines):
    """Return the effects of a job, from the start of its worker to the end of the attempt."""
    found = [Point(line["name"], line["nth"]) for line in lines if "name" in line]
    return found[: found.index(Point(_LAST, 1)) + 1]


def deaths(found):
    """Kill the worker before the first effect and after each."""
    yield Case(f"worker killed before {found[0]}", (strike(found[0], "before", "kill"),))
    for point in found:
        yield Case(f"worker killed after {point}", (strike(point, "after", "kill"),))


def detachments(found):
    """Detach the worker before each effect."""
    for point in found:
        yield Case(f"worker detached before {point}", (strike(point, "before", "detach"),))


def failures(found):
    """Let each effect fail, either before or after it has happened."""
    for point in found:
        if point.fails:
            for when in ("before", "after"):
                name = f"{point} fails {when} its effect"
                # A lease that cannot be given back must expire first.
                ttl = 2.0 if point.name == "store release claim" else 60.0
                yield Case(name, (strike(point, when, "error"),), fatal=point.name in _PROBES, lease_ttl=ttl)


def orphanings(found):
    """Kill the supervisor at each fact, before or after it handles it."""
    for point in found:
        if point.name.startswith("fact "):
            for when in ("before", "after"):
                blow = {"name": point.name, "nth": point.nth, "when": when}
                yield Case(f"supervisor dies {when} it acts on {point}", supervisor=(blow,))


def deaths_in_the_middle(found):
    """Kill the worker during a VM command or a request, which goes on and has its effect later."""
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
    """Kill the worker in the middle of a job, and the next one while it cleans up."""
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
    """True when the effect that was held has happened, or when its point was never reached: not every run waits for a guest equally
    often."""
    struck = folder / "struck-0"
    if not (case.anka or case.github) or not struck.exists():
        return True
    return time.time() > struck.stat().st_mtime + _HELD + 1.0


def run(case, folder, github, home):
    """Run one case to its end and judge it."""
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
