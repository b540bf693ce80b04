"""`tart run`: stays in the foreground for the whole life of a VM.

Owns its options, the lock that marks the VM as running, its signals, and its final output. hypervisor.py owns the VM itself.
"""

from __future__ import annotations

import os
import select
import signal
import time

from emulators.vmhost.guest import write_all
from emulators.vmhost.options import MANY, VALUE, UsageError, option, parse

from . import hypervisor, library, locks
from .failure import TartError, already_running

_FLAGS = (
    "--no-graphics",
    "--graphics",
    "--serial",
    "--no-audio",
    "--no-clipboard",
    "--recovery",
    "--vnc",
    "--vnc-experimental",
    "--net-softnet",
    "--net-host",
    "--suspendable",
    "--nested",
    "--capture-system-keys",
    "--no-trackpad",
    "--no-pointer",
    "--no-keyboard",
)
_VALUES = (
    "--serial-path",
    "--rosetta",
    "--net-softnet-allow",
    "--net-softnet-block",
    "--net-softnet-expose",
    "--root-disk-opts",
)
OPTIONS = {
    **{flag: entry for flag in _FLAGS for entry in option(flag).values()},
    **{name: entry for name in _VALUES for entry in option(name, kind=VALUE).values()},
    **option("--disk", kind=MANY),
    **option("--dir", kind=MANY),
    **option("--net-bridged", kind=MANY),
}
_PAUSE = 0.01
_FAILED = "Internal Virtualization error. The virtual machine failed to start."
_SIGNALS = (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


def run(call, args):
    """Run a VM to its end; returns the exit status."""
    parsed = parse(args, OPTIONS, least=1, most=1, terminator=True)
    vm = library.open_local(call.store, parsed.positionals[0])
    suspendable = bool(parsed["suspendable"]) or vm.is_suspended
    _check(call, parsed, vm, suspendable=suspendable)
    wake = _catch_signals()
    uuid = _lock(call, vm)
    linux = vm_os(vm) == "linux"
    pending = _boot_delay(call, wake)
    call.strike("middle")
    if call.settings["keychain_locked"] and not linux:
        raise TartError(call.settings["keychain_message"])
    if vm.is_suspended:
        _say("restoring VM state from a snapshot...")
        os.unlink(vm.file("state.vzvmsave"))
        _say("resuming VM...")
    if vm.disk().get("corrupt"):
        raise TartError(_FAILED)
    machine = hypervisor.boot(call.store, vm, uuid, counts=not linux)
    news = machine.hear()
    if news == hypervisor.LIMIT:
        raise TartError(_limit_text(call, vm))
    if news != hypervisor.UP:
        raise TartError(_FAILED)
    return _Life(call, vm, machine, suspendable=suspendable).last(wake, pending)


def vm_os(vm):
    """`darwin` or `linux`, read without opening config.json, which this process may have locked."""
    return vm.disk()["os"]


def _check(call, parsed, vm, *, suspendable):
    networks = [name for name in ("net-bridged", "net-host") if parsed[name]]
    if any(parsed[name] for name in ("net-softnet", "net-softnet-allow", "net-softnet-block", "net-softnet-expose")):
        networks.append("net-softnet")
    if len(networks) > 1:
        raise UsageError("--net-bridged, --net-softnet and --net-host are mutually exclusive")
    if parsed["vnc"] and parsed["vnc-experimental"]:
        raise UsageError("--vnc and --vnc-experimental are mutually exclusive")
    if parsed["graphics"] and parsed["no-graphics"]:
        raise UsageError("--graphics and --no-graphics are mutually exclusive")
    if suspendable and parsed["dir"]:
        raise UsageError("Suspending VMs with shared directories is not supported")
    _check_shares(parsed["dir"] or ())


def _check_shares(shares):
    """Check `[name:]path[:options]`: when several shares have one tag, each needs a name; the folders must exist."""
    by_tag = {}
    for share in shares:
        parts = share.split(":")
        options = parts[-1].split(",")
        found = [text for text in options if text == "ro" or text.startswith("tag=")]
        if found:
            del parts[-1]
        if not parts or not os.path.isdir(os.path.expanduser(":".join(parts[1:] if len(parts) > 1 else parts))):
            raise UsageError(f"invalid --dir syntax: {share}")
        tag = next((text for text in found if text.startswith("tag=")), "")
        by_tag.setdefault(tag, []).append(len(parts) > 1)
    if any(len(named) > 1 and not all(named) for named in by_tag.values()):
        raise UsageError("invalid --dir syntax: for multiple directory shares each one of them should be named")


def _catch_signals():
    """From here on, signals only wake the waiting select; returns the descriptor that then becomes readable."""
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    for number in _SIGNALS:
        signal.signal(number, lambda *_: None)
    return wake


def _lock(call, vm):
    """Become the process that runs the VM; returns its disk's uuid."""
    with locks.folder(call.store.tart_home):
        config = vm.config()
        others = [other for other in library.local(call.store) if other.name != vm.name]
        if any(other.config()["macAddress"] == config["macAddress"] and other.pid() for other in others):
            _say("There is already a running VM with the same MAC address!")
            _say("Resetting VM to assign a new MAC address...")
            vm.save_config({**config, "macAddress": library.new_mac()})
        if not locks.take(vm.file("config.json")):
            raise already_running(vm.name)
        return vm.disk()["uuid"]


def _boot_delay(call, wake):
    """Wait for the delay of `run`; returns the signals that arrived and cut it short."""
    seconds = call.delay("run")
    readable, _, _ = select.select([wake], [], [], seconds)
    return list(os.read(wake, 64)) if readable else []


def _limit_text(call, vm):
    with call.store.transaction() as tx:
        others = ", ".join(sorted(op["name"] for op in tx.ops("run") if op["uuid"] != vm.disk()["uuid"]))
    hint = f" (other running VMs: {others})" if others and call.has("2.18.1") else ""
    return f"The number of VMs exceeds the system limit{hint}"


def _say(line):
    write_all(1, f"{line}\n".encode())


class _Life:
    """The life of one VM, from start to end."""

    def __init__(self, call, vm, machine, *, suspendable):
        self._call = call
        self._vm = vm
        self._machine = machine
        self._suspendable = suspendable
        self._dies_at = None

    def last(self, wake, pending):
        """Serve signals until the VM has ended; returns the exit status."""
        self._arm_fault()
        for number in pending:
            self._signalled(number)
        while True:
            timeout = None if self._dies_at is None else max(0, self._dies_at - time.monotonic())
            readable, _, _ = select.select([wake, self._machine.news], [], [], timeout)
            if not readable:
                self._call.strike("after")
                self._dies_at = None
            if wake in readable:
                for number in os.read(wake, 64):
                    if number == signal.SIGUSR1 and not self._suspend():
                        return 1
                    self._signalled(number)
            if self._machine.news in readable:
                return self._ended(self._machine.hear())

    def _arm_fault(self):
        """Arm an "after" fault, which strikes after its delay while signals are served."""
        fault = self._call.fault
        if fault is None or "after" not in (fault["when"], fault["kill_at"]):
            return
        self._dies_at = time.monotonic() + (fault["delay"] or 0)
        self._call.fault = {**fault, "delay": None}

    def _signalled(self, number):
        if number == signal.SIGINT and not self._call.settings["stop_hangs"]:
            _say("Stopping VM...")
            self._machine.order(hypervisor.STOP)
        elif number == signal.SIGUSR2:
            _say("Requesting guest OS to stop...")
            if self._call.settings["request_stop"] == "stops":
                with self._call.store.transaction() as tx:
                    machine = tx.machine(self._vm.disk()["uuid"])
                if machine:
                    os.kill(machine["pid"], hypervisor.HALT)

    def _settle(self):
        """A hypervisor that dies closes its pipe before it is dead: wait until a transaction has settled its remains."""
        while True:
            with self._call.store.transaction() as tx:
                if tx.machine(self._vm.disk()["uuid"]) is None:
                    return
            time.sleep(_PAUSE)

    def _suspend(self):
        if not self._suspendable:
            _say("Failed to suspend the VM: Invalid virtual machine configuration.")
            return False
        _say("pausing VM to take a snapshot...")
        _say("creating a snapshot...")
        with open(self._vm.file("state.vzvmsave"), "wb") as file:
            file.write(b"snapshot")
        _say("snapshot created successfully! shutting down the VM...")
        _say("Stopping VM...")
        self._machine.order(hypervisor.SUSPEND)
        return True

    def _ended(self, news):
        if news == hypervisor.HALTED:
            _say("guest has stopped the virtual machine")
        elif news != hypervisor.ENDED:  # a crash, or a killed hypervisor
            if news != hypervisor.CRASHED:
                self._settle()
            text = "The virtual machine stopped unexpectedly."
            _say(f"guest has stopped the virtual machine due to error: {text}")
        return 0
