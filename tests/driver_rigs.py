"""Rigs: each sets up one VM driver on its emulated host, and breaks that host, for the tests that every driver has to pass."""

import logging
import os

from emulators.anka.bench import eventually
from emulators.anka.control import AnkaHost

from anklet_worker.config import Deadlines, ServiceConfig
from anklet_worker.orders import Orders
from anklet_worker.vm import VMSpec, vm_name
from anklet_worker.vm.command import CommandRunner, CommandSettings
from anklet_worker.vm.drivers import open_driver


class Records(logging.Handler):
    """Keeps what is logged: (level, message, err)."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append((record.levelname, record.getMessage(), getattr(record, "err", "")))

    def warnings(self):
        """What was logged as a warning or worse."""
        return [line for line in self.lines if line[0] in ("WARNING", "ERROR")]


class AnkaRig:
    """The anka driver on an emulated host that has the template `macos` with tag v1."""

    name = "anka"
    spec = VMSpec(template="macos", tag="v1")
    labels = ("self-hosted", "anka", "anka-template:macos", "anka-template-tag:v1")

    def __init__(self, folder):
        self.folder = folder
        self.host = AnkaHost(folder / "anka")
        self.uuid = self.host.add_template("macos", tag="v1")
        self.log = Records()
        self.notes = []
        self.ended = []
        self.orders = Orders()

    def driver(self, orders=None, **changes):
        """A driver as one worker has it."""
        logger = logging.Logger("rig")  # noqa: LOG001  not shared with anyone
        logger.addHandler(self.log)
        settings = CommandSettings(
            env=self.host.environ(),
            secrets=(),
            cwd=self.folder,
            in_flight=self.notes.append,
            ended=lambda *facts: self.ended.append(facts),
        )
        orders = orders or self.orders
        service = ServiceConfig(
            name="RUNNER1", plugin="github", vm_driver=self.name, **{"deadlines": Deadlines(vm_start=20.0), **changes}
        )
        return open_driver(service, self.folder / "state", CommandRunner(orders, settings), orders, logger)

    def vm(self, attempt=1):
        """Name of a VM of ours."""
        return vm_name("0123abcd", "RUNNER1", "7", attempt)

    def started(self, driver, attempt=1):
        """A VM, made and started."""
        name = self.vm(attempt)
        with driver.image(self.spec, lambda: None) as source:
            driver.clone(source, name)
        driver.start(name)
        return name

    def argvs(self, word=""):
        """Arguments of all commands that bear this word."""
        return [" ".join(call["argv"]) for call in self.host.calls() if not word or word in call["argv"]]

    def names(self):
        """Names of all VMs and templates."""
        return {vm["name"] for vm in self.host.vms()}

    def hang(self, command, when="before"):
        """The next such command does not end."""
        self.host.fault(command, hang=True, when=when)

    def wait_for_command(self, word, count=1):
        """Wait until the host has seen so many commands with this word."""
        eventually(lambda: len(self.argvs(word)) >= count)

    def close(self):
        """End every process of the host."""
        self.host.shutdown_all()
        assert not self.host.command_pids()


def executable(path, script):
    """A program for PATH."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return {"PATH": f"{path.parent}{os.pathsep}{os.environ['PATH']}"}
