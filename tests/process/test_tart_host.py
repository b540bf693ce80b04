"""Hosts with Tart, and with Tart beside Anka: one limit for all VMs, a change of driver, and missing prerequisites."""

import os
import signal

import pytest
from stage import TEMPLATE, eventually
from test_job_life import all_completed, finish, queue
from test_supervision import gone

REMOTE = "ghcr.io/acme/macos:15"


def went_back(mac, job_id):
    """Wait until the job goes back to the queue; return the reason."""
    lines = eventually(
        lambda: mac.log_lines(msg="the job goes back to the queue", workflowJobId=job_id), "the job goes back", 30
    )
    return lines[0]["err"]


# ---- two drivers ----


def test_two_drivers_share_one_limit(new_mac, github):
    """With two services per driver, each job runs once, with the driver that its labels request, and at most two run at once."""
    mac = new_mac(services=4, driver="anka+tart")
    jobs = [mac.job(f"{name} {n}", driver=name, duration=0.2) for n in range(3) for name in mac.drivers]
    ids = queue(github, *jobs)
    mac.start()
    seen = []
    eventually(
        lambda: seen.append(len(mac.anka.running()) + len(mac.tart.running())) or all_completed(github, ids),
        "the jobs are done",
        90,
    )
    assert finish(mac, github, ids) == ["success"] * 6
    assert max(seen) <= 2
    assert [item["starts"] for item in github.jobs()] == [1] * 6
    assert mac.log_lines(level="WARN", msg="other VMs run on this host; no room for a job") == []
    assert mac.log_lines(level="ERROR") == []
    assert mac.drain() == 0


def test_foreign_vms_of_either_driver_count_for_both(new_mac, github):
    """One foreign Anka VM and one foreign Tart VM fill the host for both services, and each counts once."""
    mac = new_mac(services=2, driver="anka+tart")
    for host in mac.hosts:
        host.start_foreign("theirs")
    ids = queue(github, mac.job("by anka"), mac.job("by tart", driver="tart"))
    mac.start()
    for name in ("RUNNER1", "RUNNER2"):
        eventually(lambda name=name: mac.service_status(name)["status"] == "paused", f"{name} pauses", 15)
    assert "anklet_foreign_vms 2.0" in mac.get("/metrics")[1]
    mac.tart.stop_foreign("theirs")
    assert finish(mac, github, ids, 60) == ["success"] * 2
    assert "anklet_foreign_vms 1.0" in mac.get("/metrics")[1]


def test_a_service_that_changes_its_driver_loses_no_job(new_mac, github):
    """After its service changed to Tart, the job's Anka VM is followed to its end and removed."""
    mac = new_mac(driver="anka+tart")
    (job_id,) = queue(github, mac.job("long", steps=["sleep 3"]))
    mac.start()
    eventually(lambda: github.job(job_id)["status"] == "in_progress", "the job runs", 20)
    assert mac.command("restart").returncode == 0
    assert mac.wait(15) == 75
    mac.config["services"][0]["vm_driver"] = "tart"
    (later,) = queue(github, mac.job("later", driver="tart"))
    mac.start()
    assert finish(mac, github, [job_id, later], 60) == ["success"] * 2
    assert github.job(job_id)["starts"] == 1
    assert mac.log_lines(level="ERROR") == []


def test_a_host_without_tart_still_serves_anka(new_mac, github):
    """The service with Tart is FATAL, with one ERROR that says what is missing. The other service continues."""
    mac = new_mac(services=2, driver="anka+tart")
    for program in mac.tart.bin_dir.iterdir():
        program.unlink()
    (job_id,) = queue(github, mac.job("by anka"))
    mac.start(wait=False)
    eventually((mac.state_dir / "status.json").exists, "it starts", 15)
    eventually(lambda: mac.service_status("RUNNER2")["state"] == "fatal", "RUNNER2 is fatal", 20)
    assert finish(mac, github, [job_id]) == ["success"]
    (line,) = mac.log_lines(level="ERROR")
    assert "tart is not on PATH" in line["msg"]
    assert line["serviceName"] == "RUNNER2"


# ---- missing prerequisites ----


def test_tart_that_is_too_old_serves_nobody(new_mac):
    """The exit code is 69, because no service has a usable tool. The ERROR names the required version."""
    mac = new_mac(driver="tart")
    mac.tart.set(version="2.20.0")
    mac.start(wait=False)
    assert mac.wait(30) == 69
    (line, *_) = mac.log_lines(level="ERROR")
    assert "tart 2.20.0 is too old: 2.27" in line["msg"]


def test_an_image_that_is_only_in_the_registry_is_pulled(new_mac, github):
    """The service's status is `pulling` meanwhile. The image may come from the service's configuration."""
    mac = new_mac(driver="tart")
    digest = mac.tart.add_registry_image(REMOTE, home_files=mac.home_with_runner())
    mac.tart.set(delays={"pull": 0.5})
    mac.config["services"][0]["tart"] = {"image": REMOTE, "cpu": 4, "memory": 8192}
    spec = mac.job("by the service's image")
    spec["labels"] = ["self-hosted", "tart"]
    ids = queue(github, spec)
    mac.start()
    eventually(lambda: mac.service_status()["status"] == "pulling", "the service pulls", 15)
    assert finish(mac, github, ids) == ["success"]
    (cloned,) = mac.log_lines(msg="VM cloned")
    assert cloned["tartDigest"] == digest
    assert cloned["vmName"].startswith("anklet-vm-")


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("ghcr.io/acme/refused:1", "tart pull"),
        ("mute", "neither its guest agent nor ssh"),
    ],
)
def test_an_image_that_is_of_no_use_costs_nothing(new_mac, github, image, said):
    """The job goes back to the queue with the reason and stays there, and nothing is left."""
    mac = new_mac(driver="tart")
    mac.tart.add_image("mute", agent=False, sshd=False)
    mac.config["services"][0]["deadlines"] = {"vm_start": 1.5}
    if "refused" in image:
        mac.tart.set(registry="auth")
    (job_id,) = queue(github, mac.job("useless", template=image))
    mac.start()
    assert said in went_back(mac, job_id)
    eventually(lambda: not mac.leftovers(), "everything is cleaned up", 20)
    assert github.job(job_id)["status"] == "queued"
    assert {vm["name"] for vm in mac.tart.vms()} == {"mute", TEMPLATE}


def test_a_locked_keychain_makes_the_service_fatal(new_mac, github):
    """No VM can start until a user unlocks the keychain. The job goes back at once, and one ERROR says what to do."""
    mac = new_mac(driver="tart")
    mac.tart.set(keychain_locked=True)
    (job_id,) = queue(github, mac.job("patient"))
    mac.start(wait=False)
    (line,) = eventually(lambda: mac.log_lines(level="ERROR"), "the service is given up", 30)
    assert "security unlock-keychain" in line["msg"]
    assert not mac.leftovers()
    assert github.job(job_id)["status"] == "queued"
    eventually(lambda: mac.service_status()["state"] == "fatal", "the status follows within a second", 10)


def test_an_image_without_an_agent_does_its_jobs_by_ssh(new_mac, github):
    """After the worker dies in the middle of a job, its successor also reaches the guest by ssh."""
    mac = new_mac(driver="tart")
    mac.tart.add_image("plain", agent=False, home_files=mac.home_with_runner())
    (job_id,) = queue(github, mac.job("by ssh", template="plain", steps=["sleep 2"]))
    mac.start()
    eventually(lambda: github.job(job_id)["status"] == "in_progress", "the job runs", 40)
    worker = mac.worker_pid()
    os.kill(worker, signal.SIGKILL)
    eventually(lambda: gone(worker), "the worker is gone", 10)
    assert finish(mac, github, [job_id]) == ["success"]
    assert github.job(job_id)["starts"] == 1


def test_a_vm_that_dies_under_its_job_is_cleaned_up(new_mac, github):
    """After SIGKILL of `tart run`, GitHub decides how the job ended; the VM, the runner and the slot are removed."""
    github.set(offline_after=0.2, lost_after=0.5)
    mac = new_mac(driver="tart")
    (job_id,) = queue(github, mac.job("doomed", steps=["sleep 60"]))
    mac.start()
    eventually(lambda: github.job(job_id)["status"] == "in_progress", "the job runs", 20)
    (vm,) = (vm for vm in mac.tart.vms() if vm["name"].startswith("anklet-vm-"))
    os.kill(vm["pid"], signal.SIGKILL)
    assert finish(mac, github, [job_id], 60) != ["success"]
    assert mac.tart.slots() == []
