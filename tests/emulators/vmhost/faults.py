"""Injected faults: which invocation they hit, and at which of its three points.

Owns the points "before" (no effect yet), "middle" (half of it) and "after" (complete, but the reply is lost or replaced).
Knows no command's effect.
"""

from __future__ import annotations

import os
import re
import signal
import time


class Replaced(Exception):
    """The fault's reply replaces the command's."""

    def __init__(self, fault):
        super().__init__("replaced")
        self.fault = fault


def take(tx, command, argv):
    """Return the fault that hits this invocation, or None; decrements its `times`."""
    line = " ".join(argv)
    for fault in tx.state["faults"]:
        if fault["command"] not in (command, "*") or not re.search(fault["match"] or "", line):
            continue
        if fault["times"] is not None:
            fault["times"] -= 1
            if fault["times"] <= 0:
                tx.state["faults"].remove(fault)
        tx.event("fault", command=command, fault=fault)
        return dict(fault)
    return None


def strike(fault, point):
    """Do what the fault demands at `point`; raises Replaced when its reply is due."""
    if fault is None:
        return
    if fault["kill_at"] == point:
        os.kill(os.getpid(), signal.SIGKILL)
    if fault["when"] != point:
        return
    if fault["delay"]:
        time.sleep(fault["delay"])
    while fault["hang"]:
        signal.pause()
    if any(fault[key] is not None for key in ("code", "message", "exit_status", "stdout")):
        raise Replaced(fault)
