"""`make bench OLD=CHECKOUT`: this build and an older one in turns, in one run: memory of idle services, and start to ready.

The older checkout has an environment of its own in `.venv`. Both builds meet the same emulators, configuration and load.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import psutil  # noqa: E402  the path comes first
from stage import Mac, eventually, new_github  # noqa: E402  the path comes first

#: Seconds after readiness: what is loaded with the first looks is loaded by then.
SETTLED = 4.0


def measure(python, services):
    """PSS of the supervisor and all below it in MB, and seconds from start to ready, of an idle host with this build."""
    folder = Path(tempfile.mkdtemp(prefix="anklet-bench-"))
    github = new_github()
    mac = Mac(folder / "mac", github, services=services)
    try:
        for service in mac.config["services"]:
            del service["sleep_interval"]
        mac.write_config()
        began = time.monotonic()
        mac.run([str(python), "-m", "anklet_supervisor", "start", "--config", str(mac.config_path)], mac.env(), None)
        eventually(mac.is_ready, "it is ready", pause=0.005)
        ready = time.monotonic() - began
        end = time.monotonic() + SETTLED
        eventually(lambda: time.monotonic() >= end, "the first looks are over")
        supervisor = psutil.Process(mac.process.pid)
        processes = [supervisor, *supervisor.children(recursive=True)]
        memory = [process.memory_full_info().pss / 1e6 for process in processes]
        mac.drain()
        return sum(memory), ready
    finally:
        mac.close()
        github.stop()
        shutil.rmtree(folder)


def compare(old, services, rounds):
    """Medians of both builds: (old MB, new MB, old seconds, new seconds)."""
    builds = {"old": Path(old).absolute() / ".venv" / "bin" / "python", "new": Path(sys.executable)}
    samples = {name: [] for name in builds}
    for _ in range(rounds):
        for name, python in builds.items():
            samples[name].append(measure(python, services))
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in samples.items()
    }
    return (*(medians[name][0] for name in builds), *(medians[name][1] for name in builds))


def rows(old, *, quick):
    """(figure, goal, measured), one after the other."""
    rounds = 1 if quick else 5
    for services, goal in ((2, 0.82), (8, 0.65)):
        old_memory, new_memory, old_ready, new_ready = compare(old, services, rounds)
        yield (
            f"PSS of {services} idle services, this build / the old one",
            f"<= {goal}",
            f"{new_memory / old_memory:.2f} ({new_memory:.0f} / {old_memory:.0f} MB)",
        )
        yield (
            f"start to ready of {services} services, this build / the old one",
            "<= 1",
            f"{new_ready / old_ready:.2f} ({new_ready:.2f} / {old_ready:.2f} s)",
        )
