"""Reads the log file: filters its lines, and keeps reading across rotations.

Owns which lines match. `console` shows them; `anklet_worker.log.service_log` owns their form.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from anklet_supervisor.log.writer import rotated

_LEVELS = ("DEBUG", "INFO", "WARN", "ERROR")
#: Bytes per read.
_CHUNK = 1 << 16
#: Bytes after which a line that never ends is cut; we write no line this long.
_LONGEST_LINE = 1 << 20


class LineFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Selects lines by service, by job (its ID or its VM's name), and by lowest level; None selects all."""

    service: str | None = None
    job: str | None = None
    level: str | None = None

    def matches_line(self, line: bytes) -> bool:
        """True when the line is shown. Parses it only when it must."""
        if self == LineFilter():
            return True
        if self.job is not None and self.job.encode() not in line:
            return False
        return self.matches(parsed(line))

    def matches(self, record: dict[str, object] | None) -> bool:
        """True when the record is shown. None, a line of LOG_LEVEL=dev or of a crash, matches only the empty filter."""
        if record is None:
            return self == LineFilter()
        if self.service is not None and record.get("serviceName") != self.service:
            return False
        if self.job is not None and self.job not in {
            str(record.get(key)) for key in ("jobId", "workflowJobId", "otherJobId", "vmName")
        }:
            return False
        return self.level is None or _rank(record.get("level")) >= _LEVELS.index(self.level)


def _rank(level: object) -> int:
    return _LEVELS.index(level) if level in _LEVELS else len(_LEVELS)


def parsed(line: bytes) -> dict[str, object] | None:
    """The record in a line of the log; None for any other text."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and isinstance(value.get("msg"), str) else None


def last_lines(path: Path, lines: Iterable[bytes], wanted: LineFilter, most: int) -> list[bytes]:
    """The last `most` lines that match. `lines` are those of the log at `path`; rotated files supply the rest."""
    found = deque(filter(wanted.matches_line, lines), maxlen=most)
    number = 1
    while len(found) < most:
        try:
            with rotated(path, number).open("rb") as file:
                earlier = deque(filter(wanted.matches_line, map(_without_end, file)), maxlen=most - len(found))
        except OSError:
            break
        found.extendleft(reversed(earlier))
        number += 1
    return list(found)


def _without_end(line: bytes) -> bytes:
    return line.rstrip(b"\n")


class Tail:
    """Reads whole lines as a file grows, and continues with its successor when it is moved away or truncated."""

    def __init__(self, path: Path, open_file: Callable[[Path], int] | None = None) -> None:
        self._path = path
        self._open_file = open_file or (lambda path: os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        self._fd = -1
        self._rest = b""

    def read(self) -> list[bytes]:
        """The lines since the last call, without their newlines."""
        found = self._read_open()
        if self._has_moved():
            # Lines written between the last read and the move are still in the old file.
            found += self._read_open()
            self._close()
            found += self._read_open()
        return found

    def _read_open(self) -> list[bytes]:
        if self._fd < 0:
            try:
                self._fd = self._open_file(self._path)
            except OSError:
                return []
        while chunk := os.read(self._fd, _CHUNK):
            self._rest += chunk
        *whole, self._rest = self._rest.split(b"\n")
        if len(self._rest) > _LONGEST_LINE:
            whole, self._rest = [*whole, self._rest], b""
        return whole

    def _has_moved(self) -> bool:
        if self._fd < 0:
            return False
        here = os.fstat(self._fd)
        try:
            there = self._path.stat()
        except OSError:
            return False
        if (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino):
            return True
        # Truncated in place.
        return here.st_size < os.lseek(self._fd, 0, os.SEEK_CUR)

    def _close(self) -> None:
        os.close(self._fd)
        self._fd, self._rest = -1, b""
