"""A workbench for tests: an emulated host whose commands run in one line.

Owns convenience only. control.py defines the features of a host.
"""

from __future__ import annotations

import json
import os
import subprocess

from emulators.tart.control import TartHost
from emulators.vmhost.bench import eventually, finish

__all__ = ["Host", "eventually", "finish"]


class Host(TartHost):
    """An emulated host whose commands a test runs in one line."""

    def __init__(self, home, quota=None):
        super().__init__(home, quota)
        #: The latest `tart run` of each VM, by name.
        self.runs = {}
        self._begun = []

    def tart(self, *args, stdin=b"", **env):
        """Run a command to completion; return the finished process with its output as bytes."""
        return subprocess.run(
            ["tart", *args], input=stdin, env=self.environ(**env), capture_output=True, timeout=60, check=False
        )

    def ok(self, *args, **more):
        """Run a command that must succeed; return its standard output as text."""
        done = self.tart(*args, **more)
        assert done.returncode == 0, done
        return done.stdout.decode()

    def error(self, *args, **more):
        """Run a command that must fail without standard output; return (exit status, text on standard error)."""
        done = self.tart(*args, **more)
        assert done.returncode != 0, done
        return done.returncode, done.stderr.decode().removesuffix("\n")

    def begin(self, *args, **more):
        """Start a command; return its Popen."""
        more = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
        return subprocess.Popen(["tart", *args], env=self.environ(), **more)

    def run_vm(self, name, *options):
        """Start `tart run` and wait until the VM runs; return its Popen. Its output goes to the file `run-<name>.log`."""
        with (self.home / f"run-{name}.log").open("ab") as log:
            process = self.begin("run", "--no-graphics", *options, name, stdout=log, stderr=log, start_new_session=True)
        self.runs[name] = process
        self._begun.append(process)
        eventually(lambda: process.poll() is not None or self._runs_by(process.pid))
        return process

    def _runs_by(self, pid):
        with self._store.transaction() as tx:
            return any(op["run"] == pid for op in tx.ops("run"))

    def said(self, name):
        """Return the text that `tart run` has printed for a VM."""
        return (self.home / f"run-{name}.log").read_text()

    def run_vms(self, *names):
        """Clone and run VMs."""
        for name in names:
            self.ok("clone", "tpl", name)
            assert self.run_vm(name).poll() is None

    def listed(self, *args):
        """Return the rows of `tart list --format json`, by name."""
        return {row["Name"]: row for row in json.loads(self.ok("list", "--format", "json", *args))}

    def vm(self, name):
        """Return the record of one VM."""
        return next(vm for vm in self.vms() if vm["name"] == name)

    def ssh(self, *args, password="admin", stdin=b"", **env):  # noqa: S107  the emulated guest's
        """Run the emulated ssh with an askpass program that answers the password prompt."""
        asks = self.home / "askpass"
        asks.write_text('#!/bin/sh\nprintf "%s\\n" "$1" >> "$ASKED"\necho "$ANSWER"\n')
        asks.chmod(0o755)
        more = {
            "SSH_ASKPASS": str(asks),
            "SSH_ASKPASS_REQUIRE": "force",
            "ANSWER": password,
            "ASKED": os.devnull,
            **env,
        }
        env = self.environ(**more)
        return subprocess.run(["ssh", *args], input=stdin, env=env, capture_output=True, timeout=60, check=False)

    def close(self):
        """End every process and reap those that this object started."""
        super().close()
        for process in self._begun:
            process.wait(timeout=20)
