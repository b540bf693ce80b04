"""The process that is a running VM, like com.apple.Virtualization.VirtualMachine on a Mac.

Owns the VM's slot in the kernel's quota, the termination of its guest's processes, and the VM's life-cycle events. It is a
child of `tart run` in a separate session. It ends the VM when `tart run` tells it to or is gone, and tells `tart run` when
the VM ended for another reason. Knows no command line.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time

from emulators.vmhost import trees
from emulators.vmhost.guest import close_all_but

from . import library, network

#: The process name.
PROGRAM = "com.apple.Virtualization.VirtualMachine"
_TESTS = os.path.abspath(os.path.join(__file__, *[os.pardir] * 4))
_START = (
    f"import sys; sys.path.insert(0, {_TESTS!r}); from emulators.tart.engine.vm_process import main; main(sys.argv[2:])"
)
#: Orders from `tart run`, and news for it.
STOP, SUSPEND = b"s", b"z"
UP, LIMIT, HALTED, CRASHED, ENDED = b"u", b"l", b"h", b"c", b"e"
_PAUSE = 0.01
#: Signals that end the VM from outside: the guest shuts down, or the hypervisor fails.
HALT, CRASH = signal.SIGUSR1, signal.SIGUSR2


class Machine:
    """The `tart run` end of the connection: sends orders, receives news. End of file means that the hypervisor is dead."""

    def __init__(self, orders, news):
        self._orders = orders
        self.news = news

    def order(self, what):
        """Tell the hypervisor what to do."""
        try:
            os.write(self._orders, what)
        except BrokenPipeError:  # it is dead; hear() returns b""
            return

    def hear(self):
        """Wait for one piece of news; b"" means that the hypervisor is dead."""
        return os.read(self.news, 1)


def boot(store, vm, uuid, *, counts):
    """Start a hypervisor for a VM; its first news is UP or LIMIT. `counts`: the VM takes a slot, as macOS guests do."""
    orders, news = os.pipe(), os.pipe()
    facts = {"uuid": uuid, "name": vm.name, "run": os.getpid()}
    if os.fork() == 0:
        try:
            _become(vm, facts, (orders[0], news[1]), counts=counts)
        finally:
            os._exit(0)
    os.close(orders[0])
    os.close(news[1])
    return Machine(orders[1], news[0])


def _become(vm, facts, ends, *, counts):
    """Execute a separate program, so that a search for `tart run` among the processes does not find two."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGHUP, HALT, CRASH):
        signal.signal(number, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    close_all_but({0, 1, 2, *ends})
    for fd in ends:
        os.set_inheritable(fd, True)
    facts = {**facts, "mac": vm.config()["macAddress"]}
    words = [json.dumps(facts), *map(str, ends), str(int(counts))]
    os.execv(sys.executable, [sys.executable, "-SEc", _START, PROGRAM, *words])  # noqa: S606  no shell


def live(store, vm, ends, *, counts):
    """Run the VM from start to end; `vm` has uuid, name, mac, and the pid of `tart run`."""
    orders, news = ends
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    for number in (HALT, CRASH):
        signal.signal(number, _note)
    op = _begin(store, vm, counts)
    _tell(news, UP if op else LIMIT)
    if op:
        kind, reason = _wait(orders, wake)
        lag = _end(store, vm, op, (kind, reason))
        _tell(news, {"guest": HALTED, "crash": CRASHED}.get(reason, ENDED))
        time.sleep(lag)  # this process holds the slot until it exits


def _note(_number, _frame):
    """Do nothing; the handler exists so that the signal wakes the select."""


def _begin(store, vm, counts):
    """Take a slot; return the operation in flight, or None."""
    vm["owner"] = store.owner(f"{vm['uuid']}:{os.getpid()}")  # per boot: the last one may still hold its slot
    _wait_for_the_last(store, vm)
    with store.transaction() as tx:
        if counts and (tx.settings["limit_always"] or not store.quota.claim(vm["owner"], pid=os.getpid())):
            tx.event("limit-refused", _facts(vm))
            return None
        with open(store.path("guests", vm["uuid"], "hypervisor"), "w", encoding="utf-8") as file:
            file.write(f"{os.getpid()}\n")
        facts = {"pid": os.getpid(), "polls": 0, "execs": 0, "sshs": 0, "leased": False}
        op = tx.begin_op("run", **vm, **facts, ip=network.give_address(tx, vm["mac"]))
        tx.event("started", _facts(vm))
        return op


def _wait_for_the_last(store, vm):
    """Wait for the hypervisor of a killed `tart run`, which may still be ending the guest's processes."""
    while True:
        with store.transaction() as tx:
            if tx.machine(vm["uuid"]) is None:
                return
        time.sleep(_PAUSE)


def _facts(vm):
    return {"uuid": vm["uuid"], "name": vm["name"]}


def _wait(orders, wake):
    """Wait for the VM's end; return (event, reason)."""
    readable, _, _ = select.select([orders, wake], [], [])
    if wake in readable:
        number = os.read(wake, 1)[0]
        return ("stopped", "guest") if number == HALT else ("failed", "crash")
    order = os.read(orders, 1)
    return {STOP: ("stopped", "stop"), SUSPEND: ("suspended", "suspend")}.get(order, ("stopped", "killed"))


def _end(store, vm, op, how):
    kind, reason = how
    with store.transaction() as tx:
        tx.state["ops"][op]["stopping"] = True
        settings = tx.settings
    store.guests.end([vm["uuid"]], settings["stop_grace"] if reason == "guest" else 0)
    with store.transaction() as tx:
        tx.end_op(op)
        _close(tx, vm, kind, reason)
    return settings["slot_lag"]


def settle(tx, op):
    """Record the end of a VM whose hypervisor was killed."""
    tx.store.guests.end([op["uuid"]], 0)
    tx.state["ops"] = {key: other for key, other in tx.state["ops"].items() if other is not op}
    _close(tx, op, "stopped", "hypervisor-killed")


def _close(tx, vm, kind, reason):
    """Record the end of a VM whose processes are gone, and free its slot or leak it."""
    leaks = tx.settings["leak_slot"] if reason == "guest" or tx.settings["leak_on"] == "any" else 0
    if leaks or not tx.settings["slot_lag"]:
        tx.store.quota.release(vm["owner"], leak=leaks != 0)
    if leaks > 0:
        tx.state["settings"]["leak_slot"] = leaks - 1
    tx.event(kind, _facts(vm), reason=reason)
    if library.by_disk(tx.store, vm["uuid"]) is None:  # a clone of the same name has replaced it
        trees.remove(tx.store.path("guests", vm["uuid"]))


def _tell(news, what):
    try:
        os.write(news, what)
    except BrokenPipeError:  # `tart run` is gone
        return
