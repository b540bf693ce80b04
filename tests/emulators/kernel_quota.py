"""The kernel's quota of running macOS VMs, as one file that every VM emulator of this host shares.

Owns the file's format and its lock. Knows no product: an owner is a string like `anka:<host>:<uuid>` or `tart:<name>`.
The file: {"limit": 2, "slots": [{"owner": str, "pid": int | null}]}. A slot with a pid belongs to that process and is free once
it is dead; a slot without one is free when its owner gives it back. A leaked slot is owned by `leaked:<owner>` until a reboot.
"""

from __future__ import annotations

import fcntl
import json
import os

LIMIT = 2


class KernelQuota:
    """The slots of one host. Each call is one transaction under an exclusive flock; the file is replaced atomically."""

    def __init__(self, path):
        self.path = str(path)

    def claim(self, owner, *, pid=None):
        """Take a slot for `owner`; True when it has one now (also when it had one before), False when none is free."""
        with _Locked(self.path) as data:
            if any(slot["owner"] == owner for slot in data["slots"]):
                return True
            if len(data["slots"]) >= data["limit"]:
                return False
            data["slots"].append({"owner": owner, "pid": pid})
            return True

    def release(self, owner, *, leak=False):
        """Give the slot of `owner` back; with `leak` it stays taken until `reset`. No slot: nothing happens."""
        with _Locked(self.path) as data:
            if leak:
                for slot in data["slots"]:
                    if slot["owner"] == owner:
                        slot.update(owner="leaked:" + owner, pid=None)
            data["slots"] = [slot for slot in data["slots"] if slot["owner"] != owner]

    def reconcile(self, prefix, owners):
        """Let exactly `owners` hold the slots whose owners begin with `prefix`: mends what a killed emulator left half done."""
        with _Locked(self.path) as data:
            kept = [s for s in data["slots"] if not s["owner"].startswith(prefix) or s["owner"] in owners]
            missing = [owner for owner in owners if owner not in [slot["owner"] for slot in kept]]
            data["slots"] = kept + [{"owner": owner, "pid": None} for owner in missing]

    def owners(self):
        """The owners of all taken slots, leaked ones included, in the order of taking."""
        with _Locked(self.path) as data:
            return [slot["owner"] for slot in data["slots"]]

    def set_limit(self, limit):
        """Change how many slots there are."""
        with _Locked(self.path) as data:
            data["limit"] = limit

    def reset(self):
        """Free every slot: the host was rebooted."""
        with _Locked(self.path) as data:
            data["slots"] = []


class _Locked:
    def __init__(self, path):
        self._path = path

    def __enter__(self):
        self._fd = os.open(self._path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            with open(self._path, encoding="utf-8") as file:
                self._before = file.read()
        except FileNotFoundError:
            self._before = ""
        self._data = json.loads(self._before) if self._before else {"limit": LIMIT, "slots": []}
        self._data["slots"] = [slot for slot in self._data["slots"] if slot["pid"] is None or _alive(slot["pid"])]
        return self._data

    def __exit__(self, exc_type, *_):
        try:
            text = json.dumps(self._data)
            if exc_type is None and text != self._before:
                aside = f"{self._path}.{os.getpid()}"
                with open(aside, "w", encoding="utf-8") as file:
                    file.write(text)
                os.replace(aside, self._path)
        finally:
            os.close(self._fd)


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
