"""The supervisor as a process: signals, exit codes, deaths, and what survives them."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from stage import OWNER, REPO, eventually, job
from test_job_life import all_completed, both_drivers, finish, queue

AWAY = "the claim store does not answer: taking no new jobs; running jobs continue"
ROOT = Path(__file__).resolve().parents[2]


def gone(pid):
    """True when no process of this pid lives (a zombie has died)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def running_job(mac, github, **more):
    """Start with one job, and wait until it runs."""
    (job_id,) = queue(github, mac.job("long", steps=["sleep 3"], **more))
    mac.start()
    eventually(lambda: github.job(job_id)["status"] == "in_progress", "the job runs", 20)
    eventually(lambda: mac.service_status()["job"], "the service shows its job", 10)
    return job_id


# ---- orders ----


def test_drain_while_idle_ends_at_once_and_takes_no_more_job(mac, github):
    """The original took one more job per idle service; a drain takes none."""
    mac.start()
    assert mac.command("drain", "--wait", "20").returncode == 0
    assert mac.wait() == 0
    queue(github, job("late"))
    assert github.events("job-assigned", "runner-registered") == []


@pytest.mark.parametrize(
    ("driver", "number"), [("anka", signal.SIGTERM), ("anka", signal.SIGQUIT), ("tart", signal.SIGTERM)]
)
def test_drain_lets_the_job_finish(mac, github, number):
    """SIGTERM and SIGQUIT: the claimed job ends as it should, the next one is not taken."""
    job_id = running_job(mac, github)
    (late,) = queue(github, mac.job("late"))
    mac.send(number)
    eventually(lambda: mac.status()["mode"] == "draining", "it drains", 5)
    assert mac.wait(30) == 0
    assert github.job(job_id)["conclusion"] == "success"
    assert github.job(late)["status"] == "queued"
    assert not mac.leftovers()


@both_drivers
def test_stop_interrupts_cleans_up_and_cancels_nobody(mac, github):
    """The VM goes, the runner goes as soon as GitHub lets it, and no run is cancelled by us."""
    github.set(offline_after=0.2, lost_after=0.5)
    job_id = running_job(mac, github)
    assert mac.stop(30) == 0
    assert not mac.leftovers()
    assert not [r for r in github.requests() if r["path"].endswith("cancel")]
    assert github.job(job_id)["conclusion"] != "cancelled"


def test_a_second_sigterm_stops(mac, github):
    """A drain that takes too long for the operator becomes a stop."""
    github.set(offline_after=0.2, lost_after=0.5)
    (job_id,) = queue(github, job("endless", steps=["sleep 300"]))
    mac.start()
    eventually(lambda: github.job(job_id)["status"] == "in_progress", "the job runs", 20)
    mac.send(signal.SIGTERM)
    eventually(lambda: mac.status()["mode"] == "draining", "it drains", 5)
    mac.send(signal.SIGTERM)
    assert mac.wait(30) == 0
    assert not mac.vms()


def test_drain_timeout_turns_a_drain_into_a_stop(new_mac, github):
    """As configured, without a second signal."""
    github.set(offline_after=0.2, lost_after=0.5)
    mac = new_mac()
    mac.config["drain_timeout"] = 1
    (job_id,) = queue(github, job("endless", steps=["sleep 300"]))
    mac.start()
    eventually(lambda: github.job(job_id)["status"] == "in_progress", "the job runs", 20)
    assert mac.drain(30) == 0
    assert not mac.vms()


def test_a_second_sigint_exits_at_once_and_the_next_start_cleans_up(mac, github):
    """130; what is left behind is removed by the next start."""
    github.set(offline_after=0.2, lost_after=0.5)
    mac.anka.set(delays={"delete": 3})
    running_job(mac, github)
    pids = [mac.worker_pid()]
    mac.send(signal.SIGINT)
    eventually(lambda: mac.status()["mode"] == "stopping", "it stops", 5)
    mac.send(signal.SIGINT)
    assert mac.wait(5) == 130
    eventually(lambda: all(map(gone, pids)), "the workers let go", 10)
    mac.anka.set(delays={})
    mac.start()
    eventually(lambda: not mac.vms(), "the VM is removed", 20)


def test_a_second_sigint_does_not_wait_for_a_worker_that_does_nothing(mac):
    """A stopped process sees neither the end of its pipe nor SIGTERM; the next start must not find the lock held."""
    mac.start()
    pid = mac.worker_pid()
    os.kill(pid, signal.SIGSTOP)
    mac.send(signal.SIGINT)
    eventually(lambda: mac.status()["mode"] == "stopping", "it stops", 5)
    mac.send(signal.SIGINT)
    assert mac.wait(5) == 130
    assert gone(pid)


@both_drivers
def test_stop_in_the_middle_of_a_start_leaves_nothing(mac, github):
    """A stop between clone and job gives the job back."""
    mac.host.set(delays={mac.verb("start"): 1.5})
    (job_id,) = queue(github, mac.job("early"))
    mac.start()
    eventually(mac.vms, "the VM is cloned", 10)
    assert mac.stop(30) == 0
    assert not mac.leftovers()
    assert github.job(job_id)["status"] == "queued"


def test_stop_during_a_pull_does_not_wait_for_it(mac, github):
    """A pull may take an hour; a stop ends it."""
    mac.anka.add_registry_template("huge", tags=["v1"], home_files=mac.home_with_runner())
    mac.anka.fault("pull", delay=300, when="middle")
    queue(github, job("pulls", template="huge"))
    mac.start()
    eventually(lambda: mac.service_status()["status"] == "pulling", "it pulls", 10)
    assert mac.stop(20) == 0
    assert not mac.leftovers()


def test_once_makes_one_pass(new_mac, github):
    """Every service runs at most one job, then the program ends."""
    mac = new_mac(services=2)
    ids = queue(github, *(job(f"job {n}") for n in range(3)))
    mac.start("--once", wait=False)
    assert mac.wait(40) == 0
    assert sum(github.job(job_id)["status"] == "completed" for job_id in ids) == 2
    assert not mac.leftovers()


def test_once_without_a_job_ends(mac, github):
    """A pass that finds nothing is a pass."""
    mac.start("--once", wait=False)
    assert mac.wait(20) == 0


def test_the_drain_file_pauses_and_resumes(mac, github):
    """While ~/.config/anklet/.drain exists no job is taken."""
    drain_file = mac.folder / ".config" / "anklet" / ".drain"
    drain_file.parent.mkdir(parents=True)
    drain_file.touch()
    (job_id,) = queue(github, job("waits"))
    mac.start()
    eventually(lambda: mac.service_status()["status"] == "paused", "it pauses", 10)
    assert github.job(job_id)["status"] == "queued"
    drain_file.unlink()
    assert finish(mac, github, [job_id]) == ["success"]


@pytest.mark.parametrize(
    ("driver", "verb"),
    [
        *(("anka", verb) for verb in (None, "clone", "start", "cp", "run")),
        *(("tart", verb) for verb in ("clone", "run", "exec")),
    ],
)
def test_a_restart_costs_no_job(mac, github, verb):
    """SIGUSR2, also in the middle of a VM command: exit 75, the VM stays, the next start follows the job; an upgrade is this."""
    if verb is not None:
        mac.host.fault(verb, when="before", delay=1.0)
    (job_id,) = queue(github, mac.job("long", steps=["sleep 2"]))
    mac.start()
    if verb is None:
        eventually(lambda: github.job(job_id)["status"] == "in_progress", "the job runs", 20)
    else:
        eventually(lambda: any(verb in call["argv"] for call in mac.calls()), f"{verb} runs", 20)
    assert mac.command("restart").returncode == 0
    assert mac.wait(15) == 75
    mac.start()
    assert finish(mac, github, [job_id], 60) == ["success"]
    assert github.job(job_id)["starts"] == 1


def test_a_terminal_that_closes_ends_nothing(mac):
    """SIGHUP is not the end of a daemon, but a reload: also one that comes before it is all there."""
    mac.start(wait=False)
    lock = mac.state_dir / "lock"
    eventually(lambda: lock.exists() and lock.read_text() == f"{mac.process.pid}\n", "it can be found", 20)
    mac.send(signal.SIGHUP)
    eventually(mac.is_ready, "it is ready", 20)
    eventually(lambda: mac.status()["reload"]["answered"], "it has reloaded", 10)
    assert mac.drain() == 0


# ---- who may start ----


def test_a_second_supervisor_is_refused(mac):
    """75, with the pid of the first; under --agent 0, so that launchd does not try again."""
    mac.start()
    second = mac.command("start")
    assert second.returncode == 75
    assert str(mac.process.pid) in second.stderr
    assert "Traceback" not in second.stderr
    assert mac.command("start", "--agent").returncode == 0
    assert mac.process.poll() is None


def test_a_taken_port_is_told_before_any_worker_starts(mac):
    """75 and one line that names the port."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", mac.port))
        other.listen()
        done = mac.command("start")
    assert done.returncode == 75
    assert str(mac.port) in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert mac.anka.calls() == []


def test_commands_without_a_supervisor(mac):
    """status, drain and stop say that none runs, with exit code 3."""
    for command in (["status"], ["status", "--json"], ["drain"], ["stop", "--wait", "1"]):
        done = mac.command(*command)
        assert done.returncode == 3, command
        assert "no supervisor is running" in done.stderr


def test_a_pid_file_alone_is_not_trusted(mac):
    """A stale anklet.pid that names an innocent process signals nobody."""
    innocent = subprocess.Popen(["sleep", "60"])
    try:
        (mac.folder / "anklet.pid").write_text(f"{innocent.pid}\n")
        assert mac.command("stop").returncode == 3
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()


def test_the_pid_file_points_to_the_supervisor_and_goes_with_it(mac):
    """For people and scripts."""
    mac.start()
    assert (mac.folder / "anklet.pid").read_text().strip() == str(mac.process.pid)
    mac.drain()
    assert not (mac.folder / "anklet.pid").exists()


# ---- what it says ----


def test_status_in_all_forms(mac, github):
    """The document has the documented form; the table names the job."""
    job_id = running_job(mac, github)
    document = json.loads(mac.command("status", "--json").stdout)
    assert set(document) == {"mode", "pid", "version", "started_at", "services", "slots", "failures", "reload"}
    (service,) = document["services"]
    assert {"name", "plugin", "state", "status", "pid", "restarts", "job"} <= set(service)
    assert service["state"] == "ready"
    assert service["status"] == "running"
    assert set(service["job"]) == {"id", "url", "name", "vm", "since"}
    assert service["job"]["id"] == str(job_id)
    assert [slot["state"] for slot in document["slots"]] == ["occupied", "free"]
    assert document["slots"][0]["vm"] == service["job"]["vm"]
    table = mac.command("status")
    assert table.returncode == 0
    assert "RUNNER1" in table.stdout


def test_health_and_readiness(mac):
    """Both answer 200 while all is well; other pages and methods are told off."""
    mac.start()
    assert mac.get("/healthz")[0] == 200
    assert mac.get("/readyz")[0] == 200
    assert mac.get("/nothing")[0] == 404
    status, body = mac.get("/metrics?format=xml")
    assert status == 400
    assert "prometheus" in body
    assert "json" in body


def test_readiness_names_who_is_not_ready(new_mac, github):
    """503 and JSON with the service and its state."""
    mac = new_mac()
    mac.anka.fault("version", times=None, hang=True)
    mac.start(wait=False)
    status, body = eventually(lambda: mac.get("/readyz")[0] and mac.get("/readyz"), "it listens", 10)
    assert status == 503
    assert "RUNNER1" in json.loads(body)["not_ready"]


# ---- deaths ----


@both_drivers
def test_a_worker_that_dies_in_the_middle_of_a_job_loses_nothing(mac, github):
    """SIGKILL of the worker: its successor finds the VM, follows the job to its end, and cleans up."""
    job_id = running_job(mac, github)
    os.kill(mac.worker_pid(), signal.SIGKILL)
    assert finish(mac, github, [job_id]) == ["success"]
    assert github.job(job_id)["starts"] == 1
    assert mac.service_status()["restarts"] == 1
    assert "total_successful_runs_since_start 1.0" in mac.get("/metrics")[1]


@both_drivers
def test_a_supervisor_that_dies_in_the_middle_of_a_job_loses_nothing(mac, github):
    """SIGKILL of the supervisor: the worker lets go, the next start follows the job to its end."""
    job_id = running_job(mac, github)
    worker = mac.worker_pid()
    mac.process.kill()
    mac.process.wait()
    eventually(lambda: gone(worker), "the worker lets go", 10)
    assert len(mac.vms()) == 1
    mac.start()
    assert finish(mac, github, [job_id]) == ["success"]
    assert github.job(job_id)["starts"] == 1


def test_an_end_that_one_supervisor_has_counted_is_not_counted_by_the_next(mac, github):
    """SIGKILL of the supervisor while the VM of a job that is over is removed."""
    mac.anka.set(delays={"delete": 2.0})
    (job_id,) = queue(github, job("over"))
    mac.start()
    eventually(lambda: "total_successful_runs_since_start 1.0" in mac.get("/metrics")[1], "it is counted", 30, 0.1)
    worker = mac.worker_pid()
    mac.process.kill()
    mac.process.wait()
    eventually(lambda: gone(worker), "the worker lets go", 10)
    assert list((mac.state_dir / "services" / "RUNNER1" / "records").iterdir())
    mac.anka.set(delays={})
    mac.start()
    assert finish(mac, github, [job_id]) == ["success"]
    assert "total_successful_runs_since_start 0.0" in mac.get("/metrics")[1]
    (timeline,) = json.loads((mac.state_dir / "jobs.json").read_text())
    assert timeline["ended"] == "success"


@pytest.mark.parametrize(
    ("driver", "verb", "when"),
    [
        ("anka", "clone", "before"),
        ("anka", "clone", "middle"),
        ("anka", "clone", "after"),
        ("anka", "start", "before"),
        ("anka", "start", "after"),
        ("anka", "cp", "after"),
        ("anka", "run", "middle"),
        ("anka", "delete", "middle"),
        ("tart", "clone", "middle"),
        ("tart", "run", "before"),
        ("tart", "run", "middle"),
        ("tart", "exec", "middle"),
        ("tart", "stop", "before"),
        ("tart", "delete", "middle"),
    ],
)
def test_a_worker_that_dies_during_a_vm_command_leaves_nothing(mac, github, verb, when):
    """SIGKILL of the worker while a VM command runs: the command is waited for, the job done once, nothing is left. Each verb once,
    those that make something more often; `make crashpoints` has all of Anka's."""
    mac.host.fault(verb, when=when, delay=1.5)
    (job_id,) = queue(github, mac.job("survivor"))
    mac.start()
    eventually(lambda: any(verb in call["argv"] for call in mac.calls()), f"{verb} runs", 20)
    os.kill(mac.worker_pid(), signal.SIGKILL)
    assert finish(mac, github, [job_id], 60) == ["success"]
    assert github.job(job_id)["starts"] == 1
    assert "total_successful_runs_since_start 1.0" in mac.get("/metrics")[1]


def test_a_worker_that_keeps_dying_is_given_up_alone(new_mac, github):
    """After its budget of restarts one service is FATAL, with one ERROR; the other goes on."""
    mac = new_mac(services=2)
    mac.start()
    # A directory where the record folder should be a private one of ours: each start fails.
    records = mac.state_dir / "services" / "RUNNER1" / "records"
    eventually(records.is_dir, "the worker has made it", 5)
    records.rmdir()
    records.symlink_to(mac.folder)
    pid = mac.worker_pid()
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: mac.service_status()["state"] == "fatal", "RUNNER1 is given up", 60)
    (job_id,) = queue(github, job("goes on"))
    eventually(lambda: all_completed(github, [job_id]), "RUNNER2 goes on", 20)
    assert len(mac.log_lines(level="ERROR", serviceName="RUNNER1", msg=mac.log_lines(level="ERROR")[-1]["msg"])) == 1


def test_a_listing_that_prints_nothing_costs_no_job(new_mac, github):
    """The successor of a worker that died meets it when it looks for what runs: the job's VM stays."""
    mac = new_mac()
    job_id = running_job(mac, github)
    mac.anka.fault("list", times=1, when="after", stdout="")
    os.kill(mac.worker_pid(), signal.SIGKILL)
    assert finish(mac, github, [job_id]) == ["success"]
    assert github.job(job_id)["starts"] == 1


def test_a_vm_tool_that_cannot_list_yet_is_waited_for(new_mac, github):
    """After a boot its daemon may need a minute: the service begins then, by itself, and has lost none of its restarts."""
    mac = new_mac()
    mac.anka.fault("list", times=None, message="cannot connect to the daemon", code=1)
    mac.start(wait=False)
    waiting = "the service cannot begin now; trying again"
    eventually(lambda: mac.log_lines(level="WARN", msg=waiting), "it is told", 20)
    eventually(lambda: sum("list" in str(call) for call in mac.calls()) > 3, "it is tried again", 20)
    assert (mac.service_status()["state"], mac.service_status()["restarts"]) == ("starting", 0)
    mac.anka.clear_faults()
    (job_id,) = queue(github, job("late"))
    assert finish(mac, github, [job_id]) == ["success"]
    assert len(mac.log_lines(level="WARN", msg=waiting)) == 1


def test_a_drain_does_not_wait_for_a_vm_tool_that_cannot_list(new_mac):
    """The service has not begun, and ends."""
    mac = new_mac()
    mac.anka.fault("list", times=None, message="cannot connect to the daemon", code=1)
    mac.start(wait=False)
    eventually(lambda: mac.log_lines(level="WARN", msg="the service cannot begin now; trying again"), "it is told", 20)
    assert mac.drain(20) == 0


def test_sigterm_to_a_worker_means_detach(mac, github):
    """The VM and its job stay for the successor."""
    job_id = running_job(mac, github)
    os.kill(mac.worker_pid(), signal.SIGTERM)
    assert finish(mac, github, [job_id]) == ["success"]
    assert github.job(job_id)["starts"] == 1


def test_sigterm_to_a_worker_that_waits_for_an_answer_is_felt(mac, github):
    """GitHub is silent for longer than the worker's patience; nothing cuts that call short, and the worker exits all the same."""
    mac.start()
    github.fault("*", "", delay=60)
    eventually(lambda: not github.faults(), "the worker waits for an answer", 10)
    pid = mac.worker_pid()
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: gone(pid), "the worker exits", 10)
    eventually(lambda: mac.service_status()["pid"] not in (None, pid), "its successor is started", 20)


def test_single_events_do_not_make_a_file_each(mac):
    """status.json: ten a second at most, and the last change is in it within a second."""
    mac.start()
    path, written = mac.state_dir / "status.json", set()
    for _ in range(40):
        mac.send(signal.SIGHUP)
        end = time.monotonic() + 0.025
        while time.monotonic() < end:
            written.add(path.stat().st_ino)
    # Signals that arrive together count once.
    eventually(lambda: mac.status()["reload"]["asked"] >= 20, "the last change is in it", 5)
    assert len(written) <= 14


def test_a_service_process_costs_no_tracker(mac):
    """The supervisor's children are its workers, and nothing else."""
    mac.start()
    children = psutil.Process(mac.process.pid).children(recursive=True)
    assert [child.pid for child in children] == [mac.worker_pid()]


def test_no_worker_inherits_what_is_not_its_own(new_mac):
    """Each has its two pipes and the one that tells its exit; none has another's."""
    mac = new_mac(services=2)
    mac.start()
    pipes = []
    for name in ("RUNNER1", "RUNNER2"):
        folder = Path(f"/proc/{mac.worker_pid(name)}/fd")
        links = {str(entry.readlink()) for entry in folder.iterdir()}
        pipes.append({link for link in links if link.startswith(("pipe:", "socket:"))})
    assert not pipes[0] & pipes[1]


def test_strays_of_ours_are_removed_and_others_left_alone(mac, github):
    """At start: VMs with our install id that no record explains go; VMs of another Anklet are reported."""
    mac.start()
    install_id = mac.log_lines(msg="supervisor started")[0]["installId"]
    mac.drain()
    ours, theirs = f"anklet-vm-{install_id}-ffffff-1-1", "anklet-vm-0badcafe-ffffff-1-1"
    for name in (ours, theirs):
        subprocess.run(["anka", "clone", "macos-15", name], env=mac.env(), check=True, capture_output=True)
    mac.start()
    eventually(lambda: mac.vms() == [theirs], "ours is removed", 10)
    assert mac.log_lines(level="WARN", vmName=theirs)


# ---- plugins of others ----


def test_the_example_plugin_of_the_documentation_runs(new_mac, github):
    """docs/examples/spool: scripts dropped into a folder, each in a VM of its own."""
    mac = new_mac()
    folder = mac.folder / "plugins" / "spool"
    shutil.copytree(ROOT / "docs" / "examples" / "spool", folder)
    folder.chmod(0o755)
    (folder / "plugin.py").chmod(0o644)
    spool = mac.folder / "spool"
    (spool / "inbox").mkdir(parents=True)
    (spool / "inbox" / "good.sh").write_text("echo from $SPOOL_JOB\n")
    (spool / "inbox" / "bad.sh").write_text("exit 4\n")
    (spool / "inbox" / "old.sh").write_text("# template: macos-15\ncat\n")
    mac.config["services"] = [
        {"name": "SPOOL", "plugin": "spool", "folder": str(spool), "template": "macos-15", "sleep_interval": 0.2}
    ]
    mac.anka.fault(
        "run", times=1, match="bash -s", exit_status=125
    )  # one guest is lost: its script goes back to the inbox
    mac.start()
    eventually(lambda: len(list((spool / "done").glob("*.sh"))) == 2, "two scripts are done", 20)
    eventually((spool / "failed" / "bad.sh").exists, "one has failed", 20)
    assert (spool / "done" / "good.log").read_text() == "from good"
    assert len(mac.log_lines(msg="the job goes back to the queue")) == 1
    assert mac.drain() == 0


def test_a_plugin_file_that_others_may_write_is_refused(new_mac):
    """The service is FATAL, in one line that says what to do."""
    mac = new_mac()
    folder = mac.folder / "plugins" / "mine"
    folder.mkdir(parents=True)
    (folder / "plugin.py").write_text("plugin = None\n")
    (folder / "plugin.py").chmod(0o666)
    mac.config["services"] = [{"name": "MINE", "plugin": "mine"}]
    mac.start(wait=False)
    line = eventually(lambda: mac.log_lines(level="ERROR", serviceName="MINE"), "it is refused", 15)[0]
    assert "chmod" in line["msg"]
    assert "Traceback" not in mac.log_text()


def test_module_and_command_are_the_same():
    """`python -m anklet_supervisor` and `anklet-supervisor`."""
    for argv in ([sys.executable, "-m", "anklet_supervisor"], [str(Path(sys.executable).parent / "anklet-supervisor")]):
        for spelling in ("--version", "-version"):
            done = subprocess.run([*argv, spelling], capture_output=True, text=True, check=False)
            assert done.returncode == 0
            assert done.stdout.strip() == "0.1.0"


def test_nothing_is_claimed_twice_by_two_hosts_on_one_redis(new_mac, github, redis_server):
    """Two hosts, one queue, one Redis: each job runs once, and the claims are gone afterwards."""
    macs = [new_mac(name, services=2) for name in ("one", "two")]
    for mac in macs:
        for service in mac.config["services"]:
            service["database"] = {"enabled": True, "url": f"127.0.0.1:{redis_server.port}"}
    ids = queue(github, *(job(f"job {number}", duration=0.1) for number in range(10)))
    for mac in macs:
        mac.start()
    eventually(lambda: all_completed(github, ids), "the jobs are done", 60)
    eventually(lambda: not any(mac.vms() for mac in macs), "everything is cleaned up", 20)
    assert [item["starts"] for item in github.jobs()] == [1] * 10
    for mac in macs:
        assert mac.drain() == 0
    keys = redis_server.client().keys("*:claim:*")
    assert keys == []
    assert github.runners(OWNER, REPO) == []


def test_redis_away_at_the_start_takes_no_job_but_cleans_up(new_mac, github, redis_server):
    """What an earlier life left is removed without Redis; one WARN; jobs are taken when it answers again."""
    mac = new_mac()
    mac.config["services"][0]["database"] = {"enabled": True, "url": f"127.0.0.1:{redis_server.port}"}
    mac.anka.set(delays={"start": 1.5})
    (job_id,) = queue(github, job("patient"))
    mac.start()
    eventually(mac.vms, "the VM is cloned", 10)
    worker = mac.worker_pid()
    mac.process.kill()
    mac.process.wait()
    eventually(lambda: gone(worker), "the worker lets go", 10)
    redis_server.stop()
    mac.anka.set(delays={})
    mac.start()
    eventually(lambda: not mac.vms(), "the VM is removed", 20)
    eventually(lambda: mac.log_lines(level="WARN", msg=AWAY), "it is told", 30)
    assert github.job(job_id)["status"] == "queued"
    redis_server.start()
    assert finish(mac, github, [job_id], 60) == ["success"]
    assert len(mac.log_lines(level="WARN", msg=AWAY)) == 1
    assert mac.log_lines(level="ERROR") == []
