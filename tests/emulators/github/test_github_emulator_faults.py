"""The failures that the emulated GitHub produces on request, and the life of its own process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import urllib3
from emulators.github.bench import REPO
from emulators.github.control import GitHubServer

RUNS = f"{REPO}/actions/runs"
SERVER = Path(__file__).resolve().parent / "server.py"


@pytest.fixture
def rough(api):
    """The API without checks: replies of faults do not conform to GitHub's description."""
    api.measured = False
    return api


def test_a_fault_replaces_a_reply_so_often(rough, github, queue):
    """A fault replaces status, body and headers, without effect, on its route only and as often as requested."""
    run = queue("build")
    path = f"{RUNS}/{run['id']}/cancel"
    github.fault("POST", r"/cancel$", times=2, status=502, body="<html>Unicorn!</html>", headers={"Retry-After": "7"})
    for _ in range(2):
        reply = rough.call("POST", path)
        assert (reply.status, reply.data, reply.headers["Retry-After"]) == (502, b"<html>Unicorn!</html>", "7")
    assert rough.call("GET", RUNS).status == 200
    assert github.run(run["id"])["status"] == "queued"
    assert rough.call("POST", path).status == 202
    assert [line["fault"] for line in github.requests()] == [True, True, False, False]


def test_a_fault_with_json_and_one_without_end(rough, github):
    """A body that is not text is sent as JSON; `times` None lasts until the faults are cleared."""
    github.fault("*", "/actions/runs", times=None, status=403, body={"message": "secondary rate limit"})
    assert [rough.call("GET", RUNS).json()["message"] for _ in range(3)] == ["secondary rate limit"] * 3
    github.clear_faults()
    assert rough.call("GET", RUNS).status == 200


def test_headers_alone_are_added(rough, github):
    """A fault with only headers leaves the rest of the reply alone."""
    github.fault("GET", "/actions/runs", headers={"Retry-After": "1"})
    reply = rough.call("GET", RUNS)
    assert (reply.status, reply.headers["Retry-After"]) == (200, "1")


def test_a_reset_has_no_effect(rough, github, queue):
    """`reset` breaks the connection before any effect."""
    run = queue("build")
    github.fault("POST", "/cancel", reset=True)
    with pytest.raises(urllib3.exceptions.ProtocolError):
        rough.call("POST", f"{RUNS}/{run['id']}/cancel")
    assert github.run(run["id"])["status"] == "queued"
    assert [(line["status"], line["counted"]) for line in github.requests()] == [(None, False)]


def test_a_lost_reply_has_an_effect(rough, github):
    """`drop_after_effect` executes the request and then breaks the connection."""
    github.fault("POST", "/generate-jitconfig", drop_after_effect=True)
    with pytest.raises(urllib3.exceptions.ProtocolError):
        rough.jit("mac-1")
    assert [runner["name"] for runner in github.runners("octo-org", "hello")] == ["mac-1"]


def test_a_truncated_reply(rough, github):
    """`truncate` ends the connection in the middle of the body."""
    github.fault("GET", "/actions/runs", truncate=True)
    with pytest.raises(urllib3.exceptions.ProtocolError, match="IncompleteRead"):
        rough.call("GET", RUNS)


def test_a_reset_in_the_middle_of_a_reply(rough, github):
    """`truncate` with `reset` breaks the connection there; the request has had its effect."""
    github.fault("POST", "/generate-jitconfig", truncate=True, reset=True)
    with pytest.raises(urllib3.exceptions.ProtocolError):
        rough.jit("mac-1")
    assert [runner["name"] for runner in github.runners("octo-org", "hello")] == ["mac-1"]


@pytest.mark.parametrize("kind", ["delay", "slow_drip"])
def test_slow_replies(rough, github, kind):
    """`delay` waits before the reply, `slow_drip` within it; both succeed, and other requests do not wait."""
    github.fault("GET", "/actions/runs", **{kind: 0.3})
    started = time.monotonic()
    assert rough.call("GET", RUNS).json()["total_count"] == 0
    assert time.monotonic() - started >= 0.25


def test_a_mistake_in_a_fault(github):
    """An impossible fault is refused."""
    with pytest.raises(ValueError, match="error"):
        github.fault("GET", "(", status=500)


def test_an_outage_and_its_end(rough, github, guest, queue):
    """While GitHub is `down` every connection breaks; runners keep trying and get their job afterwards."""
    config = rough.jit()["encoded_jit_config"]
    process = guest.start("run.sh", ACTIONS_RUNNER_INPUT_JITCONFIG=config)
    github.wait_for(lambda: github.events("runner-online"))
    github.set(down=True)
    with pytest.raises(urllib3.exceptions.ProtocolError):
        rough.call("GET", RUNS)
    run = queue("build")
    github.wait_for(lambda: "Retrying until reconnected" in guest.output("run.sh").read_text())
    github.set(down=False)
    assert process.wait(30) == 0
    assert github.run(run["id"])["conclusion"] == "success"
    assert github.anomalies() == []


@pytest.mark.parametrize("tail", ["/session", "/acquire", "/report", "/finish", "/message"])
@pytest.mark.parametrize("kind", ["reset", "drop_after_effect"])
def test_a_runner_survives_lost_requests(rough, github, guest, queue, tail, kind):
    """A runner repeats a request if it or its reply is lost, and nothing runs twice."""
    run = queue("build")
    github.set(pickup_after=0.2)
    config = rough.jit()["encoded_jit_config"]
    github.fault("*", rf"/_services/.*{tail}$", **{kind: True})
    assert guest.run("run.sh", ACTIONS_RUNNER_INPUT_JITCONFIG=config).returncode == 0
    assert github.faults() == []
    job = github.run(run["id"])["jobs"][0]
    assert (job["conclusion"], job["starts"]) == ("success", 1)
    assert github.anomalies() == []


def test_what_is_written_to_disk(tmp_path):
    """With `state_dir` and `log`, the journal, the anomalies and the requests are on disk, one JSON line each."""
    with GitHubServer(state_dir=tmp_path / "state", log=tmp_path / "requests.jsonl") as server:
        server.add_repo("o", "r")
        server.add_token("t")
        server.queue_run("o", "r", [{"name": "build"}])
        urllib3.request("GET", f"{server.url}/nowhere", headers={"Authorization": "Bearer t", "User-Agent": "tests"})
        expected = [server.events(), server.anomalies(), server.requests()]
    files = [tmp_path / "state/events.jsonl", tmp_path / "state/anomalies.jsonl", tmp_path / "requests.jsonl"]
    assert [[json.loads(line) for line in file.read_text().splitlines()] for file in files] == expected
    assert [len(lines) for lines in expected] == [1, 1, 1]


def test_the_server_by_hand(tmp_path):
    """Without --port-file the program prints its address; it exits with 0 on SIGTERM, even with a waiting runner."""
    with subprocess.Popen([sys.executable, str(SERVER)], stdout=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().strip()
        assert urllib3.request("GET", f"{url}/user", headers={"User-Agent": "tests"}).status == 401
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_the_server_ends_with_its_starter(tmp_path):
    """A killed test leaves no server and no directory behind: the end of standard input ends the server."""
    script = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from emulators.github.control import GitHubServer\n"
        "server = GitHubServer().start(); print(server.pid, flush=True); time.sleep(60)\n"
    )
    argv = [sys.executable, "-c", script, str(SERVER.parents[2])]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment) as process:
        server = psutil.Process(int(process.stdout.readline()))
        process.kill()
        process.wait()
    psutil.wait_procs([server], timeout=20)
    assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_behind(github):
    """stop() ends the process and removes its directory; a second call is harmless."""
    server = GitHubServer().start()
    process, folder = psutil.Process(server.pid), server._folder
    server.stop()
    server.stop()
    assert not process.is_running()
    assert not folder.exists()
