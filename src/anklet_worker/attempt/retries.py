"""Which jobs are left alone, by whom and for how long, when they could not be run through no fault of their own.

Owns the back-off of one job on this host, and the limits of tries: on this host, and in the fleet. Knows nothing of VMs, and runs
nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec

from anklet_worker.backoff import doubled
from anklet_worker.contract.job import Job
from anklet_worker.link.setup import WorkerSetup
from anklet_worker.store.store import Store

#: GitHub and its like forget a queued job after a day; so do our counters of attempts at it.
FORGET_JOB_AFTER = 86_400.0
#: Longest back-off of one job.
LONGEST = 600.0
#: A job that failed too often here is tried again after so many seconds, then ever more seldom: what hindered it (a registry that
#: was away, say) may be over.
_GIVEN_UP_FIRST, _GIVEN_UP_LONGEST = 600.0, 7200.0
#: A job that so many hosts have given up is left alone by all for a while: two hosts may be unfit, three are the job's own trouble.
_HOSTS = 3


class JobBackoff:
    """Which jobs this host leaves alone for a while. Kept in memory: a restart may try again at once."""

    def __init__(self, clock: Callable[[], float], jitter: Callable[[], float] = random.random) -> None:
        self._clock = clock
        self._jitter = jitter
        self._until: dict[str, tuple[float, int]] = {}

    def holds(self, job_id: str) -> bool:
        """True while the job is to be left alone."""
        until, _ = self._until.get(job_id, (0.0, 0))
        return self._clock() < until

    def put_off(self, job_id: str, first: float) -> float:
        """Leave the job alone for `first` seconds, doubled with each time, up to a quarter more at random."""
        now = self._clock()
        self._until = {job: entry for job, entry in self._until.items() if now - entry[0] < FORGET_JOB_AFTER}
        _, times = self._until.get(job_id, (0.0, 0))
        pause = doubled(first, times, LONGEST) * (1 + 0.25 * self._jitter())
        self._until[job_id] = (now + pause, times + 1)
        return pause


class GivenUp(msgspec.Struct, frozen=True):
    """This host has failed so often at a job that it leaves it to others for so many seconds. `first`: nobody has said so yet."""

    failures: int
    seconds: float
    first: bool


class Tries:
    """What has failed at each job, on record in the store: by host, for one unfit host must not use up a job's tries for all."""

    def __init__(self, store: Store, setup: WorkerSetup) -> None:
        self._store = store
        self._host = setup.install_id
        self._owner = setup.owner
        self._most = setup.service.job_retry_attempts

    def over(self, job: Job) -> bool:
        """Whether this host, or the fleet, leaves the job alone. Raises `StoreUnavailable`."""
        keys = (job.key("given-up"), self._here(job, "given-up"))
        return any(self._store.holder(key) is not None for key in keys)

    def failed(self, job: Job) -> GivenUp | None:
        """Count a failure on this host; what follows when it was one too many. Raises `StoreUnavailable`."""
        failures = self._store.count(self._here(job, "failures"), FORGET_JOB_AFTER)
        beyond = failures - self._most - 1
        if beyond < 0:
            return None
        seconds = doubled(_GIVEN_UP_FIRST, beyond, _GIVEN_UP_LONGEST)
        self._store.claim(self._here(job, "given-up"), self._owner, seconds)
        hosts = self._store.count(job.key("hosts-given-up"), FORGET_JOB_AFTER) if beyond == 0 else 0
        if hosts >= _HOSTS:
            self._store.claim(job.key("given-up"), self._owner, _GIVEN_UP_LONGEST)
        return GivenUp(failures, seconds, first=hosts == 1)

    def _here(self, job: Job, kind: str) -> str:
        return job.key(f"{kind}@{self._host}")
