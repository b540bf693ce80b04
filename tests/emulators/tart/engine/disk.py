"""Where an emulated host with Tart keeps its state: Tart's own folder, and what the emulator knows besides.

Owns these paths and names; how the state is kept whole is the shared part's matter. What VMs exist is said by Tart's folder
alone; which of them run is known by the operations in flight of kind `run`, one for each hypervisor that lives.
"""

from __future__ import annotations

import os

from emulators.vmhost import state

from .failure import TartError
from .settings import DEFAULTS


class Transaction(state.Transaction):
    """`registry` is by remote name; `addresses` are those given out, by MAC."""

    PARTS = ("registry", "addresses")
    DEFAULTS = DEFAULTS
    REPORTED = TartError

    @property
    def registry(self):
        """By remote name with tag: what the registry has."""
        return self.state["registry"]

    def running(self):
        """The uuids of the running VMs."""
        return [op["uuid"] for op in self.ops("run")]

    def machine(self, uuid):
        """The operation of the hypervisor that runs a disk, or None."""
        return next((op for op in self.ops("run") if op["uuid"] == uuid), None)

    def machine_of(self, vm):
        """The same for a VM, if that hypervisor is the one of the `tart run` that holds the lock. Not for `tart run` itself."""
        machine = self.machine(vm.disk()["uuid"])
        return machine if machine and machine["run"] == vm.pid() else None


class Store(state.Store):
    """The state directory of an emulated host, with Tart's folder (TART_HOME) in it or elsewhere."""

    MARKER = "FAKE_TART_VM"
    TRANSACTION = Transaction
    PRODUCT = "tart"
    FOLDERS = ("guests", "ops", "registry", "guest-bin")

    def __init__(self, home, quota_path, settle, tart_home=None):
        super().__init__(home, quota_path, settle)
        self.tart_home = os.path.realpath(tart_home) if tart_home else self.path("tart")

    def create(self):
        """Make the folders, Tart's too."""
        super().create()
        for name in ("vms", "cache/OCIs", "tmp"):
            os.makedirs(self.tart_path(name), exist_ok=True)

    def tart_path(self, *parts):
        """A path under Tart's folder."""
        return os.path.join(self.tart_home, *parts)
