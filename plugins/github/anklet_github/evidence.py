"""What a watch knows about its job and its runner, and since when: facts, folded from observations by pure functions.

Owns what an observation teaches. Draws no conclusions (`verdict.py` does), reads no clock and does no I/O. Every `now` is in
monotonic seconds.

A round begins with a look into the guest, or with a pause while the guest cannot tell. It holds GitHub's answers since then: an
older answer says nothing about what the guest has shown since.
"""

from __future__ import annotations

from enum import Enum

import msgspec
from msgspec.structs import replace

from anklet_github.guest import Sighting
from anklet_github.pace import Pace
from anklet_github.payloads import Run, Runner, WorkflowJob
from anklet_github.scope import Repo
from anklet_worker.contract.backoff import Backoff
from anklet_worker.contract.job import Job


class Silence(Enum):
    """Why there is no answer to one of the questions of a round."""

    #: The question has not been asked.
    NOT_ASKED = "not asked"
    #: GitHub failed to answer.
    UNANSWERED = "unanswered"
    #: GitHub answered that there is no such thing.
    ABSENT = "absent"


class Found(msgspec.Struct, frozen=True):
    """The job that GitHub gave to our runner, with its run and repository."""

    job: WorkflowJob
    run: Run
    repo: Repo


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """GitHub's answers since the round began. `paused`: it began with a pause. `kept`: GitHub kept the runner that we removed."""

    paused: bool = False
    job: WorkflowJob | Silence = Silence.NOT_ASKED
    runner: Runner | Silence = Silence.NOT_ASKED
    search: Found | Silence = Silence.NOT_ASKED
    kept: bool = False

    @property
    def job_ended_unnamed(self) -> bool:
        """GitHub says that the job is over, and names no runner for it."""
        return isinstance(self.job, WorkflowJob) and self.job.status == "completed" and not self.job.runner_name

    @property
    def runner_busy(self) -> bool:
        """GitHub sees our runner at work."""
        return isinstance(self.runner, Runner) and self.runner.busy

    @property
    def runner_heard(self) -> bool:
        """GitHub has answered about the runner."""
        return self.runner not in (Silence.NOT_ASKED, Silence.UNANSWERED)


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of one watch. A time that is None has not begun."""

    job: Job
    #: The name of our runner, which is the VM's.
    runner_name: str
    begun: float

    #: What the guest showed last; None before the first look. It is not asked again before `blind_until`.
    sighting: Sighting | None = None
    blind_until: float = 0.0
    #: The guest itself has shown the runner at work.
    witnessed: bool = False
    #: Since when guest or GitHub has shown the runner at work. `noted_at` is the same moment in Unix seconds.
    working_since: float | None = None
    noted_at: float = 0.0
    #: GitHub says that `job` runs, or ran, in our runner.
    confirmed: bool = False
    #: The runner seems to have taken another job: it named one, or the board shows ours still waiting, or ours ended without it.
    doubtful: bool = False
    #: GitHub may give our runner another waiting job.
    rivals: bool = False
    #: The runner has contacted GitHub.
    online: bool = False
    #: The runner has reported that GitHub removed its registration.
    removed: bool = False

    #: When GitHub was last asked about the job, and about the runner, while a runner was there.
    job_asked_at: float
    runner_asked_at: float
    #: No search for the runner's job before this time.
    search_at: float
    search: Backoff
    poll: Backoff

    #: Since when GitHub answers 404 for the job.
    missing_since: float | None = None
    #: Since when GitHub does not list a runner that the guest shows at work; or lists it as idle after the job's end.
    gone_since: float | None = None
    idle_since: float | None = None
    #: Since when the guest shows no runner and GitHub no end. `silent_since` restarts while a runner left behind is online.
    over_since: float | None = None
    silent_since: float | None = None
    round: Round = Round()

    @property
    def at_work(self) -> bool:
        """The guest shows a runner that has taken a job."""
        return self.witnessed and self.sighting is not None and self.sighting.state in ("working", "waiting")

    @property
    def over(self) -> bool:
        """The guest shows that the runner has ended."""
        return self.sighting is not None and self.sighting.over

    @property
    def unconfirmed_work(self) -> bool:
        """The guest shows our runner at work, and GitHub has not said on which job."""
        return self.witnessed and self.working_since is not None and not self.confirmed

    @property
    def may_be_another(self) -> bool:
        """The job in our runner may be another one than ours."""
        return not self.confirmed and (self.doubtful or self.rivals)


def begin(job: Job, runner_name: str, now: float, pace: Pace) -> Evidence:
    """The evidence of a watch that begins now."""
    return Evidence(
        job=job,
        runner_name=runner_name,
        begun=now,
        job_asked_at=now,
        runner_asked_at=now,
        search_at=now,
        search=pace.search,
        poll=pace.poll,
    )


# ---- what the guest shows ----


def saw(e: Evidence, sighting: Sighting, now: float, pace: Pace) -> Evidence:
    """A look into the guest; it begins a round."""
    e = replace(
        e, sighting=sighting, round=Round(), removed=e.removed or sighting.removed, online=e.online or sighting.online
    )
    if sighting.state == "unseen":
        return replace(e, blind_until=now + pace.blind)
    if not sighting.over:
        # The guest no longer shows the end that it reported. The real end gets its full time.
        e = replace(e, over_since=None, silent_since=None)
    if sighting.state == "working":
        e = replace(e, witnessed=True)
        if e.working_since is None:
            e = work_began(replace(e, doubtful=sighting.job_name not in (None, e.job.name)), now)
    return e


def work_began(e: Evidence, now: float) -> Evidence:
    """Guest or GitHub shows that the runner works on a job. Only the first time counts."""
    if e.working_since is not None:
        return e
    return replace(e, working_since=now, job_asked_at=now, runner_asked_at=now)


def looked_at_board(e: Evidence, *, rivals: bool, seen_waiting: bool) -> Evidence:
    """What the last looks at the queue show: `rivals`, waiting jobs that our runner could get; ours, still waiting."""
    return replace(e, rivals=rivals, doubtful=e.doubtful or seen_waiting)


def waited(e: Evidence) -> Evidence:
    """A pause is over; it begins a round without a look into the guest."""
    return replace(e, poll=e.poll.next(), round=Round(paused=True))


# ---- what GitHub answers ----


def asked_job(e: Evidence, answer: WorkflowJob | Silence, now: float) -> Evidence:
    """GitHub's answer about the job. What it said before of runner and search in this round is out of date."""
    if not e.over:
        e = replace(e, job_asked_at=now, runner_asked_at=now)
    e = replace(e, round=replace(e.round, job=answer, runner=Silence.NOT_ASKED, search=Silence.NOT_ASKED))
    if answer is Silence.ABSENT and not e.over:
        return replace(e, missing_since=now if e.missing_since is None else e.missing_since)
    if isinstance(answer, WorkflowJob):
        if not e.over:
            e = replace(e, missing_since=None)
        if answer.runner_name == e.runner_name:
            return work_began(replace(e, confirmed=True), now)
    return e


def asked_runner(e: Evidence, answer: Runner | Silence, now: float) -> Evidence:
    """GitHub's answer about the runner."""
    online = e.online or (isinstance(answer, Runner) and answer.status == "online")
    asked_at = e.runner_asked_at if e.over else now
    e = replace(e, runner_asked_at=asked_at, online=online, round=replace(e.round, runner=answer))
    if e.round.runner_busy and e.round.job is Silence.ABSENT and not e.over:
        # A busy runner has a job: the 404 is an error, and counts from now on.
        return replace(e, missing_since=now)
    return e


def searched(e: Evidence, answer: Found | Silence, now: float) -> Evidence:
    """The result of a search for the job that our runner got."""
    e = replace(e, round=replace(e.round, search=answer))
    if answer is Silence.ABSENT and not e.over:
        return replace(e, search_at=now + e.search.pause, search=e.search.next())
    return e


def switched(e: Evidence, found: Found, job: Job, now: float) -> Evidence:
    """The job that was found, `job` in the core's words, is the one to watch from now on."""
    answers = replace(e.round, job=found.job, runner=Silence.NOT_ASKED, search=Silence.ABSENT)
    return work_began(replace(e, job=job, confirmed=True, round=answers), now)


def kept(e: Evidence) -> Evidence:
    """GitHub did not remove the runner: a job has just landed on it, or GitHub failed to answer."""
    return replace(e, round=replace(e.round, kept=True))


def round_ended(e: Evidence, now: float) -> Evidence:
    """What the answers of a whole round teach together. Harmless when repeated."""
    if e.over:
        return _ended_without_an_end(e, now)
    answers = e.round
    complete = answers.runner_heard and answers.search is not Silence.UNANSWERED
    if e.confirmed or not complete or not isinstance(answers.job, WorkflowJob):
        return e
    unnamed = answers.job_ended_unnamed and e.working_since is not None
    e = replace(e, doubtful=e.doubtful or unnamed)
    if answers.runner_busy:
        return replace(e, idle_since=None, gone_since=None)
    if e.at_work and unnamed:
        return replace(e, idle_since=now if e.idle_since is None else e.idle_since)
    if e.at_work and answers.runner is Silence.ABSENT:
        return replace(e, gone_since=now if e.gone_since is None else e.gone_since)
    return e


def _ended_without_an_end(e: Evidence, now: float) -> Evidence:
    """The guest shows no runner, and GitHub has not reported an end in this round."""
    silent_since = now if e.silent_since is None or runs_in_background(e) else e.silent_since
    return replace(e, over_since=now if e.over_since is None else e.over_since, silent_since=silent_since)


def runs_in_background(e: Evidence) -> bool:
    """run.sh has ended and left processes behind, and GitHub hears from the runner: it is one of them."""
    runner = e.round.runner
    return e.sighting is not None and e.sighting.left and isinstance(runner, Runner) and runner.status == "online"
