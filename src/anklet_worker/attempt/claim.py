"""Claims a job: takes its lease, asks the plugin whether it can still run, and puts the attempt on record.

Owns the order of these steps; a step that fails gives the lease back. Knows no VM and no origin.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from anklet_worker.attempt.attempt import Attempt, Tools
from anklet_worker.attempt.put_off import JobsPutOff
from anklet_worker.attempt.retries import FORGET_JOB_AFTER
from anklet_worker.contract.job import Job
from anklet_worker.life.attempt_phases import Phase
from anklet_worker.life.records import Record
from anklet_worker.life.vm_phases import VMPhase
from anklet_worker.link.channel import SupervisorLink
from anklet_worker.link.messages import JobClaimed, SlotRef, Status, StatusChanged
from anklet_worker.link.setup import WorkerSetup
from anklet_worker.store.store import Store
from anklet_worker.vm.names import vm_name


class Claims:
    """Claims jobs for one service."""

    def __init__(self, setup: WorkerSetup, tools: Tools, store: Store, put_off: JobsPutOff) -> None:
        self._setup = setup
        self._tools = tools
        self._store = store
        self._put_off = put_off

    def first_of(self, jobs: Sequence[Job], slot: SlotRef, may_claim: Callable[[], bool]) -> Attempt | None:
        """Claim the first job that can be claimed and return its attempt, which then has the slot.

        None when no job could be claimed. `may_claim` is asked before each job; once it says no, nothing more is claimed. Raises
        `StoreUnavailable`, `RecordNotWritten`, and what the plugin raises.
        """
        for job in jobs:
            self._tools.orders.check()
            if not may_claim():
                return None
            attempt = self._claim(job, slot)
            if attempt is not None:
                return attempt
        return None

    def _claim(self, job: Job, slot: SlotRef) -> Attempt | None:
        began = time.monotonic()
        key = job.key("claim")
        if self._put_off.given_up(job) or not self._tools.leases.take(key):
            return None
        try:
            if not self._tools.plugin.driver.claim(job):
                self._tools.leases.give_back(key)
                return None
            number = self._store.count(job.key("attempts"), FORGET_JOB_AFTER)
            attempt = Attempt.of(self._new_record(job, slot, number), self._tools)
            self._tools.book.save(attempt.record)
        except BaseException:
            # Nothing exists yet, so after any failure other hosts can have the job at once.
            self._tools.leases.give_back(key)
            raise
        announce(attempt, self._tools.link)
        if job.queued_at:
            attempt.stages.took("queue", attempt.record.claimed_at - job.queued_at)
        attempt.stages.took("claim", time.monotonic() - began)
        return attempt

    def _new_record(self, job: Job, slot: SlotRef, number: int) -> Record:
        setup = self._setup
        return Record(
            service=setup.service.name,
            host_id=setup.host_id,
            boot_id=setup.boot_id,
            driver=self._tools.driver.name,
            origin=setup.service.origin,
            job=job,
            attempt=number,
            vm=vm_name(setup.install_id, setup.service.name, job.id, number),
            slot=slot,
            vm_phase=VMPhase.PLANNED,
            phase=Phase.CLAIMED,
            claimed_at=time.time(),
        )


def announce(attempt: Attempt, link: SupervisorLink) -> None:
    """Report a job that was claimed or adopted."""
    record, job = attempt.record, attempt.job
    link.tell(
        JobClaimed(
            job_id=job.id,
            job_name=job.name,
            job_url=job.url,
            vm=record.vm,
            queued_at=job.queued_at,
            claimed_at=record.claimed_at,
            attempt=record.attempt,
        )
    )
    link.tell(StatusChanged(status=Status.RUNNING))
