"""The short-lived commands: parse the options, act, answer.

Owns each command's options, positionals and output. `run` and `exec` have modules of their own.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

from emulators.vmhost.guest import write_all
from emulators.vmhost.options import VALUE, UsageError, option, parse

from . import library, lifecycle, locks, network, registry
from .failure import TartError, not_running
from .names import is_remote, parse_remote


def _say(line):
    write_all(1, f"{line}\n".encode())


def _number(parsed, name, *, least=0):
    """Return an option's value as a number, or None if the option is absent."""
    given = parsed[name]
    if given is None:
        return None
    if not given.isdigit() or int(given) < least:
        raise UsageError(f"The value '{given}' is invalid for '--{name} <{name}>'")
    return int(given)


def _choice(parsed, name, choices):
    given = parsed[name] or choices[0]
    if given not in choices:
        listed = " and ".join(f"'{choice}'" for choice in choices)
        raise UsageError(f"The value '{given}' is invalid for '--{name} <{name}>'. Please provide one of {listed}.")
    return given


# -- looking ------------------------------------------------------------------------------------------


def list_(call, args):
    """`list`."""
    known = {**option("--source", kind=VALUE), **option("--format", kind=VALUE), **option("-q", "--quiet")}
    parsed = parse(args, known, most=0, terminator=True)
    source = parsed["source"]
    if source not in (None, "local", "oci"):
        raise UsageError(f"'{source}' is not a valid <source>")
    form = _choice(parsed, "format", ("text", "json"))
    rows = []
    if source in (None, "local"):
        rows += [_row(call, "local", vm) for vm in library.local(call.store)]
    if source in (None, "oci"):
        rows += [_row(call, "OCI", vm) for vm in library.images(call.store)]
    call.pause()
    if parsed["quiet"]:
        for row in rows:
            _say(row["Name"])
    elif form == "json":
        _say(_json(rows))
    else:
        _say(_table([{key: value for key, value in row.items() if key != "Running"} for row in rows]))


def _row(call, source, vm):
    disk, state = vm.disk(), vm.state()
    row = {"Source": source, "Name": vm.name, "Disk": disk["disk_gb"], "Size": disk["size_gb"]}
    if call.has("2.31"):
        row["Accessed"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(os.stat(vm.path).st_atime))
    return {**row, "Running": state == "running", "State": state}


def _json(data):
    """Encode JSON as Swift's encoder does: spaces around the colon, escaped slashes, an empty array on three lines."""
    if data == []:
        return "[\n\n]"
    return json.dumps(data, indent=2, separators=(",", " : ")).replace("/", "\\/")


def _table(rows):
    if not rows:
        return ""
    lines = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(" ".join(f"{cell:<{width}}" for cell, width in zip(line, widths)).rstrip() for line in lines)  # noqa: B905


def get(call, args):
    """`get`."""
    parsed = parse(args, option("--format", kind=VALUE), least=1, most=1, terminator=True)
    form = _choice(parsed, "format", ("text", "json"))
    vm = library.open_local(call.store, parsed.positionals[0])
    config, disk, state = vm.config(), vm.disk(), vm.state()
    body = {
        "OS": config["os"],
        "CPU": config["cpuCount"],
        "Memory": config["memorySize"] // 1024**2,
        "Disk": disk["disk_gb"],
        "DiskFormat": config["diskFormat"],
        "Size": f"{disk['size_gb']:.3f}",
        "Display": f"{config['display']['width']}x{config['display']['height']}",
        "Running": state == "running",
        "State": state,
    }
    if form == "json":
        _say(_json(body))
    else:
        _say(_table([{key: value for key, value in body.items() if key != "Running"}]))


def fqn(call, args):
    """`fqn`: the name of a pulled image by digest."""
    name = parse(args, {}, least=1, most=1, terminator=True).positionals[0]
    if not is_remote(name):
        _say(name)
        return
    image = library.open_any(call.store, name)
    _say(parse_remote(name).by_digest(os.path.basename(os.path.realpath(image.path))))


def ip(call, args):
    """`ip`: looks once a second until the wait is over, and sleeps once more before it gives up."""
    known = {**option("--wait", kind=VALUE), **option("--resolver", kind=VALUE)}
    parsed = parse(args, known, least=1, most=1, terminator=True)
    name, wait = parsed.positionals[0], _number(parsed, "wait") or 0
    resolvers = ("dhcp", "arp", "agent") if call.has("2.28") else ("dhcp", "arp")
    resolver = _choice(parsed, "resolver", resolvers)
    until = time.monotonic() + wait
    call.pause()
    while True:
        found = network.look(call, name, resolver)
        if found:
            _say(found)
            return
        time.sleep(call.settings["ip_pause"])
        if time.monotonic() >= until:
            break
    text = "no IP address found"
    if not library.open_local(call.store, name).pid():
        text += ", is your VM running?"
    if resolver == "agent":
        text += " (also make sure that Guest agent for Tart is running inside of a VM)"
    raise TartError(text)


# -- making and changing ------------------------------------------------------------------------------

_NETWORK = {**option("--insecure"), **option("--concurrency", kind=VALUE)}


def clone(call, args):
    """`clone`."""
    known = {**_NETWORK, **option("--prune-limit", kind=VALUE), **option("--deduplicate")}
    parsed = parse(args, known, least=2, most=2, terminator=True)
    _number(parsed, "concurrency", least=1)
    prune_limit = _number(parsed, "prune-limit")
    source, name = parsed.positionals
    _refuse_slash(name)
    if is_remote(source):
        remote = parse_remote(source)
        if not library.VM(library.image_path(call.store, remote), source).is_whole:
            registry.pull(call, remote)
    lifecycle.clone(call, source, name, 100 if prune_limit is None else prune_limit)


def _refuse_slash(name):
    if "/" in name:
        raise UsageError("<new-name> should be a local name")


def pull(call, args):
    """`pull`."""
    parsed = parse(args, {**_NETWORK, **option("--deduplicate")}, least=1, most=1, terminator=True)
    _number(parsed, "concurrency", least=1)
    name = parsed.positionals[0]
    if "/" not in name and library.VM(call.store.tart_path("vms", name), name).is_whole:
        _say(f'"{name}" is a local image, nothing to pull here!')
        return
    registry.pull(call, parse_remote(name))


def set_(call, args):
    """`set`."""
    names = ("--cpu", "--memory", "--disk-size", "--display", "--disk")
    known = {
        **option("--random-mac"),
        **option("--random-serial"),
        **option("--display-refit"),
        **option("--no-display-refit"),
    }
    for name in names:
        known.update(option(name, kind=VALUE))
    parsed = parse(args, known, least=1, most=1, terminator=True)
    if parsed["disk"] is not None:
        raise UsageError("set: --disk is not emulated")
    changes = lifecycle.Changes(
        cpu=_number(parsed, "cpu"),
        memory=_number(parsed, "memory"),
        disk_size=_number(parsed, "disk-size"),
        display=_display(parsed["display"]),
    )
    vm = library.open_local(call.store, parsed.positionals[0])
    call.pause()
    lifecycle.change(vm, changes, random_mac=bool(parsed["random-mac"]), random_serial=bool(parsed["random-serial"]))


def _display(given):
    if given is None:
        return None
    numbers = [int(part) if part.isdigit() else 0 for part in given.split("x")][:2]
    return {name: number for name, number in zip(("width", "height"), numbers) if number}  # noqa: B905


def rename(call, args):
    """`rename`."""
    name, new_name = parse(args, {}, least=2, most=2, terminator=True).positionals
    _refuse_slash(new_name)
    there = [vm.name for vm in library.local(call.store)]
    if name not in there:
        raise UsageError(f"failed to rename a non-existent local VM: {name}")
    if new_name in there:
        raise UsageError(f"failed to rename VM {name}, target VM {new_name} already exists, delete it first!")
    call.pause()
    lifecycle.rename(call, name, new_name)


def delete(call, args):
    """`delete`: one VM after the other, up to the first that fails."""
    for name in parse(args, {}, least=1, terminator=True).positionals:
        lifecycle.delete(call, name)


def prune(call, args):
    """`prune`."""
    names = ("--entries", "--older-than", "--cache-budget", "--space-budget")
    known = option("--gc")
    for name in names:
        known.update(option(name, kind=VALUE))
    parsed = parse(args, known, most=0, terminator=True)
    days, budget = _number(parsed, "older-than"), _number(parsed, "space-budget")
    if parsed["cache-budget"] is not None:
        sys.stderr.write("--cache-budget is deprecated, please use --space-budget\n")
        budget = _number(parsed, "cache-budget")
    if days is None and budget is None and not parsed["gc"]:
        raise UsageError("at least one pruning criteria must be specified")
    entries = _choice(parsed, "entries", ("caches", "vms"))
    library.collect_images(call.store)
    found = library.local(call.store) if entries == "vms" else library.images(call.store)
    found = [vm for vm in found if not os.path.islink(vm.path)]
    found.sort(key=lambda vm: -os.stat(vm.path).st_atime)
    call.pause()
    for vm in found:
        size = vm.disk()["size_gb"]
        old = days is not None and os.stat(vm.path).st_atime <= time.time() - days * 86400
        if old or (budget is not None and size > budget):
            lifecycle.delete(call, vm.name)
        elif budget is not None:
            budget -= size


def login(call, args):
    """`login`: reads the password from standard input or prompts for it."""
    known = {
        **option("--username", kind=VALUE),
        **option("--password-stdin"),
        **option("--insecure"),
        **option("--no-validate"),
    }
    parsed = parse(args, known, least=1, most=1, terminator=True)
    if (parsed["username"] is not None) != bool(parsed["password-stdin"]):
        raise UsageError("both --username and --password-stdin are required")
    if parsed["username"] is None:
        raise TartError("invalid credentials: this is not a terminal")
    password = sys.stdin.buffer.read().decode(errors="replace").strip()
    wanted = call.settings["registry_user"]
    if call.settings["registry"] != "up" or (wanted is not None and list(wanted) != [parsed["username"], password]):
        raise TartError('invalid credentials: UnexpectedHTTPStatusCode(when: "doing ping", code: 401, details: "")')


# -- stopping -----------------------------------------------------------------------------------------


def stop(call, args):
    """`stop`: sends SIGINT to the process that runs the VM, and SIGKILL after the timeout."""
    parsed = parse(args, option("-t", "--timeout", kind=VALUE), least=1, most=1, terminator=True)
    timeout = _number(parsed, "timeout")
    name = parsed.positionals[0]
    vm = library.open_local(call.store, name)
    state = vm.state()
    if state == "suspended":
        os.unlink(vm.file("state.vzvmsave"))
        return
    pid = vm.pid()
    if not pid:
        raise not_running(name)
    _kill(pid, signal.SIGINT)
    call.pause()
    until = time.monotonic() + (30 if timeout is None else timeout)
    while time.monotonic() < until:
        pid = locks.holder(vm.file("config.json"))
        if not pid:
            return
        time.sleep(_TICK)
    _kill(pid, signal.SIGKILL)


_TICK = 0.1


def _kill(pid, number):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def suspend(call, args):
    """`suspend`: sends SIGUSR1 to the process that runs the VM and returns at once."""
    name = parse(args, {}, least=1, most=1, terminator=True).positionals[0]
    vm = library.open_local(call.store, name)
    pid = vm.pid()
    if not pid:
        raise not_running(name)
    _kill(pid, signal.SIGUSR1)
    call.pause()
