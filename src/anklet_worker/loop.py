"""One service's work: recover -> ready -> look for a job -> slot -> claim -> attempt -> report, over and over.

Owns the order of these steps, and what becomes of a job that could not be run here. How an attempt proceeds is in
`attempt.py`; what a job is, only the plugin knows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from anklet_worker.attempt.attempt import Attempt, Tools
from anklet_worker.attempt.reconcile import Reconciler
from anklet_worker.attempt.retries import FORGET_JOB_AFTER, LONGEST, JobBackoff, Tries
from anklet_worker.contract.errors import (
    InfrastructureError,
    JobLost,
    PullBusy,
    Retry,
    StoreUnavailable,
    VMLimitReached,
)
from anklet_worker.contract.job import Job, VMSpec
from anklet_worker.files import is_there
from anklet_worker.life.attempt_phases import Phase
from anklet_worker.life.records import Record
from anklet_worker.life.vm_phases import VMPhase
from anklet_worker.link.messages import (
    AttemptOver,
    JobClaimed,
    QueueSeen,
    Ready,
    SlotRef,
    SlotReleased,
    Status,
    StatusChanged,
    VMAdopted,
)
from anklet_worker.link.setup import WorkerSetup
from anklet_worker.store.store import Store
from anklet_worker.vm.count import report_running_vms
from anklet_worker.vm.driver import DriverInfo
from anklet_worker.vm.names import vm_name

#: A slot that came later than this after the look makes the look stale.
_STALE_LOOK = 2.0
#: First pause of a job on this host, in seconds: so that a fault can pass, so that another host can take the job, or because only
#: an operator can help.
_FIRST_PAUSE = {Retry.HERE: 2.0, Retry.ELSEWHERE: 30.0, Retry.OPERATOR: LONGEST}
#: How often debts (VMs and runners that could not be removed) are tried again.
_DEBT_PAUSE = 30.0
#: For so many seconds no job is taken while a VM of ours would not go: a job may take days, and the slot would be lost as long.
_DEBT_PATIENCE = 300.0


class ServiceLoop:
    """Runs one service in this process until it is told to end."""

    def __init__(self, setup: WorkerSetup, tools: Tools, store: Store) -> None:
        self._setup = setup
        self._tools = tools
        self._store = store
        self._backoff = JobBackoff(time.monotonic)
        self._tries = Tries(store, setup)
        self._reconciler = Reconciler(setup, tools)
        self._debts_due = 0.0
        #: Since when a VM that should be gone would not go.
        self._stuck_since: float | None = None
        self._trouble: str | None = None
        #: What an operator was asked to mend: one ERROR per kind of failure and image, however many jobs meet it.
        self._asked_operator: set[tuple[type[InfrastructureError], VMSpec]] = set()
        self._queue_seen: QueueSeen | None = None

    def reconcile(self) -> list[Record]:
        """Clean up after earlier processes; return the records of those attempts whose jobs still run, for `serve` to adopt."""
        return self._reconciler.at_start()

    def serve(self, driver: DriverInfo, left_running: list[Record]) -> None:
        """Announce readiness, follow what an earlier process left running, then take jobs until a drain or the one of --once."""
        self._tools.link.tell(Ready(driver=self._tools.driver.name, driver_version=driver.version))
        self._status(Status.IDLE)
        for record in left_running:
            self._adopt(record)
        while not self._tools.orders.draining:
            took_job = self._pass()
            if self._setup.once:
                return
            if not took_job:
                self._tools.orders.wait_for(lambda: self._tools.orders.draining, self._setup.service.sleep_interval)

    # ---- one pass ----

    def _pass(self) -> bool:
        """Look for a job and run it. True when one was run, so that the next look need not wait."""
        try:
            self._settle_debts()
            for record in self._reconciler.reconcile():
                self._adopt(record)
        except InfrastructureError as error:
            self._in_trouble(error)
            return False
        if self._paused():
            self._status(Status.PAUSED)
            return False
        if self._stuck_since is not None and time.monotonic() - self._stuck_since < _DEBT_PATIENCE:
            return False
        try:
            took_job = self._look_and_run()
        except InfrastructureError as error:
            self._in_trouble(error)
            return False
        self._out_of_trouble()
        return took_job

    def _paused(self) -> bool:
        """True while an operator wants no job taken: on this host, or by this service."""
        return is_there(self._setup.drain_file) or is_there(self._setup.pause_file)

    def _look_and_run(self) -> bool:
        self._tools.book.check()
        slot: SlotRef | None = None
        if not self._tools.slots.snapshot().available:
            # Without a free slot there is nothing to ask for: no call is made until there is one.
            slot = self._acquire_slot()
            if slot is None:
                return False
        self._status(Status.IDLE)
        try:
            jobs = self._eligible_jobs()
            if jobs and slot is None:
                asked = time.monotonic()
                slot = self._acquire_slot()
                if slot is not None and time.monotonic() - asked > _STALE_LOOK:
                    jobs = self._eligible_jobs()
            attempt = None if slot is None else self._claim_first(jobs, slot)
        except BaseException:
            self._release(slot)
            raise
        if attempt is None:
            self._release(slot)
            self._housekeep(None)
            return False
        self._housekeep(attempt.job)
        self._run(attempt)
        self._housekeep(None)
        return True

    def _housekeep(self, claimed: Job | None) -> None:
        try:
            self._tools.plugin.source.housekeep(claimed)
        except InfrastructureError as error:
            self._tools.log.debug("housekeeping failed; trying again later", extra={"err": str(error)})

    def _eligible_jobs(self) -> list[Job]:
        found = self._tools.plugin.source.find()
        self._report_queue(found)
        return [job for job in found if not self._backoff.holds(job.id)]

    def _report_queue(self, jobs: Sequence[Job]) -> None:
        """How many wait and for how long; told when it changes."""
        seen = QueueSeen(waiting=len(jobs), oldest=min((job.queued_at for job in jobs if job.queued_at), default=0.0))
        if seen != self._queue_seen:
            self._queue_seen = seen
            self._tools.link.tell(seen)

    def _acquire_slot(self) -> SlotRef | None:
        """Wait for a slot, and make sure that VMs that are not ours have left room for it. None: no slot for us now."""
        slot = self._tools.link.acquire_slot(self._setup.service.sleep_interval, self._while_waiting)
        if slot is None:
            return None
        try:
            _, running = report_running_vms(self._tools.driver, self._tools.link)
        except InfrastructureError:
            self._release(slot)
            raise
        if running >= self._tools.slots.snapshot().limit:
            self._release(slot)
            self._status(Status.PAUSED)
            self._tools.log.warning("other VMs run on this host; no room for a job", extra={"runningVMs": running})
            return None
        return slot

    def _while_waiting(self) -> None:
        """All slots are taken. What can be freed is freed: a VM that would not go, a slot whose VM is gone, others' VMs."""
        try:
            self._settle_debts()
            # What is still to be followed comes again when the wait is over.
            self._reconciler.reconcile()
            table = self._tools.slots.snapshot()
            if table.foreign or table.held_back:
                self._status(Status.PAUSED)
            if table.foreign:
                report_running_vms(self._tools.driver, self._tools.link)
        except InfrastructureError as error:
            self._in_trouble(error)

    def _release(self, slot: SlotRef | None) -> None:
        if slot is not None:
            self._tools.link.tell(SlotReleased(slot=slot))

    # ---- claim ----

    def _claim_first(self, jobs: list[Job], slot: SlotRef) -> Attempt | None:
        for job in jobs:
            self._tools.orders.check()
            if self._tools.orders.draining or self._paused():
                return None
            attempt = self._claim(job, slot)
            if attempt is not None:
                return attempt
        return None

    def _claim(self, job: Job, slot: SlotRef) -> Attempt | None:
        """Take the job's lease, ask the plugin whether it is still to be had, and put the attempt on record."""
        began = time.monotonic()
        key = job.key("claim")
        if self._tries.over(job):
            # No slot and no listing need be asked for it again for a while.
            self._backoff.put_off(job.id, LONGEST)
            return None
        if not self._tools.leases.take(key):
            return None
        try:
            if not self._tools.plugin.driver.claim(job):
                self._tools.leases.give_back(key)
                return None
            number = self._store.count(job.key("attempts"), FORGET_JOB_AFTER)
            attempt = Attempt.of(self._new_record(job, slot, number), self._tools)
            self._tools.book.save(attempt.record)
        except BaseException:
            # Nothing is made yet: whatever happened, others can have the job at once.
            self._tools.leases.give_back(key)
            raise
        self._announce(attempt)
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

    def _announce(self, attempt: Attempt) -> None:
        record, job = attempt.record, attempt.job
        self._tools.link.tell(
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
        self._status(Status.RUNNING)

    # ---- run ----

    def _run(self, attempt: Attempt) -> None:
        attempt.log.info("job claimed")
        self._carry_out(attempt, attempt.run)

    def _adopt(self, record: Record) -> None:
        """A job that an earlier process started still runs in its VM."""
        attempt = Attempt.of(record, self._tools)
        try:
            self._tools.leases.take(attempt.job.key("claim"))
        except StoreUnavailable as error:
            attempt.log.info("following the job without its lease", extra={"err": str(error)})
        self._tools.link.tell(VMAdopted(vm=record.vm))
        self._announce(attempt)
        attempt.log.info("following the job that an earlier process started")
        self._carry_out(attempt, attempt.adopt)

    def _carry_out(self, attempt: Attempt, effort: Callable[[], object]) -> None:
        try:
            effort()
        except JobLost as error:
            attempt.log.info("the job is not ours to run any more", extra={"err": str(error)})
        except InfrastructureError as error:
            self._put_off(attempt, error)
        if attempt.vm_remains:
            # Its VM is still there; that is looked after before another job is taken.
            self._debts_due = 0.0
        self._tools.link.tell(AttemptOver())
        self._status(Status.IDLE)

    def _put_off(self, attempt: Attempt, error: InfrastructureError) -> None:
        """The job could not be run here, through no fault of its own: leave it to others, or for later."""
        job = attempt.job
        if isinstance(error, VMLimitReached):
            # The host's fault, and the supervisor has been told: it grants no slot until there may be room.
            attempt.log.warning("the job goes back to the queue", extra={"err": str(error)})
            return
        pause = self._backoff.put_off(job.id, _FIRST_PAUSE[error.retry])
        facts = {"err": str(error), "backoffSeconds": round(pause, 1)}
        attempt.log.warning("the job goes back to the queue", extra=facts)
        needs = (type(error), job.vm)
        if error.retry is Retry.OPERATOR and needs not in self._asked_operator:
            self._asked_operator.add(needs)
            attempt.log.error("this host cannot run the job until an operator acts; other hosts can", extra=facts)
        if isinstance(error, PullBusy):
            return
        try:
            given_up = self._tries.failed(job)
        except StoreUnavailable as outage:
            attempt.log.info("the failed attempt could not be counted", extra={"err": str(outage)})
            return
        if given_up is not None:
            tell = attempt.log.error if given_up.first else attempt.log.warning
            tell(
                "the job could not be run on this host and is left queued; it is tried again later",
                extra={"err": str(error), "attempts": given_up.failures, "retrySeconds": round(given_up.seconds)},
            )

    # ---- debts ----

    def _settle_debts(self) -> None:
        """Remove what earlier attempts could not: VMs that would not go, runners that were busy or out of reach, outcomes that were
        not heard."""
        if time.monotonic() < self._debts_due:
            return
        self._debts_due = time.monotonic() + _DEBT_PAUSE
        records, problems = self._tools.book.load()
        self._reconciler.tell_problems(problems)
        stuck = False
        for record in records:
            if record.phase is not Phase.ENDED or not self._reconciler.is_ours(record):
                continue
            attempt = Attempt.of(record, self._tools)
            attempt.retry_cleanup()
            stuck = stuck or attempt.vm_remains
        if not stuck:
            self._stuck_since = None
        elif self._stuck_since is None:
            self._stuck_since = time.monotonic()

    # ---- reporting ----

    def _status(self, status: Status) -> None:
        self._tools.link.tell(StatusChanged(status=status))

    def _in_trouble(self, error: InfrastructureError) -> None:
        """One WARN for an outage, however many passes it spoils; an outage of the store is told by the store."""
        if isinstance(error, StoreUnavailable):
            self._tools.log.debug("cannot claim jobs now; trying again", extra={"err": str(error)})
            return
        if self._trouble != type(error).__name__:
            self._tools.log.warning("cannot look for jobs now; trying again", extra={"err": str(error)})
        self._trouble = type(error).__name__

    def _out_of_trouble(self) -> None:
        if self._trouble is not None:
            self._tools.log.info("looking for jobs again")
        self._trouble = None
