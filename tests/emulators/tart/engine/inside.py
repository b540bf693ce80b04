"""Commands in guests: `tart exec`, and the parts that the emulated ssh shares with it.

Owns the guest's environment and the meaning of an exit status. Knows neither the pipes nor the options of ssh.
The guest agent is a Go program. It reports a command that it cannot start as an error of the call, and a death by signal as
status -1. It waits for the command, not for the end of output, and it kills the command when the caller goes away.
"""

from __future__ import annotations

import os
import time

from emulators.vmhost import guest
from emulators.vmhost.options import UsageError, option, parse

from . import library
from .failure import TartError, no_agent, not_running


def exec_(call, args):
    """`tart exec [-i] [-t] NAME COMMAND...`; returns the exit status."""
    parsed = parse(args, {**option("-i"), **option("-t")}, least=2, interleaved=False)
    name, *argv = parsed.positionals
    if parsed["t"]:
        raise UsageError("exec: -t is not emulated: there is no terminal")
    vm = library.open_local(call.store, name)
    if not vm.pid():
        raise not_running(name)
    process = _begin(call, vm, argv)
    call.strike("middle")
    write_out = _LosesTail() if _tail_is_lost(call) else lambda data: guest.write_all(1, data)
    until_eof = call.settings["exec_waits_for"] == "eof"
    status = guest.Relay(process, write_out, until_eof=until_eof, from_stdin=bool(parsed["i"])).run()
    process.let_go()
    if status != 0 and is_lost(call, process):
        raise TartError(call.settings["exec_lost_message"], foreign=True)
    return status if status is not None and status >= 0 else 255


class _LosesTail:
    """Standard output that loses its last piece: the agent may see the command's end before that piece."""

    def __init__(self):
        self._held = b""

    def __call__(self, data):
        guest.write_all(1, self._held)
        self._held = data


def _tail_is_lost(call):
    with call.store.transaction() as tx:
        left = tx.settings["exec_tail_lost"]
        if left > 0:
            tx.state["settings"]["exec_tail_lost"] = left - 1
        return left != 0


def _begin(call, vm, argv):
    uuid = vm.disk()["uuid"]
    settings = call.settings
    with call.store.transaction() as tx:
        machine = tx.machine_of(vm)
        answers = machine is not None and not machine.get("stopping") and vm.disk()["agent"] and settings["guest_agent"]
        if answers:
            machine["execs"] += 1
            answers = machine["execs"] > settings["boot_execs"]
        if answers:
            home = call.store.guest_home(uuid)
            path = guest_path(call.store, settings["guest_path"])
            _refuse_what_is_no_program(argv[0], home, path)
            env = environment(settings, uuid, home, PATH=path, XPC_SERVICE_NAME="org.cirruslabs.tart-guest-agent")
            on_loss = guest.PROCESS_DIES if settings["killed_exec_guest"] == "killed" else guest.LIVES
            process = guest.spawn(argv, env, home, on_loss=on_loss, drain=settings["exec_output"] == "drained")
            process.machine = machine
            return process
    time.sleep(settings["agent_silence"])
    raise no_agent(settings)


def guest_path(store, path):
    """PATH in a guest. The guest's own `sudo` and `shutdown` come first, so that it never runs those of this machine."""
    return f"{store.path('guest-bin')}{os.pathsep}{path}"


def environment(settings, uuid, home, **more):
    """The environment of a guest process; nothing of the host's environment."""
    env = {"HOME": home, "USER": "admin", "LOGNAME": "admin", "SHELL": "/bin/zsh", "FAKE_TART_VM": uuid}
    return {**env, **more, **settings["guest_env"]}


def _refuse_what_is_no_program(name, home, path):
    if "/" in name:
        located = os.path.join(home, name)
        if _is_program(located):
            return
        why = "permission denied" if os.path.exists(located) else "no such file or directory"
        raise TartError(f"unknown (2): fork/exec {name}: {why}", foreign=True)
    if not any(_is_program(os.path.join(folder, name)) for folder in path.split(os.pathsep)):
        raise TartError(f'unknown (2): exec: "{name}": executable file not found in $PATH', foreign=True)


def _is_program(path):
    return os.access(path, os.X_OK) and not os.path.isdir(path)


def is_lost(call, process):
    """True when the VM of this process no longer runs or is about to end."""
    with call.store.transaction() as tx:
        machine = tx.machine(process.machine["uuid"])
        return machine is None or machine["pid"] != process.machine["pid"] or bool(machine.get("stopping"))
