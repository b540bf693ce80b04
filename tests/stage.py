"""One emulated site: a GitHub server, a Mac with Anka, Tart or both, and the real `anklet-supervisor` between them.

Used by process tests, the demo and the benchmark. Waits poll a condition with a deadline.
"""

from __future__ import annotations

import contextlib
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


def eventually(condition, what, deadline=30.0, pause=0.02):
    """Return the condition's first truthy value; fail after `deadline` seconds, naming `what`."""
    end = time.monotonic() + deadline
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= end:
            raise AssertionError(f"not within {deadline:g} s: {what}; last value {value!r}")
        time.sleep(pause)


def free_port():
    """A TCP port that nobody listens on now, below those that the system gives to outgoing connections."""
    for _ in range(200):
        port = random.randrange(*_PORTS)  # noqa: S311  a port, not a secret
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port found")


HOSTS = {"anka": AnkaHost, "tart": TartHost}
#: What a command of Anka's is called with Tart.
TART_VERBS = {"start": "run", "run": "exec", "cp": "exec"}


class Mac:
    """One host: an emulated VM tool or two, a configuration, and the supervisor's process.

    `driver` is the services' VM driver; several, joined by "+", are those of the first, the second, ... service in turn. `host` is
    the emulation of the first, `anka` and `tart` those of that name; they share the kernel's one quota.
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
        self.port = free_port()
        self.state_dir = folder / "state"
        self.log_dir = folder / "log"
        self.log_dir.mkdir(exist_ok=True)
        (folder / "work").mkdir(exist_ok=True)
        self.process = None
        self.environment = {}
        #: Set by a test whose emulated Anka refuses a start on purpose.
        self.refusals_expected = False
        if runner:
            self.add_template(TEMPLATE, TAG)
        self.config = self.default_config(services)

    # ---- set up ----

    def home_with_runner(self):
        """A guest's home as an image with an installed runner has it."""
        home = self.folder / "image-home"
        if not home.exists():
            home.mkdir()
            self.github.copy_runner(home)
        return home

    def add_template(self, name, tag):
        """A local template (of Tart's: image) with a runner in it, for each driver."""
        if self.anka is not None:
            self.anka.add_template(name, tag=tag, home_files=self.home_with_runner())
        if self.tart is not None:
            self.tart.add_image(name, home_files=self.home_with_runner())

    def add_registry_template(self, name, tag):
        """The same, but only in the registry; for the first driver."""
        home = self.home_with_runner()
        if self.drivers[0] == "anka":
            self.anka.add_registry_template(name, tags=[tag], home_files=home)
        else:
            self.tart.add_registry_image(name, home_files=home)

    def job(self, name="build", *, driver=None, **more):
        """A job for this host, or for its services of this driver."""
        return job(name, driver=driver or self.drivers[0], **more)

    def verb(self, word):
        """What a command of Anka's is called by the first driver."""
        return word if self.drivers[0] == "anka" else TART_VERBS.get(word, word)

    def default_config(self, services):
        """A configuration with quick intervals; tests change it before `start`."""
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
        """Where the configuration is written at `start`."""
        return self.folder / "config.yml"

    # ---- the supervisor ----

    def command(self, *arguments, **more):
        """Run an `anklet-supervisor` command to its end."""
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
        """The supervisor's environment: nothing of the caller's but PATH, and the emulated host."""
        variables = {"HOME": str(self.folder)}
        for host in self.hosts:
            variables |= host.env()
        path = os.pathsep.join([*(str(host.bin_dir) for host in self.hosts), os.environ["PATH"]])
        return {**variables, "PATH": path, **self.environment}

    def write_config(self):
        """Write the configuration as it is now."""
        self.config_path.write_text(yaml.safe_dump(self.config, sort_keys=False))
        self.config_path.chmod(0o600)

    def start(self, *arguments, wait=True, preexec_fn=None):
        """Start the supervisor in the foreground of its own process group."""
        self.write_config()
        argv = [sys.executable, "-m", "anklet_supervisor", "start", *arguments, "--config", str(self.config_path)]
        self.run(argv, self.env(), preexec_fn)
        if wait:
            eventually(self.is_ready, "the supervisor is ready")
        return self.process

    def run(self, argv, env, preexec_fn=None):
        """Start a supervisor by this command line."""
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
        """True when every service is ready; fails when the supervisor has ended instead."""
        if self.process.poll() is not None:
            raise AssertionError(f"the supervisor ended with {self.process.returncode}: {self.said()}")
        return self.get("/readyz")[0] == 200

    def get(self, path):
        """Status and body of a page of the metrics endpoint; (0, "") when nobody listens."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def said(self):
        """What the supervisor wrote to its terminal."""
        return (self.folder / "output.txt").read_text()

    def send(self, number):
        """Send a signal to the supervisor."""
        self.process.send_signal(number)

    def wait(self, deadline=60.0):
        """Wait for the supervisor's end; its exit code."""
        try:
            return self.process.wait(deadline)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the supervisor did not end within {deadline} s: {self.log_text()[-3000:]}") from None

    def drain(self, deadline=60.0):
        """SIGTERM, and the exit code."""
        self.send(signal.SIGTERM)
        return self.wait(deadline)

    def stop(self, deadline=60.0):
        """SIGINT, and the exit code."""
        self.send(signal.SIGINT)
        return self.wait(deadline)

    def status(self):
        """The status document."""
        return json.loads((self.state_dir / "status.json").read_text())

    def service_status(self, name="RUNNER1"):
        """One service of the status document."""
        return next(service for service in self.status()["services"] if service["name"] == name)

    def worker_pid(self, name="RUNNER1"):
        """The pid of a service's worker."""
        return self.service_status(name)["pid"]

    # ---- what happened ----

    def log_text(self):
        """The log as it is."""
        path = self.log_dir / "anklet.log"
        return path.read_text() if path.exists() else ""

    def log_lines(self, **fields):
        """The log's records that bear these fields."""
        records = [json.loads(line) for line in self.log_text().splitlines()]
        return [record for record in records if all(record.get(key) == value for key, value in fields.items())]

    def vms(self):
        """VMs of ours that exist now."""
        return [vm["name"] for host in self.hosts for vm in host.vms() if vm["name"].startswith("anklet-vm-")]

    def calls(self):
        """Every command of the VM tools."""
        return [call for host in self.hosts for call in host.calls()]

    def max_running(self):
        """The largest number of VMs that one VM tool ever ran at once."""
        return max(host.max_running() for host in self.hosts)

    def leftovers(self):
        """Everything that should be gone when no job is in hand: VMs, runners, records, guest processes, commands."""
        found = {
            "vms": self.vms(),
            "runners": [runner["name"] for runner in self.github.runners(OWNER, REPO)],
            "records": [path.name for path in self.state_dir.glob("services/*/records/*")],
            "guest processes": [process for host in self.hosts for process in host.guest_processes()],
            "commands": self._commands(),
            "notes of VMs": [path.name for path in self.state_dir.glob("tart/runs/*")],
        }
        return {what: things for what, things in found.items() if things}

    def _commands(self):
        """Commands that run now, but for those that are VMs of others (a `tart run` and its helper)."""
        names = [vm["name"] for host in self.hosts for vm in host.vms() if vm["status"] == "running"]
        others = [name for name in names if not name.startswith("anklet-vm-")]
        return [pid for host in self.hosts for pid in host.command_pids() if not _names_one_of(others, pid)]

    def close(self):
        """End the supervisor and every process of the emulated host, whatever state they are in."""
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
    """A started GitHub server that knows the site's repository and token."""
    server = GitHubServer()
    server.start()
    server.add_repo(OWNER, REPO)
    server.add_token(TOKEN, permissions=PERMISSIONS)
    return server


def job(name="build", *, steps=("true",), template=TEMPLATE, tag=TAG, pinned=True, driver="anka", **more):
    """A job that asks for a VM of this site. `pinned` gives it a label of its own: else GitHub may give its runner to another."""
    labels = ["self-hosted", driver, f"{'anka-template' if driver == 'anka' else 'tart-image'}:{template}"]
    if pinned:
        labels.append(f"unique-id:{name}")
    if tag and driver == "anka":
        labels.append(f"anka-template-tag:{tag}")
    return {"name": name, "labels": labels, "steps": list(steps), **more}
