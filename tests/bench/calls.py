"""`make bench`, second part: what the github plugin costs of GitHub's limit.

Counts, not clocks: the emulated GitHub counts as GitHub does.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from anklet_github.plugin import GithubPlugin  # noqa: E402  the path comes first
from github_fakes import FakeContext  # noqa: E402  the path comes first
from stage import OWNER, REPO, TOKEN, Mac, eventually, job, new_github  # noqa: E402  the path comes first

from anklet_worker.contract.settings import Secret  # noqa: E402  the path comes first
from anklet_worker.store.board import StoreBoard  # noqa: E402  the path comes first
from anklet_worker.store.embedded import SqliteStore  # noqa: E402  the path comes first

#: Looks at 0.2 s instead of 10 s: so many seconds stand for an hour.
LOOK, HOUR = 0.2, 72.0


@contextlib.contextmanager
def site(services):
    """A host in operation, with everything asked for once."""
    folder = Path(tempfile.mkdtemp(prefix="anklet-bench-"))
    github = new_github()
    mac = Mac(folder / "mac", github, services=services)
    try:
        mac.start()
        eventually(lambda: github.counts()["requests"] > 10, "the first looks are over")
        yield github, mac
        mac.drain()
    finally:
        mac.close()
        github.stop()
        shutil.rmtree(folder)


def asked(github, since):
    """The program's own requests after this one; not what guests download."""
    return [r for r in github.requests(since) if not r["path"].startswith(("/actions/runner", "/_download"))]


def last(github):
    """The last request's number."""
    return github.requests()[-1]["seq"]


def per_job(jobs, services, *, one_run=False, **more):
    """Calls that count for each job, from the moment that it is queued until its traces are gone and forgotten."""
    with site(services) as (github, mac):
        since = last(github)
        named = [job(f"job {number}", **more) for number in range(jobs)]
        runs = [github.queue_run(OWNER, REPO, part) for part in ([named] if one_run else [[one] for one in named])]
        ids = [one["id"] for run in runs for one in run["jobs"]]
        eventually(lambda: all(github.job(number)["status"] == "completed" for number in ids), "the jobs are done", 120)
        eventually(lambda: not mac.leftovers(), "everything is cleaned up", 30)
        looked = last(github)
        eventually(lambda: len(asked(github, looked)) > 10, "the looks after it are over")
        return sum(one["counted"] for one in asked(github, since)) / jobs


def idle(seconds):
    """Calls that count, and all calls, while nothing happens."""
    with site(1) as (github, _):
        since, end = last(github), time.monotonic() + seconds
        eventually(lambda: time.monotonic() >= end, "the time is over", seconds + 5)
        calls = asked(github, since)
        return sum(one["counted"] for one in calls), len(calls)


def fleet(services, seconds):
    """All calls of so many services on one repository with one store, while jobs wait that are for somebody else."""
    folder = Path(tempfile.mkdtemp(prefix="anklet-bench-"))
    github = new_github()
    github.queue_run(OWNER, REPO, [{"name": "elsewhere", "labels": ["ubuntu-latest"]}])
    store = SqliteStore(folder / "leases.db", "boot", log=logging.getLogger("bench"))
    plugins = []
    for number in range(services):
        context = FakeContext(
            name=f"S{number}", owner=OWNER, repo=REPO, token=Secret(TOKEN), api_url=github.url, sleep_interval=1.0
        )
        context.board = StoreBoard(store, context.service.name)
        plugins.append(GithubPlugin(context))
    began = time.monotonic()
    for beat in range(seconds):
        for plugin in plugins:
            plugin.look()
        eventually(lambda beat=beat: time.monotonic() - began >= beat + 1, "a second is over")
    calls = github.counts()
    for plugin in plugins:
        plugin.close()
    store.close()
    github.stop()
    shutil.rmtree(folder)
    return calls["requests"] / seconds, calls["counted"]


def rows(*, quick):
    """(figure, goal, measured), one after the other."""
    goal = "<= 4"
    yield "calls that count, a single job", goal, f"{per_job(1, 1):.1f}"
    if not quick:
        yield "the same, a single job that takes longer than a minute", "", f"{per_job(1, 1, duration=70):.1f}"
    yield "the same, each of 10 jobs of 10 runs", goal, f"{per_job(10, 1):.1f}"
    yield "the same, each of 10 jobs of one run", goal, f"{per_job(10, 1, one_run=True):.1f}"
    yield "the same, each of 10 jobs of 10 runs, four services of a host", "", f"{per_job(10, 4):.1f}"
    counted, calls = idle(5 if quick else HOUR)
    yield f"calls that count in an idle hour ({calls} looks' calls)", "0", str(counted)
    seconds = 3 if quick else 20
    for services in (1, 10, 100):
        each, counted = fleet(services, seconds)
        yield (
            f"{services} services on one repository: calls a second with a look a second; calls that count",
            "the same",
            (f"{each:.1f}; {counted}"),
        )
