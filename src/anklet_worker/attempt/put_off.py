"""Jobs that this worker leaves alone for a while because they could not be run here, through no fault of their own.

Owns which jobs those are, for how long, and the log lines that say so. How often a job may fail is in `retries`. Runs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from anklet_worker.attempt.attempt import Attempt, Tools
from anklet_worker.attempt.retries import LONGEST, JobBackoff, Tries
from anklet_worker.contract.errors import InfrastructureError, PullBusy, Retry, StoreUnavailable, VMLimitReached
from anklet_worker.contract.job import Job, VMSpec

#: First pause of a job on this host, in seconds: so that a fault can pass, so that another host can take the job, or because only
#: an operator can help.
_FIRST_PAUSE = {Retry.HERE: 2.0, Retry.ELSEWHERE: 30.0, Retry.OPERATOR: LONGEST}


class JobsPutOff:
    """The jobs that one worker has put off. `clock` returns monotonic seconds."""

    def __init__(self, tools: Tools, tries: Tries, clock: Callable[[], float]) -> None:
        self._tools = tools
        self._tries = tries
        self._clock = clock
        self._backoff = JobBackoff(clock)
        #: Ids of jobs that wait for a pull on this host to end, each with the time at which it is tried anyway.
        self._after_pull: dict[str, float] = {}
        #: What an operator was asked to fix: one ERROR per kind of failure and image, however many jobs it stops.
        self._asked_operator: set[tuple[type[InfrastructureError], VMSpec]] = set()

    def without(self, jobs: Sequence[Job]) -> list[Job]:
        """Return the jobs that are not put off."""
        self.pull_ended()
        return [job for job in jobs if job.id not in self._after_pull and not self._backoff.holds(job.id)]

    @property
    def wait_for_pull(self) -> bool:
        """True while a job waits for a pull on this host to end."""
        return bool(self._after_pull)

    def pull_ended(self) -> bool:
        """Let jobs that waited for a pull be tried again once it has ended; return True when there are any."""
        if not self._after_pull:
            return False
        now = self._clock()
        runs = self._tools.driver.pulling()
        # A pull may hang after its worker died. Only the next try to pull ends it, so no job waits for ever.
        still = {job_id: until for job_id, until in self._after_pull.items() if runs and now < until}
        ended = len(still) < len(self._after_pull)
        self._after_pull = still
        return ended

    def given_up(self, job: Job) -> bool:
        """Put the job off if it failed too often, here or on other hosts. Return True when it did. Raises `StoreUnavailable`."""
        if not self._tries.over(job):
            return False
        # Until then, no slot and no listing are asked for on account of this job.
        self._backoff.put_off(job.id, LONGEST)
        return True

    def failed(self, attempt: Attempt, error: InfrastructureError) -> None:
        """Put off the job of an attempt that failed, and count the failure if it counts against the job."""
        facts = {"err": str(error), **self._pause(attempt.job, error)}
        attempt.log.warning("the job goes back to the queue", extra=facts)
        needs = (type(error), attempt.job.vm)
        if error.retry is Retry.OPERATOR and needs not in self._asked_operator:
            self._asked_operator.add(needs)
            attempt.log.error("this host cannot run the job until an operator acts; other hosts can", extra=facts)
        if not isinstance(error, VMLimitReached | PullBusy):
            self._count(attempt, error)

    def _pause(self, job: Job, error: InfrastructureError) -> dict[str, object]:
        """Put the job off, and return what the log says about the pause."""
        if isinstance(error, VMLimitReached):
            # The supervisor knows, and grants no slot until there may be room.
            return {}
        if isinstance(error, PullBusy) and self._tools.driver.pulling():
            self._after_pull[job.id] = self._clock() + LONGEST
            return {}
        return {"backoffSeconds": round(self._backoff.put_off(job.id, _FIRST_PAUSE[error.retry]), 1)}

    def _count(self, attempt: Attempt, error: InfrastructureError) -> None:
        try:
            given_up = self._tries.failed(attempt.job)
        except StoreUnavailable as outage:
            attempt.log.info("could not count the failed attempt", extra={"err": str(outage)})
            return
        if given_up is not None:
            tell = attempt.log.error if given_up.first else attempt.log.warning
            tell(
                "the job failed too often on this host; it stays queued and is tried again later",
                extra={"err": str(error), "attempts": given_up.failures, "retrySeconds": round(given_up.seconds)},
            )
