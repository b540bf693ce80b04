"""Reloads of the configuration while jobs run, and paused services: neither loses a job."""

import os
import shutil
import signal
import sys
from pathlib import Path

from stage import eventually, job
from test_job_life import finish, queue
from test_supervision import gone, running_job


def test_a_reload_touches_only_what_has_changed(new_mac, github):
    """The busy service finishes its job and restarts, the unchanged one keeps its pid, one is removed and one is added."""
    mac = new_mac(services=3)
    (job_id,) = queue(github, job("long", steps=["sleep 3"]))
    mac.start()
    eventually(lambda: github.job(job_id)["status"] == "in_progress", "the job runs", 20)
    busy = eventually(
        lambda: next((s for s in mac.status()["services"] if s["job"]), None), "a service shows its job", 10
    )
    idle, removed = (s for s in mac.status()["services"] if s["name"] != busy["name"])
    services = {service["name"]: service for service in mac.config["services"]}
    services[busy["name"]]["sleep_interval"] = 0.3
    mac.config["services"] = [services[busy["name"]], services[idle["name"]], mac.service("NEW")]
    mac.config["metrics"]["port"] += 1
    done = mac.command("reload", "--wait", "20")
    assert (done.returncode, done.stderr) == (0, "")
    eventually(
        lambda: [s["name"] for s in mac.status()["services"]] == [busy["name"], idle["name"], "NEW"], "one is gone", 10
    )
    assert mac.service_status(idle["name"])["pid"] == idle["pid"]
    assert mac.service_status(busy["name"])["pid"] == busy["pid"]
    assert github.job(job_id)["status"] == "in_progress"
    assert mac.log_lines(level="WARN", msg="metrics.port has changed; restart the supervisor to apply it")
    assert f'service_name="{removed["name"]}"' not in mac.get("/metrics")[1]
    eventually(lambda: mac.service_status(busy["name"])["pid"] not in (busy["pid"], None), "it begins anew", 20)
    eventually(lambda: github.job(job_id)["conclusion"] == "success", "the job has ended as it should", 5)
    assert github.job(job_id)["starts"] == 1
    eventually(mac.is_ready, "all are ready", 10)
    metrics = mac.get("/metrics")[1]
    assert f'anklet_jobs_total{{conclusion="success",service_name="{busy["name"]}"}} 1.0' in metrics
    assert mac.service_status(idle["name"])["pid"] == idle["pid"]
    assert (mac.state_dir / "services" / removed["name"]).is_dir()
    assert mac.drain() == 0
    assert not mac.leftovers()


def test_a_broken_configuration_changes_nothing(mac, github):
    """One ERROR lists every problem with its place. The job goes on, and the corrected file is accepted."""
    job_id = running_job(mac, github)
    pid = mac.worker_pid()
    good = {**mac.config["services"][0]}
    mac.config["services"][0].update(tokn="x", sleep_interval="often")
    done = mac.command("reload", "--wait", "20")
    assert done.returncode == 78
    assert len(done.stderr.splitlines()) == 2
    (line,) = mac.log_lines(level="ERROR")
    assert line["msg"] == "the configuration has errors; nothing has changed"
    assert line["problems"] == done.stderr.splitlines()
    assert all(problem.startswith(f"{mac.config_path}:") for problem in line["problems"])
    mac.config["services"][0] = good
    assert mac.command("reload", "--wait", "20").returncode == 0
    assert mac.worker_pid() == pid
    assert finish(mac, github, [job_id]) == ["success"]
    assert mac.command("drain").returncode == 0
    assert mac.wait() == 0


def test_a_broken_configuration_whose_name_is_no_text(mac):
    """Linux allows file names that are not UTF-8. The status still shows the problem."""
    mac.write_config()
    path = os.fsencode(mac.folder) + b"/caf\xe9.yml"
    shutil.copy(os.fsencode(mac.config_path), path)
    mac.run([sys.executable, "-m", "anklet_supervisor", "start", "--config", path], mac.env())
    eventually(mac.is_ready, "the supervisor is ready")
    Path(os.fsdecode(path)).write_text("services: [")
    mac.send(signal.SIGHUP)
    eventually(lambda: (mac.status()["reload"] or {}).get("problems"), "the reload is answered", 10)
    assert "caf\\udce9.yml" in mac.status()["reload"]["problems"][0]
    assert mac.drain() == 0


def test_a_slow_reload_holds_nobody_up_and_the_last_file_wins(mac):
    """The loop runs on while a slow token_command delays a reload.

    A second reload replaces the first, whose result is dropped.
    """
    mac.start()
    go, service = mac.folder / "go", mac.config["services"][0]
    del service["token"]
    service["token_command"] = f"sh -c 'while [ ! -e {go} ]; do sleep 0.05; done; echo bait_for_nobody'"
    for number in (1, 2):
        assert mac.command("reload").returncode == 0
        eventually(lambda number=number: asked_and_answered(mac) == (number, 0), "it is asked, and the loop turns", 10)
        mac.config["services"] = [mac.service("LAST")]
    go.touch()
    eventually(lambda: asked_and_answered(mac) == (2, 2), "it is answered", 20)
    eventually(lambda: [one["name"] for one in mac.status()["services"]] == ["LAST"], "the last file is in force", 20)
    assert len([line for line in mac.log_lines() if line["msg"].startswith("reloaded: ")]) == 1
    assert mac.drain() == 0


def asked_and_answered(mac):
    """How many reloads were requested, and the number of the last one that was answered."""
    reload = mac.status()["reload"]
    return (0, 0) if reload is None else (reload["asked"], reload["answered"])


def test_a_reload_mends_a_service_that_was_given_up(mac, github):
    """A wrong token made the service FATAL. With the right one it starts again and takes jobs."""
    token = mac.config["services"][0]["token"]
    mac.config["services"][0]["token"] = "wrong_bait"
    mac.start(wait=False)
    eventually(
        lambda: (mac.state_dir / "status.json").exists() and mac.service_status()["state"] == "fatal", "fatal", 20
    )
    mac.config["services"][0]["token"] = token
    (job_id,) = queue(github, job("now"))
    assert mac.command("reload").returncode == 0
    assert finish(mac, github, [job_id]) == ["success"]


def test_a_paused_service_takes_no_job_until_it_is_resumed(new_mac, github):
    """A pause also works before the supervisor starts. The other service continues, and `status` shows the pause."""
    mac = new_mac(services=2)
    assert mac.command("pause", "RUNNER1").returncode == 0
    unknown = mac.command("pause", "RUNER2")
    assert unknown.returncode == 64
    assert "did you mean RUNNER2?" in unknown.stderr
    mac.start()
    assert mac.command("pause", "RUNNER2").returncode == 0
    eventually(lambda: all(s["status"] == "paused" and s["paused"] for s in mac.status()["services"]), "both pause", 15)
    (job_id,) = queue(github, job("waits"))
    assert mac.command("resume", "RUNNER2").returncode == 0
    assert finish(mac, github, [job_id]) == ["success"]
    assert not mac.log_lines(serviceName="RUNNER1", msg="job claimed")
    assert mac.service_status("RUNNER1")["status"] == "paused"


def test_a_service_that_was_removed_while_nobody_looked_keeps_its_vm(mac, github):
    """A service that is removed while the supervisor is down keeps its VM.

    The job goes on, the VM keeps its slot, and a WARN reports it. Once the service is configured again, it follows the
    job to its end.
    """
    job_id = running_job(mac, github)
    vm = mac.service_status()["job"]["vm"]
    worker = mac.worker_pid()
    mac.process.kill()
    mac.process.wait()
    eventually(lambda: gone(worker), "the worker lets go", 10)
    services = mac.config["services"]
    mac.config["services"] = [mac.service("OTHER")]
    mac.start()
    message = "a VM of a former service may still run a job; leaving it alone"
    (line,) = eventually(lambda: mac.log_lines(level="WARN", msg=message), "it is told", 10)
    assert line["vmName"] == vm
    assert [(slot["state"], slot["vm"]) for slot in mac.status()["slots"]] == [("orphaned", vm), ("free", None)]
    assert mac.vms() == [vm]
    mac.config["services"] += services
    assert mac.command("reload", "--wait", "20").returncode == 0
    assert finish(mac, github, [job_id]) == ["success"]
    assert github.job(job_id)["starts"] == 1
    eventually(lambda: not mac.leftovers(), "all is cleaned up", 10)
