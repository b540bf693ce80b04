"""What Anka's state on disk consists of: VMs and templates, the registry, the switches.

Owns these names; how the state is kept whole is the shared part's matter.
"""

from __future__ import annotations

import time

from emulators.vmhost import state
from emulators.vmhost.state import new_uuid

from .failure import AnkaError
from .settings import DEFAULTS

__all__ = ["Store", "new_uuid", "utc"]


def utc(seconds=None):
    """RFC3339 UTC as Anka prints it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


class Transaction(state.Transaction):
    """`vms` and `registry` are by uuid."""

    PARTS = ("vms", "registry")
    DEFAULTS = DEFAULTS
    REPORTED = AnkaError

    @property
    def vms(self):
        """By uuid: VM or template."""
        return self.state["vms"]

    @property
    def registry(self):
        """By uuid: template in the registry."""
        return self.state["registry"]

    def running(self):
        """The uuids of the running VMs."""
        return [uuid for uuid, vm in self.vms.items() if vm["status"] == "running"]


class Store(state.Store):
    """The state directory of an emulated Anka."""

    MARKER = "FAKE_ANKA_VM"
    TRANSACTION = Transaction
    PRODUCT = "anka"
    FOLDERS = ("guests", "registry", "ops", "trash")
