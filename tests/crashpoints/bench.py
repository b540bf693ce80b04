"""One host in one process: real workers in forked children, and the supervisor's real machine on a clock that the test moves.

The workers run the unchanged `run_worker` with real records, the real store, the real anka driver on an emulated Anka, and the real
github plugin on an emulated GitHub. The machine's orders are carried out at once, and back-offs are skipped. A death is a SIGKILL.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sqlite3
import time
import warnings
from multiprocessing.connection import wait

import msgspec
import seams
from anklet_github.figures import FIGURES
from emulators.anka.control import AnkaHost

from anklet_supervisor.machine import allocator, events
from anklet_supervisor.machine.model import Moment
from anklet_supervisor.machine.state import ServiceState
from anklet_supervisor.machine.step import initial, step
from anklet_supervisor.report.tally import Tally
from anklet_worker.contract.errors import ExitCode
from anklet_worker.contract.service import Deadlines, ServiceConfig
from anklet_worker.contract.settings import Secret
from anklet_worker.life.records import RecordBook
from anklet_worker.life.vm_phases import VMPhase
from anklet_worker.link import messages as m
from anklet_worker.link.channel import Channel, ChannelClosed
from anklet_worker.link.setup import WorkerSetup
from anklet_worker.link.slots import SlotReader, SlotState, SlotWriter
from anklet_worker.main import run_worker
from anklet_worker.plugins import installed_at
from anklet_worker.store.embedded import uptime

OWNER, TOKEN, TEMPLATE = "acme", "github_pat_11CRASHCRASHCRASH_bait", "macos-15"
SERVICE = "RUNNER1"
_LIMIT = 2
#: Longer than any registration takes, in seconds.
_AGE = 1000
_LIVING_CLAIMS = "SELECT key FROM lease WHERE key LIKE '%:claim:%' AND expires_at > ?"
#: Longer than any back-off, in seconds, so that no death counts towards the limit of the next one.
_A_WHILE = 10_000.0


class Host:
    """One host with one service. It has its own repository on a GitHub that other hosts use too."""

    def __init__(self, folder, github, home, *, lease_ttl=60.0):
        """Makes `folder`, whose name is also the repository's. `home` holds the files of every new guest."""
        self.folder, self.github, self.repo = folder, github, folder.name
        self.state_dir = folder / "state"
        self.state_dir.mkdir(parents=True)
        self.anka = AnkaHost(folder / "anka")
        self.anka.add_registry_template(TEMPLATE, tags=["v1"], home_files=home)
        self.anka.set(stop_grace=0.0)
        github.add_repo(OWNER, self.repo)
        labels = ["self-hosted", "anka", f"anka-template:{TEMPLATE}", "anka-template-tag:v1"]
        run = github.queue_run(OWNER, self.repo, [{"name": "build", "labels": labels, "steps": ["true"]}])
        self.job_id = run["jobs"][0]["id"]
        self.plan = {"folder": str(folder), "strikes": []}
        self.facts = []
        self.troubles = []
        self.setup = self._setup(lease_ttl)
        self.supervisor = None

    def _setup(self, lease_ttl):
        service = ServiceConfig(
            name=SERVICE,
            plugin="github",
            owner=OWNER,
            repo=self.repo,
            settings={"token": Secret(TOKEN), "api_url": self.github.url, "server_url": self.github.url},
            figures=FIGURES,
            sleep_interval=0.05,
            lease_ttl=lease_ttl,
            deadlines=Deadlines(vm_start=20.0, runner_online=20.0, job_start=20.0, cleanup=20.0),
        )
        return WorkerSetup(
            service=service,
            services=(SERVICE,),
            sweeps_strays=True,
            once=False,
            install_id="0000beef",
            host_id="host",
            boot_id="boot",
            state_dir=self.state_dir,
            work_dir=self.folder,
            plugins_path=self.folder / "plugins",
            drain_file=self.folder / "drain",
            log_level="DEBUG",
            drivers=("anka",),
            plugin_at=installed_at("github"),
        )

    # ---- what happens ----

    def start_supervisor(self):
        """Start a supervisor."""
        self.supervisor = Supervisor(self)

    def job(self):
        """The job as GitHub shows it."""
        return self.github.job(self.job_id)

    def is_quiet(self):
        """True when the job is over and nothing of it is left. Skips the time for which a registration is kept on record."""
        if self.job()["status"] != "completed":
            return False
        left = self.leftovers()
        if left and not left.keys() - {"records", "runners"}:
            self._let_registrations_age()
        return not left

    def _let_registrations_age(self):
        """Skip the minute and a half for which a record is kept because its registration may still arrive at GitHub."""
        book = RecordBook(self.state_dir / "services" / SERVICE)
        for record in book.load()[0]:
            asked_at = int(record.facts.get("asked_at", 0))
            if record.vm_phase is VMPhase.GONE and asked_at > time.time() - _AGE:
                facts = {**record.facts, "asked_at": asked_at - _AGE}
                book.save(msgspec.structs.replace(record, facts=facts))
                self.supervisor.detach_worker()

    def run(self, until, deadline=180.0, supervisor_strikes=()):
        """Run until a condition holds. A supervisor dies at each fact in `supervisor_strikes`, and a new one takes over."""
        pending = list(supervisor_strikes)
        end = time.monotonic() + deadline
        looked = 0.0
        while True:
            if self.supervisor is None:
                self.start_supervisor()
            if self.supervisor.turn(pending[0] if pending else None):
                pending = pending[1:]
                self.supervisor = None
            now = time.monotonic()
            if now - looked > 0.05 and self.supervisor is not None:
                looked = now
                if until():
                    return pending
            if now > end:
                raise AssertionError(f"not within {deadline:g} s; {self.story()}")

    def given_up(self, reason):
        """The service is FATAL: note it, as an operator would who then restarts the supervisor."""
        self.troubles.append(f"given up: {reason}")

    def end(self):
        """Drain, and wait for the worker to end."""
        self.supervisor.drain()
        self.supervisor = None

    # ---- what is left ----

    def vms(self):
        """The names of our VMs that exist."""
        return [vm["name"] for vm in self.anka.vms() if vm["name"].startswith("anklet-vm-")]

    def leftovers(self):
        """Everything of ours that should be gone when no job is in hand."""
        service = self.state_dir / "services" / SERVICE
        found = {
            "vms": self.vms(),
            "runners": [runner["name"] for runner in self.github.runners(OWNER, self.repo)],
            "records": [path.name for path in service.glob("records/*")]
            + [path.name for path in service.glob("records/.*")],
            "note": [path.name for path in service.glob("*command.json*")],
            "claims": self._claims(),
            "slots": [slot.state.name for slot in self._slots() if slot.state is not SlotState.FREE],
        }
        return {what: things for what, things in found.items() if things}

    def _claims(self):
        path = self.state_dir / "leases.db"
        if not path.exists():
            return []
        connection = sqlite3.connect(path)
        try:
            return [key for (key,) in connection.execute(_LIVING_CLAIMS, (uptime(),))]
        except sqlite3.OperationalError:
            return []
        finally:
            connection.close()

    def _slots(self):
        path = self.state_dir / "slots"
        return SlotReader(path).snapshot().slots if path.exists() else ()

    def violations(self):
        """Describe everything that must not have happened; an empty list when all is well. Call it after the worker has ended."""
        job = self.job()
        found = [*self.troubles, *self._errors()]
        found += [f"left: {what} {things}" for what, things in self.leftovers().items()]
        if job["conclusion"] != "success":
            found.append(f"the job is {job['status']} {job['conclusion']}")
        if job["starts"] != 1:
            found.append(f"the job started {job['starts']} times")
        if self.anka.max_running() > _LIMIT or self.anka.events("limit-refused"):
            found.append("a third VM")
        if self.anka.events("corruption", "pull-overlap"):
            found.append("a template was spoiled")
        if self.anka.guest_processes() or self.anka.command_pids():
            found.append("processes are left")
        counted = Tally()
        counted.add_service(self.setup.service, 0.0)
        for fact in self.facts:
            counted.fold(SERVICE, fact, 0.0)
        if (counted.successes, counted.failures) != (1, 0):
            found.append(f"counted {counted.successes} successes and {counted.failures} failures")
        return found

    def _log(self):
        path = self.folder / "log"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def _errors(self):
        return [f"ERROR: {line['msg']} {line.get('err', '')}" for line in self._log() if line["level"] == "ERROR"]

    def story(self):
        """Describe the state of the run, for the message of a failed test."""
        told = [f"{line['msg']} {line.get('err', '')}" for line in self._log() if line["level"] != "DEBUG"]
        facts = [type(fact).__name__ for fact in self.facts[-12:]]
        return f"job {self.job()['status']}, left {self.leftovers()}; last told {facts}; log: {told[-15:]}"

    def close(self):
        """End whatever still runs."""
        if self.supervisor is not None:
            self.supervisor.kill()
        self.anka.shutdown_all()


class Supervisor:
    """The machine, a slot table, and at most one worker. Its clock moves only to skip back-offs."""

    def __init__(self, host):
        self._host = host
        self._now = 0.0
        # As the real start does: VMs on record hold their slots until proof that they are gone.
        records, _ = RecordBook(host.setup.service_dir).load()
        left = [(SERVICE, record.vm) for record in records if record.vm_may_exist]
        allocation = allocator.build(_LIMIT, time.monotonic_ns(), left, time.time())
        self._slots = SlotWriter(host.state_dir / "slots", allocation.table)
        self._model = initial([SERVICE], allocation, once=False, drain_timeout=None)
        self._worker = None
        self._heard = {}
        self._step(events.Began())

    def turn(self, strike=None):
        """Handle one message of the worker, and start a worker when there is none. True when the supervisor has died."""
        service = self._model.services[SERVICE]
        if service.state is ServiceState.BACKOFF:
            self._now += _A_WHILE
            self._step(events.Tick())
        elif service.state is ServiceState.FATAL:
            self._host.given_up(service.reason)
            return True
        event = self._worker.hear(0.05)
        if isinstance(event, events.WorkerSaid):
            return self._said(event, strike)
        if event is not None:
            self._worker = None
            if event.exit_code == ExitCode.SOFTWARE:
                self._host.troubles.append("a bug ended the worker")
            self._step(event)
        return False

    def _said(self, event, strike):
        name = seams._fact(None, event.fact)
        self._heard[name] = self._heard.get(name, 0) + 1
        struck = strike is not None and (name, self._heard[name]) == (strike["name"], strike["nth"])
        if struck and strike["when"] == "before":
            self._die()
            return True
        self._host.facts.append(event.fact)
        self._step(event)
        if isinstance(event.fact, m.AttemptOver):
            self._attempt_over()
        if struck:
            self._die()
        return struck

    def _attempt_over(self):
        """The worker has put the job off after a failed attempt. Check at once what the attempt left, then start a new worker."""
        if self._host.job()["status"] == "completed":
            return
        left = self._host.leftovers()
        # A runner that could not be removed stays on record as a debt.
        self._host.troubles += [
            f"left after the attempt: {what} {left[what]}" for what in ("vms", "claims") if what in left
        ]
        self.detach_worker()

    def drain(self):
        """Drain, as SIGTERM does, and return when the worker has ended."""
        self._step(events.DrainAsked())
        deadline = time.monotonic() + 60
        while self._worker is not None:
            self.turn()
            assert time.monotonic() < deadline, "the worker does not end"
        self._slots.close()

    def detach_worker(self):
        """SIGTERM to the worker: it leaves its job for the next one."""
        if self._worker is not None:
            self._worker.signal(signal.SIGTERM)

    def kill(self):
        """SIGKILL to the worker."""
        if self._worker is not None:
            self._worker.signal(signal.SIGKILL)
            self._worker.end()
            self._worker = None

    def _die(self):
        """Close the pipe: the worker detaches and ends."""
        self._worker.end()
        self._slots.close()

    def _step(self, event):
        self._model, effects = step(self._model, event, Moment(self._now, time.time()))
        for effect in effects:
            match effect:
                case events.StartWorker():
                    self._worker = Worker(self._host)
                case events.Tell(command=command):
                    self._worker.tell(command)
                case events.PublishSlots():
                    self._slots.write(self._model.allocation.table)
                case events.KillWorker():
                    self.kill()


class Worker:
    """One worker process, in a forked child."""

    def __init__(self, host):
        self._log = (host.folder / "log").open("ab", buffering=0)
        self._control, theirs = multiprocessing.Pipe(duplex=True)
        self._logs, log_theirs = multiprocessing.Pipe(duplex=False)
        self._channel = Channel(self._control)
        environment = host.anka.environ(HOME=str(host.folder))
        with warnings.catch_warnings():
            # The other threads of this process hold no lock that the child needs.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            _live(host, environment, theirs, log_theirs)
        theirs.close()
        log_theirs.close()

    def hear(self, seconds):
        """Return the next event for the machine, or None after `seconds` without one."""
        ready = wait([connection for connection in (self._control, self._logs) if not connection.closed], seconds)
        if self._logs in ready:
            self._read_log()
        if self._control not in ready:
            return None
        try:
            return events.WorkerSaid(SERVICE, m.decode_fact(self._channel.receive()))
        except ChannelClosed:
            return events.WorkerExited(SERVICE, self.end())

    def _read_log(self):
        try:
            self._log.write(self._logs.recv_bytes())
        except (EOFError, OSError):
            self._logs.close()

    def tell(self, command):
        """Send a command. Nothing happens if the worker is gone."""
        with contextlib.suppress(ChannelClosed):
            self._channel.send(command)

    def signal(self, number):
        """Send a signal."""
        os.kill(self.pid, number)

    def end(self):
        """Close the pipe, wait for the end, and return the exit code (negative for a signal)."""
        self._channel.close()
        _, status = os.waitpid(self.pid, 0)
        while not self._logs.closed:
            self._read_log()
        self._log.close()
        return os.waitstatus_to_exitcode(status)


def _live(host, environment, control, logs):
    """In the child: be a worker, and never return."""
    code = 70
    try:
        os.environ.clear()
        os.environ.update(environment)
        kept = sorted({0, 1, 2, control.fileno(), logs.fileno()})
        for low, high in zip(kept, [*kept[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
            os.closerange(low + 1, high)
        seams.install(host.plan, seams.WORKER)
        run_worker(host.setup, control, logs)
    except SystemExit as end:
        code = end.code
    except BaseException as error:  # noqa: BLE001  after any error, this child must not go on as a second test run
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code if isinstance(code, int) else 70)
