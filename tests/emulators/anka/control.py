"""Controls an emulated host from a test or a demo: set it up, break it, inspect what happened.

Owns the public API of the emulator. It changes the same state as the commands do, under the same lock; it starts no command.
"""

from __future__ import annotations

import time
from pathlib import Path

from emulators.anka.engine import lifecycle, settings
from emulators.anka.engine.disk import Store, new_uuid
from emulators.vmhost import trees
from emulators.vmhost.control import Host


class _Silent:
    """Replaces a command's call: no fault strikes it and it takes no time."""

    def __init__(self, store):
        self.store = store

    def pause(self):
        """Do nothing in the middle of an effect."""


class AnkaHost(Host):
    """One emulated host with Anka, kept in the directory `home`. As a context manager, it ends all its processes on exit."""

    VARIABLE = "FAKE_ANKA_HOME"
    PROGRAMS = {"anka": "emulators.anka.engine.cli"}  # noqa: RUF012  a constant
    STATIC_BIN = Path(__file__).resolve().parent / "bin"
    CHOICES = settings.CHOICES

    def open_store(self):
        """Open Anka's state."""
        return Store(self.home, self.quota_path, lifecycle.settle)

    # -- setup ---------------------------------------------------------------------------------------

    def add_template(self, name, uuid=None, tag=None, home_files=None):
        """Add a local stopped template; its clones' guest homes start as a copy of the directory `home_files`. Returns its uuid."""
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
        """Add a template to the registry. `tags` oldest first; each adds a tenth of `size` (bytes) to the layers."""
        uuid = uuid or new_uuid()
        home = None
        if home_files is not None:
            home = self._store.path("registry", uuid, "home")
            trees.copy(str(home_files), home)
        entries = [{"tag": tag, "size": size, "cached": size - size // 10, "home": home} for tag in tags]
        with self._store.transaction() as tx:
            tx.registry[uuid] = {"uuid": uuid, "name": name, "created": time.time(), "tags": entries}
        return uuid

    # -- other actors --------------------------------------------------------------------------------

    def start_foreign(self, name, *, hidden=False):
        """Start another user's VM. A `hidden` one belongs to another product: it takes a slot, but no Anka listing shows it."""
        uuid = new_uuid()
        if hidden:
            self.start_hidden(name)
            return uuid
        with self._store.transaction() as tx:
            tx.vms[uuid] = lifecycle.new_vm(uuid, name)
            tx.end_op(lifecycle.bring_up(tx, tx.vms[uuid], name))
        return uuid

    def stop_foreign(self, name):
        """End a foreign VM, hidden or not, and free its slot."""
        self.stop_hidden(name)
        with self._store.transaction() as tx:
            uuids = [vm["uuid"] for vm in tx.vms.values() if vm["name"] == name]
        for uuid in uuids:
            self._halt(uuid, "stopped")
            with self._store.transaction() as tx:
                tx.event("deleted", tx.vms.pop(uuid))

    def halt(self, vm, *, status="stopped"):
        """Make the guest shut down ("stopped") or its hypervisor die ("failed")."""
        with self._store.transaction() as tx:
            uuid = lifecycle.resolve(tx, vm)["uuid"]
        self._halt(uuid, status)

    def _halt(self, uuid, status):
        lifecycle.go_down(_Silent(self._store), uuid, status=status)

    def reboot_host(self):
        """Restart the host: commands and guest processes die, VMs stop, and every slot becomes free, leaked ones too."""
        self.shutdown_all()
        self._store.quota.reset()
        with self._store.transaction() as tx:
            for vm in tx.vms.values():
                if vm["status"] == "running":
                    vm.update(status="stopped", stopping=False, boot=None, stopped=time.time())
            tx.event("host-rebooted")

    # -- what happened -------------------------------------------------------------------------------

    def vms(self):
        """Return all VMs and templates of the host as dicts with uuid, name, status, tag, ..."""
        with self._store.transaction() as tx:
            return list(tx.vms.values())

    def running(self):
        """Return the names of the running VMs."""
        return [vm["name"] for vm in self.vms() if vm["status"] == "running"]

    def guest_home(self, vm):
        """Return the home directory of a VM."""
        with self._store.transaction() as tx:
            return Path(self._store.guest_home(lifecycle.resolve(tx, vm)["uuid"]))

    def guest_processes(self, vm=None):
        """Return the living processes inside one VM, or inside all: objects with pid, vm (uuid) and argv."""
        uuids = None
        if vm is not None:
            with self._store.transaction() as tx:
                uuids = [lifecycle.resolve(tx, vm)["uuid"]]
        return self._store.guests.find(uuids)
