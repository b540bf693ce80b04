"""One invocation of a product's command, from its first line to its end.

Owns standard streams, the record in calls.jsonl, the fault that hits it, and the exit status of an emulator bug. Knows no
command.
"""

from __future__ import annotations

import os
import sys
import time

from . import faults

BUG = 70


class Call:
    """One invocation: its store, its switches, and the fault that hits it."""

    def __init__(self, store, argv):
        self.store = store
        self.argv = argv
        self.command = ""
        self.settings = {}
        self.fault = None

    def begin(self, command):
        """Read the switches and take the fault for `command` ("": none)."""
        with self.store.transaction() as tx:
            self.settings = tx.settings
            self.command = command
            self.fault = faults.take(tx, command, self.argv) if command else None

    def strike(self, point):
        """Let the fault strike if `point` is its point."""
        faults.strike(self.fault, point)

    def pause(self):
        """The middle of an effect: wait for the command's delay; a fault may strike."""
        self.pause_for_delay(self.command)
        self.strike("middle")

    def pause_for_delay(self, command):
        """Wait for the delay of a command."""
        time.sleep(self.delay(command))

    def delay(self, command):
        """The duration of a command's delay in seconds."""
        delays = self.settings["delays"]
        return delays.get(command, delays.get("*", 0))


def run(program, variable, argv, open_store, execute, interrupted=130):
    """Run one command line and end the process. `variable` names the host's directory in the environment."""
    _open_standard_streams()
    home = os.environ.get(variable, "")
    if not os.path.isdir(home):
        sys.stderr.write(f"{program}: {variable} does not name the state directory of an emulated host\n")
        os._exit(BUG)
    quota = os.environ.get("FAKE_KERNEL_QUOTA") or os.path.join(home, "kernel-quota.json")
    store = open_store(home, quota)
    noted = store.begin_call(argv)
    status = BUG
    try:
        status = execute(store, argv)
        sys.stderr.flush()
    except KeyboardInterrupt:
        status = interrupted
    except Exception:  # noqa: BLE001  a bug of the emulator must not look like an error of the product
        sys.excepthook(*sys.exc_info())
    store.end_call(noted, status)
    os._exit(status)  # skips the interpreter's unwinding, a tenth of a short command's time


def _open_standard_streams():
    """Open the standard streams that the caller left closed, so that no other file of ours takes their place."""
    while True:
        fd = os.open(os.devnull, os.O_RDWR)
        if fd > 2:
            os.close(fd)
            return
