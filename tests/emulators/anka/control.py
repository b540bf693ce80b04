"""The hand of a test or a demo on an emulated host: set it up, break it, look at what happened.

Owns the public face of the emulator. Changes the same state as the commands do, under the same lock; starts no command.
"""

from __future__ import annotations

import time
from pathlib import Path

from emulators.anka.engine import lifecycle, settings
from emulators.anka.engine.disk import Store, new_uuid
from emulators.vmhost import trees
from emulators.vmhost.control import Host


class _Silent:
    """Stands where a command's call stands: no fault strikes it and it takes no time."""

    def __init__(self, store):
        self.store = store

    def pause(self):
        """Nothing happens in the middle."""


class AnkaHost(Host):
    """One emulated host with Anka, kept in the directory `home`. As a context manager it ends every process it has at the end."""

    VARIABLE = "FAKE_ANKA_HOME"
    PROGRAMS = {"anka": "emulators.anka.engine.cli"}  # noqa: RUF012  a constant
    STATIC_BIN = Path(__file__).resolve().parent / "bin"
    CHOICES = settings.CHOICES

    def open_store(self):
        """Anka's state."""
        return Store(self.home, self.quota_path, lifecycle.settle)

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

    # -- what others do ------------------------------------------------------------------------------

    def start_foreign(self, name, *, hidden=False):
        """Somebody else's VM, running. A `hidden` one belongs to another product: it takes a slot but is in no Anka listing."""
        uuid = new_uuid()
        if hidden:
            self.start_hidden(name)
            return uuid
        with self._store.transaction() as tx:
            tx.vms[uuid] = lifecycle.new_vm(uuid, name)
            tx.end_op(lifecycle.bring_up(tx, tx.vms[uuid], name))
        return uuid

    def stop_foreign(self, name):
        """End a foreign VM, hidden or not, and give its slot back."""
        self.stop_hidden(name)
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

    # -- what happened -------------------------------------------------------------------------------

    def vms(self):
        """Every VM and template of the host: a list of dicts with uuid, name, status, tag, ..."""
        with self._store.transaction() as tx:
            return list(tx.vms.values())

    def running(self):
        """The names of the running VMs."""
        return [vm["name"] for vm in self.vms() if vm["status"] == "running"]

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
        return self._store.guests.find(uuids)
