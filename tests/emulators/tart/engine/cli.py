"""Entry point of the emulated `tart`: dispatch, faults, errors, exit status.

Owns the order of these steps. It records each invocation in calls.jsonl.
"""

from __future__ import annotations

import os
import sys

from emulators.vmhost import faults, invocation
from emulators.vmhost.guest import write_all
from emulators.vmhost.options import UsageError

from . import commands, inside, library, lifecycle, running
from .disk import Store
from .failure import TartError

#: Command name -> (function, version that introduced it).
_COMMANDS = {
    "clone": (commands.clone, "0"),
    "run": (running.run, "0"),
    "set": (commands.set_, "0"),
    "get": (commands.get, "0"),
    "list": (commands.list_, "0"),
    "login": (commands.login, "0"),
    "ip": (commands.ip, "0"),
    "exec": (inside.exec_, "2.27"),
    "pull": (commands.pull, "0"),
    "prune": (commands.prune, "0"),
    "rename": (commands.rename, "0"),
    "stop": (commands.stop, "0"),
    "delete": (commands.delete, "0"),
    "fqn": (commands.fqn, "0"),
    "suspend": (commands.suspend, "0"),
}
#: Commands of Tart that the emulator refuses by name, so that a test that needs one fails with a clear message.
_NOT_EMULATED = ("create", "logout", "push", "import", "export")
#: These commands may work in tmp/, so they do not clean it first.
_NO_COLLECTION = ("pull", "clone")
_USAGE = 64


class Call(invocation.Call):
    """One invocation, together with the emulated version."""

    def has(self, version):
        """Return True if the emulated version has the features of `version`."""
        return _parts(self.settings["version"]) >= _parts(version)


def _parts(version):
    return [int(part) for part in version.split(".")]


def main(argv):
    """Run one command line and end the process."""
    invocation.run("tart", "FAKE_TART_HOME", argv, open_store, lambda store, argv: _execute(Call(store, argv)), 1)


def open_store(home, quota):
    """Open the state of the host that the environment names."""
    elsewhere = os.environ.get("TART_HOME")
    store = Store(home, quota, lifecycle.settle, elsewhere)
    if elsewhere:
        store.create()
    return store


def _execute(call):
    command = call.argv[0] if call.argv else ""
    call.begin(command)
    if command in ("", "--help", "-h", "help"):
        write_all(1, _overview(call).encode())
        return 0
    if command == "--version":
        write_all(1, f"{call.settings['version']}\n".encode())
        return 0
    try:
        status = _dispatch(call, command)
    except UsageError as error:
        sys.stderr.write(
            f"Error: {error}\nUsage: tart {command} <options>\n  See 'tart {command} --help' for more information.\n"
        )
        status = _USAGE
    if call.settings["stderr_noise"]:
        sys.stderr.write(call.settings["stderr_noise"] + "\n")
    return status


def _dispatch(call, command):
    if command in _NOT_EMULATED:
        raise UsageError(f"command not emulated: {command}")
    function, since = _COMMANDS.get(command, (None, "0"))
    if function is None or not call.has(since):
        kind = "Unknown option" if command.startswith("-") else "Unexpected argument"
        sys.stderr.write(
            f"Error: {kind} '{command}'\nUsage: tart <subcommand>\n  See 'tart --help' for more information.\n"
        )
        return _USAGE
    try:
        call.strike("before")
        if command not in _NO_COLLECTION:
            library.collect_temporary(call.store)
        status = function(call, call.argv[1:]) or 0
        if command != "run":
            call.strike("after")
    except faults.Replaced as replaced:
        return _fault_reply(replaced.fault)
    except TartError as error:
        sys.stderr.write(f"{'Error: ' if error.foreign else ''}{error.message}\n")
        status = error.status
    if call.fault and call.fault["stderr"]:
        sys.stderr.write(call.fault["stderr"])
    return status


def _fault_reply(fault):
    """Print the fault's reply instead of the command's. The status is its exit_status, its code, or 1 for a message."""
    if fault["message"] is not None:
        sys.stderr.write(f"{fault['message']}\n")
    if fault["stdout"]:
        write_all(1, fault["stdout"].encode())
    if fault["stderr"]:
        sys.stderr.write(fault["stderr"])
    if fault["exit_status"] is not None:
        return fault["exit_status"]
    return fault["code"] if fault["code"] is not None else int(fault["message"] is not None)


def _overview(call):
    names = [name for name, (_, since) in _COMMANDS.items() if call.has(since)]
    return f"USAGE: tart <subcommand>\n\nSUBCOMMANDS:\n  {' '.join(names)}\n"
