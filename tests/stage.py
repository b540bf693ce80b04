"""One emulated site: a GitHub server, a Mac with Anka, Tart or both, and the real `anklet-supervisor` between them.

Process tests, the demo and the benchmark use it. Every wait polls a condition and has a deadline.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import yaml
from emulators.anka.control import AnkaHost
from emulators.github.control import GitHubServer
from emulators.tart.control import TartHost

OWNER, REPO = "acme", "app"
TOKEN = "github_pat_11TESTTESTTESTTESTTEST_bait"
TEMPLATE, TAG = "macos-15", "v1"
_PORTS = (20_000, 32_000)
PERMISSIONS = {"administration": "write", "actions": "read"}


#: After a poll that took t seconds, wait at least this many times t, so that a waiting test leaves the processor to the program
#: under test.
_PAUSE_PER_POLL = 2.0


def eventually(condition, what, deadline=30.0, pause=0.02):
    """Return the condition's first truthy value; fail after `deadline` seconds, naming `what`. `pause` is in seconds."""
    end = time.monotonic() + deadline
    while True:
        began = time.monotonic()
        value = condition()
        if value:
            return value
        now = time.monotonic()
        if now >= end:
            raise AssertionError(f"not within {deadline:g} s: {what}; last value {value!r}")
        time.sleep(min(max(pause, _PAUSE_PER_POLL * (now - began)), end - now))


def free_port():
    """A free TCP port, below the range that the system uses for outgoing connections."""
    port, reservation = reserve_port()
    reservation.close()
    return port


def reserve_port():
    """A free TCP port, and the socket that reserves it among test processes until it is closed.

    The program binds the port later, and again after each restart. A UDP socket on the same number keeps other tests away from it
    and does not disturb TCP.
    """
    for _ in range(200):
        port = random.randrange(*_PORTS)  # noqa: S311  a port, not a secret
        reservation = socket.socket(type=socket.SOCK_DGRAM)
        try:
            reservation.bind(("127.0.0.1", port))
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            reservation.close()
        else:
            return port, reservation
    raise AssertionError("no free port found")


HOSTS = {"anka": AnkaHost, "tart": TartHost}
#: Tart's command for each of Anka's.
TART_VERBS = {"start": "run", "run": "exec", "cp": "exec"}


class Mac:
    """One host: one or two emulated VM tools, a configuration, and the supervisor's process.

    `driver` names the VM driver of all services; "anka+tart" gives the services these drivers in turn. `host` is the emulation of
    the first driver; `anka` and `tart` are the emulations by name. They share one VM quota, as on a real kernel.
    """

    def __init__(self, folder: Path, github: GitHubServer, *, services=1, runner=True, driver="anka"):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.github = github
        self.drivers = driver.split("+")
        self.hosts = [HOSTS[name](folder / name, quota=folder / "kernel-quota.json") for name in self.drivers]
        self.host = self.hosts[0]
        by_name = dict(zip(self.drivers, self.hosts, strict=True))
        self.anka, self.tart = by_name.get("anka"), by_name.get("tart")
        self.port, self._port_reservation = reserve_port()
        self.state_dir = folder / "state"
        self.log_dir = folder / "log"
        self.log_dir.mkdir(exist_ok=True)
        (folder / "work").mkdir(exist_ok=True)
        self.process = None
        self.environment = {}
        #: Set by a test that provokes a refused start.
        self.refusals_expected = False
        if runner:
            self.add_template(TEMPLATE, TAG)
        self.config = self.default_config(services)

    # ---- set up ----

    def home_with_runner(self):
        """The home folder of an image with an installed runner."""
        home = self.folder / "image-home"
        if not home.exists():
            home.mkdir()
            self.github.copy_runner(home)
        return home

    def add_template(self, name, tag):
        """Add a local template (Tart: image) with a runner in it, for each driver."""
        if self.anka is not None:
            self.anka.add_template(name, tag=tag, home_files=self.home_with_runner())
        if self.tart is not None:
            self.tart.add_image(name, home_files=self.home_with_runner())

    def add_registry_template(self, name, tag):
        """Add a template in the registry only, for the first driver."""
        home = self.home_with_runner()
        if self.drivers[0] == "anka":
            self.anka.add_registry_template(name, tags=[tag], home_files=home)
        else:
            self.tart.add_registry_image(name, home_files=home)

    def job(self, name="build", *, driver=None, **more):
        """A job for this host's first driver, or for `driver`."""
        return job(name, driver=driver or self.drivers[0], **more)

    def verb(self, word):
        """The first driver's command for this one of Anka's."""
        return word if self.drivers[0] == "anka" else TART_VERBS.get(word, word)

    def default_config(self, services):
        """A configuration with short intervals; tests change it before `start`."""
        return {
            "state_dir": str(self.state_dir),
            "work_dir": str(self.folder / "work"),
            "pid_file_dir": str(self.folder),
            "plugins_path": str(self.folder / "plugins"),
            "log": {"file_dir": str(self.log_dir)},
            "metrics": {"port": self.port},
            "services": [
                self.service(f"RUNNER{number}", **self._driver_of(number)) for number in range(1, services + 1)
            ],
        }

    def _driver_of(self, number):
        name = self.drivers[(number - 1) % len(self.drivers)]
        return {} if name == "anka" else {"vm_driver": name}

    def service(self, name, **more):
        """One github service of this site."""
        return {
            "name": name,
            "plugin": "github",
            "token": TOKEN,
            "owner": OWNER,
            "repo": REPO,
            "registration": "repo",
            "api_url": self.github.url,
            "server_url": self.github.url,
            "sleep_interval": 0.2,
            **more,
        }

    @property
    def config_path(self):
        """The path of the configuration file."""
        return self.folder / "config.yml"

    # ---- the supervisor ----

    def command(self, *arguments, **more):
        """Run an `anklet-supervisor` command, and return its result."""
        self.write_config()
        return subprocess.run(
            [sys.executable, "-m", "anklet_supervisor", *arguments, "--config", str(self.config_path)],
            env=self.env(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            **more,
        )

    def env(self):
        """The supervisor's environment: the emulated host, and only PATH from the caller."""
        variables = {"HOME": str(self.folder)}
        for host in self.hosts:
            variables |= host.env()
        path = os.pathsep.join([*(str(host.bin_dir) for host in self.hosts), os.environ["PATH"]])
        return {**variables, "PATH": path, **self.environment}

    def write_config(self):
        """Write the current configuration to its file."""
        self.config_path.write_text(yaml.safe_dump(self.config, sort_keys=False))
        self.config_path.chmod(0o600)

    def start(self, *arguments, wait=True, preexec_fn=None):
        """Start the supervisor in a session of its own; wait until all services are ready unless `wait` is false."""
        self.write_config()
        argv = [sys.executable, "-m", "anklet_supervisor", "start", *arguments, "--config", str(self.config_path)]
        self.run(argv, self.env(), preexec_fn)
        if wait:
            eventually(self.is_ready, "the supervisor is ready")
        return self.process

    def run(self, argv, env, preexec_fn=None):
        """Start a supervisor with this command line."""
        with (self.folder / "output.txt").open("ab") as output:
            self.process = subprocess.Popen(
                argv,
                env=env,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=preexec_fn,  # noqa: PLW1509  resource limits; this process has no threads
            )

    def is_ready(self):
        """True if every service is ready. Fails if the supervisor has exited."""
        if self.process.poll() is not None:
            raise AssertionError(f"the supervisor ended with {self.process.returncode}: {self.said()}")
        return self.get("/readyz")[0] == 200

    def get(self, path):
        """Status and body of a page of the metrics endpoint; (0, "") if nothing listens there."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def said(self):
        """The terminal output of the supervisor."""
        return (self.folder / "output.txt").read_text()

    def send(self, number):
        """Send a signal to the supervisor."""
        self.process.send_signal(number)

    def wait(self, deadline=60.0):
        """Wait until the supervisor exits, and return its exit code."""
        try:
            return self.process.wait(deadline)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the supervisor did not end within {deadline} s: {self.log_text()[-3000:]}") from None

    def drain(self, deadline=60.0):
        """Send SIGTERM, and return the exit code."""
        self.send(signal.SIGTERM)
        return self.wait(deadline)

    def stop(self, deadline=60.0):
        """Send SIGINT, and return the exit code."""
        self.send(signal.SIGINT)
        return self.wait(deadline)

    def status(self):
        """The status document."""
        return json.loads((self.state_dir / "status.json").read_text())

    def service_status(self, name="RUNNER1"):
        """One service's part of the status document."""
        return next(service for service in self.status()["services"] if service["name"] == name)

    def worker_pid(self, name="RUNNER1"):
        """The pid of a service's worker."""
        return self.service_status(name)["pid"]

    # ---- what happened ----

    def log_text(self):
        """The content of the log file."""
        path = self.log_dir / "anklet.log"
        return path.read_text() if path.exists() else ""

    def log_lines(self, **fields):
        """The log records with these fields."""
        records = [json.loads(line) for line in self.log_text().splitlines()]
        return [record for record in records if all(record.get(key) == value for key, value in fields.items())]

    def vms(self):
        """Names of the VMs that this program made and that exist now."""
        return [vm["name"] for host in self.hosts for vm in host.vms() if vm["name"].startswith("anklet-vm-")]

    def calls(self):
        """Every command of the VM tools."""
        return [call for host in self.hosts for call in host.calls()]

    def max_running(self):
        """The largest number of VMs that one VM tool ever ran at once."""
        return max(host.max_running() for host in self.hosts)

    def leftovers(self):
        """Return what is left of past jobs: VMs, runners, records, guest processes, commands. Empty if all is cleaned up.

        Looks for processes only if nothing else is left, because that reads all of /proc.
        """
        found = {
            "vms": self.vms(),
            "records": [path.name for path in self.state_dir.glob("services/*/records/*")],
            "notes of VMs": [path.name for path in self.state_dir.glob("tart/runs/*")],
            "runners": [runner["name"] for runner in self.github.runners(OWNER, REPO)],
        }
        if not any(found.values()):
            found["guest processes"] = [process for host in self.hosts for process in host.guest_processes()]
            found["commands"] = self._commands()
        return {what: things for what, things in found.items() if things}

    def _commands(self):
        """Running commands, except those of foreign VMs (a `tart run` and its helper)."""
        names = [vm["name"] for host in self.hosts for vm in host.vms() if vm["status"] == "running"]
        others = [name for name in names if not name.startswith("anklet-vm-")]
        return [pid for host in self.hosts for pid in host.command_pids() if not _names_one_of(others, pid)]

    def give_port_back(self):
        """Let other tests have the port of the metrics endpoint."""
        self._port_reservation.close()

    def close(self):
        """Kill the supervisor and every process of the emulated host."""
        self.give_port_back()
        if self.process is not None and self.process.poll() is None:
            workers = self._worker_pids()
            self.process.kill()
            self.process.wait()
            for pid in workers:
                eventually(lambda pid=pid: not _lives(pid), f"worker {pid} detaches", 15)
        for host in self.hosts:
            host.close()

    def _worker_pids(self):
        if not (self.state_dir / "status.json").exists():
            return []
        return [service["pid"] for service in self.status()["services"] if service["pid"]]


def _names_one_of(vms, pid):
    try:
        words = psutil.Process(pid).cmdline()
    except psutil.NoSuchProcess:
        return False
    return any(name in words or any(f'"{name}"' in word for word in words) for name in vms)


def _lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return not Path("/proc").is_dir()


def new_github():
    """Start a GitHub server with the site's repository and token."""
    server = GitHubServer()
    server.start()
    server.add_repo(OWNER, REPO)
    server.add_token(TOKEN, permissions=PERMISSIONS)
    return server


def job(name="build", *, steps=("true",), template=TEMPLATE, tag=TAG, pinned=True, driver="anka", **more):
    """A job for a VM of this site. `pinned` adds a unique label; without it GitHub may give its runner to another job."""
    labels = ["self-hosted", driver, f"{'anka-template' if driver == 'anka' else 'tart-image'}:{template}"]
    if pinned:
        labels.append(f"unique-id:{name}")
    if tag and driver == "anka":
        labels.append(f"anka-template-tag:{tag}")
    return {"name": name, "labels": labels, "steps": list(steps), **more}
