"""The one writer of the log file. Workers send their lines over pipes; the supervisor adds its own.

Owns the file and what happens when writing fails. One thread writes; all others put lines into a bounded queue. A full disk, a
missing directory, a paused terminal or a hung file server therefore never stops the supervisor or a worker. Lines are dropped and
counted instead, reported once on standard error, and in the log as soon as it can be written again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import sys
import threading
import time
from pathlib import Path

from anklet_supervisor.log.own_log import one_line

_FILE_NAME = "anklet.log"
_MEGABYTE = 1_000_000
_STDOUT = 1
#: Lines that may wait for the disk; most are below 1 KiB, the longest about 100 KiB.
_WAITING = 4096
#: Seconds between two checks that the open file is still at its path, or that it can be opened again.
_LOOK_PAUSE = 1.0
#: Seconds that `close` waits for the disk.
_PATIENCE = 5.0


class LogWriter:
    """Appends whole lines to `<directory>/anklet.log`, or to standard output without a directory. Safe for several threads.

    A file that was moved away or deleted is created again within about a second, so log rotation needs no signal. One that has
    grown to `max_megabytes` is moved to `anklet.log.1`, that one to `.2`, and so on; `keep` of them stay. `level` decides the
    form of the writer's own lines. Raises `OSError` when the file cannot be opened at the start.
    """

    def __init__(self, directory: Path | None, level: str = "INFO", *, max_megabytes: float = 0, keep: int = 0) -> None:
        self._level = level
        self._file = _File(None if directory is None else log_file(directory), int(max_megabytes * _MEGABYTE), keep)
        self._lines: queue.Queue[bytes | None] = queue.Queue(_WAITING)
        self._dropped_lock = threading.Lock()
        self._dropped = 0
        self._reported = 0
        self._thread = threading.Thread(target=self._write_lines, name="log writer", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Lines lost since the start."""
        return self._dropped

    def write(self, line: bytes) -> None:
        """Append one line, which ends in a newline. Never waits, never raises."""
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._drop("the disk is too slow")

    def close(self) -> None:
        """Write the waiting lines and close. Gives up on a hung disk after `_PATIENCE` seconds for each step."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=_PATIENCE)
        self._thread.join(_PATIENCE)

    # ---- the writer's thread ----

    def _write_lines(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._file.reopen_if_moved()
                self._file.rotate_if_full()
                self._report_drops()
                self._file.append(line)
            except OSError as error:
                self._drop(error.strerror or str(error))
        with contextlib.suppress(OSError):
            self._report_drops()
        self._file.close()

    def _report_drops(self) -> None:
        lost = self._dropped - self._reported
        if lost == 0:
            return
        message = "log lines were lost because the log could not be written"
        self._file.append(one_line(self._level, logging.WARNING, message, {"lines": lost}))
        self._reported += lost

    def _drop(self, reason: str) -> None:
        with self._dropped_lock:
            first = self._dropped == self._reported
            self._dropped += 1
        if first:
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(f"anklet-supervisor: cannot write the log ({reason}); lines are lost\n")
                sys.stderr.flush()


def log_file(directory: Path) -> Path:
    """The log file in its directory."""
    return directory / _FILE_NAME


def rotated(path: Path, number: int) -> Path:
    """The file that was the log `number` rotations ago."""
    return path.with_name(f"{path.name}.{number}")


class _File:
    """The open file, or standard output. Holds whole lines only: a line that a full disk cuts short is truncated away.

    Rotates at `most` bytes (0: never) and keeps `keep` earlier files.
    """

    def __init__(self, path: Path | None, most: int = 0, keep: int = 0) -> None:
        self._path = path
        self._most, self._keep = most, keep
        self._fd = _STDOUT if path is None else _open(path)
        self._looked = time.monotonic()
        self._torn = False

    def reopen_if_moved(self) -> None:
        """Open the file again when its path no longer leads to it. Raises `OSError`."""
        now = time.monotonic()
        if self._path is None or (now - self._looked < _LOOK_PAUSE and self._fd >= 0):
            return
        if self._fd >= 0 and self._is_still_at(self._path):
            self._looked = now
            return
        self.close()
        self._fd = _open(self._path)
        self._looked = now

    def rotate_if_full(self) -> None:
        """Move a full file aside and start a new one. A file that cannot be moved keeps growing. Raises `OSError`."""
        if self._path is None or not self._most or os.fstat(self._fd).st_size < self._most:
            return
        for number in range(self._keep, 0, -1):
            earlier = self._path if number == 1 else rotated(self._path, number - 1)
            with contextlib.suppress(OSError):
                earlier.replace(rotated(self._path, number))
        if not self._keep:
            self._path.unlink(missing_ok=True)
        if not self._is_still_at(self._path):
            self.close()
            self._fd = _open(self._path)

    def append(self, line: bytes) -> None:
        """Write one line completely or not at all. Raises `OSError`."""
        begin = 0 if self._path is None else os.fstat(self._fd).st_size
        # A pipe cannot be truncated; after a torn line the next one starts with a newline.
        rest = memoryview(b"\n" + line if self._torn else line)
        whole = len(rest)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError:
            if len(rest) < whole:
                self._truncate_to(begin)
            raise
        self._torn = False

    def _truncate_to(self, begin: int) -> None:
        self._torn = self._path is None
        if not self._torn:
            os.ftruncate(self._fd, begin)

    def close(self) -> None:
        """Close the file; standard output is not ours to close."""
        fd, self._fd = self._fd, (_STDOUT if self._path is None else -1)
        if self._path is not None and fd >= 0:
            os.close(fd)

    def _is_still_at(self, path: Path) -> bool:
        try:
            there, here = path.stat(), os.fstat(self._fd)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            # The path cannot be checked, but the open file may still take lines.
            return True
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
