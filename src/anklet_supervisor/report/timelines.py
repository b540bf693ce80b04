"""The timeline of each recent job, step by step, from the facts that workers report. Pure.

Owns the steps and their order. A timeline is one attempt at one job, identified by its VM's name. If a worker dies in the middle,
its successor continues the same timeline.
"""

from __future__ import annotations

from itertools import pairwise

import msgspec

from anklet_worker.link import messages as m

#: In order. `slot`: the VM has its slot; `clone`: it exists; `start`: its guest takes commands; `online`: its runner has contact
#: with the origin; `cleaned`: nothing is left of the attempt.
STEPS = ("queued", "claimed", "slot", "clone", "start", "online", "started", "finished", "cleaned")
GIVEN_BACK = "given back"
#: How many attempts are kept.
KEPT = 200
#: The step that the end of a stage is.
_STEP_OF = {"clone": "clone", "start": "start", "register": "online"}
_LONGEST_TEXT = 500


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt.

    `steps`: when each step was reached, Unix seconds. `claimed_at`: the claim by the worker's clock; it distinguishes attempts with
    the same VM name. `ended`: the conclusion, or `given back` with its `reason`.
    """

    job_id: str
    job_name: str
    job_url: str
    service: str
    vm: str
    attempt: int = 1
    claimed_at: float = 0.0
    steps: dict[str, float] = {}
    ended: str = ""
    reason: str = ""

    def reached(self, step: str, when: float) -> Timeline:
        """The timeline with this step added; the first time counts."""
        return self if step in self.steps else msgspec.structs.replace(self, steps={**self.steps, step: when})

    @property
    def has_outcome(self) -> bool:
        """True when the job ended in this VM."""
        return self.ended not in ("", GIVEN_BACK)

    @property
    def over(self) -> bool:
        """True when the attempt is cleaned up."""
        return "cleaned" in self.steps


class Timelines:
    """The latest attempts, oldest first. Not thread-safe."""

    def __init__(self, known: list[Timeline] | None = None) -> None:
        self._lines = {line.vm: line for line in known or []}
        #: The VM of each service's current attempt.
        self._in_hand: dict[str, str] = {}

    def all(self) -> list[Timeline]:
        """All timelines, oldest first."""
        return list(self._lines.values())

    def fold(self, service: str, fact: m.Fact, now: float) -> tuple[bool, Timeline | None]:
        """Apply a fact. Returns whether anything changed, and the timeline that is now over, if any. `now` is Unix seconds."""
        before = self._lines
        line = self._next(service, fact, now)
        if line is None:
            return False, None
        known = before.get(line.vm)
        if known == line:
            return False, None
        self._lines = dict(list({**before, line.vm: line}.items())[-KEPT:])
        return True, line if line.over and not (known is not None and known.over) else None

    def _next(self, service: str, fact: m.Fact, now: float) -> Timeline | None:
        match fact:
            case m.JobClaimed():
                return self._claimed(service, fact, now)
            case m.JobFinished():
                return self._finished(service, fact, now)
            case m.JobGivenBack(vm=vm, reason=reason):
                line = self._lines.get(vm)
                if line is None or line.ended:
                    return None
                return msgspec.structs.replace(line.reached("finished", now), ended=GIVEN_BACK, reason=_cut(reason))
            case m.VMGone(vm=vm):
                line = self._lines.get(vm)
                return line.reached("cleaned", now) if line is not None and line.ended else None
            case _:
                return self._step(service, fact, now)

    def _step(self, service: str, fact: m.Fact, now: float) -> Timeline | None:
        line = self._lines.get(self._in_hand.get(service, ""))
        if line is None:
            return None
        match fact:
            case m.SlotOccupied():
                return line.reached("slot", now)
            case m.StageTook(stage=stage) if stage in _STEP_OF:
                return line.reached(_STEP_OF[stage], now)
            case m.JobStarted(job_id=job_id, job_name=name, job_url=url):
                started = line.reached("started", now)
                return msgspec.structs.replace(started, job_id=job_id, job_name=_cut(name), job_url=_cut(url))
            case m.AttemptOver():
                del self._in_hand[service]
                return line.reached("cleaned", now)
        return None

    def _claimed(self, service: str, fact: m.JobClaimed, now: float) -> Timeline:
        self._in_hand[service] = fact.vm
        known = self._lines.get(fact.vm)
        if known is not None and known.claimed_at in (0.0, fact.claimed_at):
            # A new process adopted the job of an earlier one.
            return known
        line = Timeline(
            job_id=fact.job_id,
            job_name=_cut(fact.job_name),
            job_url=_cut(fact.job_url),
            service=service,
            vm=fact.vm,
            attempt=fact.attempt,
            claimed_at=fact.claimed_at,
            steps={"queued": fact.queued_at} if fact.queued_at else {},
        )
        return line.reached("claimed", now)

    def _finished(self, service: str, fact: m.JobFinished, now: float) -> Timeline | None:
        """The first report counts; a later process may repeat it. An unknown VM is one from before the history was lost."""
        line = self._lines.get(fact.vm)
        if line is None:
            line = Timeline(job_id="", job_name="", job_url="", service=service, vm=fact.vm)
        if line.has_outcome:
            return None
        return msgspec.structs.replace(
            line.reached("finished", now),
            job_id=fact.job_id,
            job_name=_cut(fact.job_name),
            job_url=_cut(fact.job_url),
            ended=fact.conclusion.value,
            reason="",
        )


def find(lines: list[Timeline], wanted: str) -> list[Timeline]:
    """The attempts at the job with this id, or the one in the VM with this name; oldest first."""
    return [line for line in lines if wanted in (line.job_id, line.vm)]


def failures(lines: list[Timeline], most: int) -> list[Timeline]:
    """At most `most` attempts that did not end in success, latest first."""
    bad = [line for line in lines if line.ended not in ("", "success")]
    return sorted(bad, key=lambda line: line.steps.get("finished", 0.0), reverse=True)[:most]


def durations(line: Timeline) -> dict[str, float]:
    """Seconds that each known step took since the known step before it."""
    known = [(step, line.steps[step]) for step in STEPS if step in line.steps]
    return {step: round(max(0.0, when - before), 3) for (_, before), (step, when) in pairwise(known)}


def _cut(text: str) -> str:
    return text[:_LONGEST_TEXT]
