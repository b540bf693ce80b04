"""Copies and removes directory trees.

Owns the handling of symlinks, modes and existing targets. Raises OSError. Knows nothing of VMs.
"""

from __future__ import annotations

import os
import stat

_CHUNK = 1 << 20


class CopyMode:
    """The options of a copy command."""

    def __init__(self, *, follow=False, preserve=True, clobber=True, force=False):
        self.follow = follow
        self.preserve = preserve
        self.clobber = clobber
        self.force = force


KEEP = CopyMode()


def copy(source, target, mode=KEEP):
    """Copy a file, symlink or tree to exactly `target`; directories merge, other things are replaced."""
    status = os.stat(source) if mode.follow else os.lstat(source)
    if stat.S_ISDIR(status.st_mode):
        os.makedirs(target, exist_ok=True)
        for name in sorted(os.listdir(source)):
            copy(os.path.join(source, name), os.path.join(target, name), mode)
        _finish(target, status, mode)
    elif os.path.lexists(target) and not mode.clobber:
        return
    elif stat.S_ISLNK(status.st_mode):
        if os.path.lexists(target):
            os.unlink(target)
        os.symlink(os.readlink(source), target)
    elif stat.S_ISREG(status.st_mode):
        _copy_file(source, target, status, mode)
    else:
        raise OSError(f"{source}: not a file, directory or symlink")


def _copy_file(source, target, status, mode):
    if mode.force and os.path.lexists(target):
        os.unlink(target)
    with open(source, "rb") as reader, open(target, "wb") as writer:
        while chunk := reader.read(_CHUNK):
            writer.write(chunk)
    _finish(target, status, mode)


def _finish(target, status, mode):
    if mode.preserve:
        os.chmod(target, stat.S_IMODE(status.st_mode))
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(target, stat.S_IMODE(status.st_mode) & ~mask)


def remove(path):
    """Remove a tree, including read-only directories; a missing tree is fine."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(status.st_mode):
        os.unlink(path)
        return
    os.chmod(path, stat.S_IRWXU)
    for name in os.listdir(path):
        remove(os.path.join(path, name))
    os.rmdir(path)


def size(path):
    """Bytes of all files under `path`; 0 if it does not exist."""
    total = 0
    for folder, _, names in os.walk(path):
        total += sum(os.lstat(os.path.join(folder, name)).st_size for name in names)
    return total
