"""Every fault of GitHub on every route of the github plugin: no job is lost or run twice, nothing is left, one ERROR at most.

The plugin is the real one, as is its way to GitHub; the guest is a home of this machine with the emulated runner in it; around both
stands what the core does with a plugin. The same through the whole program, for fewer faults, is in the process tests.
"""

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import urllib3
from anklet_github import api as api_module
from anklet_github import http as http_module
from anklet_github import limits as limits_module
from anklet_github import plugin as plugin_module
from anklet_github import watch as watch_module
from anklet_github.plugin import GithubPlugin
from emulators.github.openapi import check_request
from github_fakes import FakeContext
from stage import OWNER, REPO, TOKEN, eventually, new_github

from anklet_worker.attempt import exports
from anklet_worker.config import Secret
from anklet_worker.errors import InfrastructureError
from anklet_worker.job import Conclusion
from anklet_worker.plugin import Withdrawal
from anklet_worker.vm import GuestResult

LABELS = ["self-hosted", "anka", "anka-template:t", "unique-id:1"]
LIMIT = {"message": "You have exceeded a secondary rate limit."}
FAULTS = {
    "401": {"status": 401, "body": {"message": "Bad credentials"}},
    "403 rights": {"status": 403, "body": {"message": "Resource not accessible by personal access token"}},
    "403 primary": {
        "status": 403,
        "body": {"message": "API rate limit exceeded"},
        "headers": {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "0"},
    },
    "403 secondary": {"status": 403, "body": LIMIT},
    "404": {"status": 404, "body": {"message": "Not Found"}},
    "409": {"status": 409, "body": {"message": "Conflict"}},
    "422": {"status": 422, "body": {"message": "Unprocessable"}},
    "429": {"status": 429, "body": LIMIT, "headers": {"Retry-After": "1"}},
    "500": {"status": 500, "body": {"message": "Server Error"}},
    "502": {"status": 502, "body": "<html>502</html>"},
    "503": {"status": 503, "body": ""},
    "time-out": {"delay": 1.2},
    "reset": {"reset": True},
    "reset after the effect": {"drop_after_effect": True},
    "truncated": {"truncate": True},
    "HTML": {"status": 200, "body": "<html>Unicorn!</html>", "headers": {"Content-Type": "text/html"}},
    "empty": {"status": 200, "body": ""},
    "slow drip": {"slow_drip": 1.6},
}
ROUTES = {
    "list runs": ("GET", "/actions/runs$"),
    "list a run's jobs": ("GET", "/actions/runs/[0-9]+/jobs$"),
    "get a job": ("GET", "/actions/jobs/[0-9]+$"),
    "list runners": ("GET", "/actions/runners$"),
    "register": ("POST", "/generate-jitconfig$"),
    "remove": ("DELETE", "/actions/runners/[0-9]+$"),
}


class Context(FakeContext):
    """Waits for real, but not for long; keeps what the plugin remembers."""

    facts = None

    def wait(self, seconds):
        super().wait(seconds)
        subprocess.run(["sleep", str(min(seconds, 0.05))], check=True)

    def remember(self, **facts):
        self.facts |= facts

    def recall(self):
        return self.facts


class Guest:
    """A VM: a home, and the processes in it. `blind`: it does not tell of its runner."""

    def __init__(self, folder, number, github, *, blind):
        self.name = f"anklet-vm-00000001-aaaaaa-{number}-1"
        self.home = folder / self.name
        self.home.mkdir()
        github.copy_runner(self.home)
        self.blind = blind

    def run(self, script, *, env, timeout, looks_only=False):
        if looks_only and self.blind:
            return GuestResult(status=127, output="")
        done = subprocess.run(
            ["bash", "-s"],
            input=exports(env) + script,
            cwd=self.home,
            env={"HOME": str(self.home), "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return GuestResult(status=done.returncode, output=done.stdout + done.stderr)

    def copy_in(self, source):
        shutil.copy2(source, self.home / source.name)

    def delete(self):
        """End everything in it."""
        pid = self.home / ".anklet-runner" / "pid"
        if pid.exists():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(pid.read_text()), signal.SIGKILL)
        shutil.rmtree(self.home, ignore_errors=True)


@pytest.fixture
def quick(monkeypatch):
    """Time-outs and pauses of tests."""
    monkeypatch.setattr(http_module, "_TIMEOUT", urllib3.Timeout(connect=1.0, read=0.8))
    monkeypatch.setattr(http_module, "_WHOLE_REPLY", 1.0)
    monkeypatch.setattr(limits_module, "_SECONDARY_PAUSE", 0.3)
    monkeypatch.setattr(limits_module, "_SPREAD", 0.1)
    monkeypatch.setattr(watch_module, "_ASK_WAITING", 1.0)
    monkeypatch.setattr(watch_module, "_BLIND_FOR", 0.5)
    monkeypatch.setattr(plugin_module, "_LATE_REGISTRATION", 3.0)
    monkeypatch.setattr(api_module, "_ASK_AGAIN_FIRST", 0.2)


@pytest.fixture(scope="module")
def site():
    """A GitHub for all faults; each job must have been started and ended once, and nothing remains."""
    server = new_github()
    server.set(pickup_after=5)
    yield server
    anomalies, jobs, requests = server.anomalies(), server.jobs(), server.requests()
    runners = server.runners(OWNER, REPO)
    server.stop()
    assert anomalies == []
    assert runners == []
    assert {(one["status"], one["conclusion"], one["starts"]) for one in jobs} <= {("completed", "success", 1)}
    for request in requests:
        if not request["path"].startswith(("/actions/runner/", "/_download/")):
            check_request(request["method"], request["path"], request["query"], request["body"])


def carry_out(plugin, context, site, folder, *, blind, spoil):
    """What the core does: look, claim, make a VM, drive, and clean up, until the job is done. `spoil` comes before each drive."""
    for number in range(12):
        context.facts = {}
        guest = None
        try:
            jobs = plugin.look()
            if not jobs or not plugin.claim(jobs[0]):
                context.wait(0.2)
                continue
            guest = Guest(folder, int(jobs[0].id) * 100 + number, site, blind=blind)
            spoil(number)
            outcome = plugin.drive(jobs[0], guest)
        except InfrastructureError as error:
            context.log.debug("failed", extra={"err": str(error)})
            if guest is not None and landed(plugin, jobs[0], guest):
                outcome = plugin.adopt(jobs[0], guest)
            else:
                if guest is not None:
                    remove(plugin, jobs[0], guest)
                continue
        remove(plugin, jobs[0], guest)
        return outcome
    raise AssertionError(f"not done: {context.said.lines[-10:]}")


def run_of(name):
    """The job that a guest of this name was made for."""
    return int(name.split("-")[4]) // 100


def landed(plugin, job, guest):
    """Withdraw; whether a job was there before us. GitHub must answer in the end, for the test knows no debts but in `remove`."""
    try:
        return plugin.withdraw(job, guest.name) is Withdrawal.STARTED
    except InfrastructureError:
        return False


def remove(plugin, job, guest):
    """The VM, then what is registered for it."""
    guest.delete()
    eventually(lambda: plugin.settle(job, guest.name), "the debt is paid", 20)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("route", ROUTES)
def test_a_fault_loses_nothing(site, quick, tmp_path, route, fault):
    """It strikes twice, in the midst of a job's life: the job is done, once, and nothing is left."""
    method, pattern = ROUTES[route]
    context = Context(
        folder=Path("/nonexistent"),
        owner=OWNER,
        repo=REPO,
        token=Secret(TOKEN),
        api_url=site.url,
        server_url=site.url,
        sleep_interval=0.2,
    )
    plugin = GithubPlugin(context)
    plugin.look()
    # Only a guest that does not tell of its runner makes the plugin ask for the job and remove the runner itself.
    blind = route in ("get a job", "remove", "list runners")
    run = site.queue_run(OWNER, REPO, [{"name": "build", "labels": LABELS, "steps": ["true"]}])

    def spoil(number):
        if number == 0:
            site.fault(method, pattern, times=2, **FAULTS[fault])

    if route == "list runs":
        site.fault(method, pattern, times=2, **FAULTS[fault])
    try:
        outcome = carry_out(plugin, context, site, tmp_path, blind=blind, spoil=spoil)
    finally:
        site.clear_faults()
        plugin.close()
    assert outcome.conclusion is Conclusion.SUCCESS
    assert site.run(run["id"])["conclusion"] == "success"
    assert len(context.logged("ERROR")) <= 1
    assert not [one for one in site.runners(OWNER, REPO) if run_of(one["name"]) == run["jobs"][0]["id"]]


def test_a_job_that_ended_while_nobody_watched_is_found_out(site, quick, tmp_path):
    """A worker dies behind the registration; when its successor looks, the job is over and its runner gone by itself."""
    context = Context(
        folder=Path("/nonexistent"),
        owner=OWNER,
        repo=REPO,
        token=Secret(TOKEN),
        api_url=site.url,
        server_url=site.url,
        sleep_interval=0.2,
    )
    site.queue_run(OWNER, REPO, [{"name": "build", "labels": LABELS, "steps": ["true"]}])
    first = GithubPlugin(context)
    (job,) = first.look()
    guest = Guest(tmp_path, int(job.id) * 100, site, blind=False)
    context.facts = {}
    first.drive(job, guest)
    first.close()
    successor = GithubPlugin(context)
    try:
        assert successor.withdraw(job, guest.name) is Withdrawal.VANISHED
        assert successor.adopt(job, guest).conclusion is Conclusion.SUCCESS
        remove(successor, job, guest)
    finally:
        successor.close()
