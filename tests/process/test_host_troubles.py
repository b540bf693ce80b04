"""Trouble on the host: stopped processes, full disks, a missing VM tool, and state of a later version."""

import contextlib
import os
import signal
import subprocess

import pytest
from stage import eventually, job
from test_job_life import finish, queue
from test_supervision import running_job


@pytest.fixture
def tiny_disk(tmp_path):
    """A small file system that a test can fill."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k,mode=700", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("a file system cannot be mounted here: not root, or not allowed")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder):
    """Use up all free space; return the file that takes it."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast


def test_stopped_processes_are_not_dead(mac, github):
    """After SIGSTOP of the supervisor and the worker in the middle of a job, no process is killed or restarted."""
    job_id = running_job(mac, github)
    worker = mac.worker_pid()
    for pid in (worker, mac.process.pid):
        os.kill(pid, signal.SIGSTOP)
    eventually(lambda: github.job(job_id)["conclusion"] == "success", "the job ends by itself", 20)
    for pid in (worker, mac.process.pid):
        os.kill(pid, signal.SIGCONT)
    eventually(lambda: mac.get("/healthz")[0] == 200, "it is healthy", 10)
    assert finish(mac, github, [job_id]) == ["success"]
    assert (mac.worker_pid(), mac.service_status()["restarts"]) == (worker, 0)
    assert mac.drain() == 0


def test_an_upgrade_of_the_vm_tool_costs_no_job(mac, github):
    """The tool is missing for some seconds while a job runs.

    The worker follows the job to its end, and the service goes on.
    """
    job_id = running_job(mac, github)
    tool = mac.anka.bin_dir / "anka"
    aside = tool.with_name("anka.replaced")
    tool.rename(aside)
    away = "cannot see the runner in the guest; asking GitHub instead"
    eventually(lambda: mac.log_lines(level="WARN", msg=away), "it is missed", 20)
    aside.rename(tool)
    assert finish(mac, github, [job_id]) == ["success"]
    assert mac.service_status()["restarts"] == 0
    assert mac.log_lines(level="ERROR") == []
    assert mac.drain() == 0


def test_a_disk_that_fills_up_loses_no_job(mac, github, tiny_disk):
    """The running job ends and is cleaned up, and no other job is claimed.

    Once there is space, the service recovers without help.
    """
    mac.state_dir = tiny_disk / "state"
    mac.config["state_dir"] = str(mac.state_dir)
    job_id = running_job(mac, github)
    worker = mac.worker_pid()
    ballast = fill(tiny_disk)
    (late,) = queue(github, job("late"))
    eventually(lambda: github.job(job_id)["conclusion"] == "success", "the job ends", 20)
    away = "the claim store does not answer: taking no new jobs; running jobs continue"
    eventually(lambda: mac.log_lines(level="WARN", msg=away), "it is told", 20)
    eventually(lambda: not mac.vms(), "its VM goes", 10)
    assert mac.get("/healthz")[0] == 200
    assert github.job(late)["status"] == "queued"
    second = mac.command("start")
    assert second.returncode == 75
    assert "already running" in second.stderr
    ballast.unlink()
    assert finish(mac, github, [job_id, late]) == ["success", "success"]
    assert (mac.worker_pid(), mac.service_status()["restarts"]) == (worker, 0)
    assert mac.log_lines(level="ERROR") == []
    assert mac.drain() == 0
    assert not mac.leftovers()


def test_a_start_on_a_full_disk_is_one_line(mac, tiny_disk):
    """The exit code is 75, because a later start may succeed."""
    mac.config["state_dir"] = str(tiny_disk / "state")
    fill(tiny_disk)
    done = mac.command("start")
    assert done.returncode == 75
    assert "No space left on device" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_state_directory_of_a_later_version_is_refused(mac):
    """The exit code is 78, and nothing in the directory changes."""
    mac.state_dir.mkdir(mode=0o700)
    (mac.state_dir / "version").write_text("2\n")
    done = mac.command("start")
    assert done.returncode == 78
    assert "later version" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in mac.state_dir.iterdir()] == ["version"]
