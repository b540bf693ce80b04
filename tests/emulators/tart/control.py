"""Controls an emulated host with Tart from a test or a demo: set it up, break it, inspect what happened.

Owns the public API of the emulator. It changes the same folders and the same state as the commands do, under the same locks.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import time
from pathlib import Path

from emulators.tart.engine import hypervisor, library, lifecycle, settings
from emulators.tart.engine.disk import Store
from emulators.tart.engine.names import is_remote, parse_remote
from emulators.vmhost import trees
from emulators.vmhost.control import Host
from emulators.vmhost.state import new_uuid

_PAUSE = 0.01


class TartHost(Host):
    """One emulated host with Tart, kept in the directory `home`. As a context manager, it ends all its processes on exit."""

    VARIABLE = "FAKE_TART_HOME"
    PROGRAMS = {"tart": "emulators.tart.engine.cli", "ssh": "emulators.tart.engine.ssh"}  # noqa: RUF012  a constant
    HELPERS = (hypervisor.PROGRAM,)
    STATIC_BIN = Path(__file__).resolve().parent / "bin"
    CHOICES = settings.CHOICES

    def __init__(self, home, quota=None):
        """`quota` is the file of the kernel's VM quota, which other emulators may share; default: a file inside `home`."""
        super().__init__(home, quota)
        self._foreign = {}
        self._make_guest_bin()

    def open_store(self):
        """Open Tart's state."""
        return Store(self.home, self.quota_path, lifecycle.settle)

    def _make_guest_bin(self):
        """Install the guest's own `sudo` and `shutdown`: a job that shuts its VM down must not shut down this machine."""
        shutdown = '#!/bin/sh\nkill -USR1 "$(cat "$HOME/../hypervisor")"\nexec sleep 60\n'
        sudo = '#!/bin/sh\nwhile case "${1:-}" in -*) ;; *) false ;; esac; do shift; done\nexec "$@"\n'
        for name, text in (("shutdown", shutdown), ("halt", shutdown), ("poweroff", shutdown), ("sudo", sudo)):
            program = self.home / "guest-bin" / name
            if not program.exists():
                program.write_text(text)
                program.chmod(0o755)

    # -- setup ---------------------------------------------------------------------------------------

    def add_image(self, name, *, home_files=None, agent=True, sshd=True, os_name="darwin", disk_gb=50):
        """Add a local stopped VM or, for a remote name, an image in the cache. Returns the uuid of its disk.

        The guest homes of its clones start as a copy of the directory `home_files`. `agent`: the guest answers `tart exec`.
        `sshd`: the guest answers ssh. `os_name` is "darwin" or "linux"; Linux does not count against the limit.
        """
        disk = self._disk(agent=agent, sshd=sshd, os_name=os_name, disk_gb=disk_gb)
        config = library.new_config(os_name)
        self._put_home(disk["uuid"], home_files)
        if is_remote(name):
            remote = parse_remote(name)
            path = library.image_path(self._store, remote.by_digest(_digest(name, disk["uuid"])))
            library.write(path, config, disk)
            Path(library.image_path(self._store, remote)).symlink_to(path)
        else:
            library.write(self._store.tart_path("vms", name), config, disk)
        with self._store.transaction() as tx:
            tx.event("template-added", {"uuid": disk["uuid"], "name": name})
        return disk["uuid"]

    def add_registry_image(self, name, *, home_files=None, agent=True, sshd=True, os_name="darwin", disk_gb=50):
        """Add an image to the registry under a remote name with a tag; a second call moves the tag. Returns its digest."""
        disk = self._disk(agent=agent, sshd=sshd, os_name=os_name, disk_gb=disk_gb)
        digest = _digest(name, disk["uuid"])
        home = None
        if home_files is not None:
            home = self._store.path("registry", disk["uuid"])
            trees.copy(str(home_files), home)
        entry = {**disk, "digest": digest, "config": library.new_config(os_name), "home": home}
        del entry["uuid"]
        with self._store.transaction() as tx:
            tx.registry[str(parse_remote(name))] = entry
        return digest

    def _disk(self, *, agent, sshd, os_name, disk_gb):
        uuid = new_uuid()
        facts = {"agent": agent, "sshd": sshd, "os": os_name, "host_key": uuid}
        return {"uuid": uuid, "disk_gb": disk_gb, "size_gb": disk_gb // 2, **facts}

    def _put_home(self, uuid, home_files):
        home = Path(self._store.guest_home(uuid))
        home.mkdir(parents=True)
        if home_files is not None:
            trees.copy(str(home_files), str(home))

    # -- other actors --------------------------------------------------------------------------------

    def start_foreign(self, name, *, hidden=False):
        """Start another user's VM. A `hidden` one belongs to another product: it takes a slot, but no Tart listing shows it."""
        if hidden:
            self.start_hidden(name)
            return
        self.add_image(name)
        self._foreign[name] = subprocess.Popen(
            [str(self.bin_dir / "tart"), "run", "--no-graphics", name],
            env=self.environ(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._until(lambda: name in self.running() or self._foreign[name].poll() is not None)
        if self._foreign[name].poll() is not None:
            raise RuntimeError("no free slot for a foreign VM")

    def stop_foreign(self, name):
        """End a foreign VM, hidden or not, and free its slot."""
        self.stop_hidden(name)
        process = self._foreign.pop(name, None)
        if process is None:
            return
        process.send_signal(signal.SIGINT)
        process.wait()
        vm = library.open_local(self._store, name)
        with self._store.transaction() as tx:
            tx.event("deleted", {"uuid": vm.disk()["uuid"], "name": name})
            library.discard(self._store, vm.path)

    def halt(self, vm, *, status="stopped"):
        """Make the guest shut down ("stopped") or its hypervisor fail ("failed"); return when the VM has ended."""
        uuid = library.open_local(self._store, vm).disk()["uuid"]
        with self._store.transaction() as tx:
            machine = tx.machine(uuid)
            if machine is None:
                return
            os.kill(machine["pid"], hypervisor.HALT if status == "stopped" else hypervisor.CRASH)
        self._until(lambda: vm not in self.running() and not library.open_local(self._store, vm).pid())

    def _until(self, condition, seconds=20):
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise RuntimeError("the emulated host did not reach the requested state in time")
            time.sleep(_PAUSE)

    def reboot_host(self):
        """Restart the host: commands, VMs and guest processes die; every slot becomes free, leaked ones too."""
        self.shutdown_all()
        self._store.quota.reset()
        with self._store.transaction() as tx:
            tx.event("host-rebooted")

    def shutdown_all(self):
        """End every guest process and every command of this host, including `tart run`; keep the files."""
        super().shutdown_all()
        for process in self._foreign.values():
            process.wait()
        self._foreign.clear()
        self._until(lambda: not self.running())  # a dying process may hold its locks for a moment

    # -- what happened -------------------------------------------------------------------------------

    def vms(self):
        """Return all local VMs as dicts with uuid, name, status, mac, pid (of `tart run`, 0 for none), agent, sshd, os, ..."""
        found = []
        for vm in library.local(self._store):
            with contextlib.suppress(FileNotFoundError):  # deleted a moment ago
                more = {"name": vm.name, "status": vm.state(), "mac": vm.config()["macAddress"], "pid": vm.pid()}
                found.append({**vm.disk(), **more})
        return found

    def images(self):
        """Return the names of all pulled images: each by digest, and by tag if it has one."""
        return [image.name for image in library.images(self._store)]

    def running(self):
        """Return the names of the running VMs: those with a living hypervisor."""
        with self._store.transaction() as tx:
            return [op["name"] for op in tx.ops("run")]

    def vm_pids(self, vm):
        """Return the pids of a running VM's processes, `tart run` and its hypervisor; [] if it does not run."""
        found = library.open_local(self._store, vm)
        with self._store.transaction() as tx:
            machine = tx.machine(found.disk()["uuid"])
        return [pid for pid in (found.pid(), machine and machine["pid"]) if pid]

    def guest_home(self, vm):
        """Return the home directory of a VM."""
        return Path(self._store.guest_home(library.open_local(self._store, vm).disk()["uuid"]))

    def guest_processes(self, vm=None):
        """Return the living processes inside one VM, or inside all: objects with pid, vm (uuid) and argv."""
        uuids = None if vm is None else [library.open_local(self._store, vm).disk()["uuid"]]
        return self._store.guests.find(uuids)


def _digest(name, uuid):
    return "sha256:" + hashlib.sha256(f"{name} {uuid}".encode()).hexdigest()
