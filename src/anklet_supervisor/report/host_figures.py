"""The host's CPU, memory and disk figures, as the original Anklet defines them. Knows psutil, but no metric."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

import msgspec
import psutil

T = TypeVar("T")

#: Seconds between two readings of the CPU: a mean over a shorter time says little.
_CPU_SPAN = 1.0


class CpuTimes(Protocol):
    """CPU seconds since boot. Systems have more fields than these two."""

    @property
    def user(self) -> float:
        """Seconds in programs."""
        ...

    @property
    def idle(self) -> float:
        """Idle seconds."""
        ...


class HostFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One reading. `memory` and `disk` (of `/`) are total, used and available bytes, and the used percentage.

    A figure that the system does not give is None.
    """

    cpu_count: int | None = None
    cpu_percent: float | None = None
    memory: tuple[int, int, int, float] | None = None
    disk: tuple[int, int, int, float] | None = None

    @property
    def cpu_used(self) -> int | None:
        """Cores in use, rounded down, as the original Anklet shows them."""
        if self.cpu_count is None or self.cpu_percent is None:
            return None
        return int(self.cpu_count * self.cpu_percent / 100)


class HostSampler:
    """Reads the figures. Thread-safe. The CPU percentage is the mean over the last second or more.

    `psutil.cpu_percent` does not work here: it compares with the last call of the same thread, and each scrape has a new thread, so
    it would always return 0. `mono` is a monotonic clock in seconds.
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
        # The mean since boot, until a second has passed.
        self._percent = None if self._before is None else _busy_percent(None, self._before)

    def read(self) -> HostFigures:
        """Ask the system for each figure separately, so that one failure does not hide the others."""
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
    """The percentage of CPU time between two readings (`before` None: since boot) that was not idle; None if no time passed.

    Single counters may go back a little; that counts as no change.
    """
    spent = {kind: max(0.0, getattr(after, kind) - getattr(before, kind, 0.0)) for kind in _kinds(after)}
    total: float = sum(spent.values())
    if total <= 0:
        return None
    idle: float = spent["idle"] + spent.get("iowait", 0.0)
    return round(100 * (total - idle) / total, 1)


def _kinds(times: CpuTimes) -> list[str]:
    # Linux counts guest time as user time as well.
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
