"""Controls an emulated host from a test, for any product: set it up, break it, inspect what happened.

Owns the part that all products share. It changes the same state as the commands do, under the same lock. Knows no product.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from . import processes, switches

_TESTS = Path(__file__).resolve().parents[2]
_LONGEST_SHEBANG = 120


class Host:
    """One emulated host, kept in the directory `home`. As a context manager, it ends all its processes on exit."""

    #: The environment variable that names the directory for commands.
    VARIABLE = ""
    #: The commands in `bin_dir`, each with the module that has its main(argv).
    PROGRAMS = {}  # noqa: RUF012  a constant that a product replaces
    #: The names of the product's other processes.
    HELPERS = ()
    #: The folder with portable commands, for when a script's first line cannot hold the interpreter's path.
    STATIC_BIN = None
    #: The closed sets of values of switches.
    CHOICES = {}  # noqa: RUF012  a constant that a product replaces

    def __init__(self, home, quota=None):
        """`quota` is the file of the kernel's VM quota, which other emulators may share; default: a file inside `home`."""
        self.home = Path(home)
        self.home.mkdir(parents=True, exist_ok=True)
        self.quota_path = Path(quota) if quota else self.home / "kernel-quota.json"
        self._store = self.open_store()
        self._store.create()
        self.bin_dir = self._make_bin()

    def open_store(self):
        """Open the product's Store in `home`."""
        raise NotImplementedError

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """End every process of this host."""
        self.shutdown_all()

    # -- for the program under test ------------------------------------------------------------------

    def env(self):
        """The variables that the commands need; also prepend `bin_dir` to PATH."""
        return {self.VARIABLE: str(self.home), "FAKE_KERNEL_QUOTA": str(self.quota_path)}

    def environ(self, **more):
        """This process's environment with `env()`, `more`, and `bin_dir` first on PATH."""
        path = f"{self.bin_dir}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        return {**os.environ, **self.env(), "PATH": path, **more}

    def _make_bin(self):
        """Create commands that name this interpreter: a search along PATH may find another version or a shim."""
        shebang = f"#!{os.path.realpath(sys.executable)} -SE\n"
        if " " in shebang[:-5] or len(shebang) > _LONGEST_SHEBANG:
            return self.STATIC_BIN
        folder = self.home / "bin"
        folder.mkdir(exist_ok=True)
        for name, module in self.PROGRAMS.items():
            program = folder / name
            if not program.exists():
                lines = (
                    "import sys",
                    f"sys.path.insert(0, {str(_TESTS)!r})",
                    f"from {module} import main",
                    "main(sys.argv[1:])",
                )
                program.write_text(shebang + "\n".join(lines) + "\n")
                program.chmod(0o755)
        return folder

    # -- behaviour -----------------------------------------------------------------------------------

    def set(self, **changes):
        """Set switches (see the product's README.md); raises ValueError for an unknown one."""
        with self._store.transaction() as tx:
            switches.check(changes, tx.DEFAULTS, self.CHOICES)
            tx.state["settings"].update(changes)

    def fault(  # noqa: PLR0913  keyword-only, one per thing that can go wrong
        self,
        command,
        *,
        times=1,
        when="before",
        code=None,
        message=None,
        exit_status=None,
        stdout=None,
        stderr=None,
        delay=None,
        hang=False,
        kill_at=None,
        match=None,
    ):
        """Make the next `times` (None: all) invocations of `command` ("clone", "pull", "registry list", "*") fail.

        `match` is a regular expression searched in the arguments joined by spaces. `when` is the point at which the fault strikes:
        "before" any effect, in the "middle" of it, or "after" all of it. There the fault waits `delay` seconds, hangs for ever, or
        replaces the reply: an ERROR with `code` and `message`, the text `stdout` ("" for nothing) and `exit_status`.
        `kill_at` is the point where the command dies by SIGKILL. `stderr` alone adds text to an otherwise correct reply.
        """
        for point in {when, kill_at} - {None}:
            if point not in ("before", "middle", "after"):
                raise ValueError(f"no such point: {point}")
        fault = {"command": command, "times": times, "when": when, "code": code, "message": message}
        fault.update(exit_status=exit_status, stdout=stdout, stderr=stderr, delay=delay, hang=hang)
        fault.update(kill_at=kill_at, match=match)
        with self._store.transaction() as tx:
            tx.state["faults"].append(fault)

    def clear_faults(self):
        """Remove all faults that have not struck."""
        with self._store.transaction() as tx:
            tx.state["faults"].clear()

    # -- other actors --------------------------------------------------------------------------------

    def start_hidden(self, name):
        """Start another product's VM: it takes a slot, but no listing of this product shows it."""
        if not self._store.quota.claim(f"foreign:{name}"):
            raise RuntimeError("no free slot for a foreign VM")

    def stop_hidden(self, name):
        """End the hidden VM and free its slot."""
        self._store.quota.release(f"foreign:{name}")

    def shutdown_all(self):
        """End every guest process and every command of this host; keep the files."""
        while True:
            pids = [*self.command_pids(), *(process.pid for process in self._store.guests.find())]
            if not pids:
                return
            processes.kill(pids)
            time.sleep(0.01)

    # -- what happened -------------------------------------------------------------------------------

    def slots(self):
        """Return the owners of the kernel's taken slots."""
        return self._store.quota.owners()

    def calls(self):
        """Return all invocations in order of start: dicts with argv, pid, start, end and status (None: killed or still running)."""
        calls = {}
        for line in self._lines("calls.jsonl"):
            calls.setdefault(line["call"], {"end": None, "status": None}).update(line)
        return list(calls.values())

    def events(self, *kinds):
        """Return the lines of events.jsonl, of these kinds or all."""
        return [event for event in self._lines("events.jsonl") if not kinds or event["event"] in kinds]

    def max_running(self):
        """Return the largest number of VMs that ever ran at once."""
        return max((event["running"] for event in self.events()), default=0)

    def _lines(self, name):
        path = self.home / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def command_pids(self):
        """Return the pids of the product's living commands on this host, agents of guests included."""
        return processes.commands(self._store.home, self.VARIABLE, (*self.PROGRAMS, *self.HELPERS))
