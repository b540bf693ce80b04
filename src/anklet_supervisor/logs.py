"""The one writer of the log file. Workers send their lines over pipes; the supervisor adds its own.

Owns the file and what happens when it cannot be written: lines are dropped and counted, nothing stops.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from pathlib import Path

_FILE_NAME = "anklet.log"
_STDOUT = 1


class LogWriter:
    """Appends whole lines to `<directory>/anklet.log`, or to standard output without a directory. Safe for several threads.

    Raises `OSError` when the file cannot be opened at first; later a full disk only drops lines, which `dropped` counts.
    """

    def __init__(self, directory: Path | None) -> None:
        self._path = None if directory is None else directory / _FILE_NAME
        self._fd = self._open()
        self._lock = threading.Lock()
        self._failing = False
        self.dropped = 0

    def write(self, line: bytes) -> None:
        """Append one line (with its newline)."""
        with self._lock:
            try:
                self._write_all(line)
            except OSError as error:
                self.dropped += 1
                if not self._failing:
                    self._failing = True
                    self._complain(
                        f"anklet-supervisor: the log cannot be written ({error.strerror}); lines are dropped"
                    )
            else:
                self._failing = False

    def close(self) -> None:
        """Close the file."""
        if self._path is not None:
            os.close(self._fd)

    def _open(self) -> int:
        if self._path is None:
            return _STDOUT
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def _write_all(self, line: bytes) -> None:
        if self._failing:
            # What was cut off by the failure must not run into this line.
            os.write(self._fd, b"\n")
            self._failing = False
        view = memoryview(line)
        while view:
            view = view[os.write(self._fd, view) :]

    def _complain(self, text: str) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text + "\n")
            sys.stderr.flush()
