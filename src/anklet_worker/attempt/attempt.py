"""One attempt at one job: prepare the template, make the VM, hand it to the plugin, and remove all of it again.

Owns the order of effects and the record that announces each of them; every effect here has its phase on disk first. What may
follow what is in `job.py`; who gets a slot, and which job is next, is decided elsewhere.

Clean-up follows the one compare-and-swap that GitHub has: with no job in the VM the registration goes first (once it is gone,
no job can land; if one has landed, it is followed); a job that ended, or a stop, takes the VM first, so that an outage of
GitHub never holds a slot. What then remains outside is a debt, on record until it is settled.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain, repeat
from pathlib import Path

import msgspec

from anklet_worker.attempt.archive import Archive
from anklet_worker.attempt.phases import Event, Phase, advance, may_have_vm
from anklet_worker.attempt.records import Record, RecordBook
from anklet_worker.contract.driver import Withdrawal
from anklet_worker.contract.errors import (
    InfrastructureError,
    Interrupted,
    JobLost,
    RecordNotWritten,
    RetryHere,
    ServiceFatal,
    VMError,
    VMLimitReached,
)
from anklet_worker.contract.guest import GuestResult
from anklet_worker.contract.job import Job, Outcome
from anklet_worker.contract.plugin import Plugin
from anklet_worker.link.channel import SupervisorLink
from anklet_worker.link.messages import (
    JobFinished,
    JobGivenBack,
    JobStarted,
    SlotOccupied,
    SlotReleased,
    StageTook,
    StartRefused,
    Status,
    StatusChanged,
    VMGone,
    VMStarted,
)
from anklet_worker.link.slots import SlotReader, SlotState
from anklet_worker.log.service_log import ServiceLog
from anklet_worker.process.orders import Orders
from anklet_worker.store.lease import LeaseKeeper
from anklet_worker.vm.count import report_running_vms
from anklet_worker.vm.driver import VMDriver

#: Seconds that the supervisor has to confirm a slot; it answers within milliseconds, or it is gone.
_CONFIRM_SLOT = 10.0
#: The same for an outcome. One that is not heard in that time stays on record.
_HEARD_PATIENCE = 5.0
_DELETE_PAUSE_FIRST, _DELETE_PAUSE_LONGEST = 0.5, 10.0
#: Between two tries to follow a job that has landed, the first of which is made at once.
_ADOPT_PAUSES = (1.0, 2.0, 5.0, 10.0, 30.0)
#: For so long a debt outside is tried to be paid at once; afterwards it is kept on record, and holds nobody up.
_SETTLE_PATIENCE = 5.0


class Tools(msgspec.Struct, frozen=True, kw_only=True):
    """What an attempt works with; one set for the life of a worker."""

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


class AttemptGuest:
    """What the plugin sees of the VM. Settings are exported in front of the script; both travel on standard input."""

    def __init__(self, driver: VMDriver, vm: str) -> None:
        self._driver = driver
        self._vm = vm

    @property
    def name(self) -> str:
        """The VM's name."""
        return self._vm

    def run(self, script: str, *, env: Mapping[str, str], timeout: float, looks_only: bool = False) -> GuestResult:
        """Run a bash script in the guest's home."""
        return self._driver.run(self._vm, exports(env) + script, timeout, looks_only=looks_only)

    def copy_in(self, source: Path) -> None:
        """Copy a host file to the guest's home."""
        self._driver.copy_in(self._vm, source)

    def copy_out(self, path: str, target: Path) -> None:
        """Copy a file of the guest to the host."""
        self._driver.copy_out(self._vm, path, target)


def exports(env: Mapping[str, str]) -> str:
    """Lines of bash that export `env`; every value is quoted, whatever is in it. Raises `ValueError` for a bad name."""
    lines = []
    for name, value in env.items():
        if not name.isidentifier() or not name.isascii():
            raise ValueError(f"{name!r} is no name of an environment variable")
        lines.append(f"export {name}={shlex.quote(value)}\n")
    return "".join(lines)


class Attempt:
    """Drives one record from CLAIMED to nothing. Also takes up a record that an earlier process left."""

    def __init__(self, record: Record, tools: Tools) -> None:
        self.record = record
        self._tools = tools
        self._slot_released = False
        #: The VM of the attempt, once the plugin has had its hands on it.
        self._guest: AttemptGuest | None = None
        #: The stage between VM and end that lasts now, and its begin; none where an earlier process saw it begin.
        self._lasting: tuple[str, float] | None = None

    @classmethod
    def of(cls, record: Record, tools: Tools) -> Attempt:
        """The attempt of a record, with a log whose lines bear the job's fields."""
        log = tools.log.bind(**record.job.log_fields, jobId=record.job.id, vmName=record.vm)
        return cls(record, msgspec.structs.replace(tools, log=log))

    # ---- forward ----

    def run(self) -> Outcome:
        """Do the job, from template to outcome, and clean up, whatever happens but a detach.

        Raises what kept the job from being done: `InfrastructureError` of a class that says who should try again, `Interrupted`,
        `Detached` (nothing is cleaned then), or a bug, with everything left on record for the next process.
        """
        outcome = self._follow(self._make_and_drive)
        self.conclude(outcome)
        return outcome

    def adopt(self) -> Outcome:
        """Take up a job that an earlier process left running in its VM, and follow it to its end, as `run` would have."""
        outcome = self._follow(self._adopt)
        self.conclude(outcome)
        return outcome

    def take_up(self, *, vm_lives: bool) -> bool:
        """After an earlier process: True when a job runs in the VM and is to be followed by `adopt`; else all is cleaned up."""
        phase = self.record.phase
        if vm_lives and phase is Phase.STARTED:
            return True
        if vm_lives and phase is Phase.DRIVING and self._withdraw() is not Withdrawal.WITHDRAWN:
            # A job has landed, or has come and gone since; or the origin does not answer, and it may have run for an hour.
            # The guest will tell.
            return True
        if phase in (Phase.ENDED, Phase.VM_GONE):
            if self.record.outcome is not None:
                # Whether it was heard, nobody knows; who has heard it already does not count it again.
                self._tell_outcome(self.record.outcome)
            self.retry_cleanup()
        else:
            self._give_up("its worker ended in the middle")
        return False

    def _follow(self, effort: Callable[[], Outcome]) -> Outcome:
        """Make the effort; when it fails although a job has landed in the VM, follow that job instead of giving up."""
        pause, pauses = 0.0, chain((0.0,), _ADOPT_PAUSES, repeat(_ADOPT_PAUSES[-1]))
        while True:
            try:
                self._tools.orders.wait(pause)
                return effort()
            except (InfrastructureError, Interrupted, ServiceFatal) as error:
                if isinstance(error, ServiceFatal) and self.record.phase is Phase.STARTED:
                    # A job runs that we may not ask about any more (a revoked token, say). It goes on without us, on record,
                    # to be followed again when an operator has seen to it.
                    raise
                # Also before a stop removes the VM: once the registration is gone, no job can land in it.
                landed = self.record.phase is Phase.DRIVING and self._withdraw() is Withdrawal.STARTED
                if not landed or isinstance(error, Interrupted):
                    self._give_up(str(error), collects=not isinstance(error, Interrupted))
                    raise
                self._tools.log.info("a job has landed in the VM after all; following it", extra={"err": str(error)})
                # At once, and then ever more seldom: it may fail the same way again.
                pause = next(pauses)
                effort = self._adopt

    def _adopt(self) -> Outcome:
        self._guest = AttemptGuest(self._tools.driver, self.record.vm)
        return self._tools.plugin.driver.adopt(self, self._guest)

    def conclude(self, outcome: Outcome) -> None:
        """The job is over: put its outcome on record, report it, and clean up."""
        self._enter(None)
        self._advance(Event.END, outcome=outcome)
        self._tell_outcome(outcome)
        self._log_outcome(outcome)
        self._collect()
        self.clean()

    def _make_and_drive(self) -> Outcome:
        tools, job, vm = self._tools, self.record.job, self.record.vm
        began = time.monotonic()
        with tools.driver.image(job.vm, lambda: self._status(Status.PULLING)) as source:
            self.stage_took("template", time.monotonic() - began)
            self._status(Status.RUNNING)
            tools.orders.check()
            self._occupy_slot()
            with self._stage("clone"):
                tools.driver.clone(source, vm)
        self._require_slot()
        self._advance(Event.START)
        tools.orders.check()
        with self._stage("start"):
            self._start()
        self._require_claim()
        self._advance(Event.DRIVE)
        tools.orders.check()
        self._enter("register")
        self._guest = AttemptGuest(tools.driver, vm)
        return tools.plugin.driver.drive(self, self._guest)

    def _require_claim(self) -> None:
        """Before anything is registered: the job is still ours to run. Raises `JobLost`."""
        job, leases = self.record.job, self._tools.leases
        key = job.key("claim")
        doubtful = leases.may_have_been_lost(key)
        if leases.lost(key):
            raise JobLost(f"the lease on job {job.id} went to another host while the VM started")
        if doubtful and not self._tools.plugin.driver.claim(job):
            raise JobLost(f"job {job.id} is not to be had any more; its lease could not be renewed in time")

    def _start(self) -> None:
        """Start the VM; the supervisor learns what the host says, for that goes for all services."""
        tools, vm = self._tools, self.record.vm
        try:
            tools.driver.start(vm)
        except VMLimitReached:
            with suppress(VMError):
                # Others' VMs may have taken the room a moment ago.
                report_running_vms(tools.driver, tools.link)
            tools.link.tell(StartRefused(vm=vm))
            raise
        tools.link.tell(VMStarted(vm=vm))

    def runner_online(self) -> None:
        """The plugin says that what runs the job is in touch with the origin."""
        if self._lasting is not None and self._lasting[0] == "register":
            self._enter("wait")

    def job_started(self, job: Job) -> None:
        """The plugin says that a job runs in our VM."""
        self.runner_online()
        if self.record.phase is not Phase.STARTED:
            self._advance(Event.JOB_STARTED)
            self._enter("run")
        if job.id != self.record.job.id:
            # Another job than the one claimed: that one is free for others, at once.
            self._tools.leases.give_back(self.record.job.key("claim"))
        self._tools.link.tell(JobStarted(job_id=job.id, job_name=job.name, job_url=job.url))

    @property
    def job(self) -> Job:
        """The job that was claimed."""
        return self.record.job

    @property
    def vm(self) -> str:
        """The VM's name."""
        return self.record.vm

    def remember(self, **facts: str | int) -> None:
        """Put the plugin's facts on record, durably."""
        self._save(msgspec.structs.replace(self.record, facts={**self.record.facts, **facts}))

    def recall(self) -> Mapping[str, str | int]:
        """Return what the plugin has remembered about this attempt."""
        return self.record.facts

    def _occupy_slot(self) -> None:
        """From here on the slot is the VM's: intent on record, then told, then seen in the table, and only then a VM."""
        slot = self.record.slot
        if slot is None:
            raise RetryHere("no VM slot in hand")
        self._advance(Event.CLONE)
        self._tools.link.tell(SlotOccupied(slot=slot, vm=self.record.vm))
        self._tools.orders.wait_for(lambda: self._slot_state() is not SlotState.RESERVED, _CONFIRM_SLOT)
        self._require_slot()

    def _require_slot(self) -> None:
        if self._slot_state() is not SlotState.OCCUPIED:
            raise RetryHere("the VM slot was taken away: other VMs run on this host")

    def _slot_state(self) -> SlotState | None:
        return None if self.record.slot is None else self._tools.slots.state_of(self.record.slot)

    # ---- back ----

    def _withdraw(self) -> Withdrawal | None:
        """Withdraw a registration that no job has used; STARTED when one has, and it can be followed; None: it cannot be told.

        On the way back an origin that does not answer cannot hold the slot: the VM goes, and a debt remains.
        """
        with self._tools.orders.shield():
            try:
                return self._tools.plugin.driver.withdraw(self)
            except (InfrastructureError, ServiceFatal) as problem:
                self._tools.log.warning(
                    "whether a job runs in the VM cannot be told, for the runner could not be withdrawn",
                    extra={"err": str(problem)},
                )
                return None

    def _give_up(self, reason: str, *, collects: bool = True) -> None:
        """The job did not run to its end here: say so, and undo what was made."""
        self._tools.link.tell(JobGivenBack(vm=self.record.vm, job_id=self.record.job.id, reason=reason))
        self._lasting = None
        self._advance(Event.END)
        if collects:
            self._collect()
        self.clean()

    def _collect(self) -> None:
        """Save what somebody will want to read of the guest. A stop skips it, and trouble ends it."""
        if self._guest is None or self._tools.orders.stopping:
            return
        try:
            with self._stage("collect"):
                self._tools.plugin.driver.collect(self, self._guest, self._tools.archive.folder(self.record.vm))
        except (InfrastructureError, Interrupted, OSError) as problem:
            self._tools.log.info("the guest's logs could not be saved", extra={"err": str(problem)})

    def clean(self) -> None:
        """Remove what is left, in order: VM, slot, registration, claim, record. Idempotent, bounded; not cut by a stop.

        What cannot be removed within the clean-up deadline stays on record, for `retry_cleanup`.
        """
        with self._stage("cleanup"):
            self._clean(self._tools.cleanup_deadline)

    def retry_cleanup(self) -> None:
        """Try once more to remove what `clean` could not."""
        self._clean(0.0)

    def _clean(self, patience: float) -> None:
        with self._tools.orders.shield():
            if may_have_vm(self.record.phase):
                if not self._remove_vm(patience):
                    # The job need not wait for that.
                    self._tools.leases.give_back(self.record.job.key("claim"))
                    return
                self._advance(Event.VM_REMOVED)
            self._release_slot()
            self._settle(patience)

    def _remove_vm(self, patience: float) -> bool:
        deadline = time.monotonic() + patience
        pause = _DELETE_PAUSE_FIRST
        while True:
            try:
                self._tools.driver.delete(self.record.vm)
            except VMError as error:
                if time.monotonic() + pause >= deadline:
                    # Told once; the tries that follow, without patience, are no news.
                    tell = self._tools.log.error if patience else self._tools.log.debug
                    tell(
                        "cannot delete the VM; its slot stays occupied and the deletion is tried again",
                        extra={"err": str(error), "vmName": self.record.vm},
                    )
                    return False
                self._tools.log.warning("deleting the VM failed; trying again", extra={"err": str(error)})
                self._tools.orders.wait(pause)
                pause = min(pause * 2, _DELETE_PAUSE_LONGEST)
            else:
                return True

    def _release_slot(self) -> None:
        if self._slot_released:
            return
        self._slot_released = True
        if self.record.slot is not None and self._slot_state() is not None:
            self._tools.link.tell(SlotReleased(slot=self.record.slot))
        else:
            self._tools.link.tell(VMGone(vm=self.record.vm))

    def _settle(self, patience: float) -> None:
        """Pay the debt outside, give the claim back, and forget the attempt.

        Tries for some seconds, at most `patience` (0: once). The claim goes even when the debt stays: the VM is gone.
        """
        # What the plugin registers it announces in its facts first: without facts there is nothing outside.
        settled = not self.record.facts or self._settle_outside(patience)
        self._tools.leases.give_back(self.record.job.key("claim"))
        if settled and self._outcome_is_heard():
            self._tools.book.remove(self.record)
            self._tools.link.forget_outcome(self.record.vm)

    def _tell_outcome(self, outcome: Outcome) -> None:
        self._tools.link.tell_outcome(
            JobFinished(
                vm=self.record.vm,
                job_id=outcome.job_id,
                job_name=outcome.job_name,
                job_url=outcome.job_url,
                conclusion=outcome.conclusion,
            )
        )

    def _outcome_is_heard(self) -> bool:
        """Whether the supervisor has counted the outcome. A record goes only then, for a supervisor that dies with the message
        unread has counted nothing; the next one is told again. It answered long ago, as a rule, while the VM was removed."""
        outcome, link = self.record.outcome, self._tools.link
        if outcome is None or link.has_heard(self.record.vm):
            return True
        if self._tools.orders.wait_for(lambda: link.has_heard(self.record.vm), _HEARD_PATIENCE):
            return True
        self._tell_outcome(outcome)
        return False

    def _settle_outside(self, patience: float) -> bool:
        deadline = time.monotonic() + min(patience, _SETTLE_PATIENCE)
        pause = _DELETE_PAUSE_FIRST
        while True:
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
                tell = self._tools.log.warning if patience else self._tools.log.debug
                tell("the runner could not be removed yet; kept on record as a debt", extra={"err": problem})
                return False
            self._tools.orders.wait(pause)
            pause = min(pause * 2, _DELETE_PAUSE_LONGEST)

    # ---- record, report ----

    def _advance(self, event: Event, outcome: Outcome | None = None) -> None:
        """Move on, on disk first. On the way forward a record that cannot be written stops the effect. On the way back (the effects
        remove things) it does not: the older record names all that has to go. Nor does it stop a job that has started: by the
        older record the next process asks the origin whether one has."""
        phase = advance(self.record.phase, event)
        record = msgspec.structs.replace(self.record, phase=phase, outcome=outcome or self.record.outcome)
        try:
            self._save(record)
        except RecordNotWritten as error:
            if event not in (Event.JOB_STARTED, Event.END, Event.VM_REMOVED):
                raise
            self._tools.log.info("going on without a record", extra={"err": str(error)})
            self.record = record

    def _save(self, record: Record) -> None:
        self._tools.book.save(record)
        self.record = record

    def _status(self, status: Status) -> None:
        self._tools.link.tell(StatusChanged(status=status))

    @property
    def log(self) -> ServiceLog:
        """The log whose lines bear the job's fields."""
        return self._tools.log

    def stage_took(self, stage: str, seconds: float) -> None:
        """Report how long a stage took."""
        self._tools.link.tell(StageTook(stage=stage, seconds=seconds))

    def _enter(self, stage: str | None) -> None:
        """One stage of the plugin's ends, another begins."""
        now = time.monotonic()
        if self._lasting is not None:
            self.stage_took(self._lasting[0], now - self._lasting[1])
        self._lasting = None if stage is None else (stage, now)

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.stage_took(name, time.monotonic() - began)

    def _log_outcome(self, outcome: Outcome) -> None:
        self._tools.log.info("job ended", extra={"conclusion": outcome.conclusion.value, "vmName": self.record.vm})
