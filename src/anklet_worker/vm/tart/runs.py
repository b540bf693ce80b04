"""The `tart run` processes of this host's VMs of ours: a note of each, and what it printed, in files named after the VM.

A `tart run` outlives the worker that launched it; by these files a later one finds it, its last words, and how its guest is
reached. Whether a VM runs is Tart's to say, never these files'.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from enum import Enum
from pathlib import Path

import msgspec

from anklet_worker.contract.errors import UNREADABLE
from anklet_worker.files import make_private_dir, remove, write_atomically
from anklet_worker.process.command import InFlight, launched_with, settle_in_flight
from anklet_worker.state_layout import Place
from anklet_worker.vm.tart.output import last_lines

#: Bytes of a `tart run`'s output that are looked at.
_TAIL = 8 * 1024


class Access(Enum):
    """By what a guest takes commands."""

    #: Tart's guest agent, by `tart exec`.
    AGENT = "agent"
    SSH = "ssh"


class TartRun(msgspec.Struct, frozen=True, kw_only=True):
    """One `tart run`: its process, and how its guest is reached, once that is known."""

    process: InFlight
    access: Access | None = None


class TartRuns:
    """The notes, kept in `folder`."""

    def __init__(self, folder: Path) -> None:
        make_private_dir(folder)
        self._folder = folder

    def output(self, vm: str) -> Path:
        """Where the `tart run` of this VM prints to."""
        return Place.TART_RUN_OUTPUT.in_folder(self._folder, vm)

    def note(self, vm: str, run: TartRun) -> None:
        """Remember it. Raises `OSError`."""
        write_atomically(self._note(vm), msgspec.json.encode(run), durable=False)

    def of(self, vm: str) -> TartRun | None:
        """What is remembered of the VM's `tart run`."""
        try:
            return msgspec.json.decode(self._note(vm).read_bytes(), type=TartRun)
        except (OSError, *UNREADABLE):
            return None

    def last_words(self, vm: str) -> str:
        """The last lines that it printed."""
        try:
            return last_lines(self.output(vm).read_bytes()[-_TAIL:].decode(errors="replace"))
        except OSError:
            return ""

    def settle(self, vm: str, patience: float, wait: Callable[[float], None]) -> None:
        """See to it that the process is gone: wait for `patience` seconds, then end it. Raises `VMTransient`."""
        run = self.of(vm)
        if run is not None:
            settle_in_flight(run.process, patience, wait)
        elif self.output(vm).exists():
            # Whoever launched it died, or had no disk, before it could be noted.
            for process in launched_with("run", vm):
                settle_in_flight(process, patience, wait)

    def forget(self, vm: str) -> None:
        """The VM is gone."""
        for path in (self._note(vm), self.output(vm)):
            with contextlib.suppress(OSError):
                remove(path)

    def _note(self, vm: str) -> Path:
        return Place.TART_RUN_NOTE.in_folder(self._folder, vm)
