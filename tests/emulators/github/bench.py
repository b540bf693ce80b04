"""Equipment of the emulator's own tests: an API client that checks every reply, a listener without a process, a guest with one.

Owns no expectation; each test states its own.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import urllib3
from emulators.github import openapi

TOKEN = "github_pat_11EMULATED0_allowed"
LABELS = ["self-hosted", "anka"]
REPO = "/repos/octo-org/hello"


class Api:
    """The REST API as one token sees it. Checks each request and each reply against GitHub's description."""

    def __init__(self, url, token=TOKEN, *, measured=True):
        self.url, self.token, self.measured = url, token, measured
        self._pool = urllib3.PoolManager(retries=False, timeout=30)

    def close(self):
        """Close the connections."""
        self._pool.clear()

    def call(self, method, path, body=None, *, headers=None, **query):
        """Return the reply (urllib3), valid or not; `.json()` is its body. The test checks its status."""
        sent = {"Authorization": f"Bearer {self.token}", "User-Agent": "tests", "Accept": "application/vnd.github+json"}
        sent = {name: value for name, value in (sent | (headers or {})).items() if value is not None}
        data = None if body is None else json.dumps(body).encode()
        reply = self._pool.request(
            method, self.url + path, body=data, headers=sent, fields=None if data else query or None
        )
        if self.measured:
            parsed = reply.json() if reply.data else None
            openapi.check_reply(method, path, reply.status, parsed, closed=True)
            if reply.status < 300:
                openapi.check_request(method, path, query, body)
        return reply

    def get(self, path, *, headers=None, **query):
        """Return the parsed body of a GET that must succeed."""
        reply = self.call("GET", path, headers=headers, **query)
        assert reply.status == 200, (reply.status, reply.data)
        return reply.json()

    def jit(self, name="runner-1", labels=None, *, scope=REPO, group=1):
        """Return the reply to generate-jitconfig: {"runner", "encoded_jit_config"}."""
        asked = {"name": name, "runner_group_id": group, "labels": labels or LABELS}
        reply = self.call("POST", f"{scope}/actions/runners/generate-jitconfig", asked)
        assert reply.status == 201, reply.data
        return reply.json()


class Listener:
    """Speaks to the service as a runner does, step by step."""

    def __init__(self, encoded_jit_config):
        files = json.loads(base64.b64decode(encoded_jit_config))
        files = {name: json.loads(base64.b64decode(text)) for name, text in files.items()}
        self._base = f"{files['.runner']['ServerUrl']}{files['.runner']['AgentId']}"
        self._headers = {"Authorization": f"Bearer {files['.credentials_rsaparams']['d']}"}
        self._pool = urllib3.PoolManager(retries=False, timeout=30)
        self.session = None

    def close(self):
        """Close the connections, as a killed process does."""
        self._pool.clear()

    def call(self, method, tail, body=None):
        """Return the reply (urllib3)."""
        data = None if body is None else json.dumps(body).encode()
        return self._pool.request(method, f"{self._base}/{tail}", body=data, headers=self._headers)

    def open(self, *, version="2.336.0", nonce=None):
        """Try to open a session; return the HTTP status."""
        asked = {"nonce": nonce or secrets.token_hex(4), "version": version, "os": "macOS"}
        reply = self.call("POST", "session", asked)
        if reply.status == 200:
            self.session = reply.json()["sessionId"]
        return reply.status

    def poll(self):
        """Do one long poll; return (status, message)."""
        reply = self.call("GET", f"message?sessionId={self.session}")
        return reply.status, reply.json() if reply.data else None

    def acquire(self, job_id, nonce="once"):
        """Acquire the job; return the HTTP status."""
        return self.call("POST", f"jobs/{job_id}/acquire", {"nonce": nonce}).status

    def finish(self, job_id, conclusion="success", nonce="once"):
        """Report the end of the job; return the HTTP status."""
        return self.call("POST", f"jobs/{job_id}/finish", {"conclusion": conclusion, "nonce": nonce}).status


class Guest:
    """A home directory with a runner in it, and the processes that start there."""

    def __init__(self, github):
        self._folder = tempfile.TemporaryDirectory(prefix="fake-guest-")
        self.home = Path(self._folder.name)
        self.runner = github.copy_runner(self.home)
        self._started = []

    def close(self):
        """End every process that was started here and remove the directory."""
        for process in self._started:
            self.kill(process)
        self._folder.cleanup()

    def environment(self, **more):
        """Return HOME and a PATH with this interpreter, bash and little else."""
        return {
            "HOME": str(self.home),
            "PATH": f"{Path(os.path.realpath(sys.executable)).parent}:/usr/bin:/bin",
            **more,
        }

    def start(self, program, *arguments, **more):
        """Start a program of the runner's folder in the background; its output goes to `<program>.out`."""
        with self.output(program).open("ab") as output:
            process = subprocess.Popen(
                [str(self.runner / program), *arguments],
                env=self.environment(**more),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def output(self, program):
        """The file with a background program's output."""
        return self.home / f"{program}.out"

    def run(self, program, *arguments, **more):
        """Run a program of the runner's folder to completion; return the completed process with stdout."""
        return subprocess.run(
            [str(self.runner / program), *arguments],
            env=self.environment(**more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )

    def kill(self, process):
        """Kill the process and its children, as a VM does when it is switched off."""
        with contextlib.suppress(ProcessLookupError):  # it and its children have ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
