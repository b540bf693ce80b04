"""What a plugin sees of a VM: its name, scripts, files.

Knows no driver and no job.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import msgspec

#: Every VM of any Anklet bears this prefix; ours bear our install id behind it.
NAME_PREFIX = "anklet-vm-"


class GuestResult(msgspec.Struct, frozen=True, kw_only=True):
    """A guest command that ran to its end: its exit status and the tail of its output (merged, UTF-8 with replacement)."""

    status: int
    output: str


class Guest(Protocol):
    """What a plugin may do inside the VM of the job that it drives."""

    @property
    def name(self) -> str:
        """The VM's name, unique for ever; fit to be a runner's name (at most 63 characters of [a-z0-9-])."""
        ...

    def run(self, script: str, *, env: Mapping[str, str], timeout: float, looks_only: bool = False) -> GuestResult:
        """Run a bash script in the guest's home; `env` is exported first. Both travel on standard input, never in an argv.

        A script that `looks_only` waits for something and changes nothing: an order ends it, and nobody waits for it.
        Raises `VMError` when its end was not seen within `timeout` seconds.
        """
        ...

    def copy_in(self, source: Path) -> None:
        """Copy a host file to the guest's home. Raises `VMError`."""
        ...

    def copy_out(self, path: str, target: Path) -> None:
        """Copy a file of the guest, named relative to its home, to the host file `target`. Raises `VMError`."""
        ...
