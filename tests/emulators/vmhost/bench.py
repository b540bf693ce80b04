"""Waits with a deadline, for tests. Owns nothing else."""

from __future__ import annotations

import time


def eventually(condition, seconds=20):
    """Poll until `condition()` is true and return its value; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "condition never became true"
        time.sleep(0.01)
    return value


def finish(process, seconds=30):
    """Wait for a Popen; return (exit status, stdout, stderr)."""
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err
