"""Provokes each ERROR that the whole program can log: it appears once, with what an operator needs to know."""

import json
import signal
import subprocess
import sys

import msgspec
from stage import eventually, job
from test_job_life import queue
from test_supervision import running_job

from anklet_supervisor.machine import allocator, events
from anklet_supervisor.machine.events import Report
from anklet_supervisor.machine.model import Moment
from anklet_supervisor.machine.orders import STOP_PATIENCE
from anklet_supervisor.machine.step import initial, step


def the_error(mac, message, deadline=30):
    """Wait for the one ERROR with this message."""

    def found():
        return [line for line in mac.log_lines(level="ERROR") if line["msg"] == message]

    eventually(found, message, deadline)
    (line,) = found()
    return line


#: The program with a bug that shows at the first reload.
WITH_A_BUG = """
import sys
from anklet_supervisor import cli; from anklet_supervisor.daemon import loop
loop.Loop._take_config = lambda self: 1 / 0
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_bug_of_the_supervisors_is_told(mac):
    """The exit code is 70 and the log says where the bug is. launchd restarts the program, which adopts what runs."""
    mac.write_config()
    mac.run([sys.executable, "-c", WITH_A_BUG, "start", "--config", str(mac.config_path)], mac.env())
    eventually(mac.is_ready, "the supervisor is ready")
    mac.send(signal.SIGHUP)
    assert mac.wait(20) == 70
    line = the_error(mac, "a bug ended the supervisor; VMs and their jobs go on, and the next start adopts them")
    assert line["err"] == "ZeroDivisionError: division by zero"
    assert "loop.py" in line["where"]
    assert not (mac.folder / "anklet.pid").exists()


def test_a_bug_of_a_command_is_told(mac):
    """The exit code is 70, and the error is shown in full."""
    mac.write_config()
    code = "import sys; from anklet_supervisor import cli; cli._status = lambda options: 1 / 0; sys.exit(cli.main(['status']))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=mac.env(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 70
    assert "ZeroDivisionError" in done.stderr


def test_an_agent_that_cannot_start_says_so(mac):
    """The log has the reason, so that an operator finds it later."""
    mac.config["services"] = []
    assert mac.command("start", "--agent").returncode == 0
    assert "services needs at least one service" in the_error(mac, "not started")["err"]


def test_a_service_that_cannot_run_says_why(mac):
    """The message itself has the reason, because some views show nothing else."""
    mac.config["services"][0]["token"] = "wrong_bait"
    mac.start(wait=False)
    eventually(lambda: mac.log_lines(level="ERROR"), "it is told", 20)
    (line,) = mac.log_lines(level="ERROR")
    assert line["msg"].startswith("the service cannot run: ")
    assert "401" in line["msg"]
    assert mac.drain() == 0


def test_a_worker_that_hangs_at_a_stop_is_killed_and_told():
    """The supervisor kills the worker after STOP_PATIENCE, not before."""
    model = initial(["A"], allocator.build(2, 1, [], 0.0), once=False, drain_timeout=None)
    model, _ = step(model, events.Began(), Moment(0.0, 0.0))
    model, _ = step(model, events.WorkerStarted("A", 1), Moment(0.0, 0.0))
    model, _ = step(model, events.InterruptedBy(), Moment(1.0, 1.0))
    model, effects = step(model, events.Tick(), Moment(STOP_PATIENCE, 1.0))
    assert effects == []
    model, effects = step(model, events.Tick(), Moment(STOP_PATIENCE + 1.0, 1.0))
    assert Report("ERROR", "the worker did not exit within 300 s; killed it", "A") in effects
    assert events.KillWorker("A") in effects


def test_a_damaged_record_is_kept_and_told(mac):
    """The damaged record is kept under another name, and the service starts anyway."""
    records = mac.state_dir / "services" / "RUNNER1" / "records"
    records.mkdir(parents=True)
    (records / "anklet-vm-x.json").write_text("{")
    mac.start()
    line = the_error(mac, "cannot read a record; its VM is found by name")
    assert "anklet-vm-x.json.corrupt" in line["err"]
    assert (records / "anklet-vm-x.json.corrupt").exists()


def test_a_record_of_another_host_is_left_alone_and_told(mac, github):
    """The record stays, and its VM is left alone and takes no slot."""
    running_job(mac, github)
    mac.send(signal.SIGUSR2)
    assert mac.wait(20) == 75
    (record,) = (mac.state_dir / "services" / "RUNNER1" / "records").glob("*.json")
    record.write_text(json.dumps({**json.loads(record.read_text()), "host_id": "f" * 16}))
    mac.start()
    line = the_error(mac, "leaving a record of another host alone; was the state directory copied?")
    assert line["vmName"] == record.stem
    assert record.exists()
    assert [slot["state"] for slot in mac.status()["slots"]] == ["free", "free"], (
        "its VM is not here, and takes no slot"
    )


def test_a_job_that_no_host_can_run_is_told(mac, github):
    """The ERROR comes after the last try, and the job stays queued."""
    mac.config["job_retry_attempts"] = 0
    mac.anka.fault("clone", times=None, message="no space left", code=28)
    (job_id,) = queue(github, job("hopeless"))
    mac.start()
    line = the_error(mac, "the job failed too often on this host; it stays queued and is tried again later")
    assert "no space left" in line["err"]
    assert line["workflowJobId"] == job_id
    assert github.job(job_id)["status"] == "queued"


def test_a_vm_that_cannot_be_deleted_is_told_once(mac, github):
    """The ERROR names the VM, so that an operator can delete it by hand."""
    mac.config["services"][0]["deadlines"] = {"cleanup": 1}
    mac.anka.fault("delete", times=None, message="busy", code=16)
    queue(github, job("leftover"))
    mac.start()
    line = the_error(mac, "cannot delete the VM; its slot stays occupied and the deletion is tried again")
    assert line["vmName"] == mac.vms()[0]
    mac.anka.clear_faults()


def test_a_damaged_store_is_kept_and_told(mac, github):
    """The claims are lost, but the next job runs."""
    mac.start()
    assert mac.drain() == 0
    (store,) = mac.state_dir.glob("leases.db")
    store.write_bytes(b"not a database, whatever it was before" * 100)
    (job_id,) = queue(github, job("goes on"))
    mac.start()
    message = "replaced the damaged claim store by an empty one; check the disk, then delete the kept file"
    assert store.name in the_error(mac, message)["kept"]
    eventually(lambda: github.job(job_id)["conclusion"] == "success", "the job is run", 30)


def test_a_plugins_bug_ends_its_worker_and_is_told(mac):
    """The ERROR names the line in the plugin's source, and the supervisor continues."""
    folder = mac.folder / "plugins" / "buggy"
    folder.mkdir(parents=True)
    (folder / "plugin.py").write_text(
        "def plugin(context):\n    raise ZeroDivisionError('oh')\n\n\nplugin.api_version = 2\n"
    )
    mac.config["services"] = [{"name": "BUGGY", "plugin": "buggy"}]
    mac.start(wait=False)
    eventually(lambda: mac.log_lines(msg="a bug ended the worker; it is started again"), "it is told", 20)
    line = mac.log_lines(msg="a bug ended the worker; it is started again")[0]
    assert (line["level"], line["err"]) == ("ERROR", "ZeroDivisionError: oh")
    assert line["where"].startswith("plugin.py:2 plugin")
    assert mac.get("/healthz")[0] == 200
    assert msgspec.json.decode(mac.get("/readyz")[1])
