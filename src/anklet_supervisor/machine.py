"""What the supervisor does when something happens: `step(model, event, now) -> (model, effects)`. Pure.

Knows no process, no signal, no clock, no file. `loop.py` feeds it and performs its effects; tests feed it histories. `now` is
a `Moment` that the caller read.
"""

from __future__ import annotations

import msgspec

from anklet_supervisor import allocator, backoff
from anklet_supervisor.allocator import Allocation
from anklet_supervisor.events import (
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
    StartWorker,
    TakeConfig,
    Tell,
    Terminated,
    Tick,
    WorkerExited,
    WorkerSaid,
    WorkerStarted,
)
from anklet_supervisor.model import Fate, JobView, Model, Moment, Reload, Service
from anklet_supervisor.state import ALIVE, FINAL, Mode, ServiceState, Trigger, follow
from anklet_worker import messages as m
from anklet_worker.errors import DO_NOT_RESTART, ExitCode
from anklet_worker.plugin import Status
from anklet_worker.slots import SlotState

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


def _is_to_change(service: Service, event: ConfigRead) -> bool:
    """Whether a configured service gets other settings; one that was to leave has been told to end, and begins anew."""
    return service.name in event.changed or service.fate is Fate.LEAVES


def _in_order(services: dict[str, Service], names: tuple[str, ...]) -> dict[str, Service]:
    """The services as they are configured, and after them those that are to leave."""
    return {name: services[name] for name in (*names, *(name for name in services if name not in names))}


def next_deadline(model: Model) -> float | None:
    """Monotonic time at which a `Tick` is due, or None."""
    candidates = [service.due for service in model.services.values()] + [model.drain_deadline, model.stop_deadline]
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
            turn.reloading(event)
        case WorkerStarted(service=name, pid=pid):
            turn.worker_started(name, pid)
        case WorkerSaid(service=name, fact=fact):
            turn.worker_said(name, fact)
        case WorkerExited(service=name, exit_code=code):
            turn.worker_exited(name, code)
        case Tick():
            turn.tick()
    return turn.finish()


class _Turn:
    """One step in the making: a model that changes by replacement, and the effects so far."""

    def __init__(self, model: Model, now: Moment) -> None:
        self.before = model
        self.model = model
        self.now = now
        self.effects: list[Effect] = []
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
        self._set(terminated=True)
        self.drain()

    def interrupted(self) -> None:
        if self.model.interrupted:
            self._set(exit_code=int(ExitCode.INTERRUPTED))
        self._set(interrupted=True)
        if not self._comes_too_late():
            self.stop()

    def drain(self) -> None:
        if self.model.mode is not Mode.RUNNING:
            self._comes_too_late()
            return
        deadline = None if self.model.drain_timeout is None else self.now.mono + self.model.drain_timeout
        self._set(mode=Mode.DRAINING, drain_deadline=deadline)
        self._report("INFO", "draining: no new jobs, claimed jobs finish")
        self._order_all(m.Drain())

    def stop(self) -> None:
        if self.model.mode is Mode.STOPPING:
            return
        self._set(mode=Mode.STOPPING, drain_deadline=None, stop_deadline=self.now.mono + STOP_PATIENCE)
        self._report("INFO", "stopping: interrupting jobs and cleaning up")
        self._order_all(m.Stop())

    def restart(self) -> None:
        if self.model.mode is Mode.STOPPING:
            if not self.model.restarting:
                self._report("WARN", "not restarted: it is stopping already")
            return
        self._set(mode=Mode.STOPPING, restarting=True, drain_deadline=None, stop_deadline=self.now.mono + STOP_PATIENCE)
        self._report("INFO", "restarting: VMs and their jobs go on; the next start follows them")
        for service in self.model.services.values():
            self._trigger(service.name, Trigger.ORDERED)
            if service.state in ALIVE:
                self.effects.append(DetachWorker(service.name))
            elif service.state is ServiceState.BACKOFF:
                self._trigger(service.name, Trigger.ENDED, due=None)

    def _comes_too_late(self) -> bool:
        """True when the workers have let go already, so that nothing is left to be drained or stopped: the VMs and their jobs are
        the next start's, and so is the order."""
        if self.model.restarting:
            self._report("WARN", "the restart goes on; give the order again when the next start runs")
        return self.model.restarting

    def _order_all(self, command: m.Command) -> None:
        for service in self.model.services.values():
            self._trigger(service.name, Trigger.ORDERED)
            if service.state in ALIVE:
                self.effects.append(Tell(service.name, command))
            elif service.state is ServiceState.BACKOFF and not allocator.owes(self.model.allocation, service.name):
                self._trigger(service.name, Trigger.ENDED, due=None)

    # ---- reload ----

    def reloading(self, event: ReloadAsked | ConfigRead | ConfigRefused) -> None:
        match event:
            case ReloadAsked():
                self.reload_asked()
            case ConfigRead():
                self.config_read(event)
            case ConfigRefused(problems=problems):
                self.config_refused(problems)

    def reload_asked(self) -> None:
        asked = self.model.reload.asked + 1
        self._set(reload=msgspec.structs.replace(self.model.reload, asked=asked))
        refusal = self._why_no_reload()
        if refusal:
            self._report("WARN", refusal)
            self._answer_reload((refusal,), refused=True)
        elif self.model.reload.reading is None:
            self._read_config()

    def config_read(self, event: ConfigRead) -> None:
        if not self._is_wanted():
            return
        self._answer_reload(())
        self.effects.append(TakeConfig())
        self._report("INFO", self._describe_changes(event))
        allocation = allocator.resize(self.model.allocation, event.vm_limit)
        self._set(drain_timeout=event.drain_timeout, allocation=allocation)
        before = self.model.services
        for name, service in before.items():
            if name not in event.services:
                self._dismiss(service, Fate.LEAVES)
            elif _is_to_change(service, event):
                self._dismiss(service, Fate.REPLACED)
        for name in event.services:
            if name not in before:
                self._set(services={**self.model.services, name: Service(name=name)})
                self.effects += [RenewSettings(name), StartWorker(name)]
        self._set(services=_in_order(self.model.services, event.services))

    def config_refused(self, problems: tuple[str, ...]) -> None:
        if self._is_wanted():
            self.effects.append(
                Report("ERROR", "the configuration cannot be used; nothing has changed", None, problems)
            )
            self._answer_reload(problems)

    def _is_wanted(self) -> bool:
        """Whether what has just been read is to be used: nothing ends, and nobody has asked again since it was looked at."""
        reload = self.model.reload
        begun = reload.reading or 0
        self._set(reload=msgspec.structs.replace(reload, reading=None))
        refusal = self._why_no_reload()
        if refusal:
            if reload.answered < begun:
                self._report("WARN", refusal)
                self._answer_reload((refusal,), refused=True)
            return False
        if reload.asked > begun:
            self._read_config()
            return False
        return True

    def _why_no_reload(self) -> str:
        if self.model.mode is not Mode.RUNNING:
            return f"not reloaded: the supervisor is {self.model.mode.value}"
        return "not reloaded: with --once each service makes but one pass" if self.model.once else ""

    def _read_config(self) -> None:
        self._set(reload=msgspec.structs.replace(self.model.reload, reading=self.model.reload.asked))
        self.effects.append(ReadConfig())

    def _answer_reload(self, problems: tuple[str, ...], *, refused: bool = False) -> None:
        reload = self.model.reload
        answer = msgspec.structs.replace(
            reload, answered=reload.asked, problems=problems, refused=refused, at=self.now.wall
        )
        self._set(reload=answer)

    def _describe_changes(self, event: ConfigRead) -> str:
        before = self.model.services
        groups = {
            "new": [name for name in event.services if name not in before],
            "changed": [name for name in event.services if name in before and _is_to_change(before[name], event)],
            "removed": [name for name in before if name not in event.services],
        }
        told = "; ".join(f"{word}: {', '.join(names)}" for word, names in groups.items() if names)
        return f"reloaded: {told}" if told else "reloaded: no service has changed"

    def _dismiss(self, service: Service, fate: Fate) -> None:
        """A service's worker is to finish what it has in hand, under the settings that it has."""
        name = service.name
        if service.state in ALIVE:
            self._trigger(name, Trigger.ORDERED, fate=fate)
            if service.fate is Fate.STAYS:
                self.effects.append(Tell(name, m.Drain()))
        elif service.state is ServiceState.BACKOFF and allocator.owes(self.model.allocation, name):
            # A job may run in its VM, which the new settings might not find: once more under the old ones, with a fresh budget.
            self._trigger(name, Trigger.DUE, fate=fate, due=None, crashes=(), status=Status.IDLE)
            self.effects.append(StartWorker(name))
        else:
            self._update(name, fate=fate)
            self._follow_fate(name)

    def _follow_fate(self, name: str) -> None:
        """No process of the service lives, nor need one under its old settings: what a reload has decided comes true."""
        service = self.model.services[name]
        if self.model.mode is not Mode.RUNNING:
            return
        if service.fate is Fate.REPLACED:
            fresh = Service(name=name, state=service.state, restarts=service.restarts)
            self._set(services={**self.model.services, name: fresh})
            self._trigger(name, Trigger.RENEWED)
            self.effects += [RenewSettings(name), StartWorker(name)]
        elif service.fate is Fate.LEAVES:
            self._set(services={key: one for key, one in self.model.services.items() if key != name})
            self.effects.append(ForgetService(name))
            for slot in self.model.allocation.table.slots:
                if slot.service == name and slot.state is SlotState.ORPHANED:
                    self._report(
                        "ERROR", f"the service is configured no more, and nobody looks after its VM {slot.vm}", name
                    )

    # ---- workers ----

    def worker_started(self, name: str, pid: int) -> None:
        self._update(name, pid=pid)
        mode = self.model.mode
        if mode is not Mode.RUNNING or self.model.services[name].fate is not Fate.STAYS:
            # It was started to finish or to clean up what its predecessor left, and for nothing else.
            self._trigger(name, Trigger.ORDERED)
            if self.model.restarting:
                self.effects.append(DetachWorker(name))
            else:
                self.effects.append(Tell(name, m.Stop() if mode is Mode.STOPPING else m.Drain()))

    def worker_said(self, name: str, fact: m.Fact) -> None:
        service = self.model.services[name]
        match fact:
            case m.Ready():
                self._trigger(name, Trigger.ANNOUNCED, ready_since=self.now.mono, reason="")
            case m.StatusChanged(status=status):
                self._update(name, status=status)
            case m.Failed(reason=reason):
                self._update(name, reason=reason)
            case m.JobClaimed(job_id=job_id, job_name=job_name, job_url=url, vm=vm):
                job = JobView(id=job_id, url=url, name=job_name, vm=vm, since=self.now.wall)
                self._update(name, job=job)
            case m.JobStarted(job_id=job_id, job_name=job_name, job_url=url) if service.job is not None:
                self._update(name, job=msgspec.structs.replace(service.job, id=job_id, name=job_name, url=url))
            case m.AttemptOver():
                self._update(name, job=None)
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
        self._set(allocation=allocation)

    def worker_exited(self, name: str, code: int) -> None:
        service = self.model.services[name]
        self._set(allocation=allocator.worker_gone(self.model.allocation, name))
        self._update(name, pid=None, job=None, exit_code=code)
        if code in DO_NOT_RESTART:
            self._give_up(name, service.reason or f"its worker ended with exit code {code}")
        elif self._ended_as_ordered(service, code):
            self._trigger(name, Trigger.ENDED, status=Status.STOPPED, ready_since=None)
        else:
            self._crashed(service, code)
        if self.model.services[name].state in FINAL:
            self._follow_fate(name)

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
        if backoff.spent(crashes):
            self._give_up(
                service.name, f"{cause}; {len(crashes)} times within {backoff.PERIOD:.0f} s, not started again"
            )
            return
        pause = backoff.delay(len(crashes))
        self._report("WARN", f"the worker {cause}; starting it again in {pause:g} s", service.name)
        self._trigger(
            service.name,
            Trigger.CRASHED,
            crashes=crashes,
            due=self.now.mono + pause,
            ready_since=None,
            reason=cause,
            status=Status.FAILED,
        )

    def _give_up(self, name: str, reason: str) -> None:
        if self.model.services[name].fate is Fate.STAYS:
            self._report("ERROR", f"the service cannot run: {reason}", name)
        else:
            self._report("WARN", f"the worker cannot go on under its old settings: {reason}", name)
        self._trigger(name, Trigger.GAVE_UP, status=Status.FAILED, reason=reason, due=None, ready_since=None)

    # ---- time ----

    def tick(self) -> None:
        for service in self.model.services.values():
            if service.state is ServiceState.BACKOFF and service.due is not None and service.due <= self.now.mono:
                self._trigger(service.name, Trigger.DUE, due=None, restarts=service.restarts + 1, status=Status.IDLE)
                self.effects.append(StartWorker(service.name))
        if self.model.drain_deadline is not None and self.model.drain_deadline <= self.now.mono:
            self._report("WARN", "the drain took longer than drain_timeout")
            self.stop()
        if self.model.stop_deadline is not None and self.model.stop_deadline <= self.now.mono:
            self._set(stop_deadline=None)
            for service in self.model.services.values():
                if service.state in ALIVE:
                    self._report("ERROR", f"the worker did not end within {STOP_PATIENCE:.0f} s; killed", service.name)
                    self.effects.append(KillWorker(service.name))
                elif service.state is ServiceState.BACKOFF:
                    self._trigger(service.name, Trigger.ENDED, due=None)

    # ---- the end of the step ----

    def finish(self) -> tuple[Model, list[Effect]]:
        self._grant()
        if self.model.exit_code is None and self._all_over():
            self._set(exit_code=self._final_code())
        if self.model.exit_code is not None and self.before.exit_code is None:
            self.effects.append(Finish(self.model.exit_code))
        return self.model, self.effects

    def _grant(self) -> None:
        allocation = self.model.allocation
        grants: list[allocator.Grant] = []
        if self.model.mode is Mode.RUNNING:
            allocation, grants = allocator.grant(allocation, self.now.wall)
            self._set(allocation=allocation)
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

    # ---- replacement ----

    def _set(self, **changes: object) -> None:
        self.model = msgspec.structs.replace(self.model, **changes)

    def _update(self, name: str, **changes: object) -> None:
        service = msgspec.structs.replace(self.model.services[name], **changes)
        self._set(services={**self.model.services, name: service})

    def _trigger(self, name: str, trigger: Trigger, **changes: object) -> None:
        self._update(name, state=follow(self.model.services[name].state, trigger), **changes)

    def _report(self, level: str, message: str, service: str | None = None) -> None:
        self.effects.append(Report(level, message, service))


def describe_exit(code: int) -> str:
    """An exit code in words; negative ones are signals."""
    if code < 0:
        return f"was killed by signal {-code}"
    return f"ended with exit code {code}"


def slots_in_use(model: Model) -> int:
    """How many slots hold a VM, or may."""
    return sum(slot.state in (SlotState.OCCUPIED, SlotState.ORPHANED) for slot in model.allocation.table.slots)
