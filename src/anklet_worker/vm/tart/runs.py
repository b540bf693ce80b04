"""The `tart run` processes of our VMs on this host: a note of each, and its output, in files named after the VM.

A `tart run` outlives the worker that launched it. By these files a later worker finds the process, its last words, and the way
to reach its guest. They never tell that a VM runs: only Tart does.
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

#: Bytes at the end of a `tart run`'s output that are read.
_TAIL = 8 * 1024


class Access(Enum):
    """The way by which a guest takes commands."""

    #: Tart's guest agent, by `tart exec`.
    AGENT = "agent"
    SSH = "ssh"


class TartRun(msgspec.Struct, frozen=True, kw_only=True):
    """One `tart run`: its process, and the way to reach its guest, once known."""

    process: InFlight
    access: Access | None = None


class TartRuns:
    """The notes in `folder`."""

    def __init__(self, folder: Path) -> None:
        make_private_dir(folder)
        self._folder = folder

    def output(self, vm: str) -> Path:
        """The file to which the `tart run` of this VM prints."""
        return Place.TART_RUN_OUTPUT.in_folder(self._folder, vm)

    def note(self, vm: str, run: TartRun) -> None:
        """Write the note. Raises `OSError`."""
        write_atomically(self._note(vm), msgspec.json.encode(run), durable=False)

    def of(self, vm: str) -> TartRun | None:
        """The note of the VM's `tart run`; None without a readable one."""
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
        """Wait `patience` seconds for the process to end, then end it. Raises `VMTransient` when it does not end."""
        run = self.of(vm)
        if run is not None:
            settle_in_flight(run.process, patience, wait)
        elif self.output(vm).exists():
            # The worker that launched it died before it wrote the note, or the disk was full.
            for process in launched_with("run", vm):
                settle_in_flight(process, patience, wait)

    def forget(self, vm: str) -> None:
        """The VM is gone: remove its files."""
        for path in (self._note(vm), self.output(vm)):
            with contextlib.suppress(OSError):
                remove(path)

    def _note(self, vm: str) -> Path:
        return Place.TART_RUN_NOTE.in_folder(self._folder, vm)
