"""The emulated tart: clone, run, stop, suspend, delete, the limit of running VMs, and the effects of a SIGKILL on them.

Owns the proof of the VM life cycle; knows nothing of guests' commands.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from emulators.anka.control import AnkaHost
from emulators.kernel_quota import KernelQuota
from emulators.tart.bench import Host, eventually, finish
from emulators.tart.engine import locks


def home_with(directory, text="ran"):
    """A tree for a guest's home."""
    program = directory / "files" / "actions-runner" / "run.sh"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho {text}\n")
    program.chmod(0o755)
    return directory / "files"


def test_clone_copies_the_guest_home(host, directory):
    """A clone's guest home starts as a copy of the image's and is independent afterwards."""
    host.add_image("full", home_files=home_with(directory))
    host.run_vms("one")
    host.ok("clone", "full", "two")
    host.run_vm("two")
    assert host.ok("exec", "two", "./actions-runner/run.sh") == "ran\n"
    host.ok("exec", "two", "rm", "actions-runner/run.sh")
    assert (host.guest_home("full") / "actions-runner" / "run.sh").exists()


def test_clone_overwrites_silently(host):
    """A clone to an existing name replaces that VM silently; the old disk is gone."""
    host.ok("clone", "tpl", "one")
    before = host.vm("one")["uuid"]
    assert host.ok("clone", "tpl", "one") == ""
    assert host.vm("one")["uuid"] != before
    assert [event["uuid"] for event in host.events("overwritten")] == [before]
    assert not (host.home / "guests" / before).exists()


def test_clone_over_a_running_vm_hides_it(host):
    """A running VM that is overwritten keeps running where no command finds it, and holds its slot to its end."""
    host.run_vms("one")
    run, uuid = host.runs["one"], host.vm("one")["uuid"]
    host.ok("clone", "tpl", "one")
    assert host.listed()["one"]["State"] == "stopped"
    assert host.error("stop", "one")[0] == 2
    assert len(host.slots()) == 1
    run.send_signal(signal.SIGINT)
    assert run.wait(20) == 0
    assert host.slots() == []
    assert not (host.home / "guests" / uuid).exists()


def test_mac_addresses(host):
    """A clone of a local VM has a new MAC; the first clone of an image has the image's MAC, the second does not."""
    host.add_image("ghcr.io/acme/macos:v1")
    host.ok("clone", "tpl", "one")
    assert host.vm("one")["mac"] != host.vm("tpl")["mac"]
    host.ok("clone", "ghcr.io/acme/macos:v1", "two")
    host.ok("clone", "ghcr.io/acme/macos:v1", "three")
    host.ok("delete", "two")
    first = host.vm("three")["mac"]
    host.ok("clone", "ghcr.io/acme/macos:v1", "two")
    assert host.vm("two")["mac"] != first
    host.ok("delete", "three")
    assert len({vm["mac"] for vm in host.vms()}) == 3


def test_running_is_a_lock_that_names_its_holder(host):
    """`running` is a record lock on config.json; its holder is the `tart run` process, and a second one is refused."""
    host.run_vms("one")
    run = host.runs["one"]
    config = host.home / "tart" / "vms" / "one" / "config.json"
    assert locks.holder(config) == run.pid == host.vm("one")["pid"]
    row = host.listed()["one"]
    assert (row["Running"], row["State"]) == (True, "running")
    assert host.error("run", "one") == (2, 'VM "one" is already running!')
    assert host.error("delete", "one") == (1, 'VM "one" is running')
    host.ok("set", "one", "--cpu", "5")
    assert locks.holder(config) == run.pid


def test_run_prints_nothing_and_ends_when_stopped(host):
    """`tart run` stays silent in the foreground; `stop` ends it with status 0 and a line of text."""
    host.run_vms("one")
    run = host.runs["one"]
    assert (run.poll(), host.said("one")) == (None, "")
    assert host.ok("stop", "one") == ""
    assert (run.wait(20), host.said("one")) == (0, "Stopping VM...\n")
    assert host.listed()["one"]["State"] == "stopped"
    assert host.error("stop", "one") == (2, 'VM "one" is not running')
    assert host.events("stopped")[0]["reason"] == "stop"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_run_ends_the_vm(host, number):
    """TERM, HUP and KILL end `tart run` at once; the VM shows stopped, and its guest processes and its slot are released."""
    host.run_vms("one")
    run = host.runs["one"]
    host.tart("exec", "one", "bash", "-c", "setsid sleep 600 &")
    eventually(lambda: len(host.guest_processes("one")) == 1)
    run.send_signal(number)
    assert run.wait(20) == -number
    assert host.listed()["one"]["State"] == "stopped"
    eventually(lambda: not host.running() and not host.slots())
    assert host.guest_processes() == []
    assert host.events("stopped")[0]["reason"] == "killed"


def test_run_right_after_a_kill(host):
    """A VM that runs again right after its `tart run` was killed has a slot and processes of its own."""
    host.run_vms("one")
    for _ in range(3):
        host.tart("exec", "one", "bash", "-c", "setsid sleep 600 &")
        host.runs["one"].kill()
        host.runs["one"].wait()
        assert host.run_vm("one").poll() is None
        host.tart("exec", "one", "bash", "-c", "setsid sleep 601 &")
        eventually(lambda: len(host.slots()) == 1)
        eventually(lambda: [process.argv[1] for process in host.guest_processes("one")] == ["601"])
    assert host.max_running() == 1


def test_run_outlives_who_started_it(host):
    """`tart run` keeps running when its parent is killed."""
    host.ok("clone", "tpl", "one")
    script = "setsid tart run one </dev/null >/dev/null 2>&1 & sleep 600"
    parent = subprocess.Popen(["bash", "-c", script], env=host.environ(), start_new_session=True)
    eventually(lambda: host.running() == ["one"])
    os.killpg(parent.pid, signal.SIGKILL)
    parent.wait()
    assert host.ok("exec", "one", "echo", "here") == "here\n"
    assert host.running() == ["one"]


def test_run_dies_of_its_last_words_when_nobody_reads(host):
    """When the reader of its output pipe is gone, `tart run` dies of SIGPIPE as soon as it prints; the VM still ends."""
    host.ok("clone", "tpl", "one")
    run = host.begin("run", "one", stderr=subprocess.DEVNULL)
    eventually(lambda: host.running() == ["one"])
    run.stdout.close()
    host.ok("stop", "one")
    assert run.wait(20) == -signal.SIGPIPE
    eventually(lambda: not host.running())


def test_guest_shutdown(host):
    """When the guest shuts itself down, `tart run` reports it and ends with 0; a failed hypervisor is 0 too."""
    host.run_vms("one")
    run = host.runs["one"]
    host.halt("one")
    assert (run.wait(20), host.said("one")) == (0, "guest has stopped the virtual machine\n")
    assert host.events("stopped")[0]["reason"] == "guest"
    run = host.run_vm("one")
    host.halt("one", status="failed")
    assert run.wait(20) == 0
    assert "guest has stopped the virtual machine due to error: " in host.said("one")
    assert [event["name"] for event in host.events("failed")] == ["one"]


def test_shutdown_from_inside(host):
    """`sudo shutdown -h now` in a guest ends that guest and does not affect this machine."""
    host.run_vms("one")
    run = host.runs["one"]
    status, text = host.error("exec", "one", "bash", "-c", "sudo shutdown -h now")
    assert (status, text) == (1, "Error: unavailable (14): Transport became inactive")
    assert run.wait(20) == 0
    assert host.said("one") == "guest has stopped the virtual machine\n"


@pytest.mark.parametrize(("choice", "ends"), [("dialog", False), ("stops", True)])
def test_request_to_stop(host, choice, ends):
    """SIGUSR2 asks the guest to shut down: a macOS guest shows a dialog, another may obey."""
    host.set(request_stop=choice)
    host.run_vms("one")
    run = host.runs["one"]
    run.send_signal(signal.SIGUSR2)
    eventually(lambda: "Requesting guest OS to stop..." in host.said("one"))
    if ends:
        assert run.wait(20) == 0
        assert host.said("one").endswith("guest has stopped the virtual machine\n")
    else:
        assert host.running() == ["one"]


def test_suspend_and_resume(host):
    """A suspended VM shows so and resumes at the next run; `stop` makes it stopped; without --suspendable suspend fails."""
    host.ok("clone", "tpl", "one")
    run = host.run_vm("one", "--suspendable")
    host.ok("suspend", "one")
    assert run.wait(20) == 0
    assert "snapshot created successfully! shutting down the VM...\n" in host.said("one")
    assert (host.listed()["one"]["State"], host.slots()) == ("suspended", [])
    run = host.run_vm("one")
    assert "resuming VM...\n" in host.said("one")
    host.ok("suspend", "one")
    run.wait(20)
    assert host.ok("stop", "one") == ""
    assert host.vm("one")["status"] == "stopped"
    host.run_vms("two")
    host.ok("suspend", "two")
    assert host.runs["two"].wait(20) == 1
    assert "Failed to suspend the VM: " in host.said("two")


def test_stop_kills_what_does_not_end(host):
    """If SIGINT has no effect, `stop` waits for its timeout, kills, and succeeds."""
    host.set(stop_hangs=True)
    host.run_vms("one")
    begin = time.monotonic()
    host.ok("stop", "one", "-t", "1")
    assert time.monotonic() - begin >= 1
    assert host.runs["one"].wait(20) == -signal.SIGKILL


def test_third_vm_is_refused(host):
    """With two running VMs, a third run ends with 1 and the limit's text; a freed slot is available again at once."""
    host.run_vms("one", "two")
    host.ok("clone", "tpl", "three")
    limit = (1, "The number of VMs exceeds the system limit (other running VMs: one, two)")
    assert host.error("run", "three") == limit
    assert host.vm("three")["status"] == "stopped"
    assert [event["name"] for event in host.events("limit-refused")] == ["three"]
    host.ok("stop", "one")
    assert host.run_vm("three").poll() is None
    assert sorted(host.running()) == ["three", "two"]
    assert host.max_running() == 2


def test_linux_guests_do_not_count(host):
    """A Linux VM takes no slot."""
    host.run_vms("one", "two")
    host.add_image("penguin", os_name="linux")
    assert host.run_vm("penguin").poll() is None
    assert len(host.slots()) == 2


def test_concurrent_runs_never_run_a_third(host):
    """Five runs at once: two succeed, and no event ever counts three."""
    names = [f"vm{number}" for number in range(5)]
    for name in names:
        host.ok("clone", "tpl", name)
    host.set(delays={"run": 0.05})
    runs = [host.begin("run", name) for name in names]
    eventually(lambda: len([run for run in runs if run.poll() is not None]) == 3)
    assert {finish(run)[0] for run in runs if run.poll() is not None} == {1}
    assert len(host.running()) == host.max_running() == 2
    host.shutdown_all()
    for run in runs:
        finish(run)


def test_quota_is_shared_with_other_products(host, directory):
    """Anka, Tart and others share two slots."""
    with AnkaHost(directory / "anka", quota=host.quota_path) as anka:
        anka.add_template("macos")
        assert KernelQuota(host.quota_path).claim("utm:other", pid=os.getpid())
        host.run_vms("one")
        done = subprocess.run(
            ["anka", "start", "macos"], env=anka.environ(), capture_output=True, check=False, timeout=60
        )
        assert b"maximum number of running instances exceeded" in done.stderr
        host.ok("stop", "one")
        subprocess.run(["anka", "start", "macos"], env=anka.environ(), capture_output=True, check=True, timeout=60)
        assert host.error("run", "one") == (1, "The number of VMs exceeds the system limit")


def test_two_hosts_on_one_quota_do_not_take_each_others_slots(host, directory):
    """Two state directories share the kernel's quota, not their slots."""
    with Host(directory / "other", quota=host.quota_path) as other:
        other.add_image("tpl")
        host.run_vms("one")
        other.run_vms("one")
        assert len(host.slots()) == 2
        host.ok("stop", "one")
        assert len(other.slots()) == 1


def test_leaked_slots(host):
    """A slot may stay taken after the guest's own shutdown, or after any end, until the host reboots."""
    host.set(leak_slot=1)
    host.run_vms("one")
    host.ok("stop", "one")
    assert host.slots() == []
    host.run_vm("one")
    host.halt("one")
    assert [slot.split(":")[0] for slot in host.slots()] == ["leaked"]
    host.set(leak_slot=-1, leak_on="any")
    host.run_vm("one")
    host.ok("stop", "one")
    assert host.error("run", "one") == (1, "The number of VMs exceeds the system limit")
    host.reboot_host()
    assert host.slots() == []
    assert host.run_vm("one").poll() is None


def test_limit_with_nothing_running(host):
    """limit_always refuses every run."""
    host.set(limit_always=True)
    assert host.error("run", "tpl") == (1, "The number of VMs exceeds the system limit")


def test_slot_that_comes_back_late(host):
    """With slot_lag, the VM is stopped at once but its slot becomes free later."""
    host.set(slot_lag=0.5)
    host.run_vms("one")
    host.ok("stop", "one")
    assert host.vm("one")["status"] == "stopped"
    assert len(host.slots()) == 1
    eventually(lambda: host.slots() == [])


def test_foreign_vms(host):
    """A foreign VM takes a slot; a hidden one is in no Tart listing."""
    host.start_foreign("theirs")
    host.start_foreign("utm", hidden=True)
    assert host.listed()["theirs"]["Running"]
    assert set(host.listed()) == {"tpl", "theirs"}
    assert sorted(host.vm_pids("theirs")) == sorted(host.command_pids())
    assert host.error("run", "tpl")[1] == "The number of VMs exceeds the system limit (other running VMs: theirs)"
    host.stop_foreign("theirs")
    host.stop_foreign("utm")
    assert (host.slots(), set(host.listed())) == ([], {"tpl"})


def test_locked_keychain(host):
    """Without an unlocked keychain no VM starts."""
    host.set(keychain_locked=True)
    status, text = host.error("run", "tpl")
    assert (status, "Interaction is not allowed with the Security Server" in text) == (1, True)
    assert host.slots() == []


def test_delete_of_several_stops_at_the_first_error(host):
    """`delete` takes names one after the other and stops at the first that fails."""
    host.ok("clone", "tpl", "one")
    host.ok("clone", "tpl", "two")
    assert host.error("delete", "one", "nobody", "two") == (2, 'the specified VM "nobody" does not exist')
    assert [vm["name"] for vm in host.vms()] == ["tpl", "two"]


def test_sigkill_in_mid_clone_leaves_nothing(host):
    """A killed clone leaves a folder under tmp/, which the next command removes; two concurrent clones wait for each other."""
    host.set(delays={"clone": 60})
    process = host.begin("clone", "tpl", "one")
    eventually(lambda: list((host.home / "tart" / "tmp").iterdir()))
    eventually(lambda: list((host.home / "ops").iterdir()))
    host.set(delays={})
    second = host.begin("clone", "tpl", "two")
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    assert finish(second)[0] == 0
    host.ok("list")
    assert [vm["name"] for vm in host.vms()] == ["tpl", "two"]
    assert list((host.home / "tart" / "tmp").iterdir()) == []
    assert len(list((host.home / "guests").iterdir())) == 2


def test_clone_and_run_serialise(host):
    """A clone in progress delays the first part of a run: both take the lock of Tart's folder."""
    host.set(delays={"clone": 0.4})
    clone = host.begin("clone", "tpl", "one")
    eventually(lambda: list((host.home / "ops").iterdir()))
    host.run_vm("tpl")
    assert finish(clone)[0] == 0
    assert host.events()[-2]["event"] == "cloned"


def test_churn_keeps_the_state_whole(host):
    """Clones, runs and deletes from many processes, some killed at random points, keep folders, quota and events consistent."""

    def life(number):
        name = f"vm{number}"
        cloned = host.tart("clone", "tpl", name)
        assert cloned.returncode == 0, cloned.stderr
        run = host.begin("run", name)
        eventually(lambda: run.poll() is not None or name in host.running())
        if number % 2:
            run.kill()
        else:
            host.tart("stop", name)
        finish(run)
        host.tart("delete", name)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(life, range(8)))
    eventually(lambda: not host.running())
    assert [vm["name"] for vm in host.vms()] == ["tpl"]
    assert host.slots() == []
    events = host.events()
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert len(host.events("cloned")) == len(host.events("deleted")) == 8
    assert len(host.events("started")) == len(host.events("stopped"))
    assert host.max_running() <= 2
    assert len(list((host.home / "guests").iterdir())) == 1
