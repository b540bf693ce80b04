"""`anklet-supervisor start`: from a configuration to a running loop.

Owns the order: configuration, state directory, lock, port, slot table, and only then a worker. Each resource is released at the
end. Decides nothing about services.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from anklet_supervisor.config.load import Problem, SupervisorConfig, load, load_host
from anklet_supervisor.daemon.host import HostIds, InstanceLock, PidFile, identify, keep_awake
from anklet_supervisor.daemon.loop import Loop, Outlets
from anklet_supervisor.daemon.process import HELD_BACK
from anklet_supervisor.daemon.settings import Settings
from anklet_supervisor.daemon.state_dir import explained, open_state_dir, refusal, take_over
from anklet_supervisor.log.own_log import open_log
from anklet_supervisor.log.writer import LogWriter, log_file
from anklet_supervisor.machine import allocator
from anklet_supervisor.machine.step import initial
from anklet_supervisor.report.history import JobHistory
from anklet_supervisor.report.metrics import Metrics
from anklet_supervisor.report.metrics_http import MetricsServer
from anklet_supervisor.report.status import StatusFile
from anklet_worker.contract.errors import AlreadyRunning, ConfigError, ExitCode
from anklet_worker.life.records import RecordBook, drivers_on_record
from anklet_worker.link.setup import WorkerSetup
from anklet_worker.link.slots import SlotWriter
from anklet_worker.log.service_log import ServiceLog
from anklet_worker.plugins import installed_at
from anklet_worker.state_layout import Place

_DRAIN_FILE = Path(".config") / "anklet" / ".drain"
#: Exit codes that a new start does not change: launchd must not try again and again.
_INCURABLE = frozenset({ExitCode.USAGE, ExitCode.UNAVAILABLE, ExitCode.CONFIG})


#: Begins to show the log file at a path on this terminal; returns what ends it.
ShowLog = Callable[[Path], Callable[[], None]]


def load_config(path: Path) -> tuple[SupervisorConfig, tuple[Problem, ...]]:
    """The configuration at `path` in this process's environment. Raises `ConfigErrors`."""
    return load(path, os.environ, home=Path.home(), platform=sys.platform)


def start(path: Path, show_log: ShowLog, *, once: bool) -> int:
    """Run the supervisor in the foreground. `show_log` is called when it was started at a terminal and its log goes to a file.

    Returns its exit code; raises `AnkletError` for what keeps it from starting.
    """
    config, warnings = load_config(path)
    notes = open_state_dir(config.state_dir)
    lock = InstanceLock(config.state_dir)
    with contextlib.ExitStack() as stack:
        # Commands can find us from here on. A signal that comes before the loop runs must neither kill us nor get lost.
        stack.enter_context(_signals_held_back())
        lock.acquire()
        take_over(config.state_dir)
        writer = _open_log_file(config)
        if config.log.file_dir is not None and sys.stdout.isatty():
            # Started by hand: show on the terminal what happens, wherever the log goes.
            stack.callback(show_log(log_file(config.log.file_dir)))
        stack.callback(writer.close)
        log = open_log(writer.write, config.log.level, config.secrets(), {})
        for warning in (*map(str, warnings), *notes):
            log.warning(warning)
        pid_file = PidFile(config.pid_file_dir)
        pid_file.write()
        stack.callback(pid_file.remove)
        ids = identify(config.state_dir)
        if ids.former_install_id is not None:
            log.warning(
                "the state directory comes from another machine; made a new install id",
                extra={"installId": ids.install_id, "formerInstallId": ids.former_install_id},
            )
        settings = Settings(config, lambda read: _setups(read, ids, once=once))
        loop = _prepare(config, settings, _Place(ids, writer, log, path.absolute()), stack, once=once)
        log.info(
            "supervisor started",
            extra={"pid": os.getpid(), "installId": ids.install_id, "services": len(config.services)},
        )
        try:
            code = loop.run()
        except Exception as error:
            log.exception(
                "a bug ended the supervisor; VMs and their jobs go on, and the next start adopts them",
                extra={"err": f"{type(error).__name__}: {error}"},
            )
            return int(ExitCode.SOFTWARE)
        log.info("supervisor ended", extra={"exitCode": code})
        return code


def start_for_launchd(path: Path, show_log: ShowLog, *, once: bool) -> int:
    """As `start`, but an error that a new start cannot cure is one ERROR line and exit code 0: launchd then leaves it alone."""
    try:
        code = start(path, show_log, once=once)
    except (ConfigError, AlreadyRunning) as error:
        _last_words(path, str(error))
        return int(ExitCode.OK)
    if code in _INCURABLE:
        _last_words(path, f"no service can run; exit code {code}")
        return int(ExitCode.OK)
    return code


def _last_words(path: Path, message: str) -> None:
    """Write one ERROR: to the configured log if the configuration can be read, else to standard output."""
    try:
        host = load_host(path, os.environ, home=Path.home(), platform=sys.platform)
        writer = LogWriter(host.log.file_dir)
    except (ConfigError, OSError):
        writer = LogWriter(None)
    open_log(writer.write, "INFO", (), {}).error("not started", extra={"err": message})
    writer.close()


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Block the signals until the loop runs, which unblocks them."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _open_log_file(config: SupervisorConfig) -> LogWriter:
    try:
        log = config.log
        return LogWriter(log.file_dir, log.level, max_megabytes=log.max_megabytes, keep=log.keep)
    except OSError as error:
        raise refusal(error, f"log.file_dir {config.log.file_dir} cannot be written: {error.strerror}") from None


class _Place(msgspec.Struct, frozen=True):
    """The surroundings of a start: the host's ids, the log, and the configuration's path."""

    ids: HostIds
    writer: LogWriter
    log: ServiceLog
    path: Path


def _prepare(
    config: SupervisorConfig, settings: Settings, place: _Place, stack: contextlib.ExitStack, *, once: bool
) -> Loop:
    """With the lock held: port, slots, services. The stack releases them."""
    ids, writer, log = place.ids, place.writer, place.log
    metrics = Metrics(config.services, time.time())
    server = MetricsServer(config.metrics.host, config.metrics.port, metrics)
    stack.callback(server.close)
    with explained(config.state_dir):
        seed = random.SystemRandom().getrandbits(62)
        allocation = allocator.build(config.vm_limit, seed, list(_left_behind(config, ids, log)), time.time())
        slots = SlotWriter(Place.SLOTS.path(config.state_dir), allocation.table)
    stack.callback(slots.close)
    names = [service.name for service in config.services]
    history = JobHistory(config.state_dir, log)
    metrics.know(history.counted())
    outlets = Outlets(
        slots=slots,
        metrics=metrics,
        status=StatusFile(config.state_dir),
        log=log,
        writer=writer,
        history=history,
        started_at=time.time(),
    )
    keep_awake()
    server.start()
    model = initial(names, allocation, once=once, drain_timeout=config.drain_timeout)
    return Loop(model, settings, outlets, lambda: load_config(place.path))


def _left_behind(config: SupervisorConfig, ids: HostIds, log: ServiceLog) -> Iterator[tuple[str, str]]:
    """The VMs that records name, by service; services that were removed from the configuration included.

    Each VM holds a slot until there is proof that it is gone. Records of another host are left out.
    """
    for folder in sorted(Place.SERVICES.path(config.state_dir).iterdir()):
        if not folder.is_dir():
            continue
        book = RecordBook(folder)
        records, problems = book.load()
        for problem in problems:
            # Reported here, because loading moves a damaged file aside, and the worker no longer sees it.
            log.bind(serviceName=folder.name).error(
                "cannot read a record; its VM is found by name", extra={"err": problem}
            )
        named = {record.vm for record in records if record.host_id == ids.host_id and record.vm_may_exist}
        yield from ((folder.name, vm) for vm in sorted(named | book.untouchable()))


def _setups(config: SupervisorConfig, ids: HostIds, *, once: bool) -> dict[str, WorkerSetup]:
    names = tuple(service.name for service in config.services)
    drivers = tuple(sorted({service.vm_driver for service in config.services} | drivers_on_record(config.state_dir)))
    return {
        service.name: WorkerSetup(
            service=service,
            services=names,
            sweeps_strays=number == 0,
            once=once,
            install_id=ids.install_id,
            host_id=ids.host_id,
            boot_id=ids.boot_id,
            state_dir=config.state_dir,
            work_dir=config.work_dir,
            plugins_path=config.plugins_path,
            drain_file=Path.home() / _DRAIN_FILE,
            log_level=config.log.level,
            drivers=drivers,
            plugin_at=installed_at(service.plugin),
        )
        for number, service in enumerate(config.services)
    }
