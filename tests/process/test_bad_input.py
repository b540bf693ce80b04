"""Bad input and failing surroundings: one clear line, no traceback, no leak, and other services continue."""

import json
import resource
import shutil
import signal
from pathlib import Path

import pytest
import yaml
from stage import OWNER, REPO, eventually, job
from test_job_life import finish, queue

DATA = Path(__file__).resolve().parents[1] / "data"


def refused(done, code, *words):
    """Check that the command was refused with this exit code, these words and no traceback; return its stderr lines."""
    assert done.returncode == code, done.stderr
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    return done.stderr.splitlines()


# ---- the command line ----


@pytest.mark.parametrize(
    "arguments",
    [
        ["-s", "typo"],
        ["-s"],
        ["explode"],
        ["start", "--bogus"],
        ["status", "--wait"],
        ["drain", "--wait", "nan"],
        ["reload", "--wait=-1"],
        ["logs", "-n", "-1"],
    ],
)
def test_a_wrong_command_line_is_a_usage_error(mac, arguments):
    """A wrong command line exits with 64 and one line, and starts nothing (the original started the daemon at `-s typo`)."""
    lines = refused(mac.command(*arguments), 64)
    assert len(lines) == 1
    assert "_" not in lines[0]
    assert not (mac.state_dir / "lock").exists()


def test_all_lines_of_the_log_are_a_number_of_lines_too(mac):
    """`logs -n` accepts any number, however large, and shows the whole log."""
    (mac.log_dir / "anklet.log").write_text("one\ntwo\n")
    done = mac.command("logs", "-n", "9" * 40)
    assert (done.returncode, done.stdout, done.stderr) == (0, "one\ntwo\n", "")


def test_the_originals_spelling_of_drain_and_stop(mac):
    """`-s drain` and `-s stop` still work."""
    for word in ("drain", "stop"):
        mac.start()
        assert mac.command("-s", word).returncode == 0
        assert mac.wait(20) == 0


# ---- the configuration ----


BROKEN = [
    ("", "empty"),
    ("- a list\n", "key: value"),
    ("services: [\n", "YAML"),
    (
        "services:\n  - name: A\n    plugin: gihub\n    owner: o\n    repo: r\n    token: github_pat_1XXXXX\n",
        "available: github",
    ),
    ("servces: []\n", "services"),
]


@pytest.mark.parametrize(("text", "word"), BROKEN)
@pytest.mark.parametrize("command", ["check", "start"])
def test_a_broken_configuration_starts_nothing(mac, text, word, command, monkeypatch):
    """`check` and `start` exit with 78 and FILE:LINE:COLUMN.

    With --agent, the exit code is 0 and the log has one ERROR.
    """
    monkeypatch.setattr(mac, "write_config", lambda: mac.config_path.write_text(text))
    mac.config_path.touch(0o600)
    lines = refused(mac.command(command), 78, word)
    assert all(line.startswith(f"{mac.config_path}:") for line in lines), lines
    assert mac.anka.calls() == []
    if command == "start":
        agent = mac.command("start", "--agent")
        assert agent.returncode == 0
        (line,) = agent.stdout.splitlines()
        assert json.loads(line)["level"] == "ERROR"


def test_a_missing_configuration_says_so(mac, monkeypatch):
    """A missing configuration exits with 78 and names the path."""
    monkeypatch.setattr(mac, "write_config", lambda: None)
    refused(mac.command("start"), 78, str(mac.config_path))


def test_check_accepts_what_start_runs(mac):
    """`check` reports no errors and exits with 0."""
    done = mac.command("check")
    assert done.returncode == 0
    assert "no errors" in done.stdout


def test_a_log_directory_that_does_not_exist(mac):
    """A missing log directory exits with 78: otherwise the operator would search for a log that does not exist."""
    mac.config["log"]["file_dir"] = str(mac.folder / "nowhere")
    refused(mac.command("start"), 78, "log.file_dir", "no such directory")


def test_the_originals_example_starts_unchanged_but_for_its_surroundings(new_mac, github, redis_server):
    """The original README's example (two services with Redis) runs a job.

    Only directories and addresses are changed.
    """
    mac = new_mac()
    example = yaml.safe_load((DATA / "original-example.yml").read_text())
    github.add_repo("veertuinc", "anklet")
    github.add_token(example["services"][0]["token"])
    example["log"]["file_dir"] = str(mac.log_dir) + "/"
    example["work_dir"] = example["pid_file_dir"] = str(mac.folder) + "/"
    example["metrics"] = {"port": mac.port}
    example["state_dir"] = str(mac.state_dir)
    for service in example["services"]:
        service["api_url"] = service["server_url"] = github.url
        service["database"]["port"] = redis_server.port
    mac.config = example
    run = github.queue_run("veertuinc", "anklet", jobs=[job("as ever")])
    job_id = run["jobs"][0]["id"]
    mac.start()
    eventually(lambda: github.job(job_id)["conclusion"] == "success", "the job is done", 30)
    eventually(lambda: not mac.vms(), "everything is cleaned up", 10)
    assert mac.drain() == 0


def test_a_file_that_others_can_read_while_it_holds_a_secret_is_a_warning(mac, monkeypatch):
    """The supervisor starts, and one WARN says how to fix the mode."""
    original = mac.write_config

    def readable():
        original()
        mac.config_path.chmod(0o644)

    monkeypatch.setattr(mac, "write_config", readable)
    mac.start()
    assert any("chmod" in line["msg"] for line in mac.log_lines(level="WARN"))


# ---- anka ----


def test_a_missing_anka_is_fatal_and_ends_the_program(mac):
    """The exit code is 69 when every service lacks its tool, and 0 under --agent. One ERROR says what to do."""
    (mac.anka.bin_dir / "anka").unlink()
    mac.start(wait=False)
    assert mac.wait(20) == 69
    (line,) = mac.log_lines(level="ERROR")
    assert "anka" in line["msg"]
    assert "installed" in line["msg"]
    assert "Traceback" not in mac.log_text()
    assert mac.command("start", "--agent").returncode == 0


def test_an_anka_that_is_not_executable(mac):
    """An `anka` without execute permission counts as missing."""
    (mac.anka.bin_dir / "anka").chmod(0o644)
    mac.environment["PATH"] = f"{mac.anka.bin_dir}:/usr/bin:/bin"
    mac.start(wait=False)
    assert mac.wait(20) == 69


@pytest.mark.parametrize("answer", ["", "Segmentation fault\n", '{"status": "OK"}\n', "[1, 2]\n"])
def test_an_anka_that_answers_garbage_at_the_start(mac, answer):
    """An `anka` with an unreadable version is not used."""
    mac.anka.fault("version", times=None, stdout=answer)
    mac.start(wait=False)
    assert mac.wait(30) == 69
    assert len(mac.log_lines(level="ERROR")) == 1


def test_a_probe_that_a_signal_ends_is_tried_again(mac, github):
    """The host kills processes when memory is short. The service starts at the next try and runs its job."""
    mac.anka.fault("version", times=1, kill_at="before")
    (job_id,) = queue(github, job("patient"))
    mac.start()
    assert finish(mac, github, [job_id], 60) == ["success"]
    (line,) = mac.log_lines(msg="the service cannot begin now; trying again")
    assert "was killed by SIGKILL" in line["err"]
    assert mac.log_lines(level="ERROR") == []


@pytest.mark.parametrize(
    ("settings", "word"),
    [({"license_status": "expired"}, "expired"), ({"license_type": "com.veertu.anka.develop"}, "develop")],
)
def test_a_licence_that_does_not_do_is_fatal(mac, settings, word):
    """The service is FATAL. The supervisor stays up and reports the state in its metrics."""
    mac.anka.set(**settings)
    mac.start(wait=False)
    line = eventually(lambda: mac.log_lines(level="ERROR"), "it is told", 20)[0]
    assert word in line["msg"]
    eventually(lambda: mac.service_status()["state"] == "fatal", "the service is fatal", 10)
    assert 'anklet_services{state="fatal"} 1.0' in mac.get("/metrics")[1]
    assert mac.get("/readyz")[0] == 503
    assert mac.drain() == 0


@pytest.mark.parametrize(
    ("verb", "fault"),
    [
        ("clone", {"stdout": "garbage\n"}),
        ("clone", {"stdout": ""}),
        ("start", {"message": "failed to start: No child processes", "code": 10}),
        ("start", {"message": "out of memory", "code": 99}),
        ("run", {"exit_status": 125}),
        ("cp", {"message": "no space", "code": 28}),
        ("list", {"stdout": "garbage\n"}),
        ("delete", {"message": "busy", "code": 16}),
    ],
)
def test_a_command_that_fails_once_costs_no_job(mac, github, verb, fault):
    """After one failed command the job still succeeds, and nothing is left."""
    (job_id,) = queue(github, job("stubborn"))
    mac.start()
    mac.anka.fault(verb, times=1, **fault)
    assert finish(mac, github, [job_id], 60) == ["success"]
    assert github.job(job_id)["starts"] == 1


def test_a_limit_that_anka_knows_better_is_the_last_word(new_mac, github):
    """Anka refuses a VM although a slot is free.

    The job goes back to the queue and its VM is removed. If the host has room a moment later, the job runs. If not, the
    host is reported as degraded, its services pause, and nothing retries in a tight loop.
    """
    mac = new_mac(services=2)
    mac.refusals_expected = True
    mac.anka.set(limit_always=True)
    (late,) = queue(github, job("late"))
    mac.start()
    line = eventually(lambda: mac.log_lines(msg="the job goes back to the queue"), "it goes back", 20)[0]
    assert "maximum number" in line["err"]
    mac.anka.set(limit_always=False)
    assert finish(mac, github, [late]) == ["success"]
    assert mac.log_lines(level="ERROR") == []
    mac.anka.set(limit_always=True)
    (refused,) = queue(github, job("refused"))
    told = "the host refuses to run as many VMs as it has slots; retrying now and then"
    eventually(lambda: mac.log_lines(level="ERROR", msg=told), "the second refusal tells", 20)
    eventually(lambda: "anklet_host_degraded 1.0" in mac.get("/metrics")[1], "the metric tells", 10)
    eventually(lambda: "paused" in (mac.service_status(f"RUNNER{n}")["status"] for n in (1, 2)), "one pauses", 20)
    eventually(lambda: not mac.leftovers(), "everything is cleaned up", 10)
    assert github.job(refused)["status"] == "queued"
    assert len(mac.log_lines(msg="job claimed", workflowJobId=refused)) == 2


def test_one_service_that_cannot_run_leaves_the_others_alone(new_mac, github):
    """A wrong token makes only its own service FATAL, with one ERROR that says what to do."""
    mac = new_mac(services=2)
    mac.config["services"][0]["token"] = "github_pat_11WRONGWRONGWRONG_wrong"
    (job_id,) = queue(github, job("goes on"))
    mac.start(wait=False)
    eventually(lambda: github.job(job_id)["conclusion"] == "success", "the other service runs it", 30)
    line = eventually(lambda: mac.log_lines(level="ERROR"), "it is told", 10)[0]
    assert "401" in line["msg"]
    assert "WRONG" not in mac.log_text()
    eventually(lambda: mac.service_status("RUNNER1")["state"] == "fatal", "the status follows within a second", 10)
    assert mac.service_status("RUNNER2")["state"] == "ready"


def test_a_token_without_rights_names_what_is_missing(mac, github):
    """For a 403, the ERROR names the missing permission, and the service does not keep asking GitHub."""
    github.add_token("github_pat_11READREADREADREAD_only", permissions={"actions": "read"})
    mac.config["services"][0]["token"] = "github_pat_11READREADREADREAD_only"
    queue(github, job("no rights"))
    mac.start(wait=False)
    line = eventually(lambda: mac.log_lines(level="ERROR"), "it is told", 20)[0]
    assert "administration" in line["msg"]
    eventually(lambda: not mac.vms(), "nothing is left", 10)


# ---- the disk ----


def test_a_full_disk_under_state_dir_loses_no_job(new_mac, github, tmp_path):
    """When no file can grow (RLIMIT_FSIZE), no job is claimed, nothing crashes in a loop, and the job stays queued."""
    mac = new_mac()
    mac.start()
    assert mac.drain() == 0
    (job_id,) = queue(github, job("waits"))
    # Large enough for the status and slot files, too small for the claim store.
    mac.start(wait=False, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2048, resource.RLIM_INFINITY)))
    eventually(lambda: mac.process.poll() is not None or mac.get("/healthz")[0] == 200, "it lives or has ended", 15)
    assert github.events("runner-registered") == []
    assert "Traceback" not in mac.said()
    if mac.process.poll() is None:
        mac.send(signal.SIGTERM)
        mac.wait(30)
    assert github.job(job_id)["status"] == "queued"
    mac.start()
    assert finish(mac, github, [job_id]) == ["success"]


def test_a_log_that_cannot_be_written_stops_nothing(new_mac, github):
    """After the log directory vanishes, log lines are lost but jobs are not."""
    mac = new_mac()
    mac.start()
    shutil.rmtree(mac.log_dir)
    (job_id,) = queue(github, job("unlogged"))
    assert finish(mac, github, [job_id]) == ["success"]
    assert mac.drain() == 0
    mac.log_dir.mkdir()


def test_a_state_directory_that_is_a_symlink_is_refused(mac):
    """A symlink exits with 78: another user could have chosen its target."""
    target = mac.folder / "elsewhere"
    target.mkdir()
    mac.state_dir.symlink_to(target)
    refused(mac.command("start"), 78, "symbolic link")


# ---- GitHub ----


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 500},
        {"status": 502, "body": "<html>Bad gateway</html>"},
        {"status": 503},
        {"reset": True},
        {"truncate": True},
        {"drop_after_effect": True},
        {"status": 200, "body": "<html>maintenance</html>"},
        {"status": 200, "body": ""},
        {"status": 429, "headers": {"retry-after": "1"}},
        {
            "status": 403,
            "body": {"message": "You have exceeded a secondary rate limit"},
            "headers": {"retry-after": "1"},
        },
    ],
    ids=str,
)
def test_a_github_in_trouble_loses_no_job(mac, github, fault):
    """One fault in each route costs no job: it runs once, and nothing is left."""
    (job_id,) = queue(github, job("robust"))
    for method, route in (
        ("GET", "/actions/runs"),
        ("GET", "/actions/jobs/"),
        ("POST", "generate-jitconfig"),
        ("DELETE", "/runners/"),
        ("GET", "/actions/runners"),
    ):
        github.fault(method, route, **fault)
    mac.start()
    assert finish(mac, github, [job_id], 60) == ["success"]
    assert github.job(job_id)["starts"] == 1
    assert mac.log_lines(level="ERROR") == []
    assert github.runners(OWNER, REPO) == []
