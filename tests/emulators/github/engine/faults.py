"""Pending faults: which request each one strikes and its effect on the reply. Owns their list; executes nothing."""

from __future__ import annotations

import dataclasses
import re
import threading


@dataclasses.dataclass
class Fault:
    """See `control.GitHubServer.fault`. `times` None: every time."""

    method: str
    route: str
    times: int | None = 1
    status: int | None = None
    body: object = None
    headers: dict | None = None
    delay: float | None = None
    reset: bool = False
    truncate: bool = False
    drop_after_effect: bool = False
    slow_drip: float | None = None


class Faults:
    """The faults that are not used up, in order of creation."""

    def __init__(self):
        self._lock = threading.Lock()
        self._waiting = []

    def add(self, **what):
        """Add a fault; re.error for a route that is not a regular expression, TypeError for an unknown argument."""
        re.compile(what["route"])
        with self._lock:
            self._waiting.append(Fault(**what))

    def clear(self):
        """Remove all faults."""
        with self._lock:
            self._waiting.clear()

    def waiting(self):
        """The faults that are not used up, as dicts."""
        with self._lock:
            return [dataclasses.asdict(fault) for fault in self._waiting]

    def take(self, method, path):
        """Return the first fault for this request, or None; uses up one of its times."""
        with self._lock:
            for fault in self._waiting:
                if fault.method in ("*", method) and re.search(fault.route, path):
                    if fault.times is not None:
                        fault.times -= 1
                        if fault.times <= 0:
                            self._waiting.remove(fault)
                    return fault
        return None
