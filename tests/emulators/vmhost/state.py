"""The emulated host's state on disk: one JSON file, its lock, and the two logs that an independent checker reads.

Owns atomicity. Every transaction holds an exclusive flock, and the file is replaced by rename. The events of a transaction
are part of the state file until they are in events.jsonl, so a SIGKILL at any point neither loses nor doubles an event.
Knows nothing of the VM life cycle: `settle` is called for operations whose process died.
"""

from __future__ import annotations

import binascii
import fcntl
import json
import os
import time

from emulators.kernel_quota import KernelQuota

from .processes import Guests

#: Open files whose flock means "the operation's process lives"; the end of the process releases them.
_held = {}


def new_uuid():
    """A random uuid."""
    h = os.urandom(16).hex()
    return f"{h[:8]}-{h[8:12]}-4{h[13:16]}-a{h[17:20]}-{h[20:]}"


def is_held(path):
    """True if a process holds the flock of this file or folder."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


class Store:
    """The state directory `home` and the host's kernel quota. A product defines its transactions and the owners of slots."""

    #: The variable that marks a guest's processes.
    MARKER = ""
    #: The product's Transaction.
    TRANSACTION = None
    #: The prefix of its slot owners.
    PRODUCT = ""
    FOLDERS = ("guests", "ops")

    def __init__(self, home, quota_path, settle):
        self.home = os.path.realpath(home)
        self.quota = KernelQuota(quota_path)
        self.settle = settle
        self.guests = Guests(self.path("guests"), self.MARKER)

    def owner(self, uuid):
        """The owner of a VM's slot in the kernel quota; unique per state directory, as several may share a quota."""
        return f"{self.PRODUCT}:{binascii.crc32(os.fsencode(self.home)):08x}:{uuid}"

    def path(self, *parts):
        """A path under the state directory."""
        return os.path.join(self.home, *parts)

    def guest_home(self, uuid):
        """The guest's home directory of a VM or template."""
        return self.path("guests", uuid, "home")

    def create(self):
        """Create the state directory's folders."""
        for name in self.FOLDERS:
            os.makedirs(self.path(name), exist_ok=True)

    def transaction(self):
        """`with store.transaction() as tx`: exclusive; saved at the end, even if an error of the product is raised."""
        return self.TRANSACTION(self)

    def begin_call(self, argv):
        """Record the start of an invocation in calls.jsonl; returns its id."""
        call = f"{os.getpid()}-{time.time_ns()}"
        self._log({"call": call, "pid": os.getpid(), "argv": argv, "start": time.time()})
        return call

    def end_call(self, call, status):
        """Record the end of an invocation in calls.jsonl."""
        self._log({"call": call, "end": time.time(), "status": status})

    def _log(self, line):
        fd = os.open(self.path("calls.jsonl"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(fd, (json.dumps(line) + "\n").encode())
        finally:
            os.close(fd)


class Transaction:
    """Exclusive access to the state. A product adds its parts of the state, its switches, and the list of running VMs."""

    #: The parts of the state besides seq, settings, faults and operations in flight.
    PARTS = ()
    #: The switches with their defaults.
    DEFAULTS = {}  # noqa: RUF012  a constant that a product replaces
    #: The errors that do not undo earlier changes of the transaction.
    REPORTED = ()

    def __init__(self, store):
        self.store = store

    def __enter__(self):
        os.makedirs(self.store.path("ops"), exist_ok=True)
        self._lock = os.open(self.store.path("lock"), os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._before = _read(self.store.path("state.json"))
        self.state = json.loads(self._before) if self._before else self._empty()
        self._redo_events()
        self._events = []
        for op_id, op in list(self.state["ops"].items()):
            if not is_held(self.store.path("ops", op_id)):
                self.store.settle(self, op)
                self.end_op(op_id)
        return self

    def __exit__(self, exc_type, *_):
        try:
            if exc_type is None or issubclass(exc_type, self.REPORTED):
                self._save()
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            os.close(self._lock)

    @property
    def settings(self):
        """Every switch with its current value."""
        return {**self.DEFAULTS, **self.state["settings"]}

    def running(self):
        """The uuids of the running VMs."""
        raise NotImplementedError

    def event(self, kind, vm=None, **more):
        """Append to events.jsonl, with the number of VMs that run afterwards."""
        self.state["seq"] += 1
        line = {"seq": self.state["seq"], "time": time.time(), "event": kind, "running": len(self.running())}
        if vm is not None:
            line.update(uuid=vm["uuid"], name=vm["name"])
        self._events.append({**line, **more})

    def begin_op(self, kind, **fields):
        """Record an operation in flight. If this process dies before `end_op`, a later transaction settles it."""
        op_id = f"{os.getpid()}-{time.time_ns()}"
        fd = os.open(self.store.path("ops", op_id), os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        _held[op_id] = fd
        self.state["ops"][op_id] = {"kind": kind, **fields}
        return op_id

    def end_op(self, op_id):
        """Remove a finished operation."""
        self.state["ops"].pop(op_id, None)
        if op_id in _held:
            os.close(_held.pop(op_id))
        _unlink(self.store.path("ops", op_id))

    def ops(self, kind):
        """The operations of a kind that are in flight."""
        return [op for op in self.state["ops"].values() if op["kind"] == kind]

    def _empty(self):
        common = {"seq": 0, "settings": {}, "faults": [], "ops": {}, "wal": {"offset": 0, "lines": ""}}
        return {**common, **{part: {} for part in self.PARTS}}

    def _save(self):
        if self._events:
            lines = "".join(json.dumps(event) + "\n" for event in self._events)
            self.state["wal"] = {"offset": self._events_end(), "lines": lines}
        text = json.dumps(self.state)
        if text != self._before:
            aside = self.store.path("state.json.aside")
            with open(aside, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(aside, self.store.path("state.json"))
        if self._events:
            self._redo_events()

    def _events_end(self):
        wal = self.state["wal"]
        return wal["offset"] + len(wal["lines"].encode())

    def _redo_events(self):
        """Make events.jsonl end with the last transaction's events, exactly once, even after a SIGKILL."""
        wal = self.state["wal"]
        if not wal["lines"]:
            return
        fd = os.open(self.store.path("events.jsonl"), os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            if os.fstat(fd).st_size < self._events_end():
                os.pwrite(fd, wal["lines"].encode(), wal["offset"])
        finally:
            os.close(fd)


def _read(path):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def _unlink(path):
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
