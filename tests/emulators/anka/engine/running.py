"""`anka run`: options, the guest's environment, and the meaning of the exit status.

Owns the connection between VM state and guest process. Knows neither pipes nor envelopes of other commands.
"""

from __future__ import annotations

import json
import os

from emulators.vmhost import guest
from emulators.vmhost.options import MANY, VALUE, UsageError, option, parse

from . import lifecycle
from .failure import AnkaError, LostGuest

_OPTIONS = {
    **option("-w", "--workdir", kind=VALUE),
    **option("-D", kind=VALUE),
    **option("-E"),
    **option("-e", "--env", kind=MANY),
    **option("-f", "--env-file", kind=VALUE),
    **option("-q", "--quiet"),
    **option("-b", "--background"),
    **option("-n", "--no-volume"),
}


def run(call, args):
    """Run the guest's command; returns the exit status. Everything after the vmid is the guest's argv."""
    parsed = parse(args, _OPTIONS, least=2, interleaved=False)
    subject, *argv = parsed.positionals
    extra = _extra_environment(parsed)
    process, boot, home = _begin(call, subject, argv, (parsed, extra))
    call.strike("middle")
    if parsed["background"]:
        os.close(process.stdin)
        guest.write_all(1, f"{process.pid}\n".encode())
        process.let_go()
        return 0
    kept = []
    write_out = _writer(call, quiet=parsed["quiet"], kept=kept)
    status = guest.Relay(process, write_out, until_eof=call.settings["run_waits_for"] == "eof").run()
    process.let_go()
    if status != 0 and _lost(call, os.path.basename(os.path.dirname(home)), boot):
        raise LostGuest("connection to the guest lost")
    status = LostGuest.STATUS if status is None else status
    _finish(call, kept)
    return status if status >= 0 else 128 - status


def _extra_environment(parsed):
    """(inherited, set): variables that do not override the guest's, and those that do. Excludes the emulator's own variables."""
    inherited = {}
    if parsed["E"]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FAKE_")}
    given = {}
    if parsed["env-file"]:
        try:
            with open(parsed["env-file"], encoding="utf-8") as file:
                lines = file.read().splitlines()
        except OSError as error:
            raise AnkaError(f"{parsed['env-file']}: {error.strerror}", error.errno) from error
        given.update(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    for pair in parsed["env"] or ():
        name, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"run: not NAME=VALUE: {pair}")
        given[name] = value
    return inherited, given


def _begin(call, subject, argv, options):
    """Start the VM if needed and spawn the guest's process, in one transaction: a stop sees no process or a complete one."""
    parsed, (inherited, given) = options
    with call.store.transaction() as tx:
        vm = lifecycle.resolve(tx, subject)
        starting = None if vm["status"] == "running" else lifecycle.bring_up(tx, vm, subject)
    call.pause_for_delay("start" if starting else "run")
    with call.store.transaction() as tx:
        if starting:
            tx.end_op(starting)
        vm = lifecycle.resolve(tx, vm["uuid"])
        if vm["status"] != "running" or vm["stopping"]:
            raise LostGuest("connection to the guest lost")
        vm["runs"] += 1
        if vm["runs"] <= tx.settings["boot_runs"]:
            raise LostGuest("communication timeout")
        home = tx.store.guest_home(vm["uuid"])
        env = {**inherited, **_environment(tx.settings, vm["uuid"], home), **given, "FAKE_ANKA_VM": vm["uuid"]}
        directory = os.path.join(home, parsed["workdir"] or parsed["D"] or "")
        on_loss = guest.SESSION_DIES if tx.settings["killed_run_guest"] == "killed" else guest.LIVES
        return guest.spawn(argv, env, directory, on_loss=on_loss), vm["boot"], home


def _environment(settings, uuid, home):
    """The environment of a guest process; nothing of the host's environment."""
    return {
        "HOME": home,
        "PATH": settings["guest_path"],
        "USER": "anka",
        "SHELL": "/bin/bash",
        "XPC_SERVICE_NAME": "com.veertu.anka.addons.ankarun",
        "FAKE_ANKA_VM": uuid,
        **settings["guest_env"],
    }


def _lost(call, uuid, boot):
    with call.store.transaction() as tx:
        vm = tx.vms.get(uuid)
        return vm is None or vm["boot"] != boot or vm["stopping"]


def _writer(call, *, quiet, kept):
    if quiet:
        return lambda _data: None
    if call.machine_readable and call.settings["run_json"] == "wrap":
        return kept.append
    return lambda data: guest.write_all(1, data)


def _finish(call, kept):
    if call.machine_readable and call.settings["run_json"] != "raw":
        output = b"".join(kept).decode(errors="replace")
        line = json.dumps({"status": "OK", "code": 0, "body": output or {}, "message": ""})
        guest.write_all(1, line.encode() + b"\n")
