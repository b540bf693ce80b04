"""`make demo`: the real supervisor, an emulated Mac and an emulated GitHub; eight jobs through two services, from start to drain.

The Mac has Anka, or Tart with the argument `tart`.

Exits 0 only if every job ended as expected and nothing is left over.
"""

from __future__ import annotations

import functools
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from rich.console import Console, Group  # noqa: E402  the path comes first
from rich.live import Live  # noqa: E402  the path comes first
from rich.table import Table  # noqa: E402  the path comes first
from stage import TOKEN, Mac, job, new_github  # noqa: E402  the path comes first

DEADLINE = 55.0
DRIVER = sys.argv[1] if len(sys.argv) > 1 else "anka"
PULLED = {"anka": "macos-26-beta", "tart": "ghcr.io/acme/macos-beta:26"}[DRIVER]
_job = functools.partial(job, driver=DRIVER)
#: (name, job, expected conclusion).
JOBS = [
    (_job("unit tests", steps=["echo 42 tests passed"], duration=2.0), "success"),
    (_job("lint", steps=["echo clean"], duration=1.0), "success"),
    (_job("ui tests", steps=["echo a button is missing", "exit 1"], duration=1.5), "failure"),
    (_job("archive", steps=["echo archived"], duration=2.0), "success"),
    (_job("long soak", steps=["sleep 300"], duration=0.5), "cancelled"),
    (_job("beta build", steps=["echo built"], template=PULLED, tag="v7", duration=1.0), "success"),
    (_job("docs", steps=["echo written"], duration=1.0), "success"),
    (_job("release notes", steps=["echo noted"], duration=1.0), "success"),
]
COLOURS = {"success": "green", "failure": "red", "cancelled": "yellow", "in_progress": "cyan"}


def main():
    """Run the demo; returns the exit code."""
    console = Console()
    # Closing the terminal must not leave a supervisor behind.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(143))
    folder = Path(tempfile.mkdtemp(prefix="anklet-demo-"))
    console.rule("anklet-supervisor demo")
    console.print(f"An emulated GitHub, an emulated Mac with room for two VMs, and the real supervisor, in {folder}\n")
    github = new_github()
    mac = Mac(folder / "mac", github, driver=DRIVER)
    try:
        return _run(console, mac, github)
    finally:
        mac.close()
        github.stop()
        shutil.rmtree(folder)


def _run(console, mac, github):
    mac.add_registry_template(PULLED, "v7")
    mac.host.set(delays={"pull": 2.0, "clone": 0.2, mac.verb("start"): 0.5})
    ids = [_queue(github, spec) for spec, _ in JOBS]
    _start(mac, github)
    _watch(console, mac, github, ids)
    console.print("\n[bold]Metrics[/bold], as Prometheus sees them (without the host's):")
    _, metrics = mac.get("/metrics")
    shown = ("total_", "service_status{", "anklet_jobs", "anklet_slots")
    for line in metrics.splitlines():
        if line.startswith(shown) and not line.endswith(" 0.0"):
            console.print("  " + line, markup=False, highlight=False)
    console.print("\nSIGTERM: drain ...", end=" ")
    mac.send(signal.SIGTERM)
    code = mac.wait(30)
    console.print(f"the supervisor exited with code {code}.")
    return _verdict(console, mac, github, ids, code)


def _queue(github, spec):
    run = github.queue_run("acme", "app", jobs=[spec], workflow="CI")
    return run["jobs"][0]["id"]


def _start(mac, github):
    environment = {
        **mac.env(),
        "DEMO_DIR": str(mac.folder),
        "DEMO_PORT": str(mac.port),
        "DEMO_TOKEN": TOKEN,
        "DEMO_GITHUB": github.url,
        "DEMO_DRIVER": DRIVER,
    }
    mac.log_dir = mac.folder
    mac.run(
        [sys.executable, "-m", "anklet_supervisor", "start", "--config", str(ROOT / "etc" / "demo.yml")], environment
    )


def _watch(console, mac, github, ids):
    """Show a live table until every job has ended and every service is idle; cancel one job midway, as its user would."""
    end = time.monotonic() + DEADLINE
    cancelled = False
    cancel_id = next(job_id for job_id, (_, conclusion) in zip(ids, JOBS, strict=True) if conclusion == "cancelled")
    with Live(console=console, refresh_per_second=8, transient=False) as live:
        while time.monotonic() < end:
            if mac.process.poll() is not None:
                raise SystemExit(f"the supervisor ended with {mac.process.returncode}: {mac.said()}")
            jobs = [github.job(job_id) for job_id in ids]
            live.update(Group(*_tables(mac, jobs)))
            if not cancelled and github.job(cancel_id)["status"] == "in_progress":
                github.cancel_job(cancel_id)
                cancelled = True
            if all(item["status"] == "completed" for item in jobs) and not mac.leftovers():
                return
            time.sleep(0.125)
    raise SystemExit(f"not done within {DEADLINE:g} s; the log is\n{mac.log_text()[-4000:]}")


def _tables(mac, jobs):
    try:
        status = mac.status()
    except (OSError, ValueError):
        status = {"services": [], "slots": []}
    services = Table("service", "state", "status", "job", "VM", title="Services", title_justify="left")
    for service in status["services"]:
        held = service["job"] or {"name": "", "vm": ""}
        services.add_row(service["name"], service["state"], service["status"], held["name"], held["vm"])
    slots = Table("slot", "state", "service", title="VM slots", title_justify="left")
    for slot in status["slots"]:
        slots.add_row(str(slot["index"]), slot["state"], slot["service"] or "")
    table = Table("job", "status", "conclusion", "ran on", title="GitHub's jobs", title_justify="left")
    for item in jobs:
        conclusion = item["conclusion"] or ""
        colour = COLOURS.get(conclusion or item["status"], "white")
        table.add_row(
            item["name"], f"[{colour}]{item['status']}[/]", f"[{colour}]{conclusion}[/]", item["runner_name"] or ""
        )
    return services, slots, table


def _verdict(console, mac, github, ids, code):
    ended = [github.job(job_id)["conclusion"] for job_id in ids]
    expected = [conclusion for _, conclusion in JOBS]
    checks = {
        f"all {len(JOBS)} jobs ended as expected": ended == expected,
        "never more than two VMs": mac.max_running() <= 2,
        "GitHub saw nothing odd (no double run, no second session)": not github.anomalies(),
        "nothing left over: no VM, runner, record, process": not mac.leftovers(),
        "the supervisor drained with exit code 0": code == 0,
    }
    for claim, holds in checks.items():
        console.print(f"  {'[green]yes[/]' if holds else '[red]NO[/] '} {claim}")
    if not all(checks.values()):
        console.print(f"jobs: {ended}\nleft over: {mac.leftovers()}\n{mac.log_text()[-4000:]}", markup=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
