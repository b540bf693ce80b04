"""The supervisor's one loop: event -> step -> perform effects. The only file of the host that acts on the machine's word.

Signals, the threads of the worker processes and the clock feed one inbox; this thread empties it. Handlers and threads decide
nothing.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import time
from collections.abc import Iterator
from types import FrameType

import msgspec

from anklet_supervisor import machine
from anklet_supervisor.history import JobHistory
from anklet_supervisor.logs import LogWriter
from anklet_supervisor.machine import Effect, Event, Model, Moment
from anklet_supervisor.metrics import Metrics
from anklet_supervisor.process import WorkerProcess
from anklet_supervisor.status import StatusFile, document
from anklet_worker import messages as m
from anklet_worker.logs import ServiceLog
from anklet_worker.setup import WorkerSetup
from anklet_worker.slots import SlotWriter

#: The loop turns at least this often, so that status and health are fresh.
_LONGEST_SLEEP = 4.0
#: Changes within this time make one status file.
_STATUS_PAUSE = 0.1

_SIGNALS: dict[signal.Signals, Event] = {
    signal.SIGTERM: machine.Terminated(),
    signal.SIGQUIT: machine.DrainAsked(),
    signal.SIGINT: machine.InterruptedBy(),
    signal.SIGUSR2: machine.RestartAsked(),
}


class Outlets(msgspec.Struct, frozen=True, kw_only=True):
    """Where the loop's effects go, besides processes."""

    slots: SlotWriter
    metrics: Metrics
    status: StatusFile
    log: ServiceLog
    writer: LogWriter
    history: JobHistory
    plugins: dict[str, str]
    started_at: float


class Loop:
    """Runs the machine until it finishes. `setups` has one entry for each configured service."""

    def __init__(self, model: Model, setups: dict[str, WorkerSetup], outlets: Outlets) -> None:
        self._model = model
        self._setups = setups
        self._outlets = outlets
        self._inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._processes: dict[str, WorkerProcess] = {}
        self._exit_code: int | None = None
        self._status_due = 0.0

    def run(self) -> int:
        """Start the services and turn until all is over. Returns the exit code."""
        with self._signals():
            self._turn(machine.Began())
            while self._exit_code is None:
                self._turn(self._next_event())
        self._publish(force=True)
        return self._exit_code

    def _next_event(self) -> Event:
        now = time.monotonic()
        due = machine.next_deadline(self._model)
        wake = min(now + _LONGEST_SLEEP, self._status_due if self._status_due > now else now + _LONGEST_SLEEP)
        if due is not None:
            wake = min(wake, due)
        try:
            return self._inbox.get(timeout=max(0.0, wake - now))
        except queue.Empty:
            return machine.Tick()

    def _turn(self, event: Event) -> None:
        if isinstance(event, machine.WorkerSaid):
            self._outlets.metrics.fact(event.service, event.fact, time.time())
            self._outlets.history.fact(event.service, event.fact, time.time())
        if isinstance(event, machine.WorkerExited):
            self._processes.pop(event.service, None)
        self._model, effects = machine.step(self._model, event, Moment(time.monotonic(), time.time()))
        for effect in effects:
            self._perform(effect)
        self._publish(force=False)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case machine.StartWorker(service=name):
                self._start(name)
            case machine.Tell(service=name, command=command):
                self._tell(name, command)
            case machine.DetachWorker(service=name):
                if name in self._processes:
                    self._processes[name].detach()
            case machine.KillWorker(service=name):
                if name in self._processes:
                    self._processes[name].kill()
            case machine.PublishSlots():
                self._outlets.slots.write(self._model.allocation.table)
            case machine.Report(level=level, message=message, service=service):
                self._report(level, message, service)
            case machine.Finish(exit_code=code):
                self._exit_code = code

    def _start(self, name: str) -> None:
        try:
            self._processes[name] = WorkerProcess(self._setups[name], self._inbox.put, self._outlets.writer.write)
        except OSError as error:
            # No process, no memory, no file descriptors: as a death, so that back-off and budget apply.
            self._report("WARN", f"the worker cannot be started: {error.strerror}", name)
            self._inbox.put(machine.WorkerExited(name, 71))

    def _tell(self, name: str, command: m.Command) -> None:
        process = self._processes.get(name)
        if process is not None:
            process.tell(command)

    def _report(self, level: str, message: str, service: str | None) -> None:
        log = self._outlets.log if service is None else self._outlets.log.bind(serviceName=service)
        {"DEBUG": log.debug, "INFO": log.info, "WARN": log.warning, "ERROR": log.error}[level](message)

    def _publish(self, *, force: bool) -> None:
        """Bring metrics and status up to date: at every change, but bursts of changes make one file."""
        now = time.monotonic()
        self._outlets.metrics.beat(now)
        self._outlets.metrics.update(self._model, self._outlets.writer.dropped, time.time())
        if force or self._inbox.empty() or now - self._status_due > _STATUS_PAUSE:
            out = self._outlets
            failures, budgets = out.history.failures(), out.metrics.budgets()
            out.status.write(document(self._model, out.plugins, out.started_at, failures, budgets))
            out.history.save()
            self._status_due = now + _LONGEST_SLEEP

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Handlers that only record; the loop reacts."""

        def record(number: int, _frame: FrameType | None) -> None:
            self._inbox.put(_SIGNALS[signal.Signals(number)])

        previous = {number: signal.signal(number, record) for number in _SIGNALS}
        # A terminal that closes is no reason to end.
        previous[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
