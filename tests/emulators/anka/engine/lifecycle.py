"""The life cycle of VMs: clone, start, stop, suspend, reboot, delete, modify.

Owns the states of a VM and the rule that a third VM never runs. Knows no command line and no output.
A VM's status is running, stopped, suspended or failed; `stopping` marks one whose guest is shutting down.
"""

from __future__ import annotations

import os
import time

from emulators.vmhost import trees

from .disk import new_uuid, utc
from .failure import NAME_EXISTS, AnkaError, configured, not_found

#: Larger than any real pid, so that no signal can reach what the emulator calls a hypervisor.
_FIRST_PID = 900_000_000


def new_vm(uuid, name, **more):
    """The record of a stopped VM or template."""
    return {
        "uuid": uuid,
        "name": name,
        "status": "stopped",
        "created": time.time(),
        "accessed": time.time(),
        "stopped": None,
        "started": None,
        "cores": 4,
        "ram": "8G",
        "tag": None,
        "tags": {},
        "image": None,
        "boot": None,
        "corrupt": None,
        "stopping": False,
        **more,
    }


def resolve(tx, subject):
    """Return the VM or template that `subject` (uuid or name) identifies; raises `<subject>: not found`."""
    if subject in tx.vms:
        return tx.vms[subject]
    for vm in tx.vms.values():
        if vm["name"] == subject:
            return vm
    raise not_found(subject)


def settle(tx, op):
    """Finish an operation whose process was killed, in the way that the switches choose."""
    kind, uuid, settings = op["kind"], op.get("uuid"), tx.settings
    if kind == "clone":
        _settle_clone(tx, op)
    elif kind == "start" and uuid in tx.vms and tx.vms[uuid]["boot"] == op["boot"]:
        if settings["killed_start"] != "running":
            _down(tx, tx.vms[uuid], settings["killed_start"])
    elif kind == "stop" and uuid in tx.vms:
        tx.vms[uuid]["stopping"] = False
    elif kind == "pull":
        _settle_pull(tx, op)


def _settle_clone(tx, op):
    end = tx.settings["killed_clone"]
    if end == "nothing":
        trees.remove(tx.store.path("guests", op["uuid"]))
        return
    vm = new_vm(op["uuid"], op["name"], image=op["image"])
    if end == "half":
        vm["corrupt"] = "failed to start: No such file or directory"
    tx.vms[vm["uuid"]] = vm
    tx.event("cloned", vm, settled=end)


def _settle_pull(tx, op):
    end = tx.settings["interrupted_pull"]
    tx.event("pull-interrupted", uuid=op["uuid"], tag=op["tag"], settled=end)
    if end == "clean":
        return
    vm = tx.vms.setdefault(op["uuid"], new_vm(op["uuid"], op["name"]))
    vm["tags"][op["tag"]] = op["image"]
    vm["tag"] = op["tag"]
    vm["corrupt"] = "failed to start: No such file or directory"
    vm["blocked"] = end == "blocked"


def clone(call, source, name, tag):
    """Clone a VM or template to a stopped VM `name` (None: a generated name); returns its uuid."""
    with call.store.transaction() as tx:
        vm = resolve(tx, source)
        if tag is not None and tag not in vm["tags"]:
            raise not_found(tag)
        _refuse_clone_in_pull(tx, vm)
        name = name or f"{vm['name']}-{len(tx.vms)}"
        _refuse_taken_name(tx, name)
        uuid = new_uuid()
        op = tx.begin_op("clone", uuid=uuid, name=name, source=vm["uuid"], image=vm["image"])
        image = vm["tags"][tag] if tag is not None else vm["image"]
        files = image if tag is not None else _home(tx.store, vm)
    if files and os.path.isdir(files):
        trees.copy(files, call.store.guest_home(uuid))
    call.pause()
    with call.store.transaction() as tx:
        tx.end_op(op)
        source_vm = tx.vms.get(vm["uuid"], vm)
        _refuse_clone_in_pull(tx, source_vm)
        os.makedirs(call.store.guest_home(uuid), exist_ok=True)
        hardware = {key: vm[key] for key in ("cores", "ram")}
        tx.vms[uuid] = new_vm(uuid, name, image=image, corrupt=source_vm["corrupt"], **hardware)
        tx.event("cloned", tx.vms[uuid], source=vm["uuid"])
    return uuid


def _home(store, vm):
    """The folder with the files of a VM's current state: its own home once it has one, otherwise its image's."""
    home = store.guest_home(vm["uuid"])
    return home if os.path.isdir(home) or not vm["image"] else vm["image"]


def _refuse_taken_name(tx, name):
    if tx.settings["allow_nonunique_names"]:
        return
    taken = [vm["name"] for vm in tx.vms.values()] + [op["name"] for op in tx.ops("clone")]
    if name in taken:
        raise AnkaError(tx.settings["name_exists_message"].format(id=name), NAME_EXISTS)


def _refuse_clone_in_pull(tx, vm):
    """Refuse a clone during a pull of the same template, which corrupts the template's state files."""
    pulls = [op for op in tx.ops("pull") if op["uuid"] == vm["uuid"]]
    if pulls:
        pulls[0]["spoilt"] = True
        vm["corrupt"] = "failed to start: No such file or directory"
        tx.event("corruption", vm, reason="clone during a pull of its template")
        raise AnkaError(f"state_lib/{vm['uuid']}.ank: failed to open image, error 2", 2)


def start(call, subject):
    """Start a VM. When two already run, raises the limit's error and leaves it stopped."""
    with call.store.transaction() as tx:
        vm = resolve(tx, subject)
        if vm["status"] == "running":
            if tx.settings["start_running"] == "error":
                raise configured(tx.settings, "running", subject)
            return
        op = bring_up(tx, vm, subject)
    call.pause()
    with call.store.transaction() as tx:
        tx.end_op(op)


def bring_up(tx, vm, subject):
    """Take a slot and run the hypervisor; returns the operation in flight."""
    if vm["status"] == "failed":
        raise configured(tx.settings, "failed", subject)
    if vm["corrupt"]:
        vm["status"] = "failed"
        tx.event("failed", vm)
        raise AnkaError(f"{subject}: {vm['corrupt']}", 2)
    _take_slot(tx, vm, subject)
    files = _home(tx.store, vm)
    if files != tx.store.guest_home(vm["uuid"]) and os.path.isdir(files):
        trees.copy(files, tx.store.guest_home(vm["uuid"]))
    os.makedirs(tx.store.guest_home(vm["uuid"]), exist_ok=True)
    vm.update(status="running", stopping=False, boot=new_uuid(), started=time.time(), accessed=time.time())
    vm.update(polls=0, runs=0, pid=_FIRST_PID + tx.state["seq"])
    tx.event("started", vm)
    return tx.begin_op("start", uuid=vm["uuid"], boot=vm["boot"])


def _take_slot(tx, vm, subject):
    quota = tx.store.quota
    quota.reconcile(tx.store.owner(""), [tx.store.owner(uuid) for uuid in tx.running()])
    develop = tx.settings["license_type"] == "com.veertu.anka.develop" and tx.running()
    if tx.settings["limit_always"] or develop or not quota.claim(tx.store.owner(vm["uuid"])):
        tx.event("limit-refused", vm)
        raise AnkaError(f"{subject}: maximum number of running instances exceeded", tx.settings["limit_code"])


def go_down(call, subject, *, status="stopped", grace=0.0, pause=None):
    """Stop a running VM: end its processes, `pause` (default: the call's), free its slot. Returns the VM's uuid."""
    with call.store.transaction() as tx:
        vm = resolve(tx, subject)
        if vm["status"] != "running":
            return vm["uuid"]
        vm["stopping"] = True
        op = tx.begin_op("stop", uuid=vm["uuid"])
    call.store.guests.end([vm["uuid"]], grace)
    (pause or call.pause)()
    with call.store.transaction() as tx:
        tx.end_op(op)
        if vm["uuid"] in tx.vms:
            _down(tx, tx.vms[vm["uuid"]], status)
    return vm["uuid"]


def _down(tx, vm, status):
    if vm["status"] != "running":
        return
    vm.update(status=status, stopping=False, boot=None, stopped=time.time())
    leaks = tx.settings["leak_slot"]
    tx.store.quota.release(tx.store.owner(vm["uuid"]), leak=leaks != 0)
    if leaks > 0:
        tx.state["settings"]["leak_slot"] = leaks - 1
    tx.event({"stopped": "stopped", "suspended": "suspended", "failed": "failed"}[status], vm)


def stop(call, subject, *, force):
    """Stop gracefully, or at once with `force`; a failed VM needs `force` to become stopped."""
    with call.store.transaction() as tx:
        vm = resolve(tx, subject)
        if vm["status"] == "failed":
            if not force:
                raise configured(tx.settings, "failed", subject)
            vm["status"] = "stopped"
            tx.event("stopped", vm)
            return
        if vm["status"] == "stopped" and tx.settings["stop_stopped"] == "error":
            raise configured(tx.settings, "not_running", subject)
        if vm["status"] == "suspended" and force:
            vm["status"] = "stopped"
            tx.event("stopped", vm)
            return
        grace = 0 if force else tx.settings["stop_grace"]
    go_down(call, subject, grace=grace)


def suspend(call, subject):
    """Stop the VM and show it as suspended, as Anka does on Apple silicon."""
    with call.store.transaction() as tx:
        if resolve(tx, subject)["status"] != "running":
            raise configured(tx.settings, "not_running", subject)
        if tx.settings["license_type"] == "com.veertu.anka.develop":
            raise AnkaError(f"{subject}: not permitted by the license")
        grace = tx.settings["stop_grace"]
    go_down(call, subject, status="suspended", grace=grace)


def reboot(call, subject):
    """End the guest's processes and boot it again; the slot stays taken."""
    with call.store.transaction() as tx:
        vm = resolve(tx, subject)
        if vm["status"] != "running":
            raise configured(tx.settings, "not_running", subject)
        vm["stopping"] = True
        op = tx.begin_op("stop", uuid=vm["uuid"])
        grace = tx.settings["stop_grace"]
    call.store.guests.end([vm["uuid"]], grace)
    call.pause()
    with call.store.transaction() as tx:
        tx.end_op(op)
        resolve(tx, subject).update(stopping=False, boot=new_uuid(), polls=0, runs=0, started=time.time())
        tx.event("rebooted", vm)


def delete(call, subject):
    """Delete a VM or template, running or not; returns when its processes are gone."""
    uuid = go_down(call, subject, pause=lambda: None)
    call.pause()
    with call.store.transaction() as tx:
        if uuid not in tx.vms:
            raise not_found(subject)
        vm = tx.vms.pop(uuid)
        tx.event("deleted", vm)
        trash = tx.store.path("trash", uuid)
        if os.path.isdir(tx.store.path("guests", uuid)):
            os.rename(tx.store.path("guests", uuid), trash)
    trees.remove(trash)


def delete_tag(call, subject, tag):
    """Remove a local tag; the VM stays."""
    with call.store.transaction() as tx:
        vm = resolve(tx, subject)
        if tag not in vm["tags"]:
            raise not_found(tag)
        del vm["tags"][tag]
        if vm["tag"] == tag:
            vm["tag"] = None
        tx.event("untagged", vm, tag=tag)


def modify(call, subject, item, value):
    """Change the hardware of a stopped VM: `cpu` N or `ram` <n>G."""
    with call.store.transaction() as tx:
        vm = resolve(tx, subject)
        if vm["status"] != "stopped":
            raise configured(tx.settings, "running", subject)
        if item == "cpu" and value.isdecimal() and int(value) > 0:
            vm["cores"] = int(value)
        elif item == "ram" and value[:-1].isdecimal() and value[-1:] in ("G", "M"):
            vm["ram"] = value
        elif item in ("cpu", "ram"):
            raise AnkaError(f"{value}: Invalid argument", 22)
        else:
            raise not_found(item)


def describe(tx, vm, *, subject_polls=True):
    """The body of `show`. Each call on a running VM counts as one poll towards its ip."""
    ram = vm["ram"]
    factor = {"G": 1024**3, "M": 1024**2}[ram[-1]]
    body = {
        "uuid": vm["uuid"],
        "name": vm["name"],
        "creation_date": utc(vm["created"]),
        "cpu_cores": vm["cores"],
        "cpu_frequency": 0,
        "cpu_htt": False,
        "arch": 2,
        "ram": ram,
        "ram_size": int(ram[:-1]) * factor,
        "frame_buffers": 1,
        "hard_drive": 128 * 1024**3,
        "encrypted": False,
        "image_size": vm.get("image_size") or trees.size(_home(tx.store, vm)),
        "addons_version": tx.settings["version"],
        "access_date": utc(vm["accessed"]),
        "status": vm["status"],
    }
    if vm["tag"]:
        body["version"] = vm["tag"]
    if vm["stopped"]:
        body["stop_date"] = utc(vm["stopped"])
    if vm["status"] == "running":
        body.update(_running_part(tx, vm, count=subject_polls))
    return body


def address(tx, vm, *, count):
    """The guest's ip, or None before it has one."""
    if vm["status"] != "running":
        return None
    if count:
        vm["polls"] += 1
    if vm["polls"] <= tx.settings["ip_after_polls"]:
        return None
    return f"192.168.64.{2 + int(vm['uuid'][:2], 16) % 250}"


def _running_part(tx, vm, *, count):
    digits = vm["uuid"].replace("-", "")
    part = {
        "pid": vm["pid"],
        "mac": ":".join(["ba", *(digits[i : i + 2] for i in range(0, 10, 2))]),
        "hostif": "vmenet0",
        "vnc_port": 5900 + vm["pid"] % 100,
        "vnc_password": "admin",
        "vnc_connection_string": f"vnc://:admin@127.0.0.1:{5900 + vm['pid'] % 100}",
        "port_forwarding": [],
        "usb": [],
        "displays": [{"width": 1024, "height": 768, "dpi": 72}],
        "start_date": utc(vm["started"]),
        "time_sync": 1,
        "cpu_user": 0,
        "cpu_system": 0,
        "cpu_idle": 100,
        "cpu_nice": 0,
    }
    ip = address(tx, vm, count=count)
    if ip is not None:
        part["ip"] = ip
    elif tx.settings["ip_absent"] == "empty":
        part["ip"] = ""
    return part
