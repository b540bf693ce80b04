"""The host's CPU, memory and disk, as the original showed them. Knows psutil and no metric."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

import msgspec
import psutil

T = TypeVar("T")

#: Seconds between two readings of the CPU: a mean over less says nothing, whoever asks how often.
_CPU_SPAN = 1.0


class CpuTimes(Protocol):
    """Seconds that the CPUs have spent since boot; systems have more kinds than these two."""

    @property
    def user(self) -> float:
        """In programs."""
        ...

    @property
    def idle(self) -> float:
        """With nothing to do."""
        ...


class HostFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One reading. `memory` and `disk` (that of `/`) are total, used, available in bytes, and used in percent.

    What the system refuses to tell is None.
    """

    cpu_count: int | None = None
    cpu_percent: float | None = None
    memory: tuple[int, int, int, float] | None = None
    disk: tuple[int, int, int, float] | None = None

    @property
    def cpu_used(self) -> int | None:
        """Cores in use, cut to whole ones, as the original showed it."""
        if self.cpu_count is None or self.cpu_percent is None:
            return None
        return int(self.cpu_count * self.cpu_percent / 100)


class HostSampler:
    """Reads the figures whenever asked, by any thread; the CPU percentage is the mean of the last second or more.

    `psutil.cpu_percent` would not do: it remembers the last call of each thread, and each scrape has a thread of its own, so that
    it would always answer 0. `mono` is a monotonic clock, `cpu_times` psutil's.
    """

    def __init__(
        self,
        mono: Callable[[], float] = time.monotonic,
        cpu_times: Callable[[], CpuTimes] = psutil.cpu_times,
    ) -> None:
        self._mono = mono
        self._cpu_times = cpu_times
        self._lock = threading.Lock()
        self._before = self._read_cpu_times()
        self._read_at = mono()
        # Until a second has passed: the mean since boot.
        self._percent = None if self._before is None else _busy_percent(None, self._before)

    def read(self) -> HostFigures:
        """Ask the system; each of the four by itself, so that one refusal does not hide the others."""
        return HostFigures(
            cpu_count=_or_none(lambda: psutil.cpu_count(logical=False) or psutil.cpu_count()),
            cpu_percent=self._cpu_percent(),
            memory=_or_none(_memory),
            disk=_or_none(_disk),
        )

    def _cpu_percent(self) -> float | None:
        with self._lock:
            now = self._mono()
            if self._percent is not None and now - self._read_at < _CPU_SPAN:
                return self._percent
            times = self._read_cpu_times()
            if times is not None and self._before is not None:
                busy = _busy_percent(self._before, times)
                self._percent = self._percent if busy is None else busy
            self._before, self._read_at = times, now
            return self._percent

    def _read_cpu_times(self) -> CpuTimes | None:
        return _or_none(self._cpu_times)


def _busy_percent(before: CpuTimes | None, after: CpuTimes) -> float | None:
    """How much of the time between two readings (None: since boot) was not idle; None when no time has passed.

    Single counters may run back a little; those count as not having moved.
    """
    spent = {kind: max(0.0, getattr(after, kind) - getattr(before, kind, 0.0)) for kind in _kinds(after)}
    total: float = sum(spent.values())
    if total <= 0:
        return None
    idle: float = spent["idle"] + spent.get("iowait", 0.0)
    return round(100 * (total - idle) / total, 1)


def _kinds(times: CpuTimes) -> list[str]:
    # Linux counts the time of guests as user time, too.
    return [kind for kind in getattr(times, "_fields", ("user", "idle")) if not kind.startswith("guest")]


def _memory() -> tuple[int, int, int, float]:
    memory = psutil.virtual_memory()
    return memory.total, memory.used, memory.available, memory.percent


def _disk() -> tuple[int, int, int, float]:
    disk = psutil.disk_usage("/")
    return disk.total, disk.used, disk.free, disk.percent


def _or_none(read: Callable[[], T]) -> T | None:
    try:
        return read()
    except (OSError, psutil.Error, RuntimeError):
        return None
