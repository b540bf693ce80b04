"""The VMs in Tart's folder: local ones under vms/, pulled images under cache/OCIs/.

Owns the definition of a VM folder, its configuration, and its state. The emulated disk.img is a small JSON document with sizes
and the uuid of the folder under guests/ that holds the guest's home. Knows no command.
"""

from __future__ import annotations

import binascii
import contextlib
import json
import os
import time

from emulators.vmhost import trees
from emulators.vmhost.state import is_held, new_uuid

from . import locks
from .failure import TartError, does_not_exist
from .names import is_remote, parse_remote

_FILES = ("config.json", "disk.img", "nvram.bin")


class VM:
    """One folder that is, or should be, a VM."""

    def __init__(self, path, name):
        self.path = path
        self.name = name

    def file(self, name):
        """The path of one of its files."""
        return os.path.join(self.path, name)

    @property
    def is_whole(self):
        """True when all files of a VM exist."""
        return all(os.path.exists(self.file(name)) for name in _FILES)

    def config(self):
        """config.json."""
        return _read(self.file("config.json"))

    def save_config(self, config):
        """Replace the contents of config.json in place, which keeps its lock."""
        with open(self.file("config.json"), "w", encoding="utf-8") as file:
            json.dump(config, file, indent=2)

    def disk(self):
        """The emulated disk: uuid of the guest, disk_gb, size_gb, agent, sshd."""
        return _read(self.file("disk.img"))

    def save_disk(self, disk):
        """Replace the emulated disk."""
        with open(self.file("disk.img"), "w", encoding="utf-8") as file:
            json.dump(disk, file)

    def pid(self):
        """The pid of the process that runs it, 0 for none."""
        return locks.holder(self.file("config.json"))

    @property
    def is_suspended(self):
        """True when it has a snapshot to resume from."""
        return os.path.exists(self.file("state.vzvmsave"))

    def state(self):
        """`running`, `suspended` or `stopped`."""
        if self.pid():
            return "running"
        return "suspended" if self.is_suspended else "stopped"

    def touch(self):
        """Record an access."""
        os.utime(self.path, (time.time(), os.stat(self.path).st_mtime))


def _read(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


# -- finding ------------------------------------------------------------------------------------------


def open_local(store, name):
    """The local VM of this name; raises TartError when it does not exist or lacks files."""
    vm = VM(store.tart_path("vms", name), name)
    return _validated(vm)


def open_any(store, name):
    """The local VM or pulled image of this name."""
    if not is_remote(name):
        return open_local(store, name)
    vm = _validated(VM(image_path(store, parse_remote(name)), name))
    vm.touch()
    return vm


def _validated(vm):
    if not vm.name or not os.path.isdir(vm.path):
        raise does_not_exist(vm.name)
    if not vm.is_whole:
        raise TartError("VM is missing some of its files (config.json, disk.img or nvram.bin)")
    return vm


def image_path(store, remote):
    """The path that a pulled image has or would have."""
    return store.tart_path("cache", "OCIs", remote.path())


def local(store):
    """Every local VM, by name."""
    return [vm for vm in _folders(store.tart_path("vms")) if vm.is_whole]


def _folders(path):
    names = sorted(os.listdir(path)) if os.path.isdir(path) else []
    return [VM(os.path.join(path, name), name) for name in names]


def images(store):
    """Every pulled image, twice if it has a tag: by tag (a symlink) and by digest."""
    top = store.tart_path("cache", "OCIs")
    found = []
    for folder, names, _ in os.walk(top):
        for name in names:
            path = os.path.join(folder, name)
            mark = ":" if os.path.islink(path) else "@"
            vm = VM(path, os.path.relpath(folder, top) + mark + name)
            if vm.is_whole:
                found.append(vm)
        names[:] = [name for name in names if not os.path.islink(os.path.join(folder, name)) and ":" not in name]
    return sorted(found, key=lambda vm: vm.name)


def by_disk(store, uuid):
    """The local VM that has this disk, or None."""
    return next((vm for vm in local(store) if vm.disk()["uuid"] == uuid), None)


# -- making and removing ------------------------------------------------------------------------------


def new_mac():
    """A random locally administered address."""
    return ":".join(f"{byte:02x}" for byte in bytes([(os.urandom(1)[0] & 0xFC) | 0x02]) + os.urandom(5))


def new_config(os_name="darwin"):
    """The contents of `config.json` for a fresh VM."""
    return {
        "version": 1,
        "os": os_name,
        "arch": "arm64",
        "ecid": binascii.b2a_base64(os.urandom(24), newline=False).decode(),
        "hardwareModel": binascii.b2a_base64(b"bplist00emulated", newline=False).decode(),
        "cpuCountMin": 4,
        "cpuCount": 4,
        "memorySizeMin": 4 * 1024**3,
        "memorySize": 8 * 1024**3,
        "macAddress": new_mac(),
        "display": {"width": 1024, "height": 768},
        "diskFormat": "raw",
    }


def write(path, config, disk):
    """Write the files of a VM into the folder `path`."""
    os.makedirs(path, exist_ok=True)
    vm = VM(path, os.path.basename(path))
    vm.save_config(config)
    vm.save_disk(disk)
    with open(vm.file("nvram.bin"), "wb") as file:
        file.write(b"\0" * 64)
    return vm


def temporary(store):
    """The path of a new folder under tmp/. A later command removes it once no process holds its flock."""
    path = store.tart_path("tmp", new_uuid())
    os.makedirs(path)
    return path


@contextlib.contextmanager
def workplace(store):
    """A new folder under tmp/, with its flock held before another command can remove it."""
    with contextlib.ExitStack() as held:
        with store.transaction():
            path = temporary(store)
            held.enter_context(locks.folder(path))
        yield path


def copy(store, source, target, config):
    """Copy a VM with its guest's home into the folder `target`, with another configuration. Returns the new disk's uuid."""
    disk = {**source.disk(), "uuid": new_uuid()}
    vm = write(target, config, disk)
    if source.is_suspended:
        trees.copy(source.file("state.vzvmsave"), vm.file("state.vzvmsave"))
    os.makedirs(store.guest_home(disk["uuid"]), exist_ok=True)
    home = store.guest_home(source.disk()["uuid"])
    if os.path.isdir(home):
        trees.copy(home, store.guest_home(disk["uuid"]))
    return disk["uuid"]


def discard(store, path, *, keep_guest=False):
    """Remove a VM's folder and its guest's home (`keep_guest`: keep the home, because a hypervisor still uses it)."""
    if os.path.islink(path):
        os.unlink(path)
        return
    try:
        uuid = VM(path, "").disk()["uuid"]
    except (OSError, ValueError):
        uuid = None
    trees.remove(path)
    if uuid and not keep_guest:
        store.guests.end([uuid], 0)
        trees.remove(store.path("guests", uuid))


def collect_temporary(store):
    """Remove the folders under tmp/ that no process uses, as Tart does before most commands."""
    if not os.listdir(store.tart_path("tmp")):
        return
    with store.transaction():  # excludes a workplace() that has made its folder but not locked it yet
        for vm in _folders(store.tart_path("tmp")):
            if not is_held(vm.path):
                discard(store, vm.path)


def collect_images(store):
    """Remove dangling tags, and images by digest that no tag points to, unless they were pulled by digest."""
    top = store.tart_path("cache", "OCIs")
    links = [os.path.join(folder, name) for folder, names, _ in os.walk(top) for name in names]
    links = [path for path in links if os.path.islink(path)]
    for path in links:
        if not os.path.exists(path):
            os.unlink(path)
    used = {os.path.realpath(path) for path in links}
    for image in images(store):
        by_tag = os.path.islink(image.path)
        if (
            not by_tag
            and os.path.realpath(image.path) not in used
            and not os.path.exists(image.file(".explicitly-pulled"))
        ):
            discard(store, image.path)
