"""The supervisor's one loop: event -> step -> perform effects. The only file of the host that performs the machine's effects.

Signals, the threads of the worker processes and the clock feed one inbox; this thread empties it. The other threads decide nothing.
"""

from __future__ import annotations

import queue
import signal
import threading
import time
from collections.abc import Callable

import msgspec

from anklet_supervisor.config.load import Problem, SupervisorConfig
from anklet_supervisor.daemon.clock import AwakeClock
from anklet_supervisor.daemon.process import WorkerProcess
from anklet_supervisor.daemon.settings import Settings
from anklet_supervisor.daemon.signals import signals_heard
from anklet_supervisor.log.own_log import open_log
from anklet_supervisor.log.writer import LogWriter
from anklet_supervisor.machine import events
from anklet_supervisor.machine.events import Effect, Event
from anklet_supervisor.machine.model import Model, Moment
from anklet_supervisor.machine.step import next_deadline, step
from anklet_supervisor.report.history import JobHistory
from anklet_supervisor.report.metrics import Metrics
from anklet_supervisor.report.pace import Pace
from anklet_supervisor.report.status import StatusFile, document
from anklet_worker.contract.errors import ConfigError, TemporaryError
from anklet_worker.contract.installation import INSTALLATION
from anklet_worker.link import messages as m
from anklet_worker.link.slots import SlotWriter
from anklet_worker.log.service_log import ServiceLog

#: The loop turns at least this often, so that `/healthz` sees it turn.
_LONGEST_SLEEP = 4.0
#: Seconds between two turns beyond which the host was asleep: no deadline passes meanwhile, see `AwakeClock`.
_LONGEST_GAP = 10.0
#: Facts that may wait in the inbox (each takes a few tens of microseconds), and seconds between two looks for room in it.
_MOST_WAITING, _HEAR_PAUSE = 4096, 0.01
#: Seconds that workers get to let go of their VMs when the supervisor exits before them.
_FAREWELL = 1.0

_SIGNALS: dict[signal.Signals, Event] = {
    signal.SIGTERM: events.Terminated(),
    signal.SIGQUIT: events.DrainAsked(),
    signal.SIGINT: events.InterruptedBy(),
    signal.SIGUSR2: events.RestartAsked(),
    signal.SIGHUP: events.ReloadAsked(),
}

#: Reads file and environment again, with its warnings. Raises `ConfigError`.
ReadAgain = Callable[[], tuple[SupervisorConfig, tuple[Problem, ...]]]


class _ConfigArrived(msgspec.Struct, frozen=True):
    """The configuration has been read again, and is yet to be compared with the present one."""

    config: SupervisorConfig
    warnings: tuple[Problem, ...]


class Outlets(msgspec.Struct, frozen=True, kw_only=True):
    """Where the loop's effects go, besides processes."""

    slots: SlotWriter
    metrics: Metrics
    status: StatusFile
    log: ServiceLog
    writer: LogWriter
    history: JobHistory
    started_at: float


class Loop:
    """Runs the machine until it finishes. `settings`: those of each configured service. `read_again` rereads the configuration."""

    def __init__(self, model: Model, settings: Settings, outlets: Outlets, read_again: ReadAgain) -> None:
        self._model = model
        self._settings = settings
        self._outlets = outlets
        self._read_again = read_again
        self._inbox: queue.SimpleQueue[Event | _ConfigArrived] = queue.SimpleQueue()
        self._clock = AwakeClock(time.monotonic, _LONGEST_GAP)
        #: Of the configuration that was read last.
        self._warnings: tuple[Problem, ...] = ()
        self._pace = Pace(time.monotonic())
        self._processes: dict[str, WorkerProcess] = {}
        self._exit_code: int | None = None

    def run(self) -> int:
        """Start the services and turn until the machine finishes. Returns the exit code."""
        try:
            with signals_heard(_SIGNALS, lambda number: self._inbox.put(_SIGNALS[number])):
                self._turn(events.Began())
                # Commands find a status from the start.
                self._publish(force=True)
                while self._exit_code is None:
                    self._turn(self._next_event())
            self._publish(force=True)
        finally:
            self._leave()
        return self._exit_code

    def _leave(self) -> None:
        """Detach the workers that still live, and kill those that do not exit: the next start must not wait for them."""
        left = list(self._processes.values())
        for process in left:
            process.detach()
        deadline = time.monotonic() + _FAREWELL
        for process in left:
            process.join(max(0.0, deadline - time.monotonic()))
            process.kill()

    def _next_event(self) -> Event | _ConfigArrived:
        pause = min(_LONGEST_SLEEP, self._pace.due - time.monotonic())
        due = next_deadline(self._model)
        if due is not None:
            pause = min(pause, due - self._clock())
        try:
            return self._inbox.get(timeout=max(0.0, pause))
        except queue.Empty:
            return events.Tick()

    def _turn(self, event: Event | _ConfigArrived) -> None:
        if isinstance(event, _ConfigArrived):
            self._warnings = event.warnings
            event = self._settings.compare(event.config)
        if isinstance(event, events.WorkerSaid):
            self._outlets.metrics.fact(event.service, event.fact, time.time())
            self._outlets.history.fact(event.service, event.fact, time.time())
            if isinstance(event.fact, m.JobFinished | m.JobGivenBack):
                # On file before the worker hears that it was counted: a later supervisor must not count it again.
                self._outlets.history.save()
        if isinstance(event, events.WorkerExited):
            self._processes.pop(event.service, None)
        if not isinstance(event, events.Tick):
            self._pace.changed(time.monotonic())
        self._model, effects = step(self._model, event, Moment(self._clock(), time.time()))
        for effect in effects:
            self._perform(effect)
        self._publish(force=False)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case events.StartWorker() | events.Tell() | events.DetachWorker() | events.KillWorker():
                self._on_worker(effect)
            case events.ReadConfig() | events.TakeConfig() | events.RenewSettings() | events.ForgetService():
                self._on_config(effect)
            case events.PublishSlots():
                self._outlets.slots.write(self._model.allocation.table)
            case events.Report(level=level, message=message, service=service, problems=problems):
                self._report(level, message, service, problems)
            case events.Finish(exit_code=code):
                self._exit_code = code

    def _on_worker(self, effect: events.StartWorker | events.Tell | events.DetachWorker | events.KillWorker) -> None:
        process = self._processes.get(effect.service)
        match effect:
            case events.StartWorker(service=name):
                self._start(name)
            case events.Tell(command=command) if process is not None:
                process.tell(command)
            case events.DetachWorker() if process is not None:
                process.detach()
            case events.KillWorker() if process is not None:
                process.kill()

    def _on_config(
        self, effect: events.ReadConfig | events.TakeConfig | events.RenewSettings | events.ForgetService
    ) -> None:
        match effect:
            case events.ReadConfig():
                self._begin_to_read_config()
            case events.TakeConfig():
                self._take_config()
            case events.RenewSettings(service=name):
                self._outlets.metrics.add_service(self._settings.renew(name), time.time())
            case events.ForgetService(service=name):
                self._settings.forget(name)
                self._outlets.metrics.remove_service(name)

    def _start(self, name: str) -> None:
        try:
            INSTALLATION.require_unchanged()
            setup = self._settings.for_start(name, tuple(self._model.services))
            self._processes[name] = WorkerProcess(setup, self._hear, self._outlets.writer.write)
        except TemporaryError as error:
            self._inbox.put(events.StartPutOff(name, str(error)))
        except OSError as error:
            # No process, no memory, no file descriptors: counts as a death, so that back-off and budget apply.
            self._report("WARN", f"cannot start the worker: {error.strerror}", name)
            self._inbox.put(events.WorkerExited(name, 71))

    def _hear(self, event: Event) -> None:
        """Put an event of a worker into the inbox; its threads call this.

        While the inbox is full they wait here. Then the pipe fills up and the worker waits, too; else a worker that sends faster
        than the loop reads would fill the memory.
        """
        while isinstance(event, events.WorkerSaid) and self._inbox.qsize() >= _MOST_WAITING:
            time.sleep(_HEAR_PAUSE)
        self._inbox.put(event)

    def _begin_to_read_config(self) -> None:
        try:
            threading.Thread(target=self._read_config, name="configuration", daemon=True).start()
        except RuntimeError:
            self._inbox.put(events.ConfigRefused(("the system has no thread to read the configuration in; try again",)))

    def _read_config(self) -> None:
        """Runs in a thread of its own, because a `token_command` may take half a minute."""
        try:
            config, warnings = self._read_again()
        except ConfigError as error:
            # The name of the file may hold bytes that are not text, and status.json holds text only.
            lines = (line.encode(errors="backslashreplace").decode() for line in error.lines())
            self._inbox.put(events.ConfigRefused(tuple(lines)))
        except Exception as error:  # noqa: BLE001  a reload without an answer would keep every later one waiting
            self._inbox.put(events.ConfigRefused((f"a bug: {type(error).__name__}: {error}",)))
        else:
            self._inbox.put(_ConfigArrived(config, warnings))

    def _take_config(self) -> None:
        before = self._settings.log_level
        only_at_start = list(self._settings.take())
        level = self._settings.log_level
        # Everyone who holds the log now writes at the new level, and new secrets stay out of it.
        open_log(self._outlets.writer.write, level, self._settings.secrets(), {})
        if level != before:
            for process in self._processes.values():
                process.tell(m.LogLevel(level=level))
        for warning in self._warnings:
            self._outlets.log.warning(str(warning))
        for key in only_at_start:
            self._outlets.log.warning("%s has changed; restart the supervisor to apply it", key)

    def _report(self, level: str, message: str, service: str | None, problems: tuple[str, ...] = ()) -> None:
        log = self._outlets.log if service is None else self._outlets.log.bind(serviceName=service)
        write = {"DEBUG": log.debug, "INFO": log.info, "WARN": log.warning, "ERROR": log.error}[level]
        write(message, extra={"problems": problems} if problems else {})

    def _publish(self, *, force: bool) -> None:
        """Bring the metrics up to date, and the status file when it is due."""
        now = time.monotonic()
        self._outlets.metrics.beat(now)
        self._outlets.metrics.update(self._model, self._outlets.writer.dropped, time.time())
        if force or now >= self._pace.due:
            out = self._outlets
            failures, budgets = out.history.failures(), out.metrics.budgets()
            paused = self._settings.paused()
            out.status.write(document(self._model, self._settings.plugins, out.started_at, failures, budgets, paused))
            out.history.save()
            self._pace.written(now)
