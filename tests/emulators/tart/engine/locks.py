"""The two kinds of lock that Tart takes: record locks on files, which identify their holder, and flocks on folders.

Owns the meaning of `running`: a process holds a write lock on the VM's config.json. Knows no VM.
A process loses its record lock on a file when it closes any of its own descriptors of that file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import sys

# struct flock: macOS has start, length, pid, type, whence; Linux type, whence, start, length, pid.
_MAC = sys.platform == "darwin"
_FORMAT = "qqihh" if _MAC else "hhqqi0q"


def take(path):
    """Hold a write lock on this file until this process ends. Returns True, or False when another process holds it."""
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(fd)
        return False
    return True


def holder(path):
    """The pid of the process that holds a lock on this file, 0 for none. Not for a process that may hold it itself."""
    try:
        fd = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return 0
    try:
        asked = (0, 0, 0, fcntl.F_WRLCK, os.SEEK_SET) if _MAC else (fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        answer = struct.unpack(_FORMAT, fcntl.fcntl(fd, fcntl.F_GETLK, struct.pack(_FORMAT, *asked)))
    finally:
        os.close(fd)
    kind, pid = (answer[3], answer[2]) if _MAC else (answer[0], answer[4])
    return 0 if kind == fcntl.F_UNLCK else pid


@contextlib.contextmanager
def folder(path, waiting=None):
    """Hold the flock of a folder; `waiting()` is called before a wait for another process."""
    fd = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting:
                waiting()
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
