"""The emulated anka: clone, start, stop, delete, the limit of running VMs, and the effects of a SIGKILL on them.

Owns the proof of the VM life cycle; knows nothing of guests' commands.
"""

from __future__ import annotations

import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
from emulators.anka.bench import Host, eventually, finish
from emulators.anka.engine import settings
from emulators.kernel_quota import KernelQuota


def test_clone_copies_the_guest_home(host, directory):
    """A clone's guest home starts as a copy of the template's: files, modes, symlinks."""
    (directory / "files" / "actions-runner").mkdir(parents=True)
    program = directory / "files" / "actions-runner" / "run.sh"
    program.write_text("#!/bin/sh\necho ran\n")
    program.chmod(0o755)
    (directory / "files" / "link").symlink_to("actions-runner/run.sh")
    host.add_template("full", home_files=directory / "files")
    host.ok("clone", "full", "one")
    assert host.anka("run", "one", "./link").stdout == b"ran\n"
    (host.guest_home("one") / "link").write_text("changed")
    host.ok("clone", "full", "two")
    assert host.anka("run", "two", "./link").stdout == b"ran\n"
    host.ok("clone", "one", "three")
    host.ok("delete", "--yes", "one")
    assert (host.guest_home("three") / "actions-runner" / "run.sh").read_text() == "changed"


def test_clone_by_uuid_and_text_output(host):
    """A template may be named by uuid; text output is the new uuid on one line."""
    done = host.anka("clone", host.vm("tpl")["uuid"], "one")
    assert done.stdout.decode() == host.vm("one")["uuid"] + "\n"
    assert host.vm("one")["status"] == "stopped"


def test_clone_of_a_taken_name_is_code_18(host):
    """A second VM of the same name is refused, unless the configuration allows it."""
    host.ok("clone", "tpl", "one")
    assert host.error("clone", "tpl", "one") == (18, "one: already exists")
    host.set(allow_nonunique_names=True)
    host.ok("clone", "tpl", "one")
    assert [vm["name"] for vm in host.vms()].count("one") == 2


def test_clone_of_a_tag(host):
    """`clone -t` takes a local tag and refuses others with code 3."""
    host.ok("clone", "-t", "v1", "tpl", "one")
    assert host.error("clone", "tpl", "two", "-t", "v9") == (3, "v9: not found")


def test_concurrent_clones_of_one_name_make_one_vm(host):
    """Of several concurrent clones to one name, exactly one succeeds."""
    host.set(delays={"clone": 0.1})
    running = [host.begin("-j", "clone", "tpl", "one") for _ in range(6)]
    statuses = sorted(finish(process)[0] for process in running)
    assert statuses == [0, 1, 1, 1, 1, 1]
    assert [vm["name"] for vm in host.vms()] == ["tpl", "one"]


@pytest.mark.parametrize(("choice", "present", "starts"), [("nothing", 0, 0), ("half", 1, 0), ("whole", 1, 1)])
def test_sigkill_in_mid_clone(host, choice, present, starts):
    """A clone killed halfway leaves what the switch says; no listing shows its name while it is in flight."""
    host.set(killed_clone=choice, delays={"clone": 60})
    process = host.begin("clone", "tpl", "one")
    eventually(lambda: (host.home / "ops").exists() and list((host.home / "ops").iterdir()))
    assert [vm["name"] for vm in host.vms()] == ["tpl"]
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    host.set(delays={})
    assert [vm["name"] for vm in host.vms()].count("one") == present
    assert host.calls()[-1]["end"] is None
    assert (host.anka("start", "one").returncode == 0) == bool(starts)
    if choice == "nothing":
        assert [path.name for path in (host.home / "guests").iterdir()] == []
        host.ok("clone", "tpl", "one")


def test_third_vm_is_refused(host):
    """With two running VMs, a third start is refused and its VM stays stopped; a freed slot is available again."""
    host.run_vms("one", "two")
    host.ok("clone", "tpl", "three")
    assert host.error("start", "three")[1] == "three: maximum number of running instances exceeded"
    assert host.error("run", "three", "true")[1] == "three: maximum number of running instances exceeded"
    assert host.vm("three")["status"] == "stopped"
    host.ok("stop", "one")
    host.ok("start", "three")
    assert host.running() == ["two", "three"]
    assert host.max_running() == 2


def test_concurrent_starts_never_run_a_third(host):
    """Eight starts at once: two succeed, and no event ever counts three."""
    names = [f"vm{number}" for number in range(8)]
    for name in names:
        host.ok("clone", "tpl", name)
    host.set(delays={"start": 0.05})
    running = [host.begin("-j", "start", name) for name in names]
    statuses = sorted(finish(process)[0] for process in running)
    assert statuses == [0, 0, 1, 1, 1, 1, 1, 1]
    assert host.max_running() == 2
    assert len(host.events("limit-refused")) == 6


def test_churn_keeps_the_state_whole(host):
    """Clones, starts and deletes from many processes, some killed at random points, keep state, quota and events consistent."""

    def life(number):
        name = f"vm{number}"
        host.anka("clone", "tpl", name)
        process = host.begin("start", name)
        if number % 3 == 0:
            process.kill()
        finish(process)
        host.anka("delete", "--yes", name)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(life, range(12)))
    assert [vm["name"] for vm in host.vms()] == ["tpl"]
    assert host.slots() == []
    events = host.events()
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert len(host.events("cloned")) == len(host.events("deleted")) == 12
    assert len(host.events("started")) == len(host.events("stopped"))
    assert host.max_running() <= 2


def test_quota_is_shared_with_other_products(host):
    """A slot taken by another product in the quota file leaves one for Anka."""
    assert KernelQuota(host.quota_path).claim("tart:other", pid=os.getpid())
    host.run_vms("one")
    host.ok("clone", "tpl", "two")
    assert "maximum number" in host.error("start", "two")[1]
    assert host.slots() == ["tart:other", host._store.owner(host.vm("one")["uuid"])]
    KernelQuota(host.quota_path).release("tart:other")
    host.ok("start", "two")


def test_slot_of_a_dead_process_is_free(directory):
    """The slot of a process becomes free when the process dies."""
    quota = KernelQuota(directory / "quota.json")
    process = subprocess.Popen(["sleep", "60"])
    try:
        assert quota.claim("tart:a", pid=process.pid)
        assert quota.owners() == ["tart:a"]
    finally:
        process.kill()
        process.wait()
    assert quota.owners() == []


def test_half_done_slots_are_mended(host):
    """The slot of a killed command that started no VM becomes free; one that it freed too early is taken again."""
    quota = KernelQuota(host.quota_path)
    assert quota.claim(host._store.owner("ghost"))
    host.run_vms("one", "two")
    quota.release(host._store.owner(host.vm("one")["uuid"]))
    host.ok("clone", "tpl", "three")
    assert "maximum number" in host.error("start", "three")[1]
    assert len(host.slots()) == 2


def test_concurrent_claims_are_all_kept(directory):
    """Claims from many threads on one quota file are all kept, and stop at the limit."""
    quota = KernelQuota(directory / "quota.json")
    quota.set_limit(100)
    with ThreadPoolExecutor(8) as pool:
        granted = list(pool.map(lambda number: KernelQuota(quota.path).claim(f"x:{number}"), range(120)))
    assert granted.count(True) == 100
    assert len(set(quota.owners())) == 100


def test_two_hosts_share_a_quota(directory):
    """Concurrent starts on two states with one quota file: two succeed in total."""
    shared = directory / "quota.json"
    with Host(directory / "a", shared) as a, Host(directory / "b", shared) as b:
        running = []
        for host in (a, b):
            host.add_template("one")
            host.add_template("two")
            running += [host.begin("start", name) for name in ("one", "two")]
        assert sorted(finish(process)[0] for process in running) == [0, 0, 1, 1]
        assert len(a.running()) + len(b.running()) == 2


def test_leaked_slot_stays_taken_until_reboot(host):
    """With leak_slot, a stopped VM's slot stays taken; a reboot of the host frees it."""
    host.set(leak_slot=1)
    host.run_vms("one")
    host.ok("stop", "one")
    host.run_vms("two")
    assert "maximum number" in host.error("start", "one")[1]
    assert host.running() == ["two"]
    host.reboot_host()
    assert host.running() == []
    host.ok("start", "one")
    host.ok("start", "two")


def test_limit_with_nothing_running(host):
    """limit_always refuses every start even if nothing runs."""
    host.set(limit_always=True)
    host.ok("clone", "tpl", "one")
    assert "maximum number" in host.error("start", "one")[1]


def test_foreign_vms_take_slots(host):
    """A foreign Anka VM is listed; another product's VM takes a slot unseen."""
    host.start_foreign("their-vm")
    host.start_foreign("utm", hidden=True)
    assert [row["name"] for row in host.ok("list", "-r")] == ["their-vm"]
    host.ok("clone", "tpl", "one")
    assert "maximum number" in host.error("start", "one")[1]
    host.stop_foreign("utm")
    host.ok("start", "one")
    host.stop_foreign("their-vm")
    assert host.running() == ["one"]


def test_start_of_a_running_vm(host):
    """Starting a running VM succeeds or fails, as the switch says."""
    host.run_vms("one")
    assert host.ok("start", "one")["status"] == "running"
    host.set(start_running="error")
    assert host.error("start", "one") == (1, "one: VM is running")
    assert len(host.events("started")) == 1


@pytest.mark.parametrize(
    ("choice", "status", "slots"), [("running", "running", 1), ("failed", "failed", 0), ("stopped", "stopped", 0)]
)
def test_sigkill_in_mid_start(host, choice, status, slots):
    """A start killed halfway leaves the VM and its slot as the switch says; a failed VM needs stop --force."""
    host.set(killed_start=choice)
    host.ok("clone", "tpl", "one")
    host.fault("start", kill_at="middle")
    assert host.anka("start", "one").returncode == -signal.SIGKILL
    assert host.vm("one")["status"] == status
    assert len(host.slots()) == slots
    if choice == "failed":
        assert host.error("start", "one")[1] == "one: failed to start: No child processes"
        assert host.anka("stop", "one").returncode == 1
        host.ok("stop", "--force", "one")
    host.ok("start", "one")


def test_suspend_reboot_and_stop_all(host):
    """A suspend frees the slot, a reboot keeps it and ends the guest's processes, stop -a stops every running VM."""
    host.run_vms("one", "two")
    host.ok("suspend", "one")
    assert host.vm("one")["status"] == "suspended"
    assert len(host.slots()) == 1
    host.anka("run", "-b", "two", "sleep", "600")
    host.ok("reboot", "two")
    assert host.guest_processes("two") == []
    assert host.running() == ["two"]
    host.ok("start", "one")
    host.ok("stop", "-a")
    assert host.running() == []
    host.ok("stop", "one")
    host.set(stop_stopped="error")
    assert host.error("stop", "one") == (1, "one: VM is not running")


def test_modify_needs_a_stopped_vm(host):
    """`modify` changes cpu and ram of a stopped VM only; the old spelling with `set` works."""
    host.ok("clone", "tpl", "one")
    host.ok("modify", "one", "cpu", "2")
    host.ok("modify", "one", "set", "ram", "6G")
    body = host.ok("show", "one")
    assert (body["cpu_cores"], body["ram_size"]) == (2, 6 * settings.GIB)
    assert host.error("modify", "one", "cpu", "many")[0] == 22
    assert host.error("modify", "one", "colour", "red") == (3, "colour: not found")
    host.ok("start", "one")
    assert host.error("modify", "one", "cpu", "4") == (1, "one: VM is running")


def test_delete_asks_and_blocks(host):
    """Without --yes, delete asks on stdout and blocks on stdin: EOF and n keep the VM, y deletes it."""
    host.ok("clone", "tpl", "one")
    process = host.begin("delete", "one", stdin=subprocess.PIPE)
    question = f"are you sure you want to delete vm {host.vm('one')['uuid']} one [y/N]: ".encode()
    assert process.stdout.read(len(question)) == question
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.3)
    assert finish(process)[0] == 1
    host.set(declined_exit=5)
    assert host.anka("delete", "one", stdin=b"n\n").returncode == 5
    assert host.vm("one")["status"] == "stopped"
    assert host.anka("delete", "one", stdin=b"y\n").returncode == 0
    assert [vm["name"] for vm in host.vms()] == ["tpl"]


def test_delete_of_a_running_vm_ends_its_processes(host):
    """With --yes, delete of a running VM ends background, setsid and double-forked processes before it reports success."""
    host.run_vms("one", "two")
    script = (
        b"nohup sleep 601 & setsid sleep 602 & (setsid sh -c 'trap \"\" TERM; sleep 603' &) & env -i sleep 604 & exit 0"
    )
    assert host.anka("run", "one", "bash", "-s", stdin=script).returncode == 0
    host.anka("run", "-b", "two", "sleep", "605")
    eventually(lambda: len(host.guest_processes("one")) >= 5)
    home = host.guest_home("one")
    assert host.anka("-j", "delete", "--yes", "one").returncode == 0
    assert [process.argv for process in host.guest_processes()] == [["sleep", "605"]]
    assert not home.exists()
    assert [event["running"] for event in host.events("deleted")] == [1]


def test_delete_of_a_tag_keeps_the_vm(host):
    """`delete -t` removes only the tag."""
    host.ok("delete", "--yes", "-t", "v1", "tpl")
    assert "version" not in host.ok("list", "tpl")[0]
    assert host.error("delete", "--yes", "-t", "v1", "tpl") == (3, "v1: not found")


def test_sigkill_in_mid_delete_leaves_a_stopped_vm(host):
    """A delete that dies halfway has stopped the VM but not removed it; a second one removes it."""
    host.run_vms("one")
    host.fault("delete", kill_at="middle")
    assert host.anka("delete", "--yes", "one").returncode == -signal.SIGKILL
    assert host.vm("one")["status"] == "stopped"
    assert host.slots() == []
    host.ok("delete", "--yes", "one")
