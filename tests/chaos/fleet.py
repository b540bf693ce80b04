"""A fleet under test: emulated Macs that each run the real supervisor, one real Redis, one emulated GitHub, and an operator.

Owns the processes. Plays launchd (restarts a supervisor that died or ended with an exit code other than 0) and the operator
(restarts a service that is FATAL). Knows when a host was kept from working. Decides nothing about faults.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
from chaos.proxy import Proxies
from chaos.sessions import Sessions
from invariants import checker, evidence
from redis_server import RedisServer
from stage import OWNER, PERMISSIONS, REPO, TOKEN, Mac, job, new_github

_BOOT = Path(__file__).resolve().parent / "boot.py"
#: Seconds between two starts by launchd (the real launchd waits ten).
_THROTTLE = 0.5
_LEASE_TTL = 5
_SLOTS = 2
#: The rate limit of an App on an Enterprise Cloud: a run packs hours of real work into minutes.
_CALLS_AN_HOUR = 15_000
_HOSTS_OF_A_LOGIN = 2
_LAST_PROCESS = 10.0
#: Error of a process's start time, in seconds (Linux counts it from a boot time in whole seconds).
_CLOCK_OF_PROCESSES = 2.0
#: Things of others on these hosts and at GitHub: a VM, a VM of another Anklet, a runner.
_FOREIGN_VMS = ("somebodys-vm", "anklet-vm-deadbeef-0badc0-1-1")
_FOREIGN_RUNNER = "somebodys-mac"
#: GitHub's timeouts in seconds: shorter than the real ones, but longer than any outage in a plan.
_PATIENCE = {"offline_after": 3, "lost_after": 20, "pickup_after": 6, "cancel_timeout": 20}


class Host(Mac):
    """One Mac of the fleet. It can be killed, stopped and rebooted; launchd's part is played here."""

    def __init__(self, folder, github, *, services, redis, token=TOKEN, mode="jit", switches=None):  # noqa: PLR0913  each is a way in which hosts differ
        super().__init__(folder, github, services=services)
        self.redis = redis
        self.capacity = min(_SLOTS, services)
        self.sessions = Sessions()
        self.outages = []
        self.dead = False
        self.deaths = []
        #: Since when its kernel has been missing a slot, and the earlier spans in which it did.
        self.refuses_since = None
        self.refused = []
        self._down_since = time.time()
        self._start_at = 0.0
        #: False while it is powered off or drained by an operator.
        self.wanted = False
        #: The pid of the supervisor that got a SIGTERM.
        self.drained = None
        self.drain_file = folder / ".config" / "anklet" / ".drain"
        self._boot_id = folder / "boot-id"
        self.new_boot()
        self.anka.set(**(switches or {}))
        for name in _FOREIGN_VMS:
            self.anka.add_template(name)
        for service in self.config["services"]:
            service |= {
                "token": token,
                "runner_mode": mode,
                "sleep_interval": 1.0,
                "database": {"enabled": True, "url": f"127.0.0.1:{redis.port}"},
                "deadlines": {"vm_start": 15, "runner_online": 15, "job_start": 15, "cleanup": 15},
            }
        # A job must survive any number of faults.
        self.config |= {"lease_ttl": _LEASE_TTL, "job_retry_attempts": 1000}

    def new_boot(self):
        """Change the boot id, as a reboot does."""
        self._boot_id.write_text(f"{secrets.token_hex(16)}\n")

    # ---- launchd ----

    def launch(self):
        """Start the supervisor."""
        self.wanted = True
        argv = [sys.executable, str(_BOOT), str(self._boot_id), "start", "--config", str(self.config_path)]
        mark = self.sessions.variables()
        self.run(argv, self.env() | mark)
        self.sessions.add(self.process.pid, mark)
        self._start_at = time.monotonic() + _THROTTLE
        self.up()

    def tend(self):
        """Restart a supervisor that has died, as launchd does. Return True if it ended with 0, and leave it down then."""
        if self.process is None or self.process.poll() is None or not self.wanted:
            return False
        self.down()
        if self.process.returncode == 0:
            return True
        if time.monotonic() >= self._start_at:
            self.launch()
        return False

    def down(self):
        """Note that the host cannot work from now on."""
        if self._down_since is None:
            self._down_since = time.time()

    def up(self):
        """Note that the host can work again."""
        if self._down_since is not None:
            self.outages.append((self._down_since, time.time()))
            self._down_since = None

    # ---- processes ----

    def lives(self):
        """True while the supervisor runs."""
        return self.process is not None and self.process.poll() is None

    def workers(self):
        """The pids of the present supervisor's workers, in any order."""
        found = []
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.process.pid).children():
                line = " ".join(child.cmdline())
                if line.startswith("anklet-worker") or "-m anklet_worker" in line:
                    found.append(child.pid)
        return sorted(found)

    def in_flight(self):
        """The pids of the running `anka` commands."""
        path = self.anka.home / "calls.jsonl"
        if not path.exists():
            return []
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 65_536))
            lines = file.read().splitlines()[1:]
        open_calls = {}
        for line in lines:
            call = json.loads(line)
            if "pid" in call:
                open_calls[call["call"]] = call
            else:
                open_calls.pop(call["call"], None)
        living = set(self.anka.command_pids())
        return sorted(call["pid"] for call in open_calls.values() if call["pid"] in living and is_of_call(call))

    def kill_all(self):
        """SIGKILL to the supervisor and everything in its session, and to workers of earlier supervisors."""
        while found := self.sessions.living():
            for process in found:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            time.sleep(0.005)
        if self.process is not None:
            self.process.wait()

    def power_off(self):
        """Everything on the host dies at once."""
        self.wanted = False
        self.kill_all()
        self.down()
        self.anka.set(leak_slot=0)
        self.anka.reboot_host()
        if self.refuses_since is not None:
            self.refused.append((self.refuses_since, time.time()))
            self.refuses_since = None
        self.new_boot()

    def given_up(self):
        """The names of services that the supervisor no longer starts, read from its status file."""
        try:
            return [one["name"] for one in self.status()["services"] if one["state"] == "fatal"]
        except (OSError, ValueError):
            return []

    def evidence(self):
        """Return the evidence about this host."""
        # The last process of a supervisor may end a moment after it.
        end = time.monotonic() + _LAST_PROCESS
        while not self.wanted and self.sessions.living() and time.monotonic() < end:
            time.sleep(0.05)
        return evidence.of_host(
            self.anka,
            name=self.folder.name,
            processes=self.sessions.lines(),
            foreign=list(_FOREIGN_VMS),
            capacity=self.capacity,
            dead=self.dead,
            refused=self.refused,
            deaths=self.deaths,
            outages=self.outages + ([(self._down_since, time.time())] if self._down_since is not None else []),
        )

    def end(self):
        """Leave no process behind."""
        self.wanted = False
        self.kill_all()
        self.anka.shutdown_all()
        self.give_port_back()


def is_of_call(call):
    """True if the process that made the call still runs. A killed one has no end in the journal, and its pid is reused."""
    try:
        return psutil.Process(call["pid"]).create_time() < call["start"] + _CLOCK_OF_PROCESSES
    except psutil.Error:
        return False


class Fleet:
    """Hosts, Redis and GitHub. A context manager that ends all their processes."""

    def __init__(self, folder, *, hosts, services, switches=(), modes=(), pulled=0):
        self.folder = Path(folder)
        self.outages = []
        self.expected = {}
        self.roll_call = 0
        self.given_up = 0
        self._shape = (hosts, services, switches, modes, pulled)
        self._seen = 0
        self._open = set()
        self._buried = set()
        self._waiting_since = {}

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            self._build(stack)
            self._stack = stack.pop_all()
        return self

    def _build(self, stack):
        hosts, services, switches, modes, pulled = self._shape
        self.github = new_github()
        stack.callback(self.github.stop)
        self.github.set(rate_limit=_CALLS_AN_HOUR, **_PATIENCE)
        self.github.add_runner(OWNER, REPO, _FOREIGN_RUNNER, ["self-hosted", "x64"])
        (self.folder / "redis").mkdir(parents=True)
        self.redis = RedisServer(self.folder / "redis").start()
        stack.callback(self.redis.stop)
        proxies = Proxies()
        stack.callback(proxies.close)
        self.hosts = []
        # GitHub counts its rate limit per login: one login allows about sixty jobs a minute.
        self.tokens = [f"{TOKEN}_{number}" for number in range(-(-hosts // _HOSTS_OF_A_LOGIN))]
        for number, token in enumerate(self.tokens):
            self.github.add_token(token, permissions=PERMISSIONS, user=f"bot-{number}")
        for number in range(hosts):
            proxy = proxies.add((self.redis.host, self.redis.port))
            more = {"switches": switches[number], "mode": modes[number]} if switches else {}
            place, token = self.folder / f"host-{number}", self.tokens[number // _HOSTS_OF_A_LOGIN]
            host = Host(place, self.github, services=services, redis=proxy, token=token, **more)
            self.hosts.append(host)
            stack.callback(host.end)
            for image in range(pulled):
                host.anka.add_registry_template(f"pulled-{image}", home_files=host.home_with_runner())

    def __exit__(self, *error):
        return self._stack.__exit__(*error)

    def start(self):
        """Start the supervisors of all hosts, and return when all are ready."""
        for host in self.hosts:
            host.write_config()
            host.launch()
        for host in self.hosts:
            self.until(host.is_ready, f"{host.folder.name} is ready", 60)

    # ---- jobs ----

    def offer(self, name, *, expected, **spec):
        """Queue a run of one job and return its id."""
        (job_id,) = self.offer_run([job(name, **spec)], expected)
        return job_id

    def offer_run(self, jobs, expected="success"):
        """Queue a run of jobs that all end in the same way; return their ids."""
        ids = [made["id"] for made in self.github.queue_run(OWNER, REPO, jobs=jobs)["jobs"]]
        self.expected |= dict.fromkeys(ids, expected)
        self._open |= set(ids)
        return ids

    def open_jobs(self):
        """The jobs that have not ended at GitHub."""
        for event in self.github.events(since=self._seen):
            self._seen = event["seq"]
            if event["event"] == "job-completed":
                self._open.discard(event["job_id"])
        return self._open

    def unfinished(self):
        """Describe what exists only while jobs are in hand, as the emulators see it; empty when all is quiet."""
        jobs = self.open_jobs()
        if jobs:
            return {"jobs": sorted(jobs)[:10]}
        runners = [runner["name"] for runner in self.github.runners(OWNER, REPO)]
        with self.redis.client() as client:
            claims = list(client.scan_iter("*:claim:*", count=1000))
        live = [host for host in self.hosts if not host.dead]
        found = {
            "runners": [name for name in runners if name != _FOREIGN_RUNNER and name not in self._buried],
            "claims": claims,
            "vms": [vm for host in live for vm in host.vms() if vm not in _FOREIGN_VMS],
            "commands": [pid for host in live for pid in host.anka.command_pids()],
            "guests": [guest for host in live for guest in host.anka.guest_processes()],
        }
        return {what: things for what, things in found.items() if things}

    # ---- time ----

    def tend(self):
        """Play launchd and the operator: restart what has died, is FATAL, or was drained."""
        for host in self.hosts:
            if host.tend():
                host.launch()

    def operate(self):
        """Restart FATAL services as an operator would, and return how many there were."""
        found = 0
        for host in self.hosts:
            names = host.given_up() if host.lives() else []
            if names:
                found += len(names)
                host.send(signal.SIGUSR2)
        self.given_up += found
        return found

    def until(self, condition, what, deadline, pause=0.1):
        """Tend until the condition holds; AssertionError after `deadline` seconds."""
        end = time.monotonic() + deadline
        while not (value := self._held(condition)):
            if time.monotonic() >= end:
                raise AssertionError(f"not within {deadline:g} s: {what}")
            self.tend()
            time.sleep(pause)
        return value

    @staticmethod
    def _held(condition):
        try:
            return condition()
        except AssertionError:  # raised by Mac.is_ready when the supervisor has ended; launchd's part restarts it
            return False

    def bury(self, host):
        """Kill everything on the host, for good."""
        host.power_off()
        host.dead = True
        self._buried |= set(checker.cloned(host.evidence()))

    # ---- the end of a run ----

    def settle(self, deadline, say=lambda _text: None):
        """Wait until all is quiet, at most `deadline` seconds after the end of the last job. The checker judges what is left."""
        end = time.monotonic() + deadline
        looked, said, jobs = 0.0, None, len(self._open)
        while (left := self.unfinished()) and time.monotonic() < end:
            if len(self._open) < jobs:
                jobs, end = len(self._open), time.monotonic() + deadline
            if left != said:
                said = left
                say(f"{end - time.monotonic():8.2f}  {left}")
            self.tend()
            if time.monotonic() - looked > 2:
                looked = time.monotonic()
                self.operate()
            time.sleep(0.3)
        return left

    def call_the_roll(self, deadline):
        """Queue one job for each slot of the living hosts. None ends before all of them run."""
        barrier = self.folder / "all-run"
        live = [host for host in self.hosts if not host.dead]
        self.roll_call = sum(host.capacity for host in live)
        step = f"for i in $(seq {deadline * 10}); do [ -e {barrier} ] && exit 0; sleep 0.1; done; exit 1"
        ids = set(
            self.offer_run([job(f"{checker.ROLL_CALL}{number}", steps=[step]) for number in range(self.roll_call)])
        )
        end = time.monotonic() + deadline
        running, since = set(), self._seen
        while running != ids and time.monotonic() < end:
            started = self.github.events("job-started", since=since)
            running = {event["job_id"] for event in started if event["job_id"] in ids}
            self.tend()
            time.sleep(0.2)
        barrier.touch()

    def drain(self, deadline=60):
        """Send SIGTERM to every supervisor and return the exit codes."""
        live = [host for host in self.hosts if host.lives()]
        for host in live:
            host.wanted = False
            host.send(signal.SIGTERM)
        codes = []
        for host in live:
            try:
                codes.append(host.process.wait(deadline))
            except subprocess.TimeoutExpired:
                codes.append(None)
        return codes

    def evidence(self):
        """Return all evidence of the run."""
        with self.redis.client() as client:
            return evidence.of_run(
                self.github,
                [host.evidence() for host in self.hosts],
                [(OWNER, REPO)],
                redis=client,
                secrets=self.tokens,
                foreign_runners=[_FOREIGN_RUNNER],
                expected=self.expected,
                outages=self.outages,
                roll_call=self.roll_call,
            )
