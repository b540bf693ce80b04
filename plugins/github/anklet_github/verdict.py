"""Decides what a watch does next, from its evidence alone.

Owns every rule about its three sources: the runner in the guest, the runner at GitHub and the job at GitHub. Pure: no clock, no
I/O. The rules of each function are tried from the top; the first that applies wins.

The guest reports at once and costs no call, so it is asked all the time; GitHub confirms. While the guest cannot tell, GitHub is
polled. No error of either ends a watch. GitHub may give our runner another job with the same labels; then that one is watched.
"""

from __future__ import annotations

from anklet_github.decisions import (
    AskJob,
    AskRunner,
    Conclude,
    Decision,
    GiveUp,
    LookIntoGuest,
    Pause,
    Search,
    SwitchTo,
    Withdraw,
)
from anklet_github.evidence import Evidence, Found, Silence, round_ended, runs_in_background
from anklet_github.guest import DEPRECATED
from anklet_github.pace import Pace
from anklet_github.payloads import Runner, WorkflowJob
from anklet_worker.contract.errors import JobLost, RetryElsewhere, RetryHere
from anklet_worker.contract.job import Conclusion, Outcome

_CONCLUSIONS = {"success": Conclusion.SUCCESS, "failure": Conclusion.FAILURE, "cancelled": Conclusion.CANCELLED}
_RESULTS = {"Succeeded": Conclusion.SUCCESS, "Failed": Conclusion.FAILURE, "Canceled": Conclusion.CANCELLED}


def decide(e: Evidence, now: float, pace: Pace) -> Decision:
    """The next step. `now` is in monotonic seconds."""
    if e.sighting is None:
        return _next_round(e, now, pace)
    if e.over:
        return _after_the_runner(e, now, pace)
    if e.sighting.state == "unseen" and not e.round.paused:
        return Pause(e.poll.pause)
    if e.round.job is Silence.NOT_ASKED:
        return _whether_to_ask(e, now, pace)
    return _about_the_job(e, now, pace)


def _next_round(e: Evidence, now: float, pace: Pace) -> Decision:
    if now < e.blind_until:
        return Pause(e.poll.pause)
    # A round may have raised a doubt, and a doubt shortens the next look.
    return LookIntoGuest(_patience(round_ended(e, now), now, pace))


def _patience(e: Evidence, now: float, pace: Pace) -> float:
    """Seconds until GitHub must be asked again, whatever the guest shows."""
    if e.working_since is None or not e.witnessed:
        return min(pace.ask_waiting, pace.runner_online)
    if e.may_be_another:
        due = max(e.working_since + pace.ask_rivals, e.search_at)
        return min(pace.ask_runner, max(pace.shortest_look, due - now))
    longest = pace.ask_runner if e.confirmed else pace.look_at_board
    return min(longest, max(pace.shortest_look, e.runner_asked_at + pace.ask_runner - now))


def _whether_to_ask(e: Evidence, now: float, pace: Pace) -> Decision:
    """The guest shows a runner, or cannot tell: is it time to ask GitHub about the job?"""
    unwatched = e.sighting is None or e.sighting.state == "unseen"
    if unwatched or e.working_since is None or not e.witnessed:
        return AskJob(in_list=not e.confirmed and e.working_since is None)
    if e.may_be_another and (e.doubtful or now - e.working_since >= pace.ask_rivals):
        return AskJob(in_list=False) if now >= e.search_at else _next_round(e, now, pace)
    if now - e.job_asked_at >= pace.ask_working:
        return AskJob(in_list=False)
    if e.round.runner is Silence.NOT_ASKED:
        return AskRunner() if now - e.runner_asked_at >= pace.ask_runner else _next_round(e, now, pace)
    if e.round.runner is Silence.UNANSWERED or e.round.runner_busy:
        return _next_round(e, now, pace)
    return AskJob(in_list=False)


# ---- a runner is there, or may be ----


def _about_the_job(e: Evidence, now: float, pace: Pace) -> Decision:
    """GitHub has been asked about the job in this round."""
    job = e.round.job
    if job is Silence.ABSENT:
        return _unknown_job(e, now, pace)
    if not isinstance(job, WorkflowJob):
        return _next_round(e, now, pace)
    if e.confirmed:
        return Conclude(_outcome(job)) if job.status == "completed" else _next_round(e, now, pace)
    if e.round.job_ended_unnamed and e.working_since is not None:
        return _whose_work(e, job, now, pace)
    return _runner_without_our_job(e, job, now, pace)


def _unknown_job(e: Evidence, now: float, pace: Pace) -> Decision:
    """404 is ambiguous: it must last, and our runner must be without work too, before the job counts as vanished."""
    if not _lasted(e.missing_since, pace.vanished_at_work if e.at_work else pace.vanished, now):
        return _next_round(e, now, pace)
    if e.round.runner is Silence.NOT_ASKED:
        return AskRunner()
    if e.round.runner is Silence.UNANSWERED or e.round.runner_busy:
        return _next_round(e, now, pace)
    return GiveUp(JobLost(f"job {e.job.id} has vanished from GitHub"))


def _whose_work(e: Evidence, job: WorkflowJob, now: float, pace: Pace) -> Decision:
    """Our job is over and names no runner, and ours works. Either it was cancelled while our runner had it; or before any had it,
    and then our runner works on another job, which must not lose its VM."""
    if e.round.runner is Silence.NOT_ASKED:
        return AskRunner()
    if e.round.runner is Silence.UNANSWERED:
        return _next_round(e, now, pace)
    if (step := _search(e, now, ended_too=not e.round.runner_busy)) is not None:
        return step
    if e.round.search is Silence.UNANSWERED or e.round.runner_busy:
        return _next_round(e, now, pace)
    if e.at_work and not _lasted(e.idle_since, pace.disagreement, now):
        # GitHub's list may be late, so one look at it does not end what the guest shows at work. That ends by itself, as a rule.
        return _next_round(e, now, pace)
    return Conclude(_outcome(job))


def _runner_without_our_job(e: Evidence, job: WorkflowJob, now: float, pace: Pace) -> Decision:
    """GitHub has not given our job to our runner: find out what the runner does."""
    lost = job.status == "completed" or bool(job.runner_name)
    if not lost and e.working_since is None and now - e.begun < pace.runner_online:
        return _next_round(e, now, pace)
    if e.round.runner is Silence.NOT_ASKED:
        return AskRunner()
    runner = e.round.runner
    if runner is Silence.UNANSWERED or e.round.kept:
        return _next_round(e, now, pace)
    if not isinstance(runner, Runner) or runner.busy:
        return _runner_with_another_job(e, now, pace)
    if lost:
        why = f"GitHub gave it to {job.runner_name}" if job.runner_name else "it ended before our runner had it"
        return Withdraw(JobLost(f"job {e.job.id}: {why}"))
    return _too_late(e, runner, now, pace) or _next_round(e, now, pace)


def _runner_with_another_job(e: Evidence, now: float, pace: Pace) -> Decision:
    """GitHub may have given our runner another job with the same labels. A runner that is gone has run its one job."""
    gone = e.round.runner is Silence.ABSENT
    if (step := _search(e, now, ended_too=gone)) is not None:
        return step
    if e.round.search is Silence.UNANSWERED or not gone:
        return _next_round(e, now, pace)
    if e.at_work and not _lasted(e.gone_since, pace.vanished_at_work, now):
        return _next_round(e, now, pace)
    return GiveUp(RetryHere(f"job {e.job.id}: its runner is gone from GitHub, and ran nothing that can be found"))


def _search(e: Evidence, now: float, *, ended_too: bool) -> Decision | None:
    """Search for the runner's job and switch to it. Ever more seldom while the runner is at work for someone."""
    if isinstance(e.round.search, Found):
        return SwitchTo(e.round.search)
    may_wait = e.at_work or not ended_too
    if e.round.search is Silence.NOT_ASKED and (now >= e.search_at or not may_wait):
        return Search(ended_too=ended_too)
    return None


def _too_late(e: Evidence, runner: Runner, now: float, pace: Pace) -> Withdraw | None:
    """The runner must come online in time, and then get a job in time."""
    if e.round.kept:
        return None
    if runner.status != "online" and now - e.begun >= pace.runner_online:
        late = f"its runner did not come online within {pace.runner_online:g} s"
        return Withdraw(RetryHere(f"job {e.job.id}: {late}"))
    if now - e.begun >= pace.runner_online + pace.job_start:
        late = f"its runner was online and got no job within {pace.job_start:g} s"
        return Withdraw(RetryHere(f"job {e.job.id}: {late}"))
    return None


# ---- the runner is over ----


def _after_the_runner(e: Evidence, now: float, pace: Pace) -> Decision:
    """The runner in the guest has ended. GitHub reports the end of its job at once or in a moment."""
    if e.round.paused:
        return _next_round(e, now, pace)
    if e.sighting is not None and e.sighting.status == DEPRECATED and not e.round.kept:
        return Withdraw(
            RetryElsewhere("GitHub no longer serves this version of the runner; put a newer one into the image")
        )
    if e.round.job is Silence.NOT_ASKED:
        return AskJob(in_list=True)
    return _what_it_ran(e) or _why_it_ended(e, now, pace) or _by_the_guests_word(e, now, pace) or Pause(e.poll.pause)


def _what_it_ran(e: Evidence) -> Decision | None:
    job = e.round.job
    ended = isinstance(job, WorkflowJob) and job.status == "completed"
    if isinstance(job, WorkflowJob) and ended and (e.confirmed or job.runner_name == e.runner_name):
        return Conclude(_outcome(job))
    if isinstance(e.round.search, Found):
        return SwitchTo(e.round.search)
    if job is not Silence.UNANSWERED and e.round.search is Silence.NOT_ASKED:
        return Search(ended_too=True)
    if isinstance(job, WorkflowJob) and e.round.job_ended_unnamed and e.working_since is not None:
        # A job that was cancelled while it ran may no longer name its runner. Believe the guest, which saw it run.
        return Conclude(_outcome(job)) if e.round.search is Silence.ABSENT else None
    return None


def _why_it_ended(e: Evidence, now: float, pace: Pace) -> Decision | None:
    """The guest shows no runner, and GitHub knows of no end. A run.sh may have left the runner in the background, where GitHub
    hears from it. Otherwise a runner that has worked will be found in time, and one that has not had its chance."""
    if not _lasted(e.over_since, pace.ask_waiting, now):
        # GitHub gets a moment.
        return None
    if e.round.runner is Silence.NOT_ASKED:
        return AskRunner()
    runner = e.round.runner
    if runner is Silence.UNANSWERED or e.working_since is not None or e.round.kept:
        return None
    if e.sighting is not None and e.sighting.left and isinstance(runner, Runner):
        return None if runner.busy else _too_late(e, runner, now, pace)
    said_all_is_well = e.sighting is not None and e.sighting.status == "0"
    if isinstance(runner, Runner) and said_all_is_well and not _lasted(e.over_since, pace.idle_end, now):
        return None
    return Withdraw(RetryHere(f"job {e.job.id}: its runner ended, and ran nothing that can be found"))


def _by_the_guests_word(e: Evidence, now: float, pace: Pace) -> Decision | None:
    """GitHub has not reported the job's end for too long. The VM does not wait for that."""
    if not _lasted(e.silent_since, pace.disagreement, now) or runs_in_background(e):
        return None
    if not e.confirmed and e.working_since is None:
        return GiveUp(RetryHere(f"job {e.job.id}: its runner ended, and GitHub does not say whether it ran anything"))
    said = e.sighting.result if e.sighting is not None else None
    conclusion = _RESULTS.get(said or "", Conclusion.OTHER)
    outcome = Outcome(conclusion=conclusion, job_id=e.job.id, job_name=e.job.name, job_url=e.job.url)
    return Conclude(outcome, by_guest=True)


def _outcome(job: WorkflowJob) -> Outcome:
    conclusion = _CONCLUSIONS.get(job.conclusion or "", Conclusion.OTHER)
    return Outcome(conclusion=conclusion, job_id=str(job.id), job_name=job.name, job_url=job.html_url or "")


def _lasted(since: float | None, seconds: float, now: float) -> bool:
    """This much time has passed since then."""
    return since is not None and now - since >= seconds
