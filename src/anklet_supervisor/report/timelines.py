"""What happened to each of the latest jobs, step by step: folded from the facts that workers report. Pure.

Owns the steps and their order. One timeline is one attempt at one job, known by its VM's name; a worker that ends in the middle is
followed by another, which goes on with the same timeline.
"""

from __future__ import annotations

from itertools import pairwise

import msgspec

from anklet_worker.link import messages as m

#: In the order in which they come. `slot`: the VM took its slot; `clone`: it is made; `start`: it takes commands; `online`: its
#: runner is in touch with the origin; `cleaned`: nothing is left of the attempt.
STEPS = ("queued", "claimed", "slot", "clone", "start", "online", "started", "finished", "cleaned")
GIVEN_BACK = "given back"
#: How many attempts are remembered.
KEPT = 200
#: Stages whose end is a step.
_STEP_OF = {"clone": "clone", "start": "start", "register": "online"}
_LONGEST_TEXT = 500


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt. `steps`: when each was reached, Unix seconds; `claimed_at`: the claim by the worker's clock, which tells it
    from an earlier attempt with the same VM name; `ended`: the conclusion, or `given back` with its `reason`."""

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
        """The timeline with a step in it; the first time counts."""
        return self if step in self.steps else msgspec.structs.replace(self, steps={**self.steps, step: when})

    @property
    def has_outcome(self) -> bool:
        """True when the job ran to an end in this VM."""
        return self.ended not in ("", GIVEN_BACK)

    @property
    def over(self) -> bool:
        """True when nothing is left of it."""
        return "cleaned" in self.steps


class Timelines:
    """The latest attempts, oldest first. Not for several threads."""

    def __init__(self, known: list[Timeline] | None = None) -> None:
        self._lines = {line.vm: line for line in known or []}
        #: The VM of the attempt that each service has in hand.
        self._in_hand: dict[str, str] = {}

    def all(self) -> list[Timeline]:
        """All of them."""
        return list(self._lines.values())

    def fold(self, service: str, fact: m.Fact, now: float) -> tuple[bool, Timeline | None]:
        """Take in a fact: whether it changed anything, and the timeline that it brought to its end, if it did."""
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
            # A later process follows the job that an earlier one started.
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
        """A later process tells it again; the first time counts. One that nobody knows was begun before the file was lost."""
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
    """The attempts at the job of this id, or the one in the VM of this name; oldest first."""
    return [line for line in lines if wanted in (line.job_id, line.vm)]


def failures(lines: list[Timeline], most: int) -> list[Timeline]:
    """The latest attempts that ended otherwise than by success, the latest first."""
    bad = [line for line in lines if line.ended not in ("", "success")]
    return sorted(bad, key=lambda line: line.steps.get("finished", 0.0), reverse=True)[:most]


def durations(line: Timeline) -> dict[str, float]:
    """Seconds from each step to the one before it, as far as both are known."""
    known = [(step, line.steps[step]) for step in STEPS if step in line.steps]
    return {step: round(max(0.0, when - before), 3) for (_, before), (step, when) in pairwise(known)}


def _cut(text: str) -> str:
    return text[:_LONGEST_TEXT]
