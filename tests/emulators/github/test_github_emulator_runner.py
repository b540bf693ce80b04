"""The stub runner as real processes: configured by JIT or by token, through jobs, cancels, refusals and deaths."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import tarfile

import psutil
import pytest
import urllib3
from emulators.github.bench import LABELS, REPO, Guest
from emulators.github.control import DEFAULT_VERSION

JIT = "ACTIONS_RUNNER_INPUT_JITCONFIG"


# Python 3.11.4 introduced the filter; the archive is the emulator's own.
SAFELY = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}


def lines(text):
    """The lines of a runner's output, each without its time."""
    return [line.split("Z: ", 1)[-1] for line in text.splitlines() if line.strip()]


@pytest.fixture
def token(api):
    """A registration token of the repository."""
    return api.call("POST", f"{REPO}/actions/runners/registration-token").json()["token"]


@pytest.fixture
def configure(github, guest, token):
    """A function that takes flags and returns the finished config.sh, unattended, with URL and token in the environment."""

    def done(*flags, **more):
        settings = {
            "URL": f"{github.url}/octo-org/hello",
            "TOKEN": token,
            "NAME": "mac-1",
            "LABELS": "self-hosted,anka",
        }
        given = {f"ACTIONS_RUNNER_INPUT_{name}": value for name, value in (settings | more).items()}
        return guest.run("config.sh", "--unattended", *flags, **given)

    return done


def test_a_runner_by_jit_configuration(api, github, guest, queue):
    """A JIT runner prints what the real one prints, runs the steps in _work, keeps logs, forgets its settings and exits 0."""
    run = queue({"name": "build", "steps": ["echo hello from $GITHUB_REPOSITORY", "pwd; env"]})
    ran = guest.run("run.sh", **{JIT: api.jit()["encoded_jit_config"]})
    assert (ran.returncode, lines(ran.stdout)) == (
        0,
        [
            "√ Connected to GitHub",
            f"Current runner version: '{DEFAULT_VERSION}'",
            "Listening for Jobs",
            "Running job: build",
            "Job build completed with result: Succeeded",
            "√ Removed .credentials",
            "√ Removed .runner",
            "Runner listener exit with 0 return code, stop the service, no retry needed.",
            "Exiting runner...",
        ],
    )
    job = github.job(run["jobs"][0]["id"])
    assert (job["conclusion"], job["runner_name"], job["starts"]) == ("success", "runner-1", 1)
    steps = [(step["name"], step["conclusion"]) for step in job["steps"]]
    assert steps[1] == ("Run echo hello from $GITHUB_REPOSITORY", "success")
    assert [steps[0][0], steps[-1][0]] == ["Set up job", "Complete job"]
    assert "hello from octo-org/hello" in job["log"]
    assert str(guest.runner / "_work" / "hello" / "hello") in job["log"]
    assert JIT not in job["log"]
    kinds = {path.name.split("_")[0] for path in (guest.runner / "_diag").glob("*-utc.log")}
    assert kinds == {"Runner", "Worker"}
    assert not (guest.runner / ".runner").exists()
    assert not list(guest.runner.rglob("__pycache__"))
    assert github.runners("octo-org", "hello") == github.anomalies() == []


def test_a_jit_configuration_as_an_argument(api, github, guest, queue):
    """run.sh --jitconfig does the same as the environment."""
    run = queue("build")
    assert guest.run("run.sh", "--jitconfig", api.jit()["encoded_jit_config"]).returncode == 0
    assert github.run(run["id"])["conclusion"] == "success"


@pytest.mark.parametrize(
    ("job", "conclusion"),
    [
        ({"steps": ["false", "echo never"]}, "failure"),
        ({"steps": ["true"], "conclusion": "failure"}, "failure"),
        ({"duration": 0.05}, "success"),
    ],
)
def test_results(api, github, guest, queue, job, conclusion):
    """A failing step, or the job's given conclusion, decides the result; run.sh still exits 0."""
    run = queue({"name": "build", **job})
    result = {"failure": "Failed", "success": "Succeeded"}[conclusion]
    ran = guest.run("run.sh", **{JIT: api.jit()["encoded_jit_config"]})
    assert (ran.returncode, f"Job build completed with result: {result}" in lines(ran.stdout)) == (0, True)
    done = github.run(run["id"])
    assert done["conclusion"] == conclusion
    assert "never" not in done["jobs"][0]["log"]


def test_a_runner_by_token(api, configure, github, guest, queue):
    """config.sh registers by token, run.sh runs one job, and the ephemeral registration is gone."""
    done = configure("--ephemeral", "--no-default-labels", "--disableupdate")
    assert (done.returncode, [line for line in lines(done.stdout) if line.startswith("√")]) == (
        0,
        [
            "√ Connected to GitHub",
            "√ Runner successfully added",
            "√ Runner connection is good",
            "√ Settings Saved.",
        ],
    )
    (runner,) = api.get(f"{REPO}/actions/runners")["runners"]
    assert (runner["name"], runner["status"], [label["name"] for label in runner["labels"]]) == (
        "mac-1",
        "offline",
        LABELS,
    )
    settings = json.loads((guest.runner / ".runner").read_text())
    assert (settings["AgentId"], settings["GitHubUrl"]) == (str(runner["id"]), f"{github.url}/octo-org/hello")
    assert (guest.runner / ".credentials").stat().st_mode & 0o077 == 0
    run = queue("build")
    assert guest.run("run.sh").returncode == 0
    assert github.run(run["id"])["conclusion"] == "success"
    assert github.runners("octo-org", "hello") == github.anomalies() == []


def test_default_labels_and_a_lasting_runner(api, configure, github, guest, queue):
    """Without --no-default-labels there are three more; without --ephemeral the runner takes job after job, until a signal."""
    configure(LABELS="anka")
    labels = [label["name"] for label in github.runners("octo-org", "hello")[0]["labels"]]
    assert (labels[:2], labels[2] in ("X64", "ARM64"), labels[3:]) == (["self-hosted", "macOS"], True, ["anka"])
    process = guest.start("run.sh")
    for name in ("one", "two"):
        run = queue(name)
        github.wait_for(lambda run=run: github.run(run["id"])["status"] == "completed")
    (listener,) = [
        child for child in psutil.Process(process.pid).children() if "Runner.Listener" in " ".join(child.cmdline())
    ]
    listener.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert github.runners("octo-org", "hello")[0]["status"] == "offline"
    assert (guest.runner / ".runner").exists()


def test_configuring_twice_is_refused(configure):
    """config.sh refuses a folder that is already configured."""
    assert configure().returncode == 0
    again = configure()
    assert again.returncode == 1
    assert "Cannot configure the runner because it is already configured" in again.stdout


def test_a_taken_name_needs_replace(api, configure, github):
    """A name in use is an error, unless --replace takes it over."""
    github.add_runner("octo-org", "hello", "mac-1", LABELS)
    refused = configure()
    assert (refused.returncode, "A runner exists with the same name mac-1." in refused.stdout) == (1, True)
    assert configure("--replace").returncode == 0
    assert api.get(f"{REPO}/actions/runners")["total_count"] == 1


@pytest.mark.parametrize(
    ("flags", "more", "text"),
    [
        ((), {"TOKEN": "AWRONG"}, "Http response code: NotFound from 'POST"),
        ((), {"URL": "http://127.0.0.1:9/octo-org/hello"}, "An error occurred"),
        ((), {"NAME": "a:b"}, "must not contain"),
        (("--no-default-labels",), {"LABELS": ""}, "Invalid configuration provided for labels"),
        ((), {"URL": ""}, "Invalid configuration provided for url"),
    ],
)
def test_a_configuration_that_fails(configure, github, flags, more, text):
    """A wrong token, address, name or set of labels ends config.sh with 1 and a reason, and registers nothing."""
    failed = configure(*flags, **more)
    assert (failed.returncode, text in failed.stdout) == (1, True), failed.stdout
    assert github.runners("octo-org", "hello") == []


def test_an_unknown_flag_is_only_a_warning(configure):
    """config.sh names unknown flags and continues."""
    done = configure("--frobnicate")
    assert (done.returncode, "Unrecognized command-line input arguments" in done.stdout) == (0, True)


def test_an_organisations_runner_in_a_group(api, configure, github):
    """--runnergroup puts an organisation's runner into its group; an unknown group is an error."""
    number = github.add_group("octo-org", "macs")["id"]
    secret = api.call("POST", "/orgs/octo-org/actions/runners/registration-token").json()["token"]
    org = {"URL": f"{github.url}/octo-org", "TOKEN": secret}
    assert configure("--runnergroup", "none", **org).returncode == 1
    assert configure("--runnergroup", "macs", **org).returncode == 0
    assert [runner["runner_group_id"] for runner in github.runners("octo-org")] == [number]


def test_removing_a_configuration(api, configure, github, guest):
    """config.sh remove deletes the registration by a removal token, or with --local only the files."""
    configure()
    secret = api.call("POST", f"{REPO}/actions/runners/remove-token").json()["token"]
    removed = guest.run("config.sh", "remove", ACTIONS_RUNNER_INPUT_TOKEN=secret)
    assert (removed.returncode, "√ Runner removed successfully" in removed.stdout) == (0, True)
    assert github.runners("octo-org", "hello") == []
    configure()
    assert guest.run("config.sh", "remove", "--local").returncode == 0
    assert not (guest.runner / ".runner").exists()
    assert len(github.runners("octo-org", "hello")) == 1


def test_versions(guest):
    """Listener and config.sh show the runner's version."""
    assert guest.run("bin/Runner.Listener", "--version").stdout == f"{DEFAULT_VERSION}\n"
    assert guest.run("config.sh", "--version").stdout == f"{DEFAULT_VERSION}\n"


def test_an_unconfigured_runner(guest):
    """Without settings, run.sh says so and exits 0 as always; the listener itself exits 1."""
    ran = guest.run("run.sh")
    assert (ran.returncode, "Not configured" in ran.stdout, "terminated error" in ran.stdout) == (0, True, True)
    assert guest.run("bin/Runner.Listener", "run").returncode == 1
    assert guest.run("run.sh", **{JIT: "bm9uc2Vuc2U="}).returncode == 0


def test_a_registration_that_is_gone(api, github, guest):
    """A runner deleted before it connects gets no session; one deleted while it listens cleans up and ends."""
    config = api.jit("first")
    api.call("DELETE", f"{REPO}/actions/runners/{config['runner']['id']}")
    ran = guest.run("run.sh", **{JIT: config["encoded_jit_config"]})
    assert "The runner registration has been deleted from the server" in ran.stdout
    config = api.jit("second")
    process = guest.start("run.sh", **{JIT: config["encoded_jit_config"]})
    github.wait_for(lambda: [one for one in github.runners("octo-org", "hello") if one["status"] == "online"])
    assert api.call("DELETE", f"{REPO}/actions/runners/{config['runner']['id']}").status == 204
    assert process.wait(20) == 0
    assert "The runner no longer exists on the server." in guest.output("run.sh").read_text()


def test_a_session_conflict(api, github, guest, listen):
    """While another listener holds the session, this one retries and then gives up with status 5."""
    github.set(session_retry=0.05, session_give_up=0.2)
    config = api.jit()["encoded_jit_config"]
    listen(config)
    ran = guest.run("bin/Runner.Listener", "run", **{JIT: config})
    assert ran.returncode == 5
    assert "A session for this runner already exists." in ran.stdout
    assert "Stop retry on SessionConflictException" in ran.stdout


def test_a_deprecated_version(api, github, guest):
    """A runner too old for GitHub ends with 1, or with 7 on request."""
    github.set(minimum_runner_version="99.0.0")
    config = {JIT: api.jit()["encoded_jit_config"]}
    assert guest.run("bin/Runner.Listener", "run", **config).returncode == 1
    wanted = {"ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE": "1"}
    assert guest.run("bin/Runner.Listener", "run", **config, **wanted).returncode == 7


def test_a_user_cancels_a_running_job(api, github, guest, queue):
    """A cancel ends the step's processes; the job is cancelled and the runner ends."""
    run = queue({"name": "build", "steps": ["echo begun > begun; sleep 300"]})
    process = guest.start("run.sh", **{JIT: api.jit()["encoded_jit_config"]})
    begun = guest.runner / "_work" / "hello" / "hello" / "begun"
    github.wait_for(begun.exists)
    (sleeper,) = [one for one in psutil.Process(process.pid).children(recursive=True) if one.name() == "sleep"]
    assert api.call("POST", f"{REPO}/actions/runs/{run['id']}/cancel").status == 202
    assert process.wait(30) == 0
    assert not sleeper.is_running()
    assert github.run(run["id"])["conclusion"] == "cancelled"
    assert "Job build completed with result: Canceled" in guest.output("run.sh").read_text()
    assert github.runners("octo-org", "hello") == github.anomalies() == []


def test_a_guest_that_is_switched_off(api, github, guest, queue):
    """When guest and processes vanish, the runner goes offline, and its job fails when GitHub gives up."""
    github.set(offline_after=0.1, lost_after=0.3)
    run = queue({"name": "build", "duration": 300})
    process = guest.start("run.sh", **{JIT: api.jit()["encoded_jit_config"]})
    github.wait_for(lambda: github.run(run["id"])["status"] == "in_progress")
    guest.kill(process)
    github.wait_for(lambda: github.run(run["id"])["status"] == "completed")
    assert github.run(run["id"])["conclusion"] == "failure"
    assert github.events("job-completed")[0]["reason"] == "lost communication"
    assert github.events("runner-offline")


def test_a_killed_listener_leaves_no_step_behind(api, github, guest, queue):
    """A worker whose listener is killed kills the step and reports nothing."""
    run = queue({"name": "build", "steps": ["echo $$ > pid; exec sleep 300"]})
    process = guest.start("run.sh", **{JIT: api.jit()["encoded_jit_config"]})
    record = guest.runner / "_work" / "hello" / "hello" / "pid"
    github.wait_for(lambda: record.exists() and record.read_text().strip())
    step = psutil.Process(int(record.read_text()))
    (listener,) = [
        one for one in psutil.Process(process.pid).children() if "Runner.Listener" in " ".join(one.cmdline())
    ]
    listener.kill()
    github.wait_for(lambda: not step.is_running() or step.status() == psutil.STATUS_ZOMBIE)
    assert github.run(run["id"])["status"] == "in_progress"


def test_the_service_script(api, configure, github, guest, queue):
    """svc.sh runs the runner in the background: install, start, status, stop, uninstall."""
    assert guest.run("svc.sh", "install").returncode == 1
    configure("--ephemeral")
    run = queue("build")
    assert guest.run("svc.sh", "install").returncode == 0
    assert guest.run("svc.sh", "start").returncode == 0
    github.wait_for(lambda: github.run(run["id"])["status"] == "completed")
    github.wait_for(lambda: "Stopped" in guest.run("svc.sh", "status").stdout)
    assert guest.run("svc.sh", "uninstall").returncode == 0
    assert "Running job: build" in (guest.home / "Library/Logs/actions.runner.emulated/stdout.log").read_text()


def test_many_runners_share_the_work(api, github, queue, closing):
    """Each of several jobs runs exactly once, on any free runner; the journal proves it."""
    ids = sorted(queue(f"job {number}")["jobs"][0]["id"] for number in range(4))
    guests = [closing.enter_context(contextlib.closing(Guest(github))) for _ in ids]
    processes = [
        guest.start("run.sh", **{JIT: api.jit(f"mac-{number}")["encoded_jit_config"]})
        for number, guest in enumerate(guests)
    ]
    assert [process.wait(60) for process in processes] == [0, 0, 0, 0]
    for kind in ("job-started", "job-completed"):
        assert sorted(event["job_id"] for event in github.events(kind)) == ids
    assert len({job["runner_id"] for job in github.jobs()}) == 4
    assert github.anomalies() == []


def test_the_release_download(github, tmp_path):
    """The release has GitHub's address, behind a redirect, with the same bytes each time, and unpacks to a working runner."""
    name = f"actions-runner-osx-arm64-{DEFAULT_VERSION}.tar.gz"
    url = f"{github.url}/actions/runner/releases/download/v{DEFAULT_VERSION}/{name}"
    direct = urllib3.request("GET", url, redirect=False)
    assert (direct.status, f"/_download/{name}" in direct.headers["Location"]) == (302, True)
    data = urllib3.request("GET", url).data
    assert hashlib.sha256(data).hexdigest() == github.runner_sha256("arm64")
    assert github.runner_sha256("arm64") != github.runner_sha256("x64") != github.runner_sha256("x64", "2.1.0")
    assert data == urllib3.request("GET", url).data
    (tmp_path / name).write_bytes(data)
    with tarfile.open(tmp_path / name) as archive:
        archive.extractall(tmp_path / "runner", **SAFELY)  # noqa: S202  the emulator made it
    shown = subprocess.run(
        [str(tmp_path / "runner/config.sh"), "--version"],
        env={"HOME": str(tmp_path), "PATH": os.defpath},
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    assert shown.stdout == f"{DEFAULT_VERSION}\n"
    for wrong in (url.replace("osx", "win"), url.replace(f"v{DEFAULT_VERSION}", "v1.0.0")):
        assert urllib3.request("GET", wrong, headers={"User-Agent": "tests"}).status in (401, 404)
    github.set(download_redirect=False)
    assert urllib3.request("GET", url, redirect=False).data == data
    assert [line["status"] for line in github.requests()][:2] == [302, 302]
