"""Follows a job to its end. GitHub's REST API is the witness; an error of it never ends the watch.

Owns what is concluded from what GitHub says about a job and about our runner. A VM is fungible: GitHub may give our runner
another job with the same labels, and then that one is followed.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from anklet_github.api import ApiTrouble, NotFound
from anklet_github.discovery import Discovery, describe
from anklet_github.payloads import Runner, WorkflowJob
from anklet_github.runners import RunnerBusy, RunnerRegistry
from anklet_github.scope import Scope
from anklet_worker.errors import InfrastructureError, JobLost, RetryHere
from anklet_worker.job import Conclusion, Job, Outcome
from anklet_worker.plugin import Context

_LONGEST_INTERVAL = 5.0
#: For so long a job must be unknown to GitHub before it counts as vanished: 404 has been seen for live jobs in outages.
_VANISHED_AFTER = 120.0
_CONCLUSIONS = {"success": Conclusion.SUCCESS, "failure": Conclusion.FAILURE, "cancelled": Conclusion.CANCELLED}


class Watching(msgspec.Struct, frozen=True, kw_only=True):
    """What a watch works with. `clock` gives monotonic seconds."""

    context: Context
    discovery: Discovery
    runners: RunnerRegistry
    scope: Scope
    clock: Callable[[], float] = time.monotonic


class Watch:
    """Follows the job for which a runner was started, or whatever job that runner got."""

    def __init__(self, watching: Watching, job: Job, runner_name: str) -> None:
        self._w = watching
        self._job = job
        self._job_id = int(job.id)
        self._runner_name = runner_name
        self._started = False
        self._outage = False
        self._missing_since: float | None = None
        self._begun = watching.clock()

    def to_the_end(self) -> Outcome:
        """Wait for the end. Raises `JobLost` when our runner gets no job any more, `RetryHere` when it never came to work."""
        interval = min(_LONGEST_INTERVAL, self._w.context.service.sleep_interval)
        while True:
            outcome = self._look()
            if outcome is not None:
                return outcome
            self._w.context.wait(interval)

    def _look(self) -> Outcome | None:
        try:
            job = self._w.discovery.job(self._job_id)
        except NotFound:
            self._missing()
            return None
        except ApiTrouble as error:
            self._trouble(error)
            return None
        self._missing_since = None
        self._no_trouble()
        return self._judge(job)

    def _judge(self, job: WorkflowJob) -> Outcome | None:
        ours = job.runner_name == self._runner_name
        if job.status == "completed" and (ours or self._started):
            # `started`: a job that was cancelled while it ran may name no runner any more.
            return self._outcome(job)
        if ours:
            self._note_start(self._job)
        if self._started:
            return None
        if job.status == "completed":
            return self._without_our_job("it ended before our runner had it", job_is_gone=True)
        if job.runner_name:
            return self._without_our_job(f"GitHub gave it to {job.runner_name}", job_is_gone=True)
        return self._without_our_job("", job_is_gone=False)

    def _note_start(self, job: Job) -> None:
        if not self._started:
            self._started = True
            self._w.context.job_started(job)
            self._w.context.log.info("job in progress")

    def _outcome(self, job: WorkflowJob) -> Outcome:
        self._note_start(self._job)
        conclusion = _CONCLUSIONS.get(job.conclusion or "", Conclusion.OTHER)
        return Outcome(conclusion=conclusion, job_id=str(job.id), job_name=job.name, job_url=job.html_url or "")

    # ---- our runner without our job ----

    def _without_our_job(self, why: str, *, job_is_gone: bool) -> Outcome | None:
        """Our runner does not run our job. What does it do? GitHub may have given it another one with the same labels."""
        try:
            runner = self._w.runners.find(self._runner_name)
            if runner is None or runner.busy:
                return self._follow_the_other(gone=runner is None)
        except ApiTrouble as error:
            self._trouble(error)
            return None
        if job_is_gone:
            self._withdraw(JobLost(f"job {self._job.id}: {why}"))
        else:
            self._check_deadlines(runner)
        return None

    def _withdraw(self, reason: InfrastructureError) -> None:
        """Remove the registration and raise the reason; return when a job has landed just now, to be found at the next look."""
        try:
            self._w.runners.remove(self._w.runners.find(self._runner_name))
        except RunnerBusy:
            return
        raise reason

    def _follow_the_other(self, *, gone: bool) -> Outcome | None:
        """Learn by the runner's name which job it got, and follow that one. A runner that is gone has run its one job."""
        found = self._w.discovery.find_by_runner(self._runner_name, ended_too=gone)
        if found is None:
            if gone:
                raise RetryHere(
                    f"job {self._job.id}: its runner is gone from GitHub, and ran nothing that can be found"
                )
            return None
        job, run = found
        if job.id != self._job_id:
            self._job, self._job_id = describe(job, run, self._job.vm, self._w.scope), job.id
            self._w.context.log.info(
                "GitHub gave our runner another job; following it",
                extra={"otherJobId": job.id, "otherJobURL": job.html_url},
            )
        return self._judge(job)

    def _check_deadlines(self, runner: Runner) -> None:
        """The runner must come online in time, and then get a job in time; else it is withdrawn and the job tried anew."""
        deadlines, waited = self._w.context.service.deadlines, self._w.clock() - self._begun
        if runner.status == "online":
            self._w.context.runner_online()
        elif waited >= deadlines.runner_online:
            self._withdraw(
                RetryHere(f"job {self._job.id}: its runner did not come online within {deadlines.runner_online:g} s")
            )
        if waited >= deadlines.runner_online + deadlines.job_start:
            self._withdraw(
                RetryHere(f"job {self._job.id}: its runner was online and got no job within {deadlines.job_start:g} s")
            )

    # ---- trouble ----

    def _missing(self) -> None:
        """404 is ambiguous: it must last, and our runner must be gone too, before the job counts as vanished."""
        now = self._w.clock()
        if self._missing_since is None:
            self._missing_since = now
            self._w.context.log.warning("GitHub does not know the job (404); looking on")
        elif now - self._missing_since >= _VANISHED_AFTER:
            try:
                runner = self._w.runners.find(self._runner_name)
            except ApiTrouble as error:
                self._trouble(error)
                return
            if runner is None or not runner.busy:
                raise JobLost(f"job {self._job.id} has vanished from GitHub")
            self._missing_since = now

    def _trouble(self, error: ApiTrouble) -> None:
        """One WARN for an outage; the job goes on without us looking."""
        if not self._outage:
            self._w.context.log.warning("GitHub cannot be asked about the job; it goes on", extra={"err": str(error)})
        self._outage = True

    def _no_trouble(self) -> None:
        if self._outage:
            self._w.context.log.info("GitHub answers again")
        self._outage = False
