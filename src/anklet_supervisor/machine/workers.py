"""The life of each worker process: started, heard, exited, started again or given up. Pure.

Knows nothing of processes and pipes: the loop turns what they do into events.
"""

from __future__ import annotations

import msgspec

from anklet_supervisor.machine import allocator, reload, restarts, slots
from anklet_supervisor.machine.events import DetachWorker, StartWorker, Tell
from anklet_supervisor.machine.model import Fate, JobView, Service
from anklet_supervisor.machine.state import FINAL, Mode, ServiceState, Trigger
from anklet_supervisor.machine.turn import Turn
from anklet_worker.contract.errors import DO_NOT_RESTART, ExitCode
from anklet_worker.link import messages as m
from anklet_worker.link.messages import Status


def started(turn: Turn, name: str, pid: int) -> None:
    """The process exists."""
    turn.update(name, pid=pid)
    mode = turn.model.mode
    if mode is not Mode.RUNNING or turn.model.services[name].fate is not Fate.STAYS:
        # It only finishes or cleans up what its predecessor left.
        turn.trigger(name, Trigger.ORDERED)
        if turn.model.restarting:
            turn.effects.append(DetachWorker(name))
        else:
            turn.effects.append(Tell(name, m.Stop() if mode is Mode.STOPPING else m.Drain()))


def said(turn: Turn, name: str, fact: m.Fact) -> None:
    """A fact arrived from the worker."""
    service = turn.model.services[name]
    match fact:
        case m.Ready():
            turn.trigger(name, Trigger.ANNOUNCED, ready_since=turn.now.mono, reason="", given_up=False)
        case m.StatusChanged(status=status):
            turn.update(name, status=status)
        case m.Failed(reason=reason):
            turn.update(name, reason=reason)
        case m.JobClaimed(job_id=job_id, job_name=job_name, job_url=url, vm=vm):
            job = JobView(id=job_id, url=url, name=job_name, vm=vm, since=turn.now.wall)
            turn.update(name, job=job)
        case m.JobStarted(job_id=job_id, job_name=job_name, job_url=url) if service.job is not None:
            turn.update(name, job=msgspec.structs.replace(service.job, id=job_id, name=job_name, url=url))
        case m.AttemptOver():
            turn.update(name, job=None)
        case m.JobFinished(vm=vm):
            turn.effects.append(Tell(name, m.OutcomeHeard(vm=vm)))
        case _:
            slots.apply(turn, name, fact)


def exited(turn: Turn, name: str, code: int) -> None:
    """The process is gone. A negative `code` is a signal."""
    service = turn.model.services[name]
    turn.set(allocation=allocator.worker_gone(turn.model.allocation, name))
    turn.update(name, pid=None, job=None, exit_code=code)
    if code in DO_NOT_RESTART:
        _give_up(turn, name, service.reason or f"its worker {describe_exit(code)}")
    elif _ended_as_ordered(turn, service, code):
        turn.trigger(name, Trigger.ENDED, status=Status.STOPPED, ready_since=None)
    else:
        _crashed(turn, service, code)
    if turn.model.services[name].state in FINAL:
        reload.apply_fate(turn, name)


def start_put_off(turn: Turn, name: str, reason: str) -> None:
    """No worker was started. Nothing has failed, so the budget of restarts stays as it is.

    While the supervisor ends, nothing waits for a later try: the next start cleans up.
    """
    if turn.model.mode is not Mode.RUNNING or turn.model.once:
        turn.trigger(name, Trigger.ENDED, status=Status.STOPPED, reason=reason)
        return
    due = turn.now.mono + restarts.LONGEST
    turn.report("WARN", f"cannot start the worker: {reason}", name)
    turn.trigger(name, Trigger.CRASHED, due=due, ready_since=None, reason=reason, status=Status.FAILED)


def start_due(turn: Turn) -> None:
    """Start the workers whose back-off is over, and those of fatal services that owe clean-up."""
    for service in turn.model.services.values():
        if service.due is not None and service.due <= turn.now.mono:
            if service.state is ServiceState.FATAL and turn.model.mode is not Mode.RUNNING:
                turn.update(service.name, due=None)
                continue
            turn.trigger(service.name, Trigger.DUE, due=None, restarts=service.restarts + 1, status=Status.IDLE)
            turn.effects.append(StartWorker(service.name))


def describe_exit(code: int) -> str:
    """An exit code in words; a negative one is a signal."""
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


def _ended_as_ordered(turn: Turn, service: Service, code: int) -> bool:
    ordered = service.state is ServiceState.STOPPING
    if code == ExitCode.OK:
        return ordered or turn.model.once
    if turn.model.mode is Mode.STOPPING and turn.model.stop_deadline is None:
        # The stop took too long and the workers were killed: start none again.
        return True
    if turn.model.restarting:
        return ordered
    return ordered and not allocator.owes(turn.model.allocation, service.name)


def _crashed(turn: Turn, service: Service, code: int) -> None:
    crashes = restarts.remember(service.crashes, turn.now.mono, service.ready_since)
    cause = describe_exit(code)
    if restarts.spent(crashes, may_pass=code < 0):
        count = f"{len(crashes)} crashes within {restarts.PERIOD:.0f} s, not restarted"
        _give_up(turn, service.name, f"its worker {cause}; {count}")
        return
    pause = restarts.delay(len(crashes))
    turn.report("WARN", f"the worker {cause}; starting it again in {pause:g} s", service.name)
    turn.trigger(
        service.name,
        Trigger.CRASHED,
        crashes=crashes,
        due=turn.now.mono + pause,
        ready_since=None,
        reason=cause,
        status=Status.FAILED,
    )


def _give_up(turn: Turn, name: str, reason: str) -> None:
    service = turn.model.services[name]
    # Its VM holds a slot until a worker of this service has looked after it: start one again after a longer pause.
    owes = service.fate is Fate.STAYS and allocator.owes(turn.model.allocation, name)
    due = turn.now.mono + restarts.CLEAN_UP_AFTER if owes and not turn.model.once else None
    if service.given_up:
        turn.report("WARN", f"the service still cannot run: {reason}", name)
    elif service.fate is Fate.STAYS:
        turn.report("ERROR", f"the service cannot run: {reason}", name)
    else:
        turn.report("WARN", f"the worker cannot continue with its old settings: {reason}", name)
    turn.trigger(name, Trigger.GAVE_UP, status=Status.FAILED, reason=reason, given_up=True, due=due, ready_since=None)
