"""The state of an emulated host with Tart: Tart's own folder, and the emulator's additional state.

Owns these paths and names; vmhost/state.py keeps the state consistent. Tart's folder alone defines which VMs exist. The
operations in flight of kind `run`, one for each living hypervisor, define which of them run.
"""

from __future__ import annotations

import os

from emulators.vmhost import state

from .failure import TartError
from .settings import DEFAULTS


class Transaction(state.Transaction):
    """A transaction with `registry` (by remote name) and `addresses` (given out, by MAC)."""

    PARTS = ("registry", "addresses")
    DEFAULTS = DEFAULTS
    REPORTED = TartError

    @property
    def registry(self):
        """The contents of the registry, by remote name with tag."""
        return self.state["registry"]

    def running(self):
        """Return the uuids of the running VMs."""
        return [op["uuid"] for op in self.ops("run")]

    def machine(self, uuid):
        """Return the operation of the hypervisor that runs a disk, or None."""
        return next((op for op in self.ops("run") if op["uuid"] == uuid), None)

    def machine_of(self, vm):
        """The same for a VM, if the `tart run` that holds the lock started that hypervisor. Not for `tart run` itself."""
        machine = self.machine(vm.disk()["uuid"])
        return machine if machine and machine["run"] == vm.pid() else None


class Store(state.Store):
    """The state directory of an emulated host. Tart's folder (TART_HOME) is inside it or elsewhere."""

    MARKER = "FAKE_TART_VM"
    TRANSACTION = Transaction
    PRODUCT = "tart"
    FOLDERS = ("guests", "ops", "registry", "guest-bin")

    def __init__(self, home, quota_path, settle, tart_home=None):
        super().__init__(home, quota_path, settle)
        self.tart_home = os.path.realpath(tart_home) if tart_home else self.path("tart")

    def create(self):
        """Create the folders, including Tart's."""
        super().create()
        for name in ("vms", "cache/OCIs", "tmp"):
            os.makedirs(self.tart_path(name), exist_ok=True)

    def tart_path(self, *parts):
        """A path under Tart's folder."""
        return os.path.join(self.tart_home, *parts)
