"""Watches a job to its end: performs one decision after the other, and adds what it learns to the evidence.

Owns the effects: questions to the guest and to GitHub, log lines, reports to the core. What follows from the answers is decided
in `verdict.py`; what they teach is in `evidence.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar, assert_never

import msgspec
from msgspec.structs import replace

from anklet_github import evidence as fold
from anklet_github.decisions import (
    AskJob,
    AskRunner,
    Conclude,
    GiveUp,
    LookIntoGuest,
    Pause,
    Search,
    Step,
    SwitchTo,
    Withdraw,
)
from anklet_github.discovery import Discovery
from anklet_github.evidence import Evidence, Found, Silence
from anklet_github.guest import GuestScripts, Sighting
from anklet_github.pace import Pace
from anklet_github.payloads import Runner, WorkflowJob
from anklet_github.runners import RunnerBusy, RunnerRegistry
from anklet_github.trouble import ApiTrouble, NotFound
from anklet_github.verdict import decide
from anklet_worker.contract.context import Context
from anklet_worker.contract.driver import JobInHand
from anklet_worker.contract.errors import InfrastructureError, VMError, VMNotFound
from anklet_worker.contract.guest import Guest
from anklet_worker.contract.job import Job, Outcome

_UNSEEN = Sighting(state="unseen", status="?", removed=False, words="")
_GONE = Sighting(state="gone", status="?", removed=False, words="")

T = TypeVar("T")


class Watching(msgspec.Struct, frozen=True, kw_only=True):
    """What a watch works with. `clock` gives monotonic seconds."""

    context: Context
    discovery: Discovery
    runners: RunnerRegistry
    scripts: GuestScripts
    clock: Callable[[], float] = time.monotonic


class Watch:
    """Watches the job for which a runner was started in `guest`, or the other job that this runner got."""

    def __init__(self, watching: Watching, hand: JobInHand, guest: Guest) -> None:
        self._w = watching
        self._hand = hand
        self._guest = guest
        deadlines = watching.context.service.deadlines
        self._pace = Pace(runner_online=deadlines.runner_online, job_start=deadlines.job_start)
        #: Who does not answer at present ("guest", "github"); that has been logged.
        self._mute: set[str] = set()
        self.evidence = fold.begin(hand.job, guest.name, watching.clock(), self._pace)

    @property
    def removed(self) -> bool:
        """True when the runner has reported that GitHub removed its registration."""
        return self.evidence.removed

    def to_the_end(self) -> Outcome:
        """Wait for the job's end.

        Raises `JobLost` when our runner gets no job any longer, `RetryHere` when it never came to work, `RetryElsewhere` when the
        image does not serve.
        """
        while True:
            decision = decide(self.evidence, self._w.clock(), self._pace)
            if isinstance(decision, Conclude):
                return self._conclude(decision)
            self._perform(decision)

    def _perform(self, step: Step) -> None:
        match step:
            case LookIntoGuest(seconds):
                self._end_round()
                self._look_into_guest(seconds)
            case Pause(seconds):
                self._end_round()
                self._w.context.wait(seconds)
                self._learn(fold.waited(self.evidence))
            case AskJob(in_list):
                self._ask_job(in_list=in_list)
            case AskRunner():
                answer = self._answer("the runner", self._find_runner)
                self._learn(fold.asked_runner(self.evidence, answer, self._w.clock()))
            case Search(ended_too):
                found = self._answer("the job of our runner", lambda: self._find_job(ended_too=ended_too))
                self._learn(fold.searched(self.evidence, found, self._w.clock()))
            case SwitchTo(found):
                self._learn(fold.switched(self.evidence, found, self._described(found), self._w.clock()))
            case Withdraw(reason):
                self._withdraw(reason)
            case GiveUp(error):
                raise error
            case _:
                assert_never(step)

    # ---- the guest ----

    def _look_into_guest(self, seconds: float) -> None:
        try:
            sighting = self._w.scripts.wait(self._guest, seconds, working=self.evidence.witnessed)
        except VMNotFound:
            sighting = _GONE
        except VMError as error:
            self._warn_once("guest", "cannot see the runner in the guest; asking GitHub instead", error)
            sighting = _UNSEEN
        else:
            if sighting.state != "unseen":
                self._answers_again("guest", "the runner in the guest can be seen again")
        self._learn(fold.saw(self.evidence, sighting, self._w.clock(), self._pace))
        if self.evidence.unconfirmed_work:
            self._look_at_board()

    def _look_at_board(self) -> None:
        e = self.evidence
        queue = self._w.discovery.queue_of(e.job)
        seen_waiting = e.doubtful or queue.was_seen_waiting(e.job.id, e.noted_at + self._pace.seen_later)
        self._learn(fold.looked_at_board(e, rivals=self._w.discovery.has_rivals(e.job), seen_waiting=seen_waiting))

    # ---- GitHub ----

    def _ask_job(self, *, in_list: bool) -> None:
        answer = self._answer("the job", lambda: self._fetch(in_list=in_list))
        if isinstance(answer, WorkflowJob) and not self.evidence.over:
            self._answers_again("github", "GitHub answers again")
        self._learn(fold.asked_job(self.evidence, answer, self._w.clock()))

    def _fetch(self, *, in_list: bool) -> WorkflowJob | Silence:
        """The job as GitHub has it now. A run that was restarted lists only the jobs of its new attempt."""
        job, discovery = self.evidence.job, self._w.discovery
        try:
            listed = discovery.siblings(job) if in_list else ()
            found = next((one for one in listed if str(one.id) == job.id), None)
            return discovery.queue_of(job).job(int(job.id)) if found is None else found
        except NotFound:
            return Silence.ABSENT

    def _find_runner(self) -> Runner | Silence:
        runner = self._w.runners.find(self._guest.name)
        return Silence.ABSENT if runner is None else runner

    def _find_job(self, *, ended_too: bool) -> Found | Silence:
        found = self._w.discovery.find_by_runner(self._guest.name, ended_too=ended_too, near=self.evidence.job)
        return Silence.ABSENT if found is None else Found(*found)

    def _described(self, found: Found) -> Job:
        job = self.evidence.job
        if str(found.job.id) == job.id:
            return job
        return self._w.discovery.describe(found.job, found.run, job.vm, found.repo)

    def _withdraw(self, reason: InfrastructureError) -> None:
        """Remove the registration and raise the reason. When a job has just landed, the next look finds it."""
        try:
            self._w.runners.remove(self._guest.name)
        except RunnerBusy:
            pass
        except ApiTrouble as error:
            self._warn_once("github", "cannot remove the runner from GitHub; still watching", error)
        else:
            raise reason
        self._learn(fold.kept(self.evidence))

    def _answer(self, about: str, question: Callable[[], T | Silence]) -> T | Silence:
        try:
            return question()
        except ApiTrouble as error:
            self._warn_once("github", f"cannot ask GitHub about {about}; still watching", error)
            return Silence.UNANSWERED

    # ---- what is learned, and reported ----

    def _end_round(self) -> None:
        self._learn(fold.round_ended(self.evidence, self._w.clock()))

    def _learn(self, e: Evidence) -> None:
        """Keep the new evidence; log and report to the core what is new in it."""
        before, self.evidence = self.evidence, e
        if e.online and not before.online:
            self._hand.runner_online()
        if e.missing_since is not None and before.missing_since is None:
            self._hand.log.warning("GitHub does not know the job (404); still watching")
        another = e.job.id != before.job.id
        if another:
            self._hand.log.info(
                "GitHub gave our runner another job; watching that one",
                extra={"otherJobId": int(e.job.id), "otherJobURL": e.job.url},
            )
        began = e.working_since is not None and before.working_since is None
        if another or began:
            # The core gives another job's claim back at once.
            self._hand.job_started(e.job)
        if began:
            self.evidence = replace(e, noted_at=time.time())
            self._w.discovery.queue_of(e.job).leaves("queued")
            self._hand.log.info("job in progress")

    def _conclude(self, decision: Conclude) -> Outcome:
        if decision.by_guest:
            self._hand.log.warning(
                "the runner has ended and GitHub does not report its job's conclusion; going by the runner's own word",
                extra={"conclusion": decision.outcome.conclusion.value},
            )
        else:
            self._w.discovery.queue_of(self.evidence.job).leaves("in_progress")
        return decision.outcome

    def _warn_once(self, source: str, message: str, error: Exception) -> None:
        """Log one WARN until that source answers again, however long that takes."""
        if source not in self._mute:
            self._hand.log.warning(message, extra={"err": str(error)})
        self._mute.add(source)

    def _answers_again(self, source: str, message: str) -> None:
        if source in self._mute:
            self._hand.log.info(message)
        self._mute.discard(source)
