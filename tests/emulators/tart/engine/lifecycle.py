"""Operations on stopped VMs (clone, rename, delete, set), and the outcome of operations whose process died.

Owns when a folder changes its name and which event records it. Knows no command line and no output.
"""

from __future__ import annotations

import os

from . import hypervisor, library, locks, registry
from .failure import TartError, is_running
from .names import is_remote, parse_remote


def settle(tx, op):
    """Finish an operation whose process was killed, as far as its traces show that it got."""
    if op["kind"] == "run":
        hypervisor.settle(tx, op)
    elif op["kind"] == "clone":
        vm = library.by_disk(tx.store, op["uuid"])
        if vm is not None:
            tx.event("cloned", {"uuid": op["uuid"], "name": op["name"]}, source=op["source"])
    elif op["kind"] == "delete":
        if library.by_disk(tx.store, op["uuid"]) is None:
            tx.event("deleted", {"uuid": op["uuid"], "name": op["name"]})
    elif op["kind"] == "pull":
        tx.event("pull-interrupted", image=op["image"], settled=tx.settings["interrupted_pull"])
        if tx.settings["interrupted_pull"] == "corrupt":
            registry.leave_corrupt(tx, op["image"])


def clone(call, source_name, name, prune_limit=100):
    """Copy a VM or a pulled image to the local name `name`, replacing an existing VM; frees at most `prune_limit` GB for it."""
    store = call.store
    source = library.open_any(store, source_name)
    with library.workplace(store) as folder, locks.folder(store.tart_home):
        config = source.config()
        macs = [vm.config()["macAddress"] for vm in library.local(store)]
        if config["macAddress"] in macs and not source.is_suspended:
            config["macAddress"] = library.new_mac()
        uuid = library.copy(store, source, folder, config)
        with store.transaction() as tx:
            op = tx.begin_op("clone", uuid=uuid, name=name, source=source_name)
        call.pause()
        with store.transaction() as tx:
            _reclaim_for(tx, source, prune_limit)
            _put(tx, folder, name)
            tx.end_op(op)
            tx.event("cloned", {"uuid": uuid, "name": name}, source=source_name)


def _put(tx, folder, name):
    """Make `folder` the local VM `name`; replace an existing one without asking."""
    path = tx.store.tart_path("vms", name)
    if not os.path.isdir(path):
        os.rename(folder, path)
        return
    before = library.VM(path, name)
    uuid, runs = before.disk()["uuid"], bool(before.pid())
    aside = library.temporary(tx.store)
    os.rename(path, os.path.join(aside, "before"))
    os.rename(folder, path)
    library.discard(tx.store, os.path.join(aside, "before"), keep_guest=runs)
    os.rmdir(aside)
    tx.event("overwritten", {"uuid": uuid, "name": name}, ran=runs)


def _reclaim_for(tx, source, prune_limit):
    """Make room for the disk space that the clone does not use yet: remove the images that were used longest ago."""
    disk = source.disk()
    registry.reclaim(
        tx, min(disk["disk_gb"] - disk["size_gb"], prune_limit) * 10**9, keep=os.path.realpath(source.path)
    )


def rename(call, name, new_name):
    """Rename a local VM."""
    with call.store.transaction() as tx:
        vm = library.open_local(call.store, name)
        facts = {"uuid": vm.disk()["uuid"], "name": new_name}
        os.rename(vm.path, call.store.tart_path("vms", new_name))
        tx.event("renamed", facts, before=name)


def delete(call, name):
    """Delete a local stopped VM, or a pulled image."""
    if is_remote(name):
        _delete_image(call, name)
        return
    vm = library.open_local(call.store, name)
    if vm.pid():
        raise is_running(name)
    uuid = vm.disk()["uuid"]
    with call.store.transaction() as tx:
        op = tx.begin_op("delete", uuid=uuid, name=name)
    call.pause()
    with call.store.transaction() as tx:
        tx.end_op(op)
        library.discard(call.store, vm.path)
        tx.event("deleted", {"uuid": uuid, "name": name})


def _delete_image(call, name):
    image = library.open_any(call.store, str(parse_remote(name)))
    uuid = image.disk()["uuid"]
    call.pause()
    with call.store.transaction() as tx:
        library.discard(call.store, image.path)
        library.collect_images(call.store)
        tx.event("deleted", {"uuid": uuid, "name": str(parse_remote(name))})


class Changes:
    """The changes that `set` makes; None leaves a value as it is."""

    def __init__(self, *, cpu=None, memory=None, disk_size=None, display=None):
        self.cpu = cpu
        self.memory = memory
        self.disk_size = disk_size
        self.display = display


def change(vm, changes, *, random_mac, random_serial):
    """Change a VM's configuration. Like Tart, it does not check whether the VM runs."""
    config = vm.config()
    if changes.cpu is not None:
        if changes.cpu < config["cpuCountMin"]:
            raise TartError(f"VM should have {config['cpuCountMin']} CPU cores at minimum (requested {changes.cpu})")
        config["cpuCount"] = changes.cpu
    if changes.memory is not None:
        if changes.memory * 1024**2 < config["memorySizeMin"]:
            text = f"VM should have {config['memorySizeMin']} bytes of memory at minimum"
            raise TartError(f"{text} (requested {changes.memory * 1024**2})")
        config["memorySize"] = changes.memory * 1024**2
    if changes.display is not None:
        config["display"].update(changes.display)
    if random_mac:
        config["macAddress"] = library.new_mac()
    if random_serial:
        config["ecid"] = library.new_config()["ecid"]
    vm.save_config(config)
    if changes.disk_size is not None:
        _resize(vm, changes.disk_size)


def _resize(vm, size):
    disk = vm.disk()
    if size < disk["disk_gb"]:
        text = f"new disk size of {size * 10**9} bytes should be larger than the current disk size"
        raise TartError(f"{text} of {disk['disk_gb'] * 10**9} bytes")
    vm.save_disk({**disk, "disk_gb": size})
