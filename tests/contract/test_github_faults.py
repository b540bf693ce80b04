"""Every fault of GitHub on every route of the github plugin: no job is lost or run twice, nothing is left, one ERROR at most.

The plugin is the real one, as is its way to GitHub; the guest is a home of this machine with the emulated runner in it; around both
stands what the core does with a plugin. The same through the whole program, for fewer faults, is in the process tests.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pytest
import urllib3
from anklet_github import driver as driver_module
from anklet_github import limits as limits_module
from anklet_github import pool as pool_module
from anklet_github import refusals as refusals_module
from anklet_github import registration as registration_module
from anklet_github import watch as watch_module
from anklet_github.pace import Pace
from anklet_github.plugin import GithubPlugin
from anklet_github.settings import RunnerSettings
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from emulators.github.openapi import check_request
from github_fakes import FakeContext, FakeHand
from stage import OWNER, PERMISSIONS, REPO, TOKEN, eventually, new_github

from anklet_worker.contract.backoff import Backoff
from anklet_worker.contract.driver import Withdrawal
from anklet_worker.contract.errors import InfrastructureError, RightsRefused
from anklet_worker.contract.guest import GuestResult
from anklet_worker.contract.job import Conclusion
from anklet_worker.contract.settings import Secret
from anklet_worker.life.guest import exports

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
    "reset in mid-body": {"truncate": True, "reset": True},
    "end in mid-body": {"truncate": True},
    "truncated JSON": {"status": 200, "body": '{"total_count": 1, "workfl'},
    "HTML": {"status": 200, "body": "<html>Unicorn!</html>", "headers": {"Content-Type": "text/html"}},
    "empty": {"status": 200, "body": ""},
    "slow drip": {"slow_drip": 1.6},
}
ORG, ORG_TOKEN, APP = "octo-org", "github_pat_org", "77"
AS_ORG = {
    "registration": "org",
    "owner": ORG,
    "repo": "",
    "token": Secret(ORG_TOKEN),
    "repos": "app*",
    "runner": RunnerSettings(group="Macs"),
}


class Route(NamedTuple):
    """Where a fault strikes, and the service that goes there. `blind`: only where the guest does not tell of its runner does the
    plugin ask this of GitHub. `early`: when it looks for jobs; else in the midst of a job's life."""

    method: str
    pattern: str
    blind: bool = False
    early: bool = False
    service: Mapping[str, object] = MappingProxyType({})


ROUTES = {
    "list runs": Route("GET", "/actions/runs$", early=True),
    "list a run's jobs": Route("GET", "/actions/runs/[0-9]+/jobs$"),
    "get a job": Route("GET", "/actions/jobs/[0-9]+$", blind=True),
    "list runners": Route("GET", "/actions/runners$", blind=True),
    "register": Route("POST", "/generate-jitconfig$"),
    "remove": Route("DELETE", "/actions/runners/[0-9]+$", blind=True),
    "make a registration token": Route("POST", "/registration-token$", service={"runner_mode": "token"}),
    "list groups": Route("GET", "/runner-groups$", service=AS_ORG),
    "list repositories": Route("GET", "/orgs/[^/]+/repos$", early=True, service=AS_ORG),
    "find the installation": Route("GET", "/installation$", early=True, service={"app_id": APP, "token": None}),
    "make a token": Route("POST", "/access_tokens$", early=True, service={"app_id": APP, "token": None}),
}


class Context(FakeContext):
    """Waits for real, but not for long."""

    def wait(self, seconds):
        super().wait(seconds)
        threading.Event().wait(min(seconds, 0.05))


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
    monkeypatch.setattr(pool_module, "_TIMEOUT", urllib3.Timeout(connect=1.0, read=0.8))
    monkeypatch.setattr(pool_module, "_WHOLE_REPLY", 1.0)
    monkeypatch.setattr(limits_module, "_SECONDARY_PAUSE", 0.3)
    monkeypatch.setattr(limits_module, "_SPREAD", 0.1)
    monkeypatch.setattr(watch_module, "Pace", partial(Pace, ask_waiting=1.0, blind=0.5))
    monkeypatch.setattr(registration_module, "_LATE_REGISTRATION", 3.0)
    monkeypatch.setattr(driver_module, "_INSIST", Backoff(first=0.2, longest=20.0))
    monkeypatch.setattr(refusals_module, "_ASK_AGAIN", Backoff(first=0.2, longest=300.0))


@pytest.fixture(scope="module")
def key():
    """A GitHub App's key: its PEM text."""
    made = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return Secret(
        made.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        ).decode()
    )


@pytest.fixture(scope="module")
def site():
    """A GitHub for all faults; each job must have been started and ended once, and nothing remains."""
    server = new_github()
    server.set(pickup_after=5)
    server.add_org(ORG)
    server.add_repo(ORG, REPO)
    server.add_group(ORG, "Macs")
    server.add_token(ORG_TOKEN, permissions={"actions": "read", "organization_self_hosted_runners": "write"})
    server.add_app(int(APP))
    server.add_installation(4242, app_id=int(APP), account=OWNER, permissions=PERMISSIONS)
    yield server
    anomalies, jobs, requests = server.anomalies(), server.jobs(), server.requests()
    runners = server.runners(OWNER, REPO) + server.runners(ORG)
    server.stop()
    assert anomalies == []
    assert runners == []
    assert {(one["status"], one["conclusion"], one["starts"]) for one in jobs} <= {
        ("completed", "success", 1),
        ("completed", "cancelled", 0),
    }
    for request in requests:
        if not request["path"].startswith(("/actions/runner", "/_download/")):
            check_request(request["method"], request["path"], request["query"], request["body"])


@pytest.fixture
def serving(site, key, quick):
    """Makes plugins of services, with their contexts; closes them."""
    with contextlib.ExitStack() as stack:

        def made(**service):
            if "app_id" in service:
                service["private_key"] = key
            settings = {"owner": OWNER, "repo": REPO, "token": Secret(TOKEN), "sleep_interval": 0.2, **service}
            context = Context(folder=Path("/nonexistent"), api_url=site.url, server_url=site.url, **settings)
            plugin = GithubPlugin(context)
            stack.callback(plugin.close)
            stack.callback(site.clear_faults)
            return plugin, context

        yield made


def carry_out(plugin, context, site, folder, *, blind, spoil):
    """What the core does: look, claim, make a VM, drive, and clean up, until the job is done. `spoil` comes before each drive."""
    for number in range(12):
        guest = None
        try:
            jobs = plugin.source.find()
            if not jobs or not plugin.driver.claim(jobs[0]):
                plugin.source.housekeep(None)
                context.wait(0.2)
                continue
            plugin.source.housekeep(jobs[0])
            guest = Guest(folder, int(jobs[0].id) * 100 + number, site, blind=blind)
            hand = FakeHand(jobs[0], context, guest.name)
            spoil(number)
            outcome = plugin.driver.drive(hand, guest)
        except InfrastructureError as error:
            context.log.debug("failed", extra={"err": str(error)})
            if guest is not None and landed(plugin, hand):
                outcome = plugin.driver.adopt(hand, guest)
            else:
                if guest is not None:
                    remove(plugin, hand, guest)
                continue
        remove(plugin, hand, guest)
        return outcome
    raise AssertionError(f"not done: {context.said.lines[-10:]}")


def run_of(name):
    """The job that a guest of this name was made for."""
    return int(name.split("-")[4]) // 100


def landed(plugin, hand):
    """Withdraw; whether a job was there before us. GitHub must answer in the end, for the test knows no debts but in `remove`."""
    try:
        return plugin.driver.withdraw(hand) is not Withdrawal.WITHDRAWN
    except InfrastructureError:
        return False


def remove(plugin, hand, guest):
    """The VM, then what is registered for it."""
    guest.delete()
    eventually(lambda: plugin.driver.settle(hand), "the debt is paid", 20)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("route", [name for name, where in ROUTES.items() if where.early])
def test_a_fault_hides_no_job(site, serving, route, fault):
    """It strikes twice where jobs are looked for: the job is found, and may be had; nothing has ended the service, one ERROR at
    most."""
    where = ROUTES[route]
    plugin, context = serving(**where.service)
    run = site.queue_run(context.service.owner, REPO, [{"name": "build", "labels": LABELS, "steps": ["true"]}])
    site.fault(where.method, where.pattern, times=2, **FAULTS[fault])

    def found():
        try:
            jobs = plugin.source.find()
            return bool(jobs) and plugin.driver.claim(jobs[0])
        except InfrastructureError:
            return False

    eventually(found, "the job may be had", 20)
    assert not any(one["times"] == 2 for one in site.faults()), "the fault has not struck"
    assert len(context.logged("ERROR")) <= 1
    site.cancel_run(run["id"])


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("route", [name for name, where in ROUTES.items() if not where.early])
def test_a_fault_loses_nothing(site, serving, tmp_path, route, fault):
    """It strikes twice: the job is done, once, nothing is left, nothing has ended the service, one ERROR at most."""
    where = ROUTES[route]
    plugin, context = serving(**where.service)
    owner = context.service.owner
    # Long enough for a guest that does not tell to be asked about while it works.
    run = site.queue_run(
        owner, REPO, [{"name": "build", "labels": LABELS, "steps": ["sleep 0.5" if where.blind else "true"]}]
    )

    def spoil(number):
        if number == 0:
            site.fault(where.method, where.pattern, times=2, **FAULTS[fault])

    outcome = carry_out(plugin, context, site, tmp_path, blind=where.blind, spoil=spoil)
    assert not any(one["times"] == 2 for one in site.faults()), "the fault has not struck"
    assert outcome.conclusion is Conclusion.SUCCESS
    assert site.run(run["id"])["conclusion"] == "success"
    assert len(context.logged("ERROR")) <= 1
    runners = site.runners(owner, REPO) if context.service.repo else site.runners(owner)
    assert not [one for one in runners if run_of(one["name"]) == run["jobs"][0]["id"]]


@pytest.mark.parametrize(
    ("method", "pattern", "fault"),
    [
        ("GET", "/actions/runners$", "404"),
        ("POST", "/generate-jitconfig$", "404"),
        ("POST", "/generate-jitconfig$", "422"),
    ],
)
def test_a_refusal_behind_a_lost_answer_leaves_no_runner(site, serving, tmp_path, method, pattern, fault):
    """GitHub registers the runner, its answer is lost, and whatever is asked next is refused: there is one to be removed."""
    plugin, context = serving()
    run = site.queue_run(OWNER, REPO, [{"name": "build", "labels": LABELS, "steps": ["true"]}])

    def spoil(number):
        if number == 0:
            site.fault("POST", "/generate-jitconfig$", drop_after_effect=True)
            site.fault(method, pattern, times=4, **FAULTS[fault])
        else:
            site.clear_faults()

    outcome = carry_out(plugin, context, site, tmp_path, blind=False, spoil=spoil)
    assert outcome.conclusion is Conclusion.SUCCESS
    assert site.runners(OWNER, REPO) == []
    assert site.run(run["id"])["conclusion"] == "success"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_lasts_does_not_hold_the_vm(site, serving, monkeypatch, tmp_path, fault):
    """It begins while the job runs, on every route, and does not end: the job's end is told by the guest, its VM goes, and the
    debt is paid when GitHub is there again."""
    monkeypatch.setattr(watch_module, "Pace", partial(watch_module.Pace, disagreement=1.0))
    monkeypatch.setattr(refusals_module, "_LOG_AFTER", 0.2)
    plugin, context = serving()
    run = site.queue_run(OWNER, REPO, [{"name": "build", "labels": LABELS, "steps": ["sleep 0.3"]}])
    (job,) = plugin.source.find()
    guest = Guest(tmp_path, int(job.id) * 100, site, blind=False)
    hand = FakeHand(job, context, guest.name)
    hand.job_started = lambda _: site.fault("*", "^/repos/", times=None, **FAULTS[fault])
    assert plugin.driver.drive(hand, guest).conclusion is Conclusion.SUCCESS
    guest.delete()
    plugin.driver.settle(hand)
    site.clear_faults()
    eventually(lambda: plugin.driver.settle(hand), "the debt is paid", 20)
    assert len(context.logged("ERROR")) <= 1
    assert site.run(run["id"])["conclusion"] == "success"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_from_the_start_ends_only_what_cannot_be_cured(serving, site, fault):
    """A login, a right or a repository that is refused for good ends the service; all else is waited for, and then all is well."""
    plugin, context = serving()
    site.fault("*", "^/repos/", times=None, **FAULTS[fault])
    seen = site.requests()[-1]["seq"] if site.requests() else 0
    refused = fault in ("401", "403 rights", "404")
    with pytest.raises(RightsRefused if refused else InfrastructureError):
        plugin.source.find()
    assert len(site.requests(seen)) <= 8
    site.clear_faults()
    assert plugin.source.find() == []
    assert context.logged("ERROR") == []


def test_a_job_that_ended_while_nobody_watched_is_found_out(site, serving, tmp_path):
    """A worker dies behind the registration; when its successor looks, the job is over and its runner gone by itself."""
    first, context = serving()
    site.queue_run(OWNER, REPO, [{"name": "build", "labels": LABELS, "steps": ["true"]}])
    (job,) = first.source.find()
    guest = Guest(tmp_path, int(job.id) * 100, site, blind=False)
    hand = FakeHand(job, context, guest.name)
    first.driver.drive(hand, guest)
    successor = GithubPlugin(context)
    try:
        assert successor.driver.withdraw(hand) is Withdrawal.VANISHED
        assert successor.driver.adopt(hand, guest).conclusion is Conclusion.SUCCESS
        remove(successor, hand, guest)
    finally:
        successor.close()
