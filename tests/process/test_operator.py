"""An operator's commands through the real program: doctor, agent, init, logs, job."""

import json
import os
import plistlib
import re
import subprocess
import sys

import pytest
from fake_launchctl import FakeLaunchctl
from stage import OWNER, REPO, TEMPLATE, TOKEN, eventually, job
from test_job_life import finish, queue

from anklet_supervisor.config.load import load
from anklet_supervisor.doctor.facts import mac_facts


def findings(mac, code):
    """Run `doctor`; return its findings by check."""
    done = mac.command("doctor", "--json")
    assert (done.returncode, done.stderr) == (code, "")
    document = json.loads(done.stdout)
    assert document["fit"] is (code == 0)
    found = {}
    for one in document["findings"]:
        found.setdefault(one["check"], []).append(one)
    return found


def problems(found):
    """The checks that found a problem."""
    return {check for check, several in found.items() for one in several if one["verdict"] == "problem"}


# ---- doctor ----


def test_a_fit_host_is_fit(new_mac):
    """On a healthy host, every check that Linux allows passes, the VM tool and GitHub included, and nothing is left behind."""
    mac = new_mac(services=2)
    found = findings(mac, 0)
    assert found["VM tool"][0]["verdict"] == "ok"
    assert found["VM tool"][0]["service"] == "RUNNER1, RUNNER2"
    assert TEMPLATE in found["templates"][0]["said"]
    assert [one["said"] for one in found["GitHub rights"]] == [
        "Actions: read: granted", "Administration: read: granted", "Administration: read and write: granted",
    ]  # fmt: skip
    assert found["GitHub login"][0]["verdict"] == found["clock"][0]["verdict"] == "ok"
    (rate,) = found["GitHub rate"]  # one request serves all services that differ only in name
    assert "requests left this hour" in rate["said"]
    assert rate["service"] == "RUNNER1, RUNNER2"
    assert found["launchd agent"][0]["verdict"] == "not checked"
    assert not mac.state_dir.exists()
    assert not mac.github.runners(OWNER, REPO)


def test_doctor_beside_a_running_supervisor(mac):
    """`doctor` accepts that the supervisor holds the port, leaves its state alone, and does not disturb it."""
    mac.start()
    found = findings(mac, 0)
    assert f"pid {mac.process.pid}" in found["port"][0]["said"]
    assert mac.get("/readyz")[0] == 200
    assert mac.drain() == 0


def test_a_missing_vm_tool_is_the_first_thing_told(mac):
    """The finding says how to fix it, and all other checks still run."""
    (mac.anka.bin_dir / "anka").unlink()
    found = findings(mac, 1)
    assert problems(found) == {"VM tool"}
    assert "anka is not on PATH" in found["VM tool"][0]["said"]
    assert "install anka" in found["VM tool"][0]["remedy"]
    assert found["GitHub login"][0]["verdict"] == "ok"


@pytest.mark.parametrize(
    ("permissions", "refused"),
    [
        ({"administration": "read", "actions": "read"}, ["Administration: read and write"]),
        ({"administration": "write"}, ["Actions: read"]),
    ],
)
def test_rights_that_are_missing_are_named(mac, github, permissions, refused):
    """Each missing permission has GitHub's name for it and the reason why it is needed."""
    github.add_token("weak_token_bait", permissions=permissions)
    mac.config["services"][0]["token"] = "weak_token_bait"
    found = findings(mac, 1)
    assert problems(found) == {"GitHub rights"}
    bad = [one for one in found["GitHub rights"] if one["verdict"] == "problem"]
    assert [one["said"].partition(": refused")[0] for one in bad] == refused
    assert all(one["remedy"].startswith("grant ") for one in bad)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"token": "unknown_bait"}, "rejects the login (401"),
        ({"repo": "nosuch"}, f"GitHub has no {OWNER}/nosuch"),
        ({"api_url": "http://127.0.0.1:1"}, "no connection: Connection refused"),
    ],
)
def test_a_login_that_fails_is_one_finding(mac, change, words):
    """A failed login is the only finding: the checks that depend on it are left out."""
    mac.config["services"][0].update(change)
    found = findings(mac, 1)
    assert problems(found) == {"GitHub login"}
    (one,) = found["GitHub login"]
    assert words in one["said"]
    assert not {"GitHub rights", "GitHub rate"} & set(found)
    assert "bait" not in json.dumps(found)


def test_redis_and_registry_that_do_not_answer_are_told(mac):
    """A missing Redis is a problem. A missing registry is a warning, because only missing templates need it."""
    mac.config["services"][0].update(
        registry_url="http://127.0.0.1:1", database={"enabled": True, "url": "127.0.0.1", "port": 1}
    )
    found = findings(mac, 1)
    assert problems(found) == {"Redis"}
    assert found["registry"][0]["verdict"] == "warning"
    assert "Connection refused" in found["registry"][0]["said"]


def test_a_redis_that_answers_tells_its_version(mac, redis_server):
    """The finding has the address and the version."""
    mac.config["services"][0]["database"] = {"enabled": True, "url": f"127.0.0.1:{redis_server.port}"}
    (one,) = findings(mac, 0)["Redis"]
    assert re.search(rf"^Redis at 127\.0\.0\.1:{redis_server.port} \(version \d+\.\d+\S*\) answers", one["said"])


def test_foreign_vms_and_missing_templates_are_warnings(new_mac):
    """Both are warnings, and the host is still fit."""
    mac = new_mac(runner=False)
    mac.anka.start_foreign("anklet-vm-0123")
    found = findings(mac, 0)
    assert found["templates"][0]["verdict"] == "warning"
    assert "anklet-vm-0123" in found["foreign VMs"][0]["said"]


def test_what_a_mac_says_is_read(tmp_path, monkeypatch):
    """Power, keychain and agent are read with the programs that macOS provides."""
    fake = FakeLaunchctl(tmp_path / "bin")
    for name, script in {
        "pmset": "printf 'AC Power:\\n sleep                10\\n autorestart          1\\n'",
        "security": "echo 'User interaction is not allowed.' >&2; exit 36",
    }.items():
        program = fake.folder / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.folder}{os.pathsep}{os.environ['PATH']}")
    facts = mac_facts()
    assert facts.power == {"sleep": "10", "autorestart": "1"}
    assert (facts.keychain_unlocked, facts.agent_loaded) == (False, False)
    (fake.folder / "loaded").write_bytes(b"")
    (fake.folder / "security").write_text("#!/bin/sh\nexit 0\n")
    assert (mac_facts().keychain_unlocked, mac_facts().agent_loaded) == (True, True)
    for name in ("pmset", "security", "launchctl"):
        (fake.folder / name).unlink()
    bare = mac_facts()
    assert (bare.power, bare.keychain_unlocked, bare.agent_loaded) == (None, None, None)


# ---- agent ----


def test_the_agent_is_installed_and_uninstalled(mac):
    """With a `launchctl` on PATH: checks the property list, the log rotation rule and the exit codes."""
    fake = FakeLaunchctl(mac.folder / "bin")
    mac.environment["PATH"] = f"{fake.folder}{os.pathsep}{mac.env()['PATH']}"
    assert mac.command("agent", "status").returncode == 3
    printed = mac.command("agent", "print")
    assert printed.returncode == 0
    words = plistlib.loads(printed.stdout.encode())["ProgramArguments"]
    assert words[-2:] == ["--config", str(mac.config_path)]
    done = mac.command("agent", "install")
    assert (done.returncode, done.stderr) == (0, "")
    assert fake.loaded.decode() == printed.stdout
    assert mac.command("agent", "status").stdout.startswith("com.anklet.supervisor is loaded: state running")
    assert mac.command("agent", "uninstall").returncode == 0
    assert fake.loaded is None
    rule = mac.command("agent", "print", "--newsyslog").stdout
    assert f"{mac.log_dir}/anklet.log" in rule


def test_the_agents_command_line_starts_the_program(mac):
    """The program starts with exactly the property list's arguments and environment."""
    mac.write_config()
    plist = plistlib.loads(mac.command("agent", "print").stdout.encode())
    environment = {**plist["EnvironmentVariables"], "HOME": str(mac.folder), **mac.anka.env()}
    environment["PATH"] = f"{mac.anka.bin_dir}:{environment['PATH']}"
    mac.run(plist["ProgramArguments"], environment)
    eventually(mac.is_ready, "the agent is ready")
    assert mac.drain() == 0


def test_an_agent_with_a_wrong_configuration_is_not_installed(mac):
    """The agent would exit at once, so `install` shows the configuration's errors instead."""
    fake = FakeLaunchctl(mac.folder / "bin")
    mac.environment["PATH"] = f"{fake.folder}{os.pathsep}{mac.env()['PATH']}"
    mac.config["nonsense"] = 1
    done = mac.command("agent", "install")
    assert done.returncode == 78
    assert "unknown key 'nonsense'" in done.stderr
    assert fake.calls() == []


def test_an_agent_that_needs_this_shells_environment_is_not_installed(mac):
    """The agent does not get the shell's environment, so `install` names the missing variables at once."""
    fake = FakeLaunchctl(mac.folder / "bin")
    mac.environment.update(PATH=f"{fake.folder}{os.pathsep}{mac.env()['PATH']}", MY_TOKEN=TOKEN)
    mac.config["services"][0]["token"] = "${MY_TOKEN}"
    assert mac.command("check").returncode == 0
    done = mac.command("agent", "install")
    assert done.returncode == 78
    assert "without this shell's environment" in done.stderr
    assert "environment variable MY_TOKEN, which is not set" in done.stderr
    assert TOKEN not in done.stderr
    assert fake.calls() == []


# ---- init ----


def test_init_leads_to_a_configuration_that_check_accepts(mac):
    """`init` reads the token from standard input. A second `init` changes nothing."""
    path = mac.folder / ".config" / "anklet" / "config.yml"

    def init():
        words = ["init", "--owner", OWNER, "--repo", REPO, "--services", "1", "--api-url", mac.github.url]
        return subprocess.run(
            [sys.executable, "-m", "anklet_supervisor", *words],
            input=TOKEN + "\n", env=mac.env(), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    done = init()
    assert (done.returncode, done.stderr) == (0, "")
    assert TOKEN not in done.stdout + path.read_text()
    config, warnings = load(path, {}, home=mac.folder, platform="linux")
    assert warnings == ()
    assert config.services[0].settings["token"].reveal() == TOKEN
    before = path.read_bytes()
    again = init()
    assert again.returncode == 78
    assert "init overwrites nothing" in again.stderr
    assert path.read_bytes() == before


# ---- logs and job ----


def test_logs_shows_a_jobs_lines(new_mac, github):
    """Lines are selected by service, job and level. Piped output has no colours or escapes."""
    mac = new_mac(services=2)
    ids = queue(github, job("one"), job("two"))
    mac.start()
    assert finish(mac, github, ids) == ["success"] * 2
    assert mac.drain() == 0
    text = mac.command("logs", "-n", "1000").stdout
    assert len(text.splitlines()) == len(mac.log_lines())
    assert "\x1b" not in text
    one = mac.command("logs", "--job", str(ids[0])).stdout.splitlines()
    assert len(one) == len(mac.log_lines(jobId=str(ids[0])))
    assert re.match(r"\d\d:\d\d:\d\d INFO  RUNNER\d: job claimed .*workflowJobName=one", one[0])
    only = mac.command("logs", "--service", "RUNNER1").stdout
    assert "RUNNER1: " in only
    assert "RUNNER2: " not in only
    nothing = mac.command("logs", "--level", "ERROR")
    assert (nothing.returncode, nothing.stdout) == (0, "")
    assert "anklet.log" in nothing.stderr
    assert len(mac.command("logs", "-n", "3").stdout.splitlines()) == 3


def test_logs_follows_across_a_rotation(mac):
    """After the log file is renamed, `logs -f` also shows lines of the new file."""
    mac.write_config()
    log = mac.log_dir / "anklet.log"
    log.write_text('{"time": "2026-01-01T00:00:00Z", "level": "INFO", "msg": "first"}\n')
    words = [sys.executable, "-m", "anklet_supervisor", "logs", "-f", "--config", str(mac.config_path)]
    output = mac.folder / "followed"
    with output.open("wb") as to:
        follower = subprocess.Popen(words, env=mac.env(), stdout=to, stderr=to)
    try:
        eventually(lambda: "first" in output.read_text(), "the first line is shown", 20)
        log.rename(mac.log_dir / "anklet.log.1")
        log.write_text('{"time": "2026-01-01T00:00:01Z", "level": "INFO", "msg": "second"}\n')
        eventually(lambda: "second" in output.read_text(), "the second line is shown", 20)
    finally:
        follower.send_signal(2)
        assert follower.wait(10) == 0
    assert "Traceback" not in output.read_text()


def test_logs_without_a_file_says_where_the_log_goes(mac):
    """The exit code is 78, and the message names the key to set."""
    del mac.config["log"]
    done = mac.command("logs")
    assert done.returncode == 78
    assert "set log.file_dir" in done.stderr


def test_a_jobs_timeline_has_every_step(mac, github):
    """The steps are in order, in the history, the log and the status, also after the supervisor has ended."""
    ids = queue(github, job("good", steps=["sleep 0.5"]), job("bad", steps=["exit 1"]))
    mac.start()
    assert finish(mac, github, ids) == ["success", "failure"]
    eventually(lambda: len(mac.status()["failures"]) == 1, "the failure is in the status", 10)
    assert mac.status()["failures"][0]["name"] == "bad"
    assert "last failures" in mac.command("status").stdout
    assert mac.drain() == 0
    done = mac.command("job", "show", str(ids[0]), "--json")
    (shown,) = json.loads(done.stdout)
    steps = shown["job"]["steps"]
    assert list(steps) == ["queued", "claimed", "slot", "clone", "start", "online", "started", "finished", "cleaned"]
    assert list(steps.values())[1:] == sorted(list(steps.values())[1:])
    assert shown["job"]["ended"] == "success"
    (line,) = mac.log_lines(msg="timeline of a job", jobId=str(ids[0]))
    assert line["seconds"] == shown["seconds"]
    text = mac.command("job", "show", str(ids[1])).stdout
    assert re.search(r"^cleaned +\S+ \S+ +\+\d+\.\d s$", text, re.MULTILINE)
    assert "failure" in text
    assert [line.split()[1] for line in mac.command("job", "list").stdout.splitlines()] == ["NAME", "bad", "good"]


def test_a_job_that_is_not_known_is_said_so(mac):
    """For an unknown job the exit code is 1, and the message names the job."""
    done = mac.command("job", "show", "12345")
    assert done.returncode == 1
    assert "no job 12345" in done.stderr
    assert mac.command("job", "show").returncode == 64
    done = mac.command("job", "list", "5")
    assert (done.returncode, done.stderr) == (
        64,
        "anklet-supervisor: job list takes no ID; did you mean: job show 5?\n",
    )


def test_a_job_that_survives_a_restart_keeps_its_timeline(mac, github):
    """The next process continues the timeline: one attempt, not two."""
    (job_id,) = queue(github, job("long", steps=["sleep 3"]))
    mac.start()
    eventually(lambda: github.job(job_id)["status"] == "in_progress", "the job runs", 20)
    eventually(lambda: mac.service_status()["job"], "the service shows it", 10)
    assert mac.command("restart").returncode == 0
    assert mac.wait(15) == 75
    mac.start()
    assert finish(mac, github, [job_id], 60) == ["success"]
    assert mac.drain() == 0
    (shown,) = json.loads(mac.command("job", "show", str(job_id), "--json").stdout)
    assert shown["job"]["ended"] == "success"
    assert "cleaned" in shown["job"]["steps"]
