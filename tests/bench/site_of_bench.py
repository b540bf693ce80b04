"""The stage of a benchmark, and what the emulators' journals say of the time that passed on it.

Our own time is wall time minus the time inside VM commands and GitHub's replies, both as the emulators logged them.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stage import Mac, new_github


class Site:
    """A stage that is thrown away."""

    def __init__(self, services):
        self.folder = Path(tempfile.mkdtemp(prefix="anklet-bench-"))
        self.github = new_github()
        self.mac = Mac(self.folder / "mac", self.github, services=services)
        self.boot = boot_time(self)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.mac.close()
        self.github.stop()
        shutil.rmtree(self.folder)


def boot_time(site):
    """Seconds from the execution of an emulated `anka` until it logs its start: its interpreter's, not ours."""
    samples = []
    for _ in range(15):
        began = time.time()
        subprocess.run(["anka", "version"], env=site.mac.env(), capture_output=True, check=True)
        samples.append(site.mac.anka.calls()[-1]["start"] - began)
    return statistics.median(samples)


def spans(site):
    """All VM commands and replies of GitHub as (begin, end) in Unix seconds."""
    commands = [(call["start"] - site.boot, call["end"]) for call in site.mac.anka.calls() if call.get("end")]
    requests = [(request["time"] - request["seconds"], request["time"]) for request in site.github.requests()]
    return sorted(commands + requests)


def own_time(site, begin, end):
    """Seconds between two moments that are inside no VM command and no reply."""
    inside, reached = 0.0, begin
    for start, stop in spans(site):
        low, high = max(start, reached), min(stop, end)
        if high > low:
            inside += high - low
            reached = high
    return end - begin - inside


def command_start(site, verb, vm):
    """When the command that names this VM was executed."""
    return next(c["start"] - site.boot for c in site.mac.anka.calls() if verb in c["argv"] and vm in c["argv"])


def last_request_before(site, moment, accept):
    """When the last accepted reply before this moment ended."""
    return max(r["time"] for r in site.github.requests() if r["time"] <= moment and accept(r))
