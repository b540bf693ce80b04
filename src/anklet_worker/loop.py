"""The loop of one service: reconcile, report ready, then pass after pass look for a job, get a slot, claim the job and run it.

Owns the order of these steps and the wait between two passes. How an attempt proceeds is in `attempt/attempt.py`. Only the plugin
knows the origin.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from anklet_worker.attempt.attempt import Attempt, Tools
from anklet_worker.attempt.claim import Claims, announce
from anklet_worker.attempt.debts import Debts
from anklet_worker.attempt.put_off import JobsPutOff
from anklet_worker.attempt.reconcile import Reconciler
from anklet_worker.attempt.retries import Tries
from anklet_worker.attempt.slot import SlotWait
from anklet_worker.contract.errors import InfrastructureError, JobLost, StoreUnavailable
from anklet_worker.contract.job import Job
from anklet_worker.files import is_there
from anklet_worker.life.records import Record
from anklet_worker.link.messages import AttemptOver, Ready, SlotRef, Status, VMAdopted
from anklet_worker.link.setup import WorkerSetup
from anklet_worker.link.status import StatusReporter
from anklet_worker.store.store import Store
from anklet_worker.vm.driver import DriverInfo

#: After a wait for a slot of more seconds than this, look for jobs again: the first look is stale.
_STALE_LOOK = 2.0
#: Seconds between two looks at the pull lock while a job waits for a pull to end.
_PULL_LOOK = 1.0


class ServiceLoop:
    """Runs one service in this process until an order ends it. `clock` returns monotonic seconds."""

    def __init__(
        self, setup: WorkerSetup, tools: Tools, store: Store, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._setup = setup
        self._tools = tools
        self._clock = clock
        self._status = StatusReporter(tools.link, tools.log)
        self._reconciler = Reconciler(setup, tools)
        self._debts = Debts(tools, self._reconciler, clock)
        self._put_off = JobsPutOff(tools, Tries(store, setup), clock)
        self._claims = Claims(setup, tools, store, self._put_off)
        self._slots = SlotWait(tools, setup.service.sleep_interval, self._debts, self._reconciler, self._status)

    def reconcile(self) -> list[Record]:
        """Clean up after earlier processes; return the records whose jobs still run, for `serve` to adopt."""
        return self._reconciler.at_start()

    def serve(self, driver: DriverInfo, left_running: list[Record]) -> None:
        """Report ready, adopt what still runs, then make passes: until a drain, or with --once a single one."""
        self._tools.link.tell(Ready(driver=self._tools.driver.name, driver_version=driver.version))
        self._status.show(Status.IDLE)
        for record in left_running:
            self._adopt(record)
        while not self._tools.orders.draining:
            took_job = self._pass()
            if self._setup.once:
                return
            if not took_job:
                self._idle()

    # ---- one pass ----

    def _pass(self) -> bool:
        """Clean up, then run one job. Return False when there was none to run, so that the next pass can wait."""
        try:
            self._debts.settle()
            for record in self._reconciler.reconcile():
                self._adopt(record)
        except InfrastructureError as error:
            self._status.trouble(error)
            return False
        if self._paused():
            self._status.show(Status.PAUSED)
            return False
        if self._debts.come_first:
            return False
        try:
            took_job = self._run_next_job()
        except InfrastructureError as error:
            self._status.trouble(error)
            return False
        self._status.trouble_over()
        return took_job

    def _run_next_job(self) -> bool:
        self._tools.book.check()
        slot: SlotRef | None = None
        if not self._tools.slots.snapshot().available:
            # On a full host, do not ask the origin before there is a slot.
            slot = self._slots.acquire()
            if slot is None:
                return False
        self._status.show(Status.IDLE)
        attempt = self._claim_next_job(slot)
        if attempt is not None:
            self._housekeep(attempt.job)
            self._run(attempt)
        self._housekeep(None)
        return attempt is not None

    def _claim_next_job(self, slot: SlotRef | None) -> Attempt | None:
        """Find and claim a job, with a slot for it. Without a job the slot goes back."""
        try:
            jobs = self._find_jobs()
            if jobs and slot is None:
                asked = self._clock()
                slot = self._slots.acquire()
                if slot is not None and self._clock() - asked > _STALE_LOOK:
                    jobs = self._find_jobs()
            attempt = None if slot is None else self._claims.first_of(jobs, slot, self._may_claim)
        except BaseException:
            self._slots.release(slot)
            raise
        if attempt is None:
            self._slots.release(slot)
        return attempt

    def _find_jobs(self) -> list[Job]:
        found = self._tools.plugin.source.find()
        self._status.queue(found)
        return self._put_off.without(found)

    def _may_claim(self) -> bool:
        return not self._tools.orders.draining and not self._paused()

    def _paused(self) -> bool:
        """True while an operator has paused this host or this service."""
        return is_there(self._setup.drain_file) or is_there(self._setup.pause_file)

    def _housekeep(self, claimed: Job | None) -> None:
        try:
            self._tools.plugin.source.housekeep(claimed)
        except InfrastructureError as error:
            self._tools.log.debug("housekeeping failed; trying again later", extra={"err": str(error)})

    # ---- one attempt ----

    def _run(self, attempt: Attempt) -> None:
        attempt.log.info("job claimed")
        self._carry_out(attempt, attempt.run)

    def _adopt(self, record: Record) -> None:
        attempt = Attempt.of(record, self._tools)
        try:
            self._tools.leases.take(attempt.job.key("claim"))
        except StoreUnavailable as error:
            attempt.log.info("adopting the job without its lease", extra={"err": str(error)})
        self._tools.link.tell(VMAdopted(vm=record.vm))
        announce(attempt, self._tools.link)
        attempt.log.info("adopting the job that an earlier process started")
        self._carry_out(attempt, attempt.adopt)

    def _carry_out(self, attempt: Attempt, effort: Callable[[], object]) -> None:
        try:
            effort()
        except JobLost as error:
            attempt.log.info("the job was taken or cancelled before it started here", extra={"err": str(error)})
        except InfrastructureError as error:
            self._put_off.failed(attempt, error)
        if attempt.vm_remains:
            self._debts.settle_at_next_pass()
        self._tools.link.tell(AttemptOver())
        self._status.show(Status.IDLE)

    # ---- between two passes ----

    def _idle(self) -> None:
        """Wait until the next pass is due, or until a pull has ended for which a job waits. A drain ends the wait."""
        orders = self._tools.orders
        due = self._clock() + self._setup.service.sleep_interval
        while not self._put_off.pull_ended():
            left = max(0.0, due - self._clock())
            step = min(left, _PULL_LOOK) if self._put_off.wait_for_pull else left
            if orders.wait_for(lambda: orders.draining, step) or step == left:
                return
