"""The kernel's quota of running macOS VMs, as one file that all VM emulators of this host share.

Owns the file's format and its lock. Knows no product: an owner is a string like `anka:<host>:<uuid>` or `tart:<name>`.
The file: {"limit": 2, "slots": [{"owner": str, "pid": int | null}]}. A slot with a pid belongs to that process and becomes
free when it dies; a slot without one becomes free when its owner releases it. `leaked:<owner>` owns a leaked slot until a
reboot.
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
        """Take a slot for `owner`; True if it has one now (a new or an earlier one), False if none is free."""
        with _Locked(self.path) as data:
            if any(slot["owner"] == owner for slot in data["slots"]):
                return True
            if len(data["slots"]) >= data["limit"]:
                return False
            data["slots"].append({"owner": owner, "pid": pid})
            return True

    def release(self, owner, *, leak=False):
        """Release the slot of `owner`; with `leak` it stays taken until `reset`. Without a slot, this does nothing."""
        with _Locked(self.path) as data:
            if leak:
                for slot in data["slots"]:
                    if slot["owner"] == owner:
                        slot.update(owner="leaked:" + owner, pid=None)
            data["slots"] = [slot for slot in data["slots"] if slot["owner"] != owner]

    def reconcile(self, prefix, owners):
        """Make exactly `owners` hold the slots whose owners begin with `prefix`: repairs what a killed emulator left half done."""
        with _Locked(self.path) as data:
            kept = [s for s in data["slots"] if not s["owner"].startswith(prefix) or s["owner"] in owners]
            missing = [owner for owner in owners if owner not in [slot["owner"] for slot in kept]]
            data["slots"] = kept + [{"owner": owner, "pid": None} for owner in missing]

    def owners(self):
        """The owners of all taken slots, leaked ones included, in the order of taking."""
        with _Locked(self.path) as data:
            return [slot["owner"] for slot in data["slots"]]

    def set_limit(self, limit):
        """Change the number of slots."""
        with _Locked(self.path) as data:
            data["limit"] = limit

    def reset(self):
        """Free every slot, as after a reboot of the host."""
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
