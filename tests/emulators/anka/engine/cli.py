"""Entry point of the emulated `anka`: global options, dispatch, faults, output, exit status.

Owns the order of these steps. It records each invocation in calls.jsonl.
"""

from __future__ import annotations

import os
import sys

from emulators.vmhost import faults, invocation
from emulators.vmhost.guest import write_all
from emulators.vmhost.options import UsageError

from . import commands, lifecycle, reply, running
from .disk import Store
from .failure import AnkaError

_COMMANDS = {
    "version": commands.version,
    "license": commands.license_,
    "list": commands.list_,
    "show": commands.show,
    "clone": commands.clone,
    "start": commands.start,
    "stop": commands.stop,
    "suspend": commands.suspend,
    "reboot": commands.reboot,
    "delete": commands.delete,
    "modify": commands.modify,
    "cp": commands.cp,
    "registry": commands.registry_,
    "pull": commands.pull,
}
#: Commands of Anka 3.9 that the emulator refuses by name, so that a test that needs one fails with a clear message.
_NOT_EMULATED = (
    "config",
    "view",
    "create",
    "push",
    "mount",
    "unmount",
    "usb",
    "attach",
    "detach",
    "export",
    "import",
    "log",
)
_USAGE = "Usage: anka [options] <command>\n\nCommands: " + " ".join([*_COMMANDS, "run"]) + "\n"


class Call(invocation.Call):
    """One invocation, with Anka's global options."""

    def __init__(self, store, argv):
        super().__init__(store, argv)
        self.machine_readable = bool(os.environ.get("ANKA_MACHINE_READABLE"))
        self.debug = os.environ.get("ANKA_LOG_LEVEL") == "debug"


def main(argv):
    """Run one command line and end the process."""
    invocation.run("anka", "FAKE_ANKA_HOME", argv, _open_store, lambda store, argv: _execute(Call(store, argv)))


def _open_store(home, quota):
    return Store(home, quota, lifecycle.settle)


def _execute(call):
    try:
        args = _global_options(call)
        if args is None:
            return 0
        command = args[0] if args else ""
        call.begin(_name(args))
        if not args:
            write_all(1, _USAGE.encode())
            return 0
        return _dispatch(call, command, args[1:])
    except UsageError as error:
        sys.stderr.write(f"anka: {error}\nUsage: anka [options] <command>\n")
        with call.store.transaction() as tx:
            return tx.settings["usage_exit"]


def _global_options(call):
    """The arguments after the global options; None if --help was the only request."""
    rest = list(call.argv)
    while rest and rest[0].startswith("-"):
        arg = rest.pop(0)
        if arg in ("-j", "--machine-readable"):
            call.machine_readable = True
        elif arg == "--debug":
            call.debug = True
        elif arg == "--version":
            return ["version"]
        elif arg == "--help":
            write_all(1, _USAGE.encode())
            return None
        else:
            raise UsageError(f"unknown option: {arg}")
    return rest


def _name(args):
    """The command's name in faults and delays: `registry list` is one name, `registry pull` is `pull`."""
    if args[:1] != ["registry"]:
        return args[0] if args else ""
    words = [word for word in args[1:] if word in ("list", "list-repos", "show", "pull")]
    return "pull" if words[:1] == ["pull"] else " ".join(["registry", *words[:1]])


def _dispatch(call, command, rest):
    if command in _NOT_EMULATED:
        raise UsageError(f"command not emulated: {command}")
    if command != "run" and command not in _COMMANDS:
        raise UsageError(f"unknown command: {command}")
    try:
        call.strike("before")
        if command == "run":
            status, answer = running.run(call, rest), None
        else:
            status, answer = 0, _COMMANDS[command](call, rest)
        call.strike("after")
    except faults.Replaced as replaced:
        return _fault_reply(call, replaced.fault)
    except AnkaError as error:
        _print_error(call, error.message, error.code)
        status = call.settings["error_exit"] if error.status is None else error.status
        answer = None
    if answer is not None:
        _print(call, answer)
    _noise(call)
    return status


def _noise(call):
    commands.log_noise(call)
    if call.fault and call.fault["stderr"]:
        sys.stderr.write(call.fault["stderr"])


def _print(call, answer):
    if call.machine_readable:
        last = answer.as_json()
        lines = [*answer.lines_before, *([last] if last else [])]
        text = "\n".join(lines) + ("\n" if lines and answer.newline else "")
    else:
        text = answer.text + "\n" if answer.text else ""
    write_all(1, text.encode())


def _print_error(call, message, code):
    if call.machine_readable:
        write_all(1, (reply.error_json(message, code) + "\n").encode())
    else:
        sys.stderr.write(f"anka: {message}\n")


def _fault_reply(call, fault):
    """Print the fault's reply instead of the command's."""
    status = fault["exit_status"]
    if fault["code"] is not None or fault["message"] is not None:
        _print_error(call, fault["message"] or "injected fault", 1 if fault["code"] is None else fault["code"])
        status = call.settings["error_exit"] if status is None else status
    if fault["stdout"]:
        write_all(1, fault["stdout"].encode())
    _noise(call)
    return status or 0
