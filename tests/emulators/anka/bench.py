"""A workbench for tests: an emulated host whose commands run in one line, and waiting with a deadline.

Owns convenience only. control.py defines the features of a host.
"""

from __future__ import annotations

import json
import subprocess

from emulators.anka.control import AnkaHost
from emulators.vmhost.bench import eventually, finish

__all__ = ["Host", "eventually", "finish"]


class Host(AnkaHost):
    """An emulated host whose commands a test runs in one line."""

    def anka(self, *args, stdin=b"", **env):
        """Run a command to completion; return the finished process with its output as bytes."""
        return subprocess.run(
            ["anka", *args], input=stdin, env=self.environ(**env), capture_output=True, timeout=60, check=False
        )

    def ok(self, *args, **more):
        """Run a command that must succeed; return its body."""
        done = self.anka("-j", *args, **more)
        assert done.returncode == 0, done
        return json.loads(done.stdout.splitlines()[-1])["body"]

    def error(self, *args, **more):
        """Run a command that must fail with an envelope; return its (code, message)."""
        done = self.anka("-j", *args, **more)
        assert done.returncode != 0, done
        envelope = json.loads(done.stdout.splitlines()[-1])
        assert envelope["status"] == "ERROR"
        return envelope["code"], envelope["message"]

    def begin(self, *args, **more):
        """Start a command; return its Popen."""
        more = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
        return subprocess.Popen(["anka", *args], env=self.environ(), **more)

    def vm(self, name):
        """The record of one VM."""
        return next(vm for vm in self.vms() if vm["name"] == name)

    def run_vms(self, *names):
        """Clone and start VMs."""
        for name in names:
            self.ok("clone", "tpl", name)
            self.ok("start", name)
