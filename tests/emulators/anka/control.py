"""The hand of a test or a demo on an emulated host: set it up, break it, look at what happened.

Owns the public face of the emulator. Changes the same state as the commands do, under the same lock; starts no command.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from emulators.anka.engine import lifecycle, processes, settings, trees
from emulators.anka.engine.disk import Store, new_uuid

_TESTS = Path(__file__).resolve().parents[2]
_STATIC_BIN = Path(__file__).resolve().parent / "bin"
_LONGEST_SHEBANG = 120


class _Silent:
    """Stands where a command's call stands: no fault strikes it and it takes no time."""

    def __init__(self, store):
        self.store = store

    def pause(self):
        """Nothing happens in the middle."""


class AnkaHost:
    """One emulated host, kept in the directory `home`. As a context manager it ends every process it has at the end."""

    def __init__(self, home, quota=None):
        """`quota` is the file of the kernel's VM quota, to be shared with other emulators; default: inside `home`."""
        self.home = Path(home)
        self.home.mkdir(parents=True, exist_ok=True)
        self.quota_path = Path(quota) if quota else self.home / "kernel-quota.json"
        self._store = Store(self.home, self.quota_path, lifecycle.settle)
        self._store.create()
        self.bin_dir = self._make_bin()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.shutdown_all()

    # -- for the program under test ------------------------------------------------------------------

    def env(self):
        """The variables the commands need; prepend `bin_dir` to PATH besides."""
        return {"FAKE_ANKA_HOME": str(self.home), "FAKE_KERNEL_QUOTA": str(self.quota_path)}

    def environ(self, **more):
        """This process's environment with `env()`, `more`, and `bin_dir` first on PATH."""
        path = f"{self.bin_dir}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        return {**os.environ, **self.env(), "PATH": path, **more}

    def _make_bin(self):
        """A copy of bin/anka that names this interpreter: no search along PATH, which may lead to another version or a shim."""
        shebang = f"#!{os.path.realpath(sys.executable)} -SE\n"
        if " " in shebang[:-5] or len(shebang) > _LONGEST_SHEBANG:
            return _STATIC_BIN
        folder = self.home / "bin"
        folder.mkdir(exist_ok=True)
        program = folder / "anka"
        if not program.exists():
            lines = (
                "import sys",
                f"sys.path.insert(0, {str(_TESTS)!r})",
                "from emulators.anka.engine.cli import main",
                "main(sys.argv[1:])",
            )
            program.write_text(shebang + "\n".join(lines) + "\n")
            program.chmod(0o755)
        return folder

    # -- what the host has ---------------------------------------------------------------------------

    def add_template(self, name, uuid=None, tag=None, home_files=None):
        """A local, stopped template; its clones' guest homes begin as a copy of the directory `home_files`. Returns its uuid."""
        uuid = uuid or new_uuid()
        image = None
        if home_files is not None:
            image = self._store.path("images", uuid)
            trees.copy(str(home_files), image)
        with self._store.transaction() as tx:
            more = {"image": image, "tag": tag, "tags": {tag: image} if tag else {}}
            tx.vms[uuid] = lifecycle.new_vm(uuid, name, **more)
            tx.event("template-added", tx.vms[uuid])
        return uuid

    def add_registry_template(self, name, uuid=None, *, tags=("v1",), size=30 * settings.GIB, home_files=None):
        """A template in the registry. `tags` oldest first; each adds a tenth of `size` (bytes) to its predecessor's layers."""
        uuid = uuid or new_uuid()
        home = None
        if home_files is not None:
            home = self._store.path("registry", uuid, "home")
            trees.copy(str(home_files), home)
        entries = [{"tag": tag, "size": size, "cached": size - size // 10, "home": home} for tag in tags]
        with self._store.transaction() as tx:
            tx.registry[uuid] = {"uuid": uuid, "name": name, "created": time.time(), "tags": entries}
        return uuid

    def set(self, **changes):
        """Turn switches (see README.md); ValueError for one that does not exist."""
        settings.check(changes)
        with self._store.transaction() as tx:
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
        """Let the next `times` (None: all) invocations of `command` ("clone", "pull", "registry list", "*") fail.

        `match` is a regular expression searched in the arguments joined by spaces. `when` says at which point the fault strikes:
        "before" any effect, in the "middle" of it, or "after" all of it; there it waits `delay` seconds, hangs for ever, or
        replaces the reply: an ERROR with `code` and `message`, the text `stdout` ("" for nothing) and `exit_status`.
        `kill_at` is the point where the command dies by SIGKILL. `stderr` alone adds text to an otherwise sound reply.
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
        """Forget all faults that have not struck."""
        with self._store.transaction() as tx:
            tx.state["faults"].clear()

    # -- what others do ------------------------------------------------------------------------------

    def start_foreign(self, name, *, hidden=False):
        """Somebody else's VM, running. A `hidden` one belongs to another product: it takes a slot but is in no Anka listing."""
        uuid = new_uuid()
        if hidden:
            if not self._store.quota.claim(f"foreign:{name}"):
                raise RuntimeError("no free slot for a foreign VM")
            return uuid
        with self._store.transaction() as tx:
            tx.vms[uuid] = lifecycle.new_vm(uuid, name)
            tx.end_op(lifecycle.bring_up(tx, tx.vms[uuid], name))
        return uuid

    def stop_foreign(self, name):
        """End a foreign VM, hidden or not, and give its slot back."""
        self._store.quota.release(f"foreign:{name}")
        with self._store.transaction() as tx:
            uuids = [vm["uuid"] for vm in tx.vms.values() if vm["name"] == name]
        for uuid in uuids:
            self._halt(uuid, "stopped")
            with self._store.transaction() as tx:
                tx.event("deleted", tx.vms.pop(uuid))

    def halt(self, vm, *, status="stopped"):
        """The guest shuts itself down ("stopped") or its hypervisor dies ("failed")."""
        with self._store.transaction() as tx:
            uuid = lifecycle.resolve(tx, vm)["uuid"]
        self._halt(uuid, status)

    def _halt(self, uuid, status):
        lifecycle.go_down(_Silent(self._store), uuid, status=status)

    def reboot_host(self):
        """The host restarts: commands and guest processes die, VMs are stopped, every slot is free, leaked ones too."""
        self.shutdown_all()
        self._store.quota.reset()
        with self._store.transaction() as tx:
            for vm in tx.vms.values():
                if vm["status"] == "running":
                    vm.update(status="stopped", stopping=False, boot=None, stopped=time.time())
            tx.event("host-rebooted")

    def shutdown_all(self):
        """End every guest process and every command of this host; the files stay."""
        while True:
            pids = [*self.command_pids(), *(process.pid for process in self.guest_processes())]
            if not pids:
                return
            processes.kill(pids)
            time.sleep(0.01)

    # -- what happened -------------------------------------------------------------------------------

    def vms(self):
        """Every VM and template of the host: a list of dicts with uuid, name, status, tag, ..."""
        with self._store.transaction() as tx:
            return list(tx.vms.values())

    def running(self):
        """The names of the running VMs."""
        return [vm["name"] for vm in self.vms() if vm["status"] == "running"]

    def slots(self):
        """The owners of the kernel's taken slots."""
        return self._store.quota.owners()

    def calls(self):
        """Every invocation in order of its begin: dicts with argv, pid, start, end and status (None: killed, or not ended yet)."""
        calls = {}
        for line in self._lines("calls.jsonl"):
            calls.setdefault(line["call"], {"end": None, "status": None}).update(line)
        return list(calls.values())

    def events(self, *kinds):
        """The lines of events.jsonl, of these kinds or all."""
        return [event for event in self._lines("events.jsonl") if not kinds or event["event"] in kinds]

    def max_running(self):
        """The largest number of VMs that ever ran at once."""
        return max((event["running"] for event in self.events()), default=0)

    def _lines(self, name):
        path = self.home / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def guest_home(self, vm):
        """The directory that is a VM's home."""
        with self._store.transaction() as tx:
            return Path(self._store.guest_home(lifecycle.resolve(tx, vm)["uuid"]))

    def guest_processes(self, vm=None):
        """The living processes inside one VM, or inside all: objects with pid, vm (uuid) and argv."""
        uuids = None
        if vm is not None:
            with self._store.transaction() as tx:
                uuids = [lifecycle.resolve(tx, vm)["uuid"]]
        return processes.find(self._store.path("guests"), uuids)

    def command_pids(self):
        """The pids of `anka` processes of this host that live, agents of guests included."""
        return processes.commands(self._store.home)
