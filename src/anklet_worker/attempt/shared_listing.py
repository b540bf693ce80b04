"""The latest listing of a host's VMs, in a file, so that one listing a minute serves all services of the host.

Owns that file and the age at which it no longer counts. Knows no driver.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from anklet_worker.contract.errors import UNREADABLE
from anklet_worker.files import write_atomically
from anklet_worker.vm.driver import VMInfo

#: Seconds between two listings, and the age up to which a listing of another service is good enough.
INTERVAL = 60.0


class _Listed(msgspec.Struct, frozen=True):
    at: float
    vms: list[VMInfo]


class SharedListing:
    """The listing in the file at `path`. `now` is in seconds of the monotonic clock, which all processes of a host share."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def share(self, listing: Sequence[VMInfo], now: float) -> None:
        """Write the listing for other services. If the disk refuses, each of them makes its own."""
        with contextlib.suppress(OSError):
            write_atomically(self._path, msgspec.json.encode(_Listed(now, list(listing))), durable=False)

    def latest(self, now: float) -> Sequence[VMInfo] | None:
        """Return the listing made within the last interval; None when there is none or when it is from before a reboot."""
        try:
            listed = msgspec.json.decode(self._path.read_bytes(), type=_Listed)
        except (OSError, *UNREADABLE):
            return None
        return listed.vms if 0 <= now - listed.at < INTERVAL else None
