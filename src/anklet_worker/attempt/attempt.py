"""One attempt at one job: borrow a VM, hand it to the plugin, conclude, and remove everything again.

Owns the effects of `attempt_phases.TABLE`, each with its phase on record first. How the VM lives is in `life/owned_vm.py`; who gets
a slot, and which job comes next, is decided elsewhere.

Clean-up follows the origin's one compare-and-swap. With no job in the VM the registration goes first: once it is gone, no
job can land, and if one has landed, it is watched to its end. After a job, or at a stop, the VM goes first, so that an outage of
the origin never holds a slot. What then remains at the origin is a debt, on record until it is settled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, repeat

import msgspec

from anklet_worker.attempt.archive import Archive
from anklet_worker.contract.backoff import Backoff
from anklet_worker.contract.driver import Withdrawal
from anklet_worker.contract.errors import InfrastructureError, Interrupted, JobLost, ServiceFatal
from anklet_worker.contract.job import Job, Outcome
from anklet_worker.contract.plugin import Plugin
from anklet_worker.life.attempt_phases import Action, Event, Phase, advance
from anklet_worker.life.entry import Entry
from anklet_worker.life.guest import VMGuest
from anklet_worker.life.owned_vm import OwnedVM, VMTools
from anklet_worker.life.records import Record, RecordBook
from anklet_worker.life.stages import Stages
from anklet_worker.link.channel import SupervisorLink
from anklet_worker.link.messages import JobFinished, JobGivenBack, JobStarted
from anklet_worker.link.slots import SlotReader
from anklet_worker.log.service_log import ServiceLog
from anklet_worker.process.orders import Orders
from anklet_worker.store.lease import LeaseKeeper
from anklet_worker.vm.driver import VMDriver

#: Seconds that the supervisor has to count an outcome. Without an answer in that time the outcome stays on record.
_HEARD_PATIENCE = 5.0
#: Pauses before each try to watch a job that has landed; the first try comes at once.
_ADOPT_PAUSES = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
#: Seconds for which a debt is tried at once, and the pauses between. Later it stays on record and holds nothing up.
_SETTLE_PATIENCE = 5.0
_SETTLE_PAUSES = Backoff(first=0.5, longest=10.0)


class Tools(msgspec.Struct, frozen=True, kw_only=True):
    """What an attempt works with; one set for the life of a worker. `cleanup_deadline` is seconds."""

    orders: Orders
    link: SupervisorLink
    slots: SlotReader
    book: RecordBook
    driver: VMDriver
    plugin: Plugin
    leases: LeaseKeeper
    log: ServiceLog
    archive: Archive
    cleanup_deadline: float

    def for_vm(self) -> VMTools:
        """The part that a VM's life needs."""
        return VMTools(orders=self.orders, link=self.link, slots=self.slots, driver=self.driver, log=self.log)


class Happened(msgspec.Struct, frozen=True):
    """An event, with what it brought: the outcome, or the error that ended an effort."""

    event: Event
    outcome: Outcome | None = None
    error: Exception | None = None


class Attempt:
    """Takes one record from CLAIMED to nothing, or from wherever an earlier process left it.

    Implements `anklet_worker.contract.driver.JobInHand` for the plugin.
    """

    def __init__(self, record: Record, tools: Tools) -> None:
        if record.job is None:
            raise ValueError(f"record {record.name} is of a VM without an attempt")
        self._tools = tools
        self._job = record.job
        self._entry = Entry(record, tools.book, tools.log)
        self._stages = Stages(tools.link)
        self._vm = OwnedVM(self._entry, tools.for_vm(), self._stages)
        #: The guest, once the plugin has had its hands on it.
        self._guest: VMGuest | None = None
        #: The job that runs in the VM; the origin may have put another one there than the one claimed.
        self._running = record.job
        #: What ended the latest effort.
        self._error: Exception | None = None
        self._adopt_pauses: Iterator[float] = chain(_ADOPT_PAUSES, repeat(_ADOPT_PAUSES[-1]))
        self._actions: dict[Action, Callable[[], Happened | None]] = {
            Action.MAKE_VM: lambda: self._try(self._make_vm),
            Action.DRIVE: lambda: self._try(self._drive),
            Action.ADOPT: lambda: self._try(self._adopt),
            Action.ADOPT_LANDED: lambda: self._try(self._adopt_landed),
            Action.WITHDRAW: self._withdraw,
            Action.WITHDRAW_FOR_STOP: self._withdraw_for_stop,
            Action.WITHDRAW_LEFT: self._withdraw_left,
            Action.TIME_RUN: lambda: self._stages.enter("run"),
            Action.REPORT_START: self._report_start,
            Action.TELL_OUTCOME: self._tell_new_outcome,
            Action.RETELL_OUTCOME: self._tell_outcome,
            Action.GIVE_BACK: self._give_back,
            Action.COLLECT: self._collect,
            Action.CLEAN: self._clean,
            Action.CLEAN_ONCE: self._clean_once,
            Action.RAISE: self._raise,
        }

    @classmethod
    def of(cls, record: Record, tools: Tools) -> Attempt:
        """The attempt of a record, with a log whose lines bear the job's fields."""
        fields = {} if record.job is None else {**record.job.log_fields, "jobId": record.job.id}
        return cls(record, msgspec.structs.replace(tools, log=tools.log.bind(**fields, vmName=record.vm)))

    # ---- what the worker's loop asks for ----

    def run(self) -> Outcome:
        """Do the job, from VM to outcome, and clean up whatever happens but a detach.

        Raises what kept the job from being done: an `InfrastructureError` whose `retry` says who should try again, `ServiceFatal`,
        `Interrupted`; `Detached` or a bug with nothing cleaned and everything on record for the next process.
        """
        return self._to_the_end(Event.BEGUN)

    def adopt(self) -> Outcome:
        """Watch to its end the job that an earlier process started in the VM, and clean up as `run` does. Raises as `run` does."""
        return self._to_the_end(Event.ADOPTED)

    def reconcile(self, *, vm_lives: bool) -> bool:
        """Judge what an earlier process left: return True when a job runs in the VM, to be adopted; else clean up."""
        self._handle(Event.LEFT_RUNNING if vm_lives else Event.LEFT_DEAD)
        return self.record.phase is not Phase.ENDED

    def retry_cleanup(self) -> None:
        """Try once more to remove what could not be removed."""
        self._handle(Event.RETRIED)

    @property
    def record(self) -> Record:
        """The record as it stands."""
        return self._entry.record

    @property
    def vm_remains(self) -> bool:
        """The attempt is over, and its VM could not be removed yet."""
        return self.record.phase is Phase.ENDED and self.record.vm_may_exist

    @property
    def stages(self) -> Stages:
        """The stages of this attempt."""
        return self._stages

    # ---- what the plugin asks for: JobInHand ----

    @property
    def job(self) -> Job:
        """The job that was claimed."""
        return self._job

    @property
    def vm(self) -> str:
        """The VM's name."""
        return self.record.vm

    @property
    def log(self) -> ServiceLog:
        """The log whose lines bear the job's fields."""
        return self._tools.log

    def remember(self, **facts: str | int) -> None:
        """Put the plugin's facts on record, durably. Raises `RecordNotWritten`."""
        self._entry.announce(facts={**self.record.facts, **facts})

    def recall(self) -> Mapping[str, str | int]:
        """Return what the plugin has remembered."""
        return self.record.facts

    def runner_online(self) -> None:
        """The plugin says that the runner in the VM has contacted the origin."""
        self._stages.enter_after("register", "wait")

    def job_started(self, job: Job) -> None:
        """The plugin says that the origin runs `job` in our VM."""
        self.runner_online()
        self._running = job
        self._handle(Event.JOB_STARTED)

    # ---- events and their actions ----

    @property
    def _lease(self) -> str:
        return self._job.key("claim")

    def _to_the_end(self, event: Event) -> Outcome:
        self._handle(event)
        outcome = self.record.outcome
        if outcome is None:
            raise AssertionError(f"the attempt on {self.vm} ended without an outcome and without an error")
        return outcome

    def _handle(self, event: Event) -> None:
        """Let an event move the attempt on, perform its actions, and handle the event that the last of them causes."""
        happened: Happened | None = Happened(event)
        while happened is not None:
            try:
                actions = self._enter(happened)
            except InfrastructureError as error:
                # The disk refused the record of what would have come next.
                happened = Happened(Event.FAILED, error=error)
                continue
            happened = None
            for action in actions:
                happened = self._actions[action]()

    def _enter(self, happened: Happened) -> tuple[Action, ...]:
        """Put the next phase on record and return its actions. Raises `RecordNotWritten` on the way forward only."""
        self._error = happened.error or self._error
        phase, actions = advance(self._phase, happened.event)
        changes: dict[str, object] = {} if phase is self._phase else {"phase": phase}
        if happened.outcome is not None:
            changes["outcome"] = happened.outcome
        if changes and happened.event is Event.VM_READY:
            self._entry.announce(**changes)
        elif changes:
            self._entry.note(**changes)
        return actions

    @property
    def _phase(self) -> Phase:
        return self.record.phase or Phase.CLAIMED

    def _try(self, effort: Callable[[], Happened]) -> Happened:
        """Make an effort; the error that ends it becomes an event. A detach and a bug pass through."""
        try:
            return effort()
        except InfrastructureError as error:
            return Happened(Event.FAILED, error=error)
        except ServiceFatal as error:
            return Happened(Event.REFUSED, error=error)
        except Interrupted as error:
            return Happened(Event.STOPPED, error=error)

    # ---- forward ----

    def _make_vm(self) -> Happened:
        self._tools.orders.wait(0.0)
        self._vm.make(self._job.vm)
        self._require_claim()
        return Happened(Event.VM_READY)

    def _require_claim(self) -> None:
        """Before anything is registered: make sure that the job is still ours to run. Raises `JobLost`."""
        leases = self._tools.leases
        doubtful = leases.may_have_been_lost(self._lease)
        if leases.lost(self._lease):
            raise JobLost(f"the lease on job {self._job.id} went to another host while the VM started")
        if doubtful and not self._tools.plugin.driver.claim(self._job):
            raise JobLost(f"job {self._job.id} can no longer be claimed; its lease could not be renewed in time")

    def _drive(self) -> Happened:
        self._tools.orders.check()
        self._stages.enter("register")
        self._guest = self._vm.guest
        return Happened(Event.OUTCOME, self._tools.plugin.driver.drive(self, self._guest))

    def _report_start(self) -> None:
        job = self._running
        if job.id != self._job.id:
            # The job that was claimed is free for others, at once.
            self._tools.leases.give_back(self._lease)
        self._tools.link.tell(JobStarted(job_id=job.id, job_name=job.name, job_url=job.url))

    def _adopt(self) -> Happened:
        self._tools.orders.wait(0.0)
        return self._watch()

    def _adopt_landed(self) -> Happened:
        self._tools.log.info("a job has landed in the VM after all; watching it", extra={"err": str(self._error)})
        self._tools.orders.wait(next(self._adopt_pauses))
        return self._watch()

    def _watch(self) -> Happened:
        self._guest = self._vm.guest
        return Happened(Event.OUTCOME, self._tools.plugin.driver.adopt(self, self._guest))

    # ---- back ----

    def _withdraw(self) -> Happened:
        landed = self._withdrawal() is Withdrawal.STARTED
        return Happened(Event.LANDED if landed else Event.WITHDRAWN)

    def _withdraw_for_stop(self) -> Happened:
        self._withdrawal()
        return Happened(Event.WITHDRAWN_FOR_STOP)

    def _withdraw_left(self) -> Happened:
        """A job may have landed since the earlier process ended, and gone by itself; where the origin does not answer, the guest
        will tell."""
        gone = self._withdrawal() is Withdrawal.WITHDRAWN
        return Happened(Event.LEFT_DEAD if gone else Event.ADOPTABLE)

    def _withdrawal(self) -> Withdrawal | None:
        """Withdraw a registration that no job has used. None when the origin does not answer: the VM goes and a debt remains."""
        with self._tools.orders.shield():
            try:
                return self._tools.plugin.driver.withdraw(self)
            except (InfrastructureError, ServiceFatal) as problem:
                self._tools.log.warning(
                    "could not withdraw the runner, so a job may run in the VM", extra={"err": str(problem)}
                )
                return None

    def _give_back(self) -> None:
        """The job did not run to its end here: say so."""
        reason = "its worker ended in the middle" if self._error is None else str(self._error)
        self._tools.link.tell(JobGivenBack(vm=self.vm, job_id=self._job.id, reason=reason))
        self._stages.drop()

    def _tell_new_outcome(self) -> None:
        self._stages.enter(None)
        self._tell_outcome()
        outcome = self.record.outcome
        if outcome is not None:
            self._tools.log.info("job ended", extra={"conclusion": outcome.conclusion.value, "vmName": self.vm})

    def _tell_outcome(self) -> None:
        """Tell the outcome, if there is one. A supervisor that has counted it already does not count it again."""
        outcome = self.record.outcome
        if outcome is not None:
            self._tools.link.tell_outcome(
                JobFinished(
                    vm=self.vm,
                    job_id=outcome.job_id,
                    job_name=outcome.job_name,
                    job_url=outcome.job_url,
                    conclusion=outcome.conclusion,
                )
            )

    def _collect(self) -> None:
        """Save what people will want to read of the guest. A stop skips it, and trouble ends it."""
        if self._guest is None or self._tools.orders.stopping:
            return
        try:
            with self._stages.timed("collect"):
                self._tools.plugin.driver.collect(self, self._guest, self._tools.archive.folder(self.vm))
        except (InfrastructureError, Interrupted, OSError) as problem:
            self._tools.log.info("could not save the guest's logs", extra={"err": str(problem)})

    def _clean(self) -> None:
        with self._stages.timed("cleanup"):
            self._remove_all(self._tools.cleanup_deadline)

    def _clean_once(self) -> None:
        self._remove_all(0.0)

    def _remove_all(self, patience: float) -> None:
        """Remove what is left, in order: VM, slot, registration, claim, record. Idempotent, bounded; a stop does not cut it short.

        What cannot be removed within `patience` seconds stays on record, for `retry_cleanup`. The claim goes in any case.
        """
        with self._tools.orders.shield():
            if not self._vm.remove(patience):
                # The job need not wait for that.
                self._tools.leases.give_back(self._lease)
                return
            # The plugin announces what it registers in its facts: without facts there is nothing at the origin.
            settled = not self.record.facts or self._settle(patience)
            self._tools.leases.give_back(self._lease)
            if settled and self._outcome_is_heard():
                self._entry.forget()
                self._tools.link.forget_outcome(self.vm)

    def _settle(self, patience: float) -> bool:
        """Remove what the plugin registered, for at most `patience` seconds (0: one try). False leaves a debt."""
        deadline = time.monotonic() + min(patience, _SETTLE_PATIENCE)
        for pause in _SETTLE_PAUSES:
            try:
                if self._tools.plugin.driver.settle(self):
                    return True
                problem = "the origin still counts it as busy"
            except InfrastructureError as error:
                problem = str(error)
            except ServiceFatal as error:
                # Asking again would only be refused again.
                problem, deadline = str(error), 0.0
            if time.monotonic() + pause >= deadline:
                break
            self._tools.orders.wait(pause)
        tell = self._tools.log.warning if patience else self._tools.log.debug
        tell("the runner could not be removed yet; kept on record as a debt", extra={"err": problem})
        return False

    def _outcome_is_heard(self) -> bool:
        """Return whether the supervisor has counted the outcome. Only then may the record go: a supervisor that dies with the
        message unread has counted nothing, and the next one must hear it. As a rule it answered while the VM was removed."""
        link = self._tools.link
        if self.record.outcome is None or link.has_heard(self.vm):
            return True
        if self._tools.orders.wait_for(lambda: link.has_heard(self.vm), _HEARD_PATIENCE):
            return True
        self._tell_outcome()
        return False

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
