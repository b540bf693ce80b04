"""`make bench OLD=CHECKOUT`: this build and an older one in turns, in one run: memory of idle services, start to ready, pick-up.

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
from site_of_bench import Site, command_start, last_request_before, own_time  # noqa: E402  the path comes first
from stage import OWNER, REPO, Mac, eventually, job, new_github  # noqa: E402  the path comes first

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


def interpreters(old):
    """The Python of each build's environment."""
    return {"old": Path(old).absolute() / ".venv" / "bin" / "python", "new": Path(sys.executable)}


def compare(old, services, rounds):
    """Medians of both builds: (old MB, new MB, old seconds, new seconds)."""
    builds = interpreters(old)
    samples = {name: [] for name in builds}
    for _ in range(rounds):
        for name, python in builds.items():
            samples[name].append(measure(python, services))
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in samples.items()
    }
    return (*(medians[name][0] for name in builds), *(medians[name][1] for name in builds))


def pick_up(python, samples):
    """From the reply that shows a job to `anka clone` with this build: own seconds, `anka list` calls; and seconds from queued."""
    own, lists, waited = [], [], []
    with Site(1) as site:
        mac = site.mac
        mac.write_config()
        mac.run([str(python), "-m", "anklet_supervisor", "start", "--config", str(mac.config_path)], mac.env(), None)
        eventually(mac.is_ready, "it is ready")
        for number in range(samples):
            queued = time.time()
            run = site.github.queue_run(OWNER, REPO, jobs=[job(f"job {number}", duration=0.2)])
            job_id = run["jobs"][0]["id"]
            eventually(lambda job_id=job_id: site.github.job(job_id)["status"] == "completed", "the job is done", 60)
            eventually(lambda: not mac.leftovers(), "everything is cleaned up", 30)
            clone = command_start(site, "clone", site.github.job(job_id)["runner_name"])
            shown = last_request_before(site, clone, lambda r, run=run: r["path"].endswith(f"/runs/{run['id']}/jobs"))
            own.append(own_time(site, shown, clone))
            lists.append(sum("list" in call["argv"] and shown < call["start"] < clone for call in mac.anka.calls()))
            waited.append(clone - queued)
        mac.drain()
    return statistics.median(own), statistics.median(lists), statistics.median(waited)


def pick_up_rows(builds, rounds, samples):
    """The rows of a pick-up with both builds, in turns."""
    found = {name: [] for name in builds}
    for _ in range(rounds):
        for name, python in builds.items():
            found[name].append(pick_up(python, samples))
    old, new = ([statistics.median(column) for column in zip(*found[name], strict=True)] for name in ("old", "new"))
    yield (
        "a look that shows a job -> `anka clone`, own time, this build / the old one",
        "<= 0.65",
        f"{new[0] / old[0]:.2f} ({1000 * new[0]:.1f} / {1000 * old[0]:.1f} ms)",
    )
    yield "`anka list` calls meanwhile, this build / the old one", "1 / 2", f"{new[1]:.0f} / {old[1]:.0f}"
    yield (
        "queued -> `anka clone`, this build / the old one",
        "<= 1",
        f"{new[2] / old[2]:.2f} ({new[2]:.2f} / {old[2]:.2f} s)",
    )


def rows(old, *, quick):
    """(figure, goal, measured), one after the other."""
    rounds = 1 if quick else 5
    yield from pick_up_rows(interpreters(old), 1 if quick else 3, 4 if quick else 20)
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
