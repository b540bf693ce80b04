"""The supervisor's one loop: event -> step -> perform effects. The only file of the host that acts on the machine's word.

Signals, the threads of the worker processes and the clock feed one inbox; this thread empties it. Handlers and threads decide
nothing.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

import msgspec

from anklet_supervisor.config.load import Problem, SupervisorConfig
from anklet_supervisor.daemon.clock import AwakeClock
from anklet_supervisor.daemon.process import WorkerProcess
from anklet_supervisor.daemon.settings import Settings
from anklet_supervisor.log.writer import LogWriter
from anklet_supervisor.machine import events
from anklet_supervisor.machine.events import Effect, Event
from anklet_supervisor.machine.model import Model, Moment
from anklet_supervisor.machine.step import next_deadline, step
from anklet_supervisor.report.history import JobHistory
from anklet_supervisor.report.metrics import Metrics
from anklet_supervisor.report.status import StatusFile, document
from anklet_worker.contract.errors import ConfigError
from anklet_worker.link import messages as m
from anklet_worker.link.slots import SlotWriter
from anklet_worker.log.service_log import ServiceLog, open_log

#: The loop turns at least this often, so that status and health are fresh.
_LONGEST_SLEEP = 4.0
#: A longer gap between two turns is none in which a deadline could pass, see `AwakeClock`.
_LONGEST_GAP = 10.0
#: Facts that wait to be taken in, a few tens of microseconds each, and seconds between two looks whether there is room.
_MOST_WAITING, _HEAR_PAUSE = 4096, 0.01
#: Seconds that workers get to let go of their VMs when the supervisor ends before them.
_FAREWELL = 1.0
#: Changes within this time make one status file.
_STATUS_PAUSE = 0.1

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
    """The configuration has been read again; what it changes is to be found out."""

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
    """Runs the machine until it finishes. `settings` has those of each configured service, `read_again` reads them anew."""

    def __init__(self, model: Model, settings: Settings, outlets: Outlets, read_again: ReadAgain) -> None:
        self._model = model
        self._settings = settings
        self._outlets = outlets
        self._read_again = read_again
        self._inbox: queue.SimpleQueue[Event | _ConfigArrived] = queue.SimpleQueue()
        self._clock = AwakeClock(time.monotonic, _LONGEST_GAP)
        #: Of the configuration that was read last.
        self._warnings: tuple[Problem, ...] = ()
        self._processes: dict[str, WorkerProcess] = {}
        self._exit_code: int | None = None
        self._status_due = 0.0

    def run(self) -> int:
        """Start the services and turn until all is over. Returns the exit code."""
        try:
            with self._signals():
                self._turn(events.Began())
                while self._exit_code is None:
                    self._turn(self._next_event())
            self._publish(force=True)
        finally:
            self._leave()
        return self._exit_code

    def _leave(self) -> None:
        """Let the workers that still live detach. One that does not is killed: at its end the interpreter would wait for it, and it
        may never end; the lock would be held as long."""
        left = list(self._processes.values())
        for process in left:
            process.detach()
        deadline = time.monotonic() + _FAREWELL
        for process in left:
            process.join(max(0.0, deadline - time.monotonic()))
            process.kill()

    def _next_event(self) -> Event | _ConfigArrived:
        now = time.monotonic()
        pause = min(_LONGEST_SLEEP, self._status_due - now if self._status_due > now else _LONGEST_SLEEP)
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
                # On file at once, and before the worker is told that it was heard: whoever comes after us counts it no more.
                self._outlets.history.save()
        if isinstance(event, events.WorkerExited):
            self._processes.pop(event.service, None)
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
            setup = self._settings.for_start(name, tuple(self._model.services))
            self._processes[name] = WorkerProcess(setup, self._hear, self._outlets.writer.write)
        except OSError as error:
            # No process, no memory, no file descriptors: as a death, so that back-off and budget apply.
            self._report("WARN", f"the worker cannot be started: {error.strerror}", name)
            self._inbox.put(events.WorkerExited(name, 71))

    def _hear(self, event: Event) -> None:
        """Put what comes of a worker into the inbox; called by its threads. One that talks faster than it is listened to waits, and
        with it its worker, whose pipe is full soon: else it filled the memory, and no signal came through."""
        while isinstance(event, events.WorkerSaid) and self._inbox.qsize() >= _MOST_WAITING:
            time.sleep(_HEAR_PAUSE)
        self._inbox.put(event)

    def _begin_to_read_config(self) -> None:
        try:
            threading.Thread(target=self._read_config, name="configuration", daemon=True).start()
        except RuntimeError:
            self._inbox.put(events.ConfigRefused(("the system has no thread to read the configuration in; try again",)))

    def _read_config(self) -> None:
        """In a thread of its own: a `token_command` may take half a minute."""
        try:
            config, warnings = self._read_again()
        except ConfigError as error:
            # They name the file, whose name may be no text; the status, which tells them, is.
            lines = (line.encode(errors="backslashreplace").decode() for line in error.lines())
            self._inbox.put(events.ConfigRefused(tuple(lines)))
        except Exception as error:  # noqa: BLE001  a reload that is never answered would keep every later one waiting
            self._inbox.put(events.ConfigRefused((f"a bug: {type(error).__name__}: {error}",)))
        else:
            self._inbox.put(_ConfigArrived(config, warnings))

    def _take_config(self) -> None:
        before = self._settings.log_level
        only_at_start = list(self._settings.take())
        level = self._settings.log_level
        # The log of this process is one: who holds it writes at the new level, and no new secret into it.
        open_log(self._outlets.writer.write, level, self._settings.secrets(), {})
        if level != before:
            for process in self._processes.values():
                process.tell(m.LogLevel(level=level))
        for warning in self._warnings:
            self._outlets.log.warning(str(warning))
        for key in only_at_start:
            self._outlets.log.warning("%s has changed; that takes effect at the next restart", key)

    def _report(self, level: str, message: str, service: str | None, problems: tuple[str, ...] = ()) -> None:
        log = self._outlets.log if service is None else self._outlets.log.bind(serviceName=service)
        write = {"DEBUG": log.debug, "INFO": log.info, "WARN": log.warning, "ERROR": log.error}[level]
        write(message, extra={"problems": problems} if problems else {})

    def _publish(self, *, force: bool) -> None:
        """Bring metrics and status up to date: at every change, but bursts of changes make one file."""
        now = time.monotonic()
        self._outlets.metrics.beat(now)
        self._outlets.metrics.update(self._model, self._outlets.writer.dropped, time.time())
        if force or self._inbox.empty() or now - self._status_due > _STATUS_PAUSE:
            out = self._outlets
            failures, budgets = out.history.failures(), out.metrics.budgets()
            paused = self._settings.paused()
            out.status.write(document(self._model, self._settings.plugins, out.started_at, failures, budgets, paused))
            out.history.save()
            self._status_due = now + _LONGEST_SLEEP

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Handlers that only record; the loop reacts."""

        def record(number: int, _frame: FrameType | None) -> None:
            self._inbox.put(_SIGNALS[signal.Signals(number)])

        for number in _SIGNALS:
            signal.signal(number, record)
        # What came since the lock was taken is heard now.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        try:
            yield
        finally:
            # It ends: there is nothing left to be ordered, and nothing must change its exit code.
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN)
