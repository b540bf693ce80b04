"""What the supervisor does when something happens: `step(model, event, now) -> (model, effects)`. Pure.

Knows no process, no signal, no clock, no file. `loop.py` feeds it and performs its effects; tests feed it histories. `now` is
a `Moment` that the caller read.
"""

from __future__ import annotations

import msgspec

from anklet_supervisor.machine import allocator, reload
from anklet_supervisor.machine import restarts as backoff
from anklet_supervisor.machine.allocator import Allocation
from anklet_supervisor.machine.events import (
    Began,
    ConfigRead,
    ConfigRefused,
    DetachWorker,
    DrainAsked,
    Effect,
    Event,
    Finish,
    ForgetService,
    InterruptedBy,
    KillWorker,
    PublishSlots,
    ReadConfig,
    ReloadAsked,
    RenewSettings,
    Report,
    RestartAsked,
    StartPutOff,
    StartWorker,
    TakeConfig,
    Tell,
    Terminated,
    Tick,
    WorkerExited,
    WorkerSaid,
    WorkerStarted,
)
from anklet_supervisor.machine.model import Fate, JobView, Model, Moment, Reload, Service
from anklet_supervisor.machine.state import ALIVE, FINAL, Mode, ServiceState, Trigger
from anklet_supervisor.machine.turn import Turn
from anklet_worker.contract.errors import DO_NOT_RESTART, ExitCode
from anklet_worker.link import messages as m
from anklet_worker.link.messages import Status
from anklet_worker.link.slots import SlotState

__all__ = [
    "STOP_PATIENCE",
    "Began",
    "ConfigRead",
    "ConfigRefused",
    "DetachWorker",
    "DrainAsked",
    "Effect",
    "Event",
    "Fate",
    "Finish",
    "ForgetService",
    "InterruptedBy",
    "JobView",
    "KillWorker",
    "Model",
    "Moment",
    "PublishSlots",
    "ReadConfig",
    "Reload",
    "ReloadAsked",
    "RenewSettings",
    "Report",
    "RestartAsked",
    "Service",
    "StartPutOff",
    "StartWorker",
    "TakeConfig",
    "Tell",
    "Terminated",
    "Tick",
    "WorkerExited",
    "WorkerSaid",
    "WorkerStarted",
    "describe_exit",
    "initial",
    "next_deadline",
    "slots_in_use",
    "step",
]

#: Seconds after a Stop by which a worker must have ended; its own clean-up is bounded well below that.
STOP_PATIENCE = 300.0


def initial(services: list[str], allocation: Allocation, *, once: bool, drain_timeout: float | None) -> Model:
    """The model before anything has happened."""
    return Model(
        services={name: Service(name=name) for name in services},
        allocation=allocation,
        once=once,
        drain_timeout=drain_timeout,
    )


def next_deadline(model: Model) -> float | None:
    """Monotonic time at which a `Tick` is due, or None."""
    candidates = [service.due for service in model.services.values()] + [model.drain_deadline, model.stop_deadline]
    candidates.append(allocator.slots_due(model.allocation))
    return min((due for due in candidates if due is not None), default=None)


def step(model: Model, event: Event, now: Moment) -> tuple[Model, list[Effect]]:
    """Decide what follows from one event."""
    turn = _Turn(model, now)
    match event:
        case Began():
            turn.effects.append(PublishSlots())
            turn.effects.extend(StartWorker(name) for name in model.services)
        case DrainAsked() | Terminated() | InterruptedBy() | RestartAsked():
            turn.ordered(event)
        case ReloadAsked() | ConfigRead() | ConfigRefused():
            reload.follow(turn, event)
        case WorkerStarted(service=name, pid=pid):
            turn.worker_started(name, pid)
        case WorkerSaid(service=name, fact=fact):
            turn.worker_said(name, fact)
        case WorkerExited(service=name, exit_code=code):
            turn.worker_exited(name, code)
        case StartPutOff(service=name, reason=reason):
            turn.start_put_off(name, reason)
        case Tick():
            turn.tick()
    return turn.finish()


class _Turn(Turn):
    """One step in the making."""

    def __init__(self, model: Model, now: Moment) -> None:
        super().__init__(model, now)
        #: Services to be told that the slot table holds their answer, once it is published.
        self.answers: list[str] = []

    # ---- orders ----

    def ordered(self, order: DrainAsked | Terminated | InterruptedBy | RestartAsked) -> None:
        match order:
            case DrainAsked():
                self.drain()
            case Terminated():
                self.terminated()
            case InterruptedBy():
                self.interrupted()
            case RestartAsked():
                self.restart()

    def terminated(self) -> None:
        if self._comes_too_late():
            return
        if self.model.terminated:
            self.stop()
        self.set(terminated=True)
        self.drain()

    def interrupted(self) -> None:
        if self.model.interrupted:
            self.set(exit_code=int(ExitCode.INTERRUPTED))
        self.set(interrupted=True)
        if not self._comes_too_late():
            self.stop()

    def drain(self) -> None:
        if self.model.mode is not Mode.RUNNING:
            self._comes_too_late()
            return
        deadline = None if self.model.drain_timeout is None else self.now.mono + self.model.drain_timeout
        self.set(mode=Mode.DRAINING, drain_deadline=deadline)
        self._report("INFO", "draining: no new jobs, claimed jobs finish")
        self._order_all(m.Drain())

    def stop(self) -> None:
        if self.model.mode is Mode.STOPPING:
            return
        self.set(mode=Mode.STOPPING, drain_deadline=None, stop_deadline=self.now.mono + STOP_PATIENCE)
        self._report("INFO", "stopping: interrupting jobs and cleaning up")
        self._order_all(m.Stop())

    def restart(self) -> None:
        if self.model.mode is Mode.STOPPING:
            if not self.model.restarting:
                self._report("WARN", "not restarted: it is stopping already")
            return
        self.set(mode=Mode.STOPPING, restarting=True, drain_deadline=None, stop_deadline=self.now.mono + STOP_PATIENCE)
        self._report("INFO", "restarting: VMs and their jobs go on; the next start follows them")
        for service in self.model.services.values():
            self.trigger(service.name, Trigger.ORDERED)
            if service.state in ALIVE:
                self.effects.append(DetachWorker(service.name))
            elif service.state is ServiceState.BACKOFF:
                self.trigger(service.name, Trigger.ENDED, due=None)

    def _comes_too_late(self) -> bool:
        """True when the workers have let go already, so that nothing is left to be drained or stopped: the VMs and their jobs are
        the next start's, and so is the order."""
        if self.model.restarting:
            self._report("WARN", "the restart goes on; give the order again when the next start runs")
        return self.model.restarting

    def _order_all(self, command: m.Command) -> None:
        for service in self.model.services.values():
            self.trigger(service.name, Trigger.ORDERED)
            if service.state in ALIVE:
                self.effects.append(Tell(service.name, command))
            elif service.state is ServiceState.BACKOFF and not allocator.owes(self.model.allocation, service.name):
                self.trigger(service.name, Trigger.ENDED, due=None)

    # ---- workers ----

    def worker_started(self, name: str, pid: int) -> None:
        self.update(name, pid=pid)
        mode = self.model.mode
        if mode is not Mode.RUNNING or self.model.services[name].fate is not Fate.STAYS:
            # It was started to finish or to clean up what its predecessor left, and for nothing else.
            self.trigger(name, Trigger.ORDERED)
            if self.model.restarting:
                self.effects.append(DetachWorker(name))
            else:
                self.effects.append(Tell(name, m.Stop() if mode is Mode.STOPPING else m.Drain()))

    def worker_said(self, name: str, fact: m.Fact) -> None:
        service = self.model.services[name]
        match fact:
            case m.Ready():
                self.trigger(name, Trigger.ANNOUNCED, ready_since=self.now.mono, reason="", given_up=False)
            case m.StatusChanged(status=status):
                self.update(name, status=status)
            case m.Failed(reason=reason):
                self.update(name, reason=reason)
            case m.JobClaimed(job_id=job_id, job_name=job_name, job_url=url, vm=vm):
                job = JobView(id=job_id, url=url, name=job_name, vm=vm, since=self.now.wall)
                self.update(name, job=job)
            case m.JobStarted(job_id=job_id, job_name=job_name, job_url=url) if service.job is not None:
                self.update(name, job=msgspec.structs.replace(service.job, id=job_id, name=job_name, url=url))
            case m.AttemptOver():
                self.update(name, job=None)
            case m.JobFinished(vm=vm):
                self.effects.append(Tell(name, m.OutcomeHeard(vm=vm)))
            case _:
                self._slot_fact(name, fact)

    def _slot_fact(self, name: str, fact: m.Fact) -> None:
        allocation, wall = self.model.allocation, self.now.wall
        match fact:
            case m.SlotWanted():
                allocation = allocator.want(allocation, name)
            case m.SlotDeclined():
                allocation = allocator.decline(allocation, name)
            case m.SlotOccupied(slot=slot, vm=vm):
                allocation = allocator.occupy(allocation, name, slot, vm, wall)
                self.answers.append(name)
            case m.SlotReleased(slot=slot):
                allocation = allocator.release(allocation, name, slot)
            case m.VMGone(vm=vm):
                allocation = allocator.vm_gone(allocation, vm)
            case m.VMAdopted(vm=vm):
                allocation = allocator.vm_adopted(allocation, name, vm, wall)
            case m.RunningVMs(vms=vms, processes=processes):
                allocation = allocator.running_vms(allocation, vms, processes)
            case m.StartRefused(vm=vm):
                allocation = allocator.start_refused(allocation, vm, self.now.mono)
            case m.VMStarted(vm=vm):
                allocation = allocator.vm_started(allocation, vm)
        self.set(allocation=allocation)

    def worker_exited(self, name: str, code: int) -> None:
        service = self.model.services[name]
        self.set(allocation=allocator.worker_gone(self.model.allocation, name))
        self.update(name, pid=None, job=None, exit_code=code)
        if code in DO_NOT_RESTART:
            self._give_up(name, service.reason or f"its worker ended with exit code {code}")
        elif self._ended_as_ordered(service, code):
            self.trigger(name, Trigger.ENDED, status=Status.STOPPED, ready_since=None)
        else:
            self._crashed(service, code)
        if self.model.services[name].state in FINAL:
            reload.follow_fate(self, name)

    def start_put_off(self, name: str, reason: str) -> None:
        """Nothing has failed, so the budget of restarts stays as it is. What ends does not wait: the next start cleans up."""
        if self.model.mode is not Mode.RUNNING or self.model.once:
            self.trigger(name, Trigger.ENDED, status=Status.STOPPED, reason=reason)
            return
        due = self.now.mono + backoff.LONGEST_DELAY
        self._report("WARN", f"cannot start the worker: {reason}", name)
        self.trigger(name, Trigger.CRASHED, due=due, ready_since=None, reason=reason, status=Status.FAILED)

    def _ended_as_ordered(self, service: Service, code: int) -> bool:
        if code == ExitCode.OK:
            return service.state is ServiceState.STOPPING or self.model.once
        ordered = service.state is ServiceState.STOPPING
        if self._out_of_patience():
            return True
        if self.model.restarting:
            return ordered
        return ordered and not allocator.owes(self.model.allocation, service.name)

    def _out_of_patience(self) -> bool:
        """A stop has lasted too long: whoever still lived has been killed, and nobody is started again."""
        return self.model.mode is Mode.STOPPING and self.model.stop_deadline is None

    def _crashed(self, service: Service, code: int) -> None:
        crashes = backoff.remember(service.crashes, self.now.mono, service.ready_since)
        cause = describe_exit(code)
        if backoff.spent(crashes, may_pass=code < 0):
            self._give_up(
                service.name, f"{cause}; {len(crashes)} times within {backoff.PERIOD:.0f} s, not started again"
            )
            return
        pause = backoff.delay(len(crashes))
        self._report("WARN", f"the worker {cause}; starting it again in {pause:g} s", service.name)
        self.trigger(
            service.name,
            Trigger.CRASHED,
            crashes=crashes,
            due=self.now.mono + pause,
            ready_since=None,
            reason=cause,
            status=Status.FAILED,
        )

    def _give_up(self, name: str, reason: str) -> None:
        service = self.model.services[name]
        # Its VM holds a slot until a worker of it has looked: one is started again, after a longer pause.
        owes = service.fate is Fate.STAYS and allocator.owes(self.model.allocation, name)
        due = self.now.mono + backoff.CLEAN_UP_AFTER if owes and not self.model.once else None
        if service.given_up:
            self._report("WARN", f"the service still cannot run: {reason}", name)
        elif service.fate is Fate.STAYS:
            self._report("ERROR", f"the service cannot run: {reason}", name)
        else:
            self._report("WARN", f"the worker cannot go on under its old settings: {reason}", name)
        self.trigger(
            name, Trigger.GAVE_UP, status=Status.FAILED, reason=reason, given_up=True, due=due, ready_since=None
        )

    # ---- time ----

    def tick(self) -> None:
        if self.model.drain_deadline is not None and self.model.drain_deadline <= self.now.mono:
            self._report("WARN", "the drain took longer than drain_timeout")
            self.stop()
        if self.model.stop_deadline is not None and self.model.stop_deadline <= self.now.mono:
            self.set(stop_deadline=None)
            for service in self.model.services.values():
                if service.state in ALIVE:
                    self._report("ERROR", f"the worker did not end within {STOP_PATIENCE:.0f} s; killed", service.name)
                    self.effects.append(KillWorker(service.name))
                elif service.state is ServiceState.BACKOFF:
                    self.trigger(service.name, Trigger.ENDED, due=None)
        for service in self.model.services.values():
            if service.due is not None and service.due <= self.now.mono:
                if service.state is ServiceState.FATAL and self.model.mode is not Mode.RUNNING:
                    self.update(service.name, due=None)
                    continue
                self.trigger(service.name, Trigger.DUE, due=None, restarts=service.restarts + 1, status=Status.IDLE)
                self.effects.append(StartWorker(service.name))

    # ---- the end of the step ----

    def finish(self) -> tuple[Model, list[Effect]]:
        self._grant()
        if self.model.exit_code is None and self._all_over():
            self.set(exit_code=self._final_code())
        if self.model.exit_code is not None and self.before.exit_code is None:
            self.effects.append(Finish(self.model.exit_code))
        return self.model, self.effects

    def _tell_of_host(self) -> None:
        before, after = self.before.allocation.host.degraded, self.model.allocation.host.degraded
        if after and not before:
            self._report("ERROR", "the host refuses to run as many VMs as it should; tried again now and then")
        elif before and not after:
            self._report("INFO", "the host runs as many VMs as it should again")

    def _grant(self) -> None:
        self._tell_of_host()
        allocation = allocator.hold_back(self.model.allocation, self.now.mono)
        self.set(allocation=allocation)
        grants: list[allocator.Grant] = []
        if self.model.mode is Mode.RUNNING:
            allocation, grants = allocator.grant(allocation, self.now.wall)
            self.set(allocation=allocation)
        if allocation.table != self.before.allocation.table:
            self.effects.append(PublishSlots())
        self.effects.extend(Tell(name, m.SlotAnswered()) for name in self.answers)
        self.effects.extend(Tell(grant.service, m.GrantSlot(slot=grant.slot)) for grant in grants)

    def _all_over(self) -> bool:
        """True when nothing can happen any more. A host whose services are all fatal stays up, so that its metrics tell it,
        unless the VM command line tool is what all of them lack: then a later start is the cure, and launchd's business."""
        services = self.model.services.values()
        if not all(service.state in FINAL for service in services):
            return False
        ended = self.model.mode is not Mode.RUNNING or self.model.once
        return ended or all(service.exit_code == ExitCode.UNAVAILABLE for service in services)

    def _final_code(self) -> int:
        services = self.model.services.values()
        if self.model.restarting:
            return int(ExitCode.TEMPFAIL)
        if services and all(service.exit_code == ExitCode.UNAVAILABLE for service in services):
            return int(ExitCode.UNAVAILABLE)
        return int(ExitCode.OK)


def describe_exit(code: int) -> str:
    """An exit code in words; negative ones are signals."""
    if code < 0:
        return f"was killed by signal {-code}"
    return f"ended with exit code {code}"


def slots_in_use(model: Model) -> int:
    """How many slots hold a VM, or may."""
    return sum(slot.state in (SlotState.OCCUPIED, SlotState.ORPHANED) for slot in model.allocation.table.slots)
