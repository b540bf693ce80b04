"""The guest: the operating system inside a job's VM, as a plugin sees it. Run a script, copy a file in, copy a file out.

Knows no VM tool and no job.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import msgspec

#: The name of every VM made by this program starts with this. The install id of its host comes next.
NAME_PREFIX = "anklet-vm-"


class GuestResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a script that ran to its end.

    `output` is the end of standard output and standard error together, decoded as UTF-8; bytes that are not UTF-8 are replaced.
    """

    status: int
    output: str


class Guest(Protocol):
    """The guest of the VM in which a plugin drives its job.

    Each call blocks. Each may raise `Interrupted` or `Detached` when the supervisor sends an order; let both pass through.
    """

    @property
    def name(self) -> str:
        """The VM's name. It is never used again, and it is a valid runner name: at most 63 characters of [a-z0-9-]."""
        ...

    def run(self, script: str, *, env: Mapping[str, str], timeout: float, looks_only: bool = False) -> GuestResult:
        """Run a bash script in the guest's home directory, for at most `timeout` seconds.

        `env` is exported before the script starts. Script and environment travel on standard input, never on a command line, so
        both may contain secrets. A script that exits with a status other than 0 is a result, not an error.

        Set `looks_only` for a script that only waits for something and changes nothing. Then any order of the supervisor ends the
        call, and no later process waits for the script to finish.

        Raises `VMError` when the script did not end in time or the guest was lost.
        """
        ...

    def copy_in(self, source: Path) -> None:
        """Copy the host file `source` to the guest's home directory, under the same file name. Raises `VMError`."""
        ...

    def copy_out(self, path: str, target: Path) -> None:
        """Copy a guest file to the host file `target`. `path` is relative to the guest's home directory. Raises `VMError`."""
        ...
