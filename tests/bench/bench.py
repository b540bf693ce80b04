"""`make bench`: the figures of docs/benchmarks.md, taken from the real program and both emulators without latency.

Our own time is wall time minus the time inside VM commands and GitHub's replies, both as the emulators logged them. Medians.
`--quick` takes fewer samples, to see that the benchmark itself works. `--old CHECKOUT` compares memory and start with an older
build.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import calls  # noqa: E402  the path comes first
import psutil  # noqa: E402  the path comes first
import turns  # noqa: E402  the path comes first
from site_of_bench import Site, command_start, last_request_before, own_time  # noqa: E402  the path comes first
from stage import OWNER, REPO, eventually, job  # noqa: E402  the path comes first


def pick_up_and_clean_up(samples):
    """Own time from the poll that shows a job to `anka clone`; wall time from the runner's last report to the end of the command
    that waited for it; own time from there to `anka delete`. Seconds each."""
    picked, told, cleaned = [], [], []
    with Site(1) as site:
        site.mac.start()
        for number in range(samples):
            run = site.github.queue_run(OWNER, REPO, jobs=[job(f"job {number}", duration=0.5)])
            job_id = run["jobs"][0]["id"]
            done = eventually(lambda job_id=job_id: _completed(site, job_id), "the job is done", 60)
            vm = done["runner_name"]
            eventually(lambda: not site.mac.leftovers(), "everything is cleaned up", 30)
            clone, delete = command_start(site, "clone", vm), command_start(site, "delete", vm)
            shown = last_request_before(site, clone, lambda r, run=run: r["path"].endswith(f"/runs/{run['id']}/jobs"))
            picked.append(own_time(site, shown, clone))
            (completed,) = (e["time"] for e in site.github.events("job-completed") if e["job_id"] == job_id)
            knows = waits_end(site, vm)
            told.append(knows - completed)
            cleaned.append(own_time(site, knows, delete))
        site.mac.drain()
    return statistics.median(picked), statistics.median(told), statistics.median(cleaned)


def waits_end(site, vm):
    """When the command that waited in the guest told of the runner's end: the last `run` but the one that packs the logs."""
    return sorted(c["end"] for c in site.mac.anka.calls() if "run" in c["argv"] and vm in c["argv"])[-2]


def _completed(site, job_id):
    item = site.github.job(job_id)
    return item if item["status"] == "completed" else None


def tree(process):
    """A process and all below it."""
    return [process, *process.children(recursive=True)]


def idle(services, seconds):
    """CPU in percent of one core, PSS in MB, and seconds from start to ready, of an idle tree with the default interval."""
    with Site(services) as site:
        for service in site.mac.config["services"]:
            del service["sleep_interval"]
        began = time.monotonic()
        site.mac.start()
        ready = time.monotonic() - began
        processes = tree(psutil.Process(site.mac.process.pid))
        time.sleep(3)  # past the start
        before = cpu(processes)
        time.sleep(seconds)
        used = cpu(processes) - before
        memory = sum(process.memory_full_info().pss for process in processes) / 1e6
        scrapes, statuses = [], []
        for _ in range(10):
            began = time.perf_counter()
            site.mac.get("/metrics")
            scrapes.append(time.perf_counter() - began)
        for _ in range(5):
            began = time.perf_counter()
            site.mac.command("status")
            statuses.append(time.perf_counter() - began)
        site.mac.drain()
    return {
        "cpu": 100 * used / seconds,
        "pss": memory,
        "ready": ready,
        "scrape": statistics.median(scrapes),
        "status": statistics.median(statuses),
    }


def cpu(processes):
    """CPU seconds of all of them, their dead children included."""
    return sum(sum(process.cpu_times()[:4]) for process in processes)


def throughput(jobs, services):
    """Many jobs through several services: what was done, how often, what was left; and how long it took."""
    with Site(services) as site:
        ids = []
        for first in range(0, jobs, 50):
            specs = [job(f"job {number}") for number in range(first, min(first + 50, jobs))]
            ids += [item["id"] for item in site.github.queue_run(OWNER, REPO, jobs=specs)["jobs"]]
        began = time.monotonic()
        site.mac.start()
        eventually(lambda: len(site.github.events("job-completed")) >= jobs, f"{jobs} jobs are done", 1200, 1.0)
        took = time.monotonic() - began
        eventually(lambda: not site.mac.leftovers(), "everything is cleaned up", 60)
        done = sum(site.github.job(job_id)["conclusion"] == "success" for job_id in ids)
        code = site.mac.drain()
        return {
            "done": done,
            "anomalies": len(site.github.anomalies()),
            "max_vms": site.mac.anka.max_running(),
            "left": sum(map(len, site.mac.leftovers().values())),
            "exit": code,
            "seconds": took,
        }


def main():
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--old", type=Path, metavar="CHECKOUT", help="compare with this build, in turns, and do no more"
    )
    options = parser.parse_args()
    quick = options.quick
    # Ending the benchmark ends the processes that it started.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(143))
    cores, memory = os.cpu_count(), psutil.virtual_memory().total / 2**30
    machine = (
        f"{platform.system()} {platform.machine()}, {cores} cores, {memory:.0f} GiB, Python {platform.python_version()}"
    )
    print(f"{time.strftime('%Y-%m-%d')}, {machine}\n\n| figure | goal | measured |\n|---|---|---|", flush=True)
    if options.old is not None:
        for cells in turns.rows(options.old, quick=quick):
            row(*cells)
        return
    picked, told, cleaned = pick_up_and_clean_up(3 if quick else 20)
    row("a poll that shows a job -> `anka clone` is executed, own time", "<= 50 ms", f"{1000 * picked:.1f} ms")
    row(
        "the runner reports its job's end -> the host knows (runner's exit and `anka run`'s return included)",
        "",
        f"{1000 * told:.0f} ms",
    )
    row("the host knows -> `anka delete` is executed, own time", "<= 100 ms", f"{1000 * cleaned:.1f} ms")
    two = idle(2, 10 if quick else 60)
    three = idle(3, 1)
    row("idle tree of two github services, CPU of one core", "<= 0.3 %", f"{two['cpu']:.2f} %")
    row("the same, PSS", "<= 110 MB", f"{two['pss']:.0f} MB")
    row("each further service, PSS", "<= 30 MB", f"{three['pss'] - two['pss']:.0f} MB")
    row("start to ready", "<= 1.5 s", f"{two['ready']:.2f} s")
    row("a scrape", "<= 10 ms", f"{1000 * two['scrape']:.1f} ms")
    row("`status`", "<= 300 ms", f"{1000 * two['status']:.0f} ms")
    for cells in calls.rows(quick=quick):
        row(*cells)
    # One login has 800 of GitHub's points a minute: more jobs only take more minutes.
    jobs = 20 if quick else 100
    many = throughput(jobs, 4)
    row(
        f"{jobs} jobs through four services: done, each once",
        f"{jobs}, 0 anomalies",
        f"{many['done']}, {many['anomalies']} anomalies",
    )
    row("largest number of VMs", "2", str(many["max_vms"]))
    row("VMs, runners, records, processes left", "0", str(many["left"]))
    row("jobs per minute (zero-latency emulators)", "", f"{60 * jobs / many['seconds']:.0f}")


def row(*cells):
    """One line of the table, as soon as it is known."""
    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
