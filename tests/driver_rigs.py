"""Rigs: each sets up one VM driver on its emulated host, and breaks that host, for the tests that all drivers share."""

import hashlib
import logging
import os
import subprocess

from emulators.anka.control import AnkaHost
from emulators.tart.control import TartHost
from emulators.vmhost.bench import eventually

from anklet_worker.contract.errors import VMTransient
from anklet_worker.contract.job import VMSpec
from anklet_worker.contract.service import Deadlines, ServiceConfig
from anklet_worker.process.command import CommandRunner, CommandSettings
from anklet_worker.process.orders import Orders
from anklet_worker.vm import guests, listings, tool
from anklet_worker.vm.anka import driver as anka
from anklet_worker.vm.driver import VMState
from anklet_worker.vm.drivers import open_driver
from anklet_worker.vm.guest_script import new_nonce, result_in, wrapped
from anklet_worker.vm.memory import MemoryDriver, MemoryHost
from anklet_worker.vm.names import vm_name
from anklet_worker.vm.tart import driver as tart
from anklet_worker.vm.tart import guest as tart_guest
from anklet_worker.vm.tart import images as tart_images


class Records(logging.Handler):
    """Keeps log records as (level, message, err)."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append((record.levelname, record.getMessage(), getattr(record, "err", "")))

    def warnings(self):
        """Return the records of level WARNING or worse."""
        return [line for line in self.lines if line[0] in ("WARNING", "ERROR")]


class Rig:
    """A driver on an emulated host that has the image `macos`."""

    name = ""
    #: The image that a job requests, and the labels that request it.
    spec = VMSpec(template="macos")
    labels = ()
    #: The modules whose timeouts a test may shorten.
    modules = ()
    #: The verbs of a guest command and of its status query, as metrics and the emulator name them.
    guest_verb = "run"
    telling_verb = "list"
    #: The verb that starts a VM.
    start_verb = "start"

    def __init__(self, folder, host):
        self.folder = folder
        self.host = host
        self.log = Records()
        self.notes = []
        self.ended = []
        self.orders = Orders()

    def commands(self, orders=None):
        """Return the command runner of one worker."""
        settings = CommandSettings(
            env=self.host.environ(),
            secrets=(),
            cwd=self.folder,
            in_flight=self.notes.append,
            ended=lambda *facts: self.ended.append(facts),
        )
        return CommandRunner(orders or self.orders, settings)

    def driver(self, orders=None, **changes):
        """Return a driver as one worker has it."""
        logger = logging.Logger("rig")  # noqa: LOG001  not shared with anyone
        logger.addHandler(self.log)
        orders = orders or self.orders
        service = ServiceConfig(
            name="RUNNER1", plugin="github", vm_driver=self.name, **{"deadlines": Deadlines(vm_start=20.0), **changes}
        )
        return open_driver(service, self.folder / "state", self.commands(orders), orders, logger)

    def vm(self, attempt=1):
        """Return the name of one of our VMs."""
        # Tests find commands by their words in the machine's process table, so two rigs must not share a VM name.
        return vm_name(hashlib.sha256(str(self.folder).encode()).hexdigest()[:8], "RUNNER1", "7", attempt)

    def started(self, driver, attempt=1):
        """Clone and start a VM; return its name."""
        name = self.vm(attempt)
        with driver.image(self.spec, lambda: None) as source:
            driver.clone(source, name)
        driver.start(name)
        return name

    def argvs(self, word=""):
        """Return the arguments of all commands that contain this word."""
        return [" ".join(call["argv"]) for call in self.host.calls() if not word or word in call["argv"]]

    def names(self):
        """Return the names of all VMs and templates."""
        return {vm["name"] for vm in self.host.vms()}

    def hang(self, command, when="before"):
        """Make the next such command hang."""
        self.host.fault(command, hang=True, when=when)

    def shorten(self, monkeypatch, name, seconds):
        """Shorten one of the driver's timeouts."""
        (module,) = (module for module in self.modules if hasattr(module, name))
        monkeypatch.setattr(module, name, seconds)

    def wait_for_command(self, word, count=1):
        """Wait until the host has seen `count` commands with this word."""
        eventually(lambda: len(self.argvs(word)) >= count)

    def close(self):
        """End every process of the host."""
        self.host.shutdown_all()
        assert not self.host.command_pids()


class AnkaRig(Rig):
    """The anka driver; the template has the tag v1."""

    name = "anka"
    spec = VMSpec(template="macos", tag="v1")
    labels = ("self-hosted", "anka", "anka-template:macos", "anka-template-tag:v1")
    modules = (anka, guests, listings, tool)
    telling_verb = "clone"

    def __init__(self, folder):
        super().__init__(folder, AnkaHost(folder / "anka"))
        self.uuid = self.host.add_template("macos", tag="v1")

    def boots_for(self, tries):
        """Let a guest accept commands only after this number of tries."""
        self.host.set(boot_runs=tries)

    def holds_output(self):
        """Make a guest command last until all its output is closed."""
        self.host.set(run_waits_for="eof")

    def deny(self, command):
        """Make the next such command answer that the VM does not exist."""
        self.host.fault(command, when="before", code=3, message="vlaunchd socket: not found")

    def guest_shell(self, vm):
        """Return the command by which scripts reach the guest."""
        return ["anka", "-j", "run", vm, "bash", "-s"]


class TartRig(Rig):
    """The tart driver; the guests have an agent, but no ssh."""

    name = "tart"
    labels = ("self-hosted", "tart", "tart-image:macos")
    modules = (tart, tart_guest, tart_images, guests, listings, tool)
    guest_verb = "exec"
    start_verb = "run"

    def __init__(self, folder, *, agent=True, sshd=False):
        super().__init__(folder, TartHost(folder / "tart"))
        self.host.add_image("macos", agent=agent, sshd=sshd)

    def boots_for(self, tries):
        """Let a guest accept commands only after this number of tries."""
        self.host.set(boot_execs=tries)

    def holds_output(self):
        """Make a guest command last until all its output is closed."""
        self.host.set(exec_output="drained")

    def deny(self, command):
        """Make the next such command answer that the VM does not exist."""
        self.host.fault(command, when="before", code=2, message='the specified VM "x" does not exist')

    def guest_shell(self, vm):
        """Return the command by which scripts reach the guest."""
        return ["tart", "exec", "-i", vm, "bash", "-s"]


class MemoryRig(Rig):
    """The in-memory driver; its guests are this machine's bash."""

    name = "memory"
    labels = ("self-hosted", "memory", "memory-image:macos")

    def __init__(self, folder):
        super().__init__(folder, MemoryHostOfRig(folder / "memory"))
        self.host.add("macos")

    def driver(self):
        """Return a driver; all drivers of the host share its VMs."""
        return MemoryDriver(self.host, bash, lambda step, _vm: self.host.steps.append(step))

    def close(self):
        """Do nothing: there is no process to end."""


class MemoryHostOfRig(MemoryHost):
    """The in-memory host, with the controls that tests use on an emulated host."""

    def __init__(self, folder):
        super().__init__(folder)
        self.steps = []

    def start_foreign(self, name, *, hidden=False):
        """Run another user's VM; `hidden`: this driver does not list it."""
        if hidden:
            self.most_running -= 1
        else:
            self.add(name, VMState.RUNNING)

    def max_running(self):
        """Return the most VMs that ran at once; here no VM stops by itself."""
        return len(self.running())

    def guest_home(self, vm):
        """Return the home of a VM's guest."""
        return self.vms[vm].home

    def calls(self):
        """Return each step as a command of one word."""
        return [{"argv": [step]} for step in self.steps]


def bash(vm, script, timeout):
    """Run the script in an in-memory guest's home, as the drivers of real tools do."""
    nonce = new_nonce()
    command = ["bash", "-s"]
    env = {**os.environ, "HOME": str(vm.home)}
    try:
        done = subprocess.run(
            command, input=wrapped(script, nonce), capture_output=True, timeout=timeout, env=env, check=False
        )
    except subprocess.TimeoutExpired:
        raise VMTransient(f"the guest command in {vm.name} did not end within {timeout:g} s") from None
    ended = result_in(done.stdout.decode(errors="replace"), nonce)
    if ended is None:
        raise VMTransient(f"guest command in {vm.name}: its end was not seen")
    return ended


def executable(path, script):
    """Write an executable program for PATH."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return {"PATH": f"{path.parent}{os.pathsep}{os.environ['PATH']}"}
