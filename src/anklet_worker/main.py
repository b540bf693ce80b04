"""Entry of a worker process: signals, title, log, and exceptions to exit codes.

A worker obeys its pipe; EOF there, or SIGTERM, means detach. Ctrl-C reaches the whole process group, so a worker ignores SIGINT:
the supervisor decides what it means.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
from collections.abc import Callable, Sequence
from itertools import chain, repeat
from typing import TypeVar

import setproctitle

from anklet_worker import plugins
from anklet_worker.attempt.archive import Archive
from anklet_worker.attempt.attempt import Tools
from anklet_worker.attempt.former_services import COMMAND_PATIENCE
from anklet_worker.context import Surroundings, WorkerContext
from anklet_worker.contract.errors import (
    AnkletError,
    ConfigError,
    Detached,
    ExitCode,
    InfrastructureError,
    Interrupted,
    ServiceFatal,
    StoreUnavailable,
    TemporaryError,
)
from anklet_worker.life.holder import Holder
from anklet_worker.life.records import RecordBook
from anklet_worker.link.channel import Channel, SupervisorLink
from anklet_worker.link.messages import DriverCommandEnded, Failed, LeaseLost
from anklet_worker.link.pipe import Pipe, PipeEnd
from anklet_worker.link.setup import WorkerSetup, decode_setup
from anklet_worker.link.slots import SlotReader
from anklet_worker.log.service_log import ServiceLog, open_log
from anklet_worker.loop import ServiceLoop
from anklet_worker.process.command import CommandRunner, CommandSettings, settle_in_flight
from anklet_worker.process.orders import Orders
from anklet_worker.store.board import StoreBoard
from anklet_worker.store.lazy_store import LazyStore
from anklet_worker.store.lease import LeaseKeeper
from anklet_worker.store.store import open_store
from anklet_worker.vm.driver import VMDriver
from anklet_worker.vm.drivers import open_among

#: Seconds that a predecessor has to let go of the service's state before it is killed.
_PREDECESSOR_PATIENCE = 10.0
#: Seconds between two tries to begin, while the host is in trouble.
_TROUBLE_PAUSES = (1.0, 2.0, 5.0, 10.0, 30.0)

_T = TypeVar("_T")


def main(arguments: Sequence[str]) -> None:
    """`python -m anklet_worker CONTROL LOGS LIFE`: descriptors of the pipes to the supervisor. Never returns.

    The supervisor sees the exit of this process by LIFE, which stays open until then.
    """
    fds = [int(argument) for argument in arguments]
    for fd in fds:
        # For this process alone: a VM command that held one would hide our exit.
        os.set_inheritable(fd, False)
    control, logs = PipeEnd(fds[0]), PipeEnd(fds[1])
    try:
        setup = decode_setup(control.recv_bytes())
    except TemporaryError as error:
        open_log(logs.send_bytes, "INFO", (), {}).warning("the worker cannot run", extra={"err": str(error)})
        sys.exit(int(error.exit_code))
    except (EOFError, OSError):
        # The supervisor is gone, and nothing has begun.
        sys.exit(int(ExitCode.TEMPFAIL))
    run_worker(setup, control, logs)


def run_worker(setup: WorkerSetup, control: Pipe, logs: Pipe) -> None:
    """Run one service until it is ordered to end. Never returns: exits with an `ExitCode`."""
    orders = Orders()
    _install_signals(orders)
    faulthandler.enable()
    with contextlib.suppress(Exception):
        # A title is a convenience for `ps`; on macOS it goes through services that may be missing.
        setproctitle.setproctitle(f"anklet-worker: {setup.service.name}")
    log = _log_at(setup.log_level, setup, logs)
    link = SupervisorLink(Channel(control), orders)
    link.on_log_level = lambda level: _log_at(level, setup, logs)
    link.on_overdue = lambda: _leave(log)
    link.start()
    code = _guarded(lambda: _serve(setup, orders, link, log), link, log)
    sys.exit(int(code))


def _leave(log: ServiceLog) -> None:
    """Exit although the main thread has not let go: it is in a call that nothing cuts short, such as a look-up of a host's name.

    That is no loss: every effect is on record before it happens, and a successor adopts or removes what is left.
    """
    log.info("detached in the middle of a call that does not end; VM, runner and claim stay for the next worker")
    os._exit(int(ExitCode.TEMPFAIL))


def _log_at(level: str, setup: WorkerSetup, logs: Pipe) -> ServiceLog:
    """The log of this process, at this level from now on, for those who already hold it, too."""
    return open_log(logs.send_bytes, level, setup.service.secrets(), _log_fields(setup))


def _log_fields(setup: WorkerSetup) -> dict[str, object]:
    service = setup.service
    return {"serviceName": service.name, "plugin": service.plugin, "owner": service.owner, "repo": service.repo}


def _install_signals(orders: Orders) -> None:
    orders.detach_at(signal.SIGTERM)
    for ignored in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(ignored, signal.SIG_IGN)
    # The supervisor blocked these while it started us.
    signal.pthread_sigmask(signal.SIG_SETMASK, set())


def _guarded(work: Callable[[], None], link: SupervisorLink, log: ServiceLog) -> ExitCode:
    """Run the work, and turn the error that ends it into an exit code and one line in the log; only bugs get a traceback."""
    try:
        work()
    except Interrupted:
        return ExitCode.OK
    except Detached:
        log.info("detached: VM, runner and claim stay for the next worker")
        return ExitCode.TEMPFAIL
    except (ServiceFatal, ConfigError) as error:
        link.tell(Failed(reason=str(error)))
        return error.exit_code
    except AnkletError as error:
        log.warning("the worker ends and is started again", extra={"err": str(error)})
        link.tell(Failed(reason=str(error)))
        return error.exit_code
    except (Exception, SystemExit) as error:
        # A plugin that exits instead of returning is a bug, too: without its traceback there would be nothing to find it by.
        log.exception("a bug ended the worker; it is started again", extra={"err": f"{type(error).__name__}: {error}"})
        link.tell(Failed(reason=f"bug: {type(error).__name__}: {error}"))
        return ExitCode.SOFTWARE
    return ExitCode.OK


def _serve(setup: WorkerSetup, orders: Orders, link: SupervisorLink, log: ServiceLog) -> None:
    """Set everything up, reconcile, and serve."""
    with orders.shield():
        book = _take_over(setup, orders)
        driver = _driver(setup, orders, link, book, log)
        product = _outlasting(driver.probe, setup, orders, log)
        log.info(
            "VM driver found", extra={"driver": driver.name, "product": product.product, "version": product.version}
        )
    store = LazyStore(
        lambda: open_store(setup.service.database, setup.state_dir, setup.owner, setup.boot_id, log),
        setup.service.lease_ttl,
        log,
    )
    context = WorkerContext(
        setup, orders, link, Surroundings(driver=driver, board=StoreBoard(store, setup.owner), log=log)
    )
    plugin = plugins.load(setup.service.plugin, setup.plugin_at, setup.plugins_path)(context)
    leases = LeaseKeeper(store, setup.owner, setup.service.lease_ttl, log)
    leases.on_lost = lambda: link.tell(LeaseLost())
    try:
        tools = Tools(
            orders=orders,
            link=link,
            slots=SlotReader(setup.slots_path),
            book=book,
            driver=driver,
            plugin=plugin,
            leases=leases,
            log=log,
            archive=Archive(setup.state_dir),
            cleanup_deadline=setup.service.deadlines.cleanup,
        )
        loop = ServiceLoop(setup, tools, store)
        with orders.shield():
            left_running = _outlasting(loop.reconcile, setup, orders, log)
        # A store that is away matters only when a job is to be claimed; one that refuses us is reported at once.
        with contextlib.suppress(StoreUnavailable):
            store.open()
        loop.serve(product, left_running)
    finally:
        leases.close()
        plugin.close()
        store.close()


def _take_over(setup: WorkerSetup, orders: Orders) -> RecordBook:
    """Become the one process that holds the service's state, and wait for the command that an earlier one left in flight."""
    Holder(setup.service_dir).acquire(_PREDECESSOR_PATIENCE, orders.wait)
    book = RecordBook(setup.service_dir)
    book.forget_unfinished()
    left = book.in_flight()
    if left is not None:
        settle_in_flight(left, COMMAND_PATIENCE, orders.wait)
        book.note_in_flight(None)
    return book


def _outlasting(effort: Callable[[], _T], setup: WorkerSetup, orders: Orders, log: ServiceLog) -> _T:
    """Repeat an effort that trouble of the host may hinder, until it succeeds or a drain comes; with --once try it once.

    If the process exited instead, the service would use up its restarts in half a minute, and stay down when the trouble is over.
    """
    pauses = chain(_TROUBLE_PAUSES, repeat(_TROUBLE_PAUSES[-1]))
    tell = log.warning
    while True:
        try:
            return effort()
        except (InfrastructureError, TemporaryError) as error:
            if orders.draining or setup.once:
                raise
            tell("the service cannot begin now; trying again", extra={"err": str(error)})
            tell = log.debug
        orders.wait_for(lambda: orders.draining, next(pauses))


def _driver(setup: WorkerSetup, orders: Orders, link: SupervisorLink, book: RecordBook, log: ServiceLog) -> VMDriver:
    def ended(verb: str, outcome: str, seconds: float) -> None:
        link.tell(DriverCommandEnded(command=verb, outcome=outcome, seconds=seconds))

    settings = CommandSettings(
        env=os.environ,
        secrets=setup.service.secrets(),
        cwd=setup.work_dir,
        in_flight=book.note_in_flight,
        ended=ended,
    )
    return open_among(setup.drivers, setup.service, setup.state_dir, CommandRunner(orders, settings), orders, log)
