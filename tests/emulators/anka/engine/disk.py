"""The contents of Anka's state on disk: VMs and templates, the registry, the switches.

Owns these names; vmhost/state.py keeps the state consistent.
"""

from __future__ import annotations

import time

from emulators.vmhost import state
from emulators.vmhost.state import new_uuid

from .failure import AnkaError
from .settings import DEFAULTS

__all__ = ["Store", "new_uuid", "utc"]


def utc(seconds=None):
    """RFC 3339 UTC, in Anka's format."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


class Transaction(state.Transaction):
    """A transaction with `vms` and `registry`, both by uuid."""

    PARTS = ("vms", "registry")
    DEFAULTS = DEFAULTS
    REPORTED = AnkaError

    @property
    def vms(self):
        """VMs and templates, by uuid."""
        return self.state["vms"]

    @property
    def registry(self):
        """The templates in the registry, by uuid."""
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
