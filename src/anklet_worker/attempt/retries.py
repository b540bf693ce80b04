"""How long a job is left alone after an infrastructure failure, on this host and in the fleet.

Owns the pauses before this host tries a job again, and the limits of tries per host and fleet. Knows no VM and runs nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec

from anklet_worker.contract.backoff import Backoff
from anklet_worker.contract.job import Job
from anklet_worker.link.setup import WorkerSetup
from anklet_worker.store.store import Store

#: Seconds until the counters of a job expire. GitHub drops a queued job after a day (docs.github.com, "Usage limits").
FORGET_JOB_AFTER = 86_400.0
#: Longest pause in seconds before this host tries a job again, and its jitter.
LONGEST, _JITTER = 600.0, 0.25
#: Seconds that a host gives up a job after too many failures. It tries again later because the cause (a registry that was away)
#: may be gone.
_GIVEN_UP = Backoff(first=600.0, longest=7200.0)
#: When this many hosts have given up a job, the whole fleet leaves it alone: two hosts may be broken, three point to the job.
_HOSTS = 3


class JobBackoff:
    """The jobs that this host leaves alone for now. Kept in memory only: a restarted worker may try again at once."""

    def __init__(self, clock: Callable[[], float], jitter: Callable[[], float] = random.random) -> None:
        self._clock = clock
        self._jitter = jitter
        self._until: dict[str, tuple[float, int]] = {}

    def holds(self, job_id: str) -> bool:
        """True while this host leaves the job alone."""
        until, _ = self._until.get(job_id, (0.0, 0))
        return self._clock() < until

    def put_off(self, job_id: str, first: float) -> float:
        """Leave the job alone, for `first` seconds at first and twice as long each time after. Returns the pause in seconds."""
        now = self._clock()
        self._until = {job: entry for job, entry in self._until.items() if now - entry[0] < FORGET_JOB_AFTER}
        _, times = self._until.get(job_id, (0.0, 0))
        backoff = Backoff(first=first, longest=LONGEST, jitter=_JITTER).after(times)
        pause = backoff.jittered(self._jitter())
        self._until[job_id] = (now + pause, times + 1)
        return pause


class GivenUp(msgspec.Struct, frozen=True):
    """This host leaves a job to others for `seconds`, after `failures`. `first`: no host has reported this job before."""

    failures: int
    seconds: float
    first: bool


class Tries:
    """Counts failures per job in the store. Counts per host, so that one broken host cannot use up a job's tries for all."""

    def __init__(self, store: Store, setup: WorkerSetup) -> None:
        self._store = store
        self._host = setup.install_id
        self._owner = setup.owner
        self._most = setup.service.job_retry_attempts

    def over(self, job: Job) -> bool:
        """True if this host or the fleet has given up the job for now. Raises `StoreUnavailable`."""
        keys = (job.key("given-up"), self._here(job, "given-up"))
        return any(self._store.holder(key) is not None for key in keys)

    def failed(self, job: Job) -> GivenUp | None:
        """Count a failure on this host. Returns the consequence if it exceeds the limit. Raises `StoreUnavailable`."""
        failures = self._store.count(self._here(job, "failures"), FORGET_JOB_AFTER)
        beyond = failures - self._most - 1
        if beyond < 0:
            return None
        seconds = _GIVEN_UP.after(beyond).pause
        self._store.claim(self._here(job, "given-up"), self._owner, seconds)
        hosts = self._store.count(job.key("hosts-given-up"), FORGET_JOB_AFTER) if beyond == 0 else 0
        if hosts >= _HOSTS:
            self._store.claim(job.key("given-up"), self._owner, _GIVEN_UP.longest)
        return GivenUp(failures, seconds, first=hosts == 1)

    def _here(self, job: Job, kind: str) -> str:
        return job.key(f"{kind}@{self._host}")
