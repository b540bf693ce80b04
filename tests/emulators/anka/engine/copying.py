"""`cp` between host and guest.

Owns how `vm:path` maps to a folder of this machine and the meaning of cp's letters. Of the command line it knows only the colon.
"""

from __future__ import annotations

import os

from emulators.vmhost import trees
from emulators.vmhost.options import UsageError

from . import lifecycle
from .failure import AnkaError, configured

#: The guest's home in a real guest.
GUEST_HOME = "/Users/anka"


def split(operand):
    """(vm, path) for `vm:path`, (None, operand) for a host path."""
    vm, colon, path = operand.partition(":")
    if not colon or "/" in vm or not vm:
        return None, operand
    return vm, path


def sides(source, target):
    """The subject of the one operand that names a VM; raises UsageError unless there is exactly one."""
    subjects = [vm for vm, _ in (split(source), split(target)) if vm]
    if len(subjects) != 1:
        raise UsageError("cp: exactly one of source and destination must be VM:PATH")
    return subjects[0]


def home_for(call, subject):
    """The guest's home of a VM that allows copying; starts a stopped VM if the switch says so."""
    with call.store.transaction() as tx:
        vm = lifecycle.resolve(tx, subject)
        answer = tx.settings["cp_stopped"]
        if vm["status"] != "running" and answer == "refuse":
            raise configured(tx.settings, "not_running", subject)
        if vm["status"] != "running" and answer == "start":
            tx.end_op(lifecycle.bring_up(tx, vm, subject))
        return tx.store.guest_home(vm["uuid"])


def copy(home, source, target, mode, *, recursive):
    """Copy as cp does: into `target` if it is a folder, otherwise to that name. Raises AnkaError."""
    source, target = (_locate(home, operand) for operand in (source, target))
    if not (os.path.exists(source) if mode.follow else os.path.lexists(source)):
        raise AnkaError(f"{source}: No such file or directory", 2)
    directory = os.path.isdir(source) and (mode.follow or not os.path.islink(source))
    if directory and not recursive:
        raise AnkaError(f"{source} is a directory (not copied)", 21)
    if os.path.isdir(target):
        target = os.path.join(target, os.path.basename(source.rstrip("/")))
    if not os.path.isdir(os.path.dirname(target)):
        raise AnkaError(f"{target}: No such file or directory", 2)
    if directory and os.path.lexists(target) and not os.path.isdir(target):
        raise AnkaError(f"{target}: Not a directory", 20)
    try:
        trees.copy(source, target, mode)
    except OSError as error:
        raise AnkaError(f"{error.filename or target}: {error.strerror or error}", error.errno or 1) from error


def _locate(home, operand):
    """The path on this machine. A guest's absolute path must be inside the guest's home, the only emulated part of a guest."""
    vm, path = split(operand)
    if vm is None:
        return os.path.abspath(operand)
    if path == GUEST_HOME or path.startswith(GUEST_HOME + "/"):
        path = path[len(GUEST_HOME) :].lstrip("/")
    located = os.path.normpath(os.path.join(home, path))
    if located != home and not located.startswith(home + "/"):
        raise AnkaError(f"{path}: Permission denied", 13)
    return located
