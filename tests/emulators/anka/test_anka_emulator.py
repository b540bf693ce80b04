"""The emulated anka does what its README says: commands, limits, guests, faults, and what a SIGKILL leaves.

Owns the proof of the emulator itself; knows nothing of the program that is tested with it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from emulators.anka.control import AnkaHost
from emulators.anka.engine import processes, settings
from emulators.kernel_quota import KernelQuota

HERE = Path(__file__).resolve().parent
BINARY = bytes(range(256)) * 2000


class Host(AnkaHost):
    """An emulated host whose commands a test runs in one line."""

    def anka(self, *args, stdin=b"", **env):
        """Run a command to its end; its output as bytes."""
        return subprocess.run(
            ["anka", *args], input=stdin, env=self.environ(**env), capture_output=True, timeout=60, check=False
        )

    def ok(self, *args, **more):
        """Run a command that must succeed; its body."""
        done = self.anka("-j", *args, **more)
        assert done.returncode == 0, done
        return json.loads(done.stdout.splitlines()[-1])["body"]

    def error(self, *args, **more):
        """Run a command that must fail with an envelope; its (code, message)."""
        done = self.anka("-j", *args, **more)
        assert done.returncode != 0, done
        envelope = json.loads(done.stdout.splitlines()[-1])
        assert envelope["status"] == "ERROR"
        return envelope["code"], envelope["message"]

    def begin(self, *args, **more):
        """Start a command and return its Popen."""
        more = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
        return subprocess.Popen(["anka", *args], env=self.environ(), **more)

    def vm(self, name):
        """The record of one VM."""
        return next(vm for vm in self.vms() if vm["name"] == name)

    def run_vms(self, *names):
        """Clone and start VMs."""
        for name in names:
            self.ok("clone", "tpl", name)
            self.ok("start", name)


@pytest.fixture
def directory():
    """A directory that is gone after the test."""
    with tempfile.TemporaryDirectory(prefix="fake-anka-") as path:
        yield Path(path)


@pytest.fixture
def host(directory):
    """A host with the local template `tpl`; every process of it is ended after the test."""
    with Host(directory / "host") as made:
        made.add_template("tpl", tag="v1")
        yield made
    assert made.guest_processes() == []
    assert made.command_pids() == []


def eventually(condition, seconds=20):
    """Poll until `condition()` is true and return its value; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "condition never became true"
        time.sleep(0.01)
    return value


def finish(process, seconds=30):
    """Wait for a Popen: (exit status, stdout, stderr)."""
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


# -- command line ------------------------------------------------------------------------------------


def test_bare_command_exits_zero(host):
    """`anka` alone prints its usage and exits 0."""
    done = host.anka()
    assert done.returncode == 0
    assert b"Usage" in done.stdout


def test_static_executable_works_from_path(host):
    """The executable in bin/ works with nothing but its folder on PATH, FAKE_ANKA_HOME, and any python3."""
    path = f"{HERE / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        ["anka", "version"], env={**host.env(), "PATH": path}, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "Anka Build Basic version 3.9.1 (build 216)\n"
    assert [entry.name for entry in (HERE / "bin").iterdir()] == ["anka"]


def test_refuses_to_run_without_a_host():
    """Without FAKE_ANKA_HOME the emulator refuses, with a status that no Anka error has."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("FAKE_")}
    done = subprocess.run([HERE / "bin" / "anka", "list"], env=env, capture_output=True, check=False, timeout=60)
    assert done.returncode == 70


@pytest.mark.parametrize(
    "args",
    [
        ["frobnicate"],
        ["--frobnicate", "list"],
        ["list", "--frobnicate"],
        ["list", "-j"],
        ["show"],
        ["show", "tpl", "name", "more"],
        ["clone"],
        ["clone", "tpl", "-name"],
        ["start", "--", "tpl"],
        ["delete", "--yes"],
        ["delete", "--yes=1", "tpl"],
        ["pull", "x", "-t"],
        ["run", "tpl"],
        ["run", "-Z", "tpl", "true"],
        ["registry"],
        ["registry", "frobnicate"],
        ["list", "-f", "colour"],
        ["cp", "a", "b"],
        ["cp", "a:x", "b:y"],
        ["push", "tpl"],
    ],
)
def test_unknown_things_on_the_command_line_are_refused(host, args):
    """An unknown command or option, a missing or surplus argument: usage status, text on stderr, nothing on stdout."""
    done = host.anka("-j", *args)
    assert (done.returncode, done.stdout) == (64, b"")
    assert done.stderr.startswith(b"anka: ")
    assert [vm["name"] for vm in host.vms()] == ["tpl"]


def test_version_and_license(host):
    """`version` and `license show` answer from the settings."""
    assert host.ok("version") == {"product": "Anka Build Basic", "version": "3.9.1", "build": "216"}
    host.set(license_status="expired", license_type="com.veertu.anka.run", version="3.8.6")
    assert host.ok("version")["version"] == "3.8.6"
    body = host.ok("license", "show")
    assert (body["status"], body["license_type"]) == ("expired", "com.veertu.anka.run")


def test_machine_readable_from_the_environment(host):
    """ANKA_MACHINE_READABLE does what -j does."""
    done = host.anka("list", ANKA_MACHINE_READABLE="1")
    assert json.loads(done.stdout)["status"] == "OK"


def test_debug_and_noise_stay_on_stderr(host):
    """--debug and the noise switch write to stderr; stdout stays one JSON line."""
    host.set(stderr_noise="objc[123]: class duplicated")
    done = host.anka("-j", "--debug", "list")
    assert json.loads(done.stdout)["status"] == "OK"
    assert b"debug" in done.stderr
    assert b"objc[123]" in done.stderr


def test_text_errors_are_one_line_on_stderr(host):
    """Without -j an error is `anka: <subject>: <reason>` on stderr."""
    done = host.anka("show", "nobody")
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"anka: nobody: not found\n")


# -- list and show -----------------------------------------------------------------------------------


def test_list_mixes_templates_and_clones(host):
    """`list` shows templates and clones alike; `version` is absent for what has no tag."""
    host.ok("clone", "tpl", "one")
    rows = {row["name"]: row for row in host.ok("list")}
    assert rows["tpl"]["version"] == "v1"
    assert "version" not in rows["one"]
    assert set(rows["one"]) == {"name", "uuid", "creation_date", "status"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", rows["one"]["creation_date"])


def test_list_filters(host):
    """Both spellings of the status filters, `-f` columns and `-f` filters, and ids choose rows."""
    host.run_vms("one")
    names = lambda *args: [row.get("name") for row in host.ok("list", *args)]  # noqa: E731  a table of cases
    assert names("-r") == names("--running") == ["one"]
    assert names("-s") == names("--stopped") == ["tpl"]
    assert names("-a") == names("--all") == ["tpl", "one"]
    assert names("one") == ["one"]
    assert names("-f", "status=running") == ["one"]
    assert host.ok("list", "--field", "name,status", "-f", "name=on") == [{"name": "one", "status": "running"}]


def test_unknown_ids_are_code_three(host):
    """list, show, clone, start, stop, cp, delete and modify say `<id>: not found`, code 3."""
    for args in (
        ["list", "x"],
        ["show", "x"],
        ["clone", "x", "y"],
        ["start", "x"],
        ["stop", "x"],
        ["suspend", "x"],
        ["reboot", "x"],
        ["cp", "/etc/hosts", "x:"],
        ["delete", "--yes", "x"],
        ["modify", "x", "cpu", "2"],
        ["run", "x", "true"],
    ):
        assert host.error(*args) == (3, "x: not found")


@pytest.mark.parametrize(
    ("choice", "stdout"),
    [
        ("[]", b'{"status": "OK", "body": []}\n'),
        ("null", b'{"status": "OK", "body": null}\n'),
        ("missing", b'{"status": "OK"}\n'),
        ("nothing", b""),
    ],
)
def test_empty_list_shapes(host, choice, stdout):
    """An empty `list -r` has the shape that the switch says, and status 0."""
    host.set(empty_list=choice)
    done = host.anka("-j", "list", "-r")
    assert (done.returncode, done.stdout) == (0, stdout)


def test_show_knows_hardware_and_items(host):
    """`show` has the hardware of a stopped VM and its sub-items; an unknown item is not found."""
    body = host.ok("show", "tpl")
    assert (body["cpu_cores"], body["ram_size"], body["status"]) == (4, 8 * settings.GIB, "stopped")
    assert "ip" not in body
    assert host.ok("show", "tpl", "tag") == [{"tag": "v1"}]
    assert host.ok("show", body["uuid"], "tag", "--current") == [{"tag": "v1"}]
    assert host.error("show", "tpl", "colour") == (3, "colour: not found")


@pytest.mark.parametrize(("shape", "absent"), [("missing", None), ("empty", "")])
def test_ip_comes_after_some_polls(host, shape, absent):
    """`show` has no ip for the first N polls after a start."""
    host.set(ip_after_polls=2, ip_absent=shape)
    host.run_vms("one")
    seen = [host.ok("show", "one").get("ip") for _ in range(3)]
    assert seen[:2] == [absent, absent]
    assert seen[2].startswith("192.168.64.")


def test_list_refuses_until_the_eula_is_accepted(host):
    """Without an accepted EULA `list` answers ERROR with an object body."""
    host.set(eula_accepted=False)
    assert "EULA" in host.error("list")[1]


# -- clone -------------------------------------------------------------------------------------------


def test_clone_copies_the_guest_home(host, directory):
    """A clone's guest home begins as a copy of the template's: files, modes, symlinks."""
    (directory / "files" / "actions-runner").mkdir(parents=True)
    program = directory / "files" / "actions-runner" / "run.sh"
    program.write_text("#!/bin/sh\necho ran\n")
    program.chmod(0o755)
    (directory / "files" / "link").symlink_to("actions-runner/run.sh")
    host.add_template("full", home_files=directory / "files")
    host.ok("clone", "full", "one")
    assert host.anka("run", "one", "./link").stdout == b"ran\n"
    (host.guest_home("one") / "link").unlink()
    assert (host.guest_home("full") / "link").is_symlink()


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
    """Of several clones to one name at once exactly one succeeds."""
    host.set(delays={"clone": 0.1})
    running = [host.begin("-j", "clone", "tpl", "one") for _ in range(6)]
    statuses = sorted(finish(process)[0] for process in running)
    assert statuses == [0, 1, 1, 1, 1, 1]
    assert [vm["name"] for vm in host.vms()] == ["tpl", "one"]


@pytest.mark.parametrize(("choice", "present", "starts"), [("nothing", 0, 0), ("half", 1, 0), ("whole", 1, 1)])
def test_sigkill_in_mid_clone(host, choice, present, starts):
    """A clone killed half way leaves what the switch says; its name is in no listing while it is in flight."""
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


# -- start, stop and the limit -----------------------------------------------------------------------


def test_third_vm_is_refused(host):
    """With two running VMs a third start is refused and its VM stays stopped; a freed slot can be taken again."""
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
    """Clones, starts and deletes from many processes, some killed at random points, keep state, quota and events in step."""

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
    assert host.slots() == ["tart:other", f"anka:{host.vm('one')['uuid']}"]
    KernelQuota(host.quota_path).release("tart:other")
    host.ok("start", "two")


def test_slot_of_a_dead_process_is_free(directory):
    """A slot that belongs to a process is given back by its death."""
    quota = KernelQuota(directory / "quota.json")
    process = subprocess.Popen(["sleep", "60"])
    try:
        assert quota.claim("tart:a", pid=process.pid)
        assert quota.owners() == ["tart:a"]
    finally:
        process.kill()
        process.wait()
    assert quota.owners() == []


def test_leaked_slot_stays_taken_until_reboot(host):
    """With leak_slot a stopped VM's slot is not given back; a reboot of the host frees it."""
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
    """limit_always refuses every start although nothing runs."""
    host.set(limit_always=True)
    host.ok("clone", "tpl", "one")
    assert "maximum number" in host.error("start", "one")[1]


def test_foreign_vms_take_slots(host):
    """Somebody else's Anka VM is listed; another product's takes a slot unseen."""
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
    """Starting a running VM is fine, or an error, as the switch says."""
    host.run_vms("one")
    assert host.ok("start", "one")["status"] == "running"
    host.set(start_running="error")
    assert host.error("start", "one") == (1, "one: VM is running")
    assert len(host.events("started")) == 1


@pytest.mark.parametrize(
    ("choice", "status", "slots"), [("running", "running", 1), ("failed", "failed", 0), ("stopped", "stopped", 0)]
)
def test_sigkill_in_mid_start(host, choice, status, slots):
    """A start killed half way leaves the VM as the switch says, and its slot accordingly; a failed one needs stop --force."""
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


# -- delete ------------------------------------------------------------------------------------------


def test_delete_asks_and_blocks(host):
    """Without --yes delete asks on stdout and blocks on stdin: EOF and n keep the VM, y deletes it."""
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
    """A delete --yes of a running VM ends background, setsid and double-forked processes before it reports success."""
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
    """`delete -t` removes the tag only."""
    host.ok("delete", "--yes", "-t", "v1", "tpl")
    assert "version" not in host.ok("list", "tpl")[0]
    assert host.error("delete", "--yes", "-t", "v1", "tpl") == (3, "v1: not found")


def test_sigkill_in_mid_delete_leaves_a_stopped_vm(host):
    """A delete that dies half way has stopped the VM and not removed it; a second one does."""
    host.run_vms("one")
    host.fault("delete", kill_at="middle")
    assert host.anka("delete", "--yes", "one").returncode == -signal.SIGKILL
    assert host.vm("one")["status"] == "stopped"
    assert host.slots() == []
    host.ok("delete", "--yes", "one")


# -- run ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -9 $$", 137)])
def test_run_passes_the_exit_status(host, script, status):
    """The exit status is the guest command's; a signal's is 128 plus its number. A stopped VM is started."""
    host.ok("clone", "tpl", "one")
    assert host.anka("-j", "run", "one", "sh", "-c", script).returncode == status
    assert host.running() == ["one"]


def test_run_argv_meets_no_shell(host):
    """Everything after the vmid is the guest's argv, options and shell characters included."""
    host.ok("clone", "tpl", "one")
    done = host.anka("run", "-n", "one", "printf", "%s|", "-e", "a b", "$HOME", "*", "--yes", "")
    assert done.stdout == b"-e|a b|$HOME|*|--yes||"


def test_run_forwards_binary_streams(host):
    """A megabyte of all byte values goes in through stdin and comes out of stdout and stderr unchanged."""
    host.ok("clone", "tpl", "one")
    done = host.anka("run", "one", "tee", "/dev/stderr", stdin=BINARY)
    assert done.stdout == BINARY
    assert done.stderr == BINARY


def test_run_takes_a_script_from_stdin(host):
    """`bash -s` runs a script from stdin in the guest's home, and what does not read stdin ends all the same."""
    host.ok("clone", "tpl", "one")
    done = host.anka("run", "one", "bash", "-s", stdin=b"pwd\necho $0\nexit 3\n")
    assert (done.returncode, done.stdout.decode().split()) == (3, [str(host.guest_home("one").resolve()), "bash"])
    process = host.begin("run", "one", "true", stdin=subprocess.PIPE)
    assert process.wait(timeout=20) == 0
    finish(process)


def test_run_environment_is_the_guests(host):
    """Nothing of the host's environment reaches the guest but the marker; only stdin, stdout and stderr are open."""
    host.ok("clone", "tpl", "one")
    done = host.anka("run", "one", "sh", "-c", "env; ls /proc/self/fd 2>/dev/null | wc -l", SECRET="bait")
    lines = done.stdout.decode().splitlines()
    guest = dict(line.split("=", 1) for line in lines[:-1])
    home = str(host.guest_home("one").resolve())
    assert guest.pop("PWD", home) == home
    assert guest == {
        "HOME": home,
        "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "USER": "anka",
        "SHELL": "/bin/bash",
        "XPC_SERVICE_NAME": "com.veertu.anka.addons.ankarun",
        "FAKE_ANKA_VM": host.vm("one")["uuid"],
    } | {key: guest[key] for key in guest if key in ("_", "SHLVL", "OLDPWD")}
    assert int(lines[-1]) in (0, 4)  # ls itself opens the fourth


def test_run_environment_options(host, directory):
    """-e and --env-file override, -E inherits without overriding and without the emulator's own variables, -w sets the folder."""
    host.ok("clone", "tpl", "one")
    (directory / "env").write_text('FROM_FILE="quoted"\n')
    show = 'echo "$A|$FROM_FILE|$INHERITED|$USER|$FAKE_ANKA_HOME|$PWD"'
    args = ["-e", "A=1 2", "--env-file", str(directory / "env"), "-E", "-w", "/", "one", "sh", "-c", show]
    done = host.anka("run", *args, INHERITED="yes", USER="root")
    assert done.stdout == b'1 2|"quoted"|yes|anka||/\n'


def test_run_quiet_and_background(host):
    """-q drops stdout; -b prints the guest's pid and returns while it runs."""
    host.ok("clone", "tpl", "one")
    assert host.anka("run", "-q", "one", "echo", "hi").stdout == b""
    pid = int(host.anka("run", "-b", "one", "sleep", "600").stdout)
    assert [process.pid for process in host.guest_processes("one")] == [pid]
    host.ok("stop", "one")
    assert host.guest_processes() == []


def test_run_of_a_missing_program(host):
    """A program that the guest does not have is status 127, one that is not executable 126, with text on stderr."""
    host.ok("clone", "tpl", "one")
    done = host.anka("run", "one", "no-such-program")
    assert (done.returncode, done.stderr) == (127, b"no-such-program: No such file or directory\n")
    assert host.anka("run", "one", "/etc/passwd").returncode == 126


def test_run_returns_before_background_processes(host):
    """The end of the command ends `anka run`, though a background process holds its streams; that one lives on and may write."""
    host.ok("clone", "tpl", "one")
    script = "(while :; do echo tick; sleep 0.02; done) & echo done"
    done = host.anka("run", "one", "bash", "-c", script)
    assert done.stdout.startswith((b"done\n", b"tick\n"))
    before = {process.pid for process in host.guest_processes("one") if process.argv[0] == "bash"}
    sleeps = lambda: {p.pid for p in host.guest_processes("one") if p.argv[0] == "sleep"}  # noqa: E731  a condition
    first = eventually(sleeps)
    eventually(lambda: sleeps() - first)
    assert before
    assert before <= {process.pid for process in host.guest_processes("one")}


def test_run_waits_for_end_of_output_when_told(host):
    """With run_waits_for=eof a background writer keeps `anka run` until it is gone."""
    host.set(run_waits_for="eof")
    host.ok("clone", "tpl", "one")
    assert host.anka("run", "one", "bash", "-c", "(sleep 0.3; echo late) & echo soon").stdout == b"soon\nlate\n"


@pytest.mark.parametrize(("choice", "lives"), [("lives", True), ("killed", False)])
def test_killing_the_host_command(host, choice, lives):
    """SIGKILL to the process group of `anka run` leaves the guest's process alive, or kills it, as the switch says."""
    host.set(killed_run_guest=choice)
    host.ok("clone", "tpl", "one")
    script = "echo up; while :; do echo tick; sleep 0.02; done"
    process = host.begin("run", "one", "bash", "-c", script, start_new_session=True)
    assert process.stdout.read(3) == b"up\n"
    os.killpg(process.pid, signal.SIGKILL)
    finish(process)
    shell = lambda: [p for p in host.guest_processes("one") if p.argv[0] == "bash"]  # noqa: E731  a condition
    if lives:
        sleeps = lambda: {p.pid for p in host.guest_processes("one") if p.argv[0] == "sleep"}  # noqa: E731
        first = eventually(sleeps)
        eventually(lambda: sleeps() - first)
        assert shell()
    else:
        eventually(lambda: not shell())


def test_run_of_a_stopped_guest_is_125(host):
    """A guest that is stopped, deleted or rebooted under a running command makes it end with 125 and text on stderr."""
    host.run_vms("one")
    for args in (["stop", "-f", "one"], ["reboot", "one"], ["delete", "--yes", "one"]):
        process = host.begin("run", "one", "sleep", "600")
        eventually(lambda: host.guest_processes("one"))
        assert host.anka(*args).returncode == 0
        status, out, err = finish(process)
        assert (status, out) == (125, b"")
        assert err.startswith(b"anka: ")


def test_run_before_the_guest_is_ready(host):
    """The first runs after a start may find no guest: 125, as text on stderr, or as an envelope with -j."""
    host.set(boot_runs=2)
    host.run_vms("one")
    done = host.anka("run", "one", "true")
    assert (done.returncode, done.stderr) == (125, b"anka: communication timeout\n")
    done = host.anka("-j", "run", "one", "true")
    assert (done.returncode, json.loads(done.stdout)["message"]) == (125, "communication timeout")
    assert host.anka("run", "one", "true").returncode == 0


@pytest.mark.parametrize(
    ("choice", "stdout"),
    [
        ("raw", b"hi\n"),
        ("append", b'hi\n{"status": "OK", "code": 0, "body": {}, "message": ""}\n'),
        ("wrap", b'{"status": "OK", "code": 0, "body": "hi\\n", "message": ""}\n'),
    ],
)
def test_machine_readable_run(host, choice, stdout):
    """With -j the guest's output is raw, has an envelope after it, or is inside one, as the switch says."""
    host.set(run_json=choice)
    host.ok("clone", "tpl", "one")
    assert host.anka("-j", "run", "one", "echo", "hi").stdout == stdout


def test_graceful_stop_terminates_first(host):
    """`stop` gives the guest's processes SIGTERM and time; `stop -f` does not."""
    host.set(stop_grace=20)
    script = "trap 'echo bye > bye; exit 0' TERM; echo ready > ready; while :; do sleep 0.05; done"
    for args, said_bye in ((["stop"], True), (["stop", "--force"], False)):
        name = "one" if said_bye else "two"
        host.run_vms(name)
        host.anka("run", "-b", name, "bash", "-c", script)
        home = host.guest_home(name)
        eventually((home / "ready").exists)
        host.ok(*args, name)
        assert (home / "bye").exists() == said_bye
        assert host.guest_processes(name) == []


# -- cp ----------------------------------------------------------------------------------------------


def test_cp_both_ways(host, directory):
    """Files go to the guest's home with their mode, and trees come back, by relative and by /Users/anka path."""
    host.run_vms("one")
    script = directory / "run.sh"
    script.write_text("#!/bin/sh\nmkdir -p actions-runner/_diag; echo log > actions-runner/_diag/Runner.log\n")
    script.chmod(0o755)
    host.ok("cp", "-a", str(script), "one:")
    assert host.anka("run", "one", "./run.sh").returncode == 0
    host.ok("cp", "-a", "one:/Users/anka/actions-runner/_diag", str(directory / "diag"))
    assert (directory / "diag" / "Runner.log").read_text() == "log\n"
    host.ok("cp", "one:actions-runner/_diag/Runner.log", str(directory))
    assert (directory / "Runner.log").read_text() == "log\n"


def test_cp_refusals(host, directory):
    """A missing source, a folder without -R, a missing target folder and a path outside the guest's home are refused."""
    host.run_vms("one")
    missing = directory / "missing"
    assert host.error("cp", str(missing), "one:") == (2, f"{missing}: No such file or directory")
    assert host.error("cp", "one:missing", str(directory))[0] == 2
    assert host.error("cp", str(directory), "one:")[0] == 21
    assert host.error("cp", "/etc/hosts", "one:no/such/folder")[0] == 2
    assert host.error("cp", "one:/etc/hosts", str(directory))[0] == 13
    assert host.error("cp", "one:../../../state.json", str(directory))[0] == 13


def test_cp_and_symlinks(host, directory):
    """-a copies a symlink as a symlink (dangling in the guest), plain cp and -RL what it points to."""
    host.run_vms("one")
    (directory / "real").write_text("content")
    (directory / "link").symlink_to(directory / "gone" / "real")
    host.ok("cp", "-a", str(directory / "link"), "one:")
    assert host.anka("run", "one", "cat", "link").returncode == 1
    (directory / "link").unlink()
    (directory / "link").symlink_to("real")
    host.ok("cp", str(directory / "link"), "one:followed")
    host.ok("cp", "-pRLf", str(directory / "link"), "one:followed-too")
    for name in ("followed", "followed-too"):
        assert host.anka("run", "one", "cat", name).stdout == b"content"
    host.ok("cp", "-n", "/etc/hosts", "one:followed")
    assert host.anka("run", "one", "cat", "followed").stdout == b"content"


def test_cp_to_a_stopped_vm(host):
    """A cp to a stopped VM is refused, starts it, or works on its disk, as the switch says."""
    host.ok("clone", "tpl", "one")
    assert host.error("cp", "/etc/hosts", "one:") == (1, "one: VM is not running")
    host.set(cp_stopped="offline")
    host.ok("cp", "/etc/hosts", "one:")
    assert host.running() == []
    host.set(cp_stopped="start")
    host.ok("cp", "/etc/hosts", "one:again")
    assert host.running() == ["one"]


# -- registry and pull -------------------------------------------------------------------------------


def test_registry_list_and_show(host):
    """The registry lists templates with their latest tag and shows them; unknown ones are code 3."""
    uuid = host.add_registry_template("14.6", tags=["a", "b"])
    assert host.ok("registry", "list") == [{"uuid": uuid, "name": "14.6", "latest": "b"}]
    assert host.ok("registry", "--remote", "http://r:8089", "list") == host.ok("registry", "-a", "http://r", "list")
    assert host.ok("registry", "show", uuid, "-t", "a")["version"] == "a"
    assert host.error("registry", "show", "x") == (3, "x: not found")
    assert len(host.ok("registry", "--list")) == len(host.ok("registry", "list-repos")) == 1


def test_pull_prints_progress_then_the_result(host, directory):
    """A pull prints several JSON lines, the last being the result, with or without a newline; the template is then local."""
    (directory / "files").mkdir()
    (directory / "files" / "hello").write_text("hello")
    uuid = host.add_registry_template("14.6", tags=["a", "b"], home_files=directory / "files")
    host.set(pull_newline=False, pull_progress_lines=4)
    done = host.anka("-j", "pull", uuid, "--tag", "a")
    lines = done.stdout.split(b"\n")
    assert len(lines) == 5
    assert json.loads(lines[-1]) == {"status": "OK", "code": 0, "body": {}, "message": ""}
    assert host.ok("list", "14.6")[0]["version"] == "a"
    host.ok("clone", "14.6", "one")
    assert host.anka("run", "one", "cat", "hello").stdout == b"hello"
    host.set(pull_newline=True)
    done = host.anka("-j", "pull", "-t", "a", "14.6")
    assert json.loads(done.stdout)["message"] == "14.6: available locally"
    host.ok("registry", "-r", "http://r:8089", "pull", "--shrink", "14.6")
    assert host.ok("list", "14.6")[0]["version"] == "b"
    assert host.ok("show", "14.6", "tag") == [{"tag": "b"}]


def test_check_download_size(host):
    """--check-download-size tells sizes and changes nothing; of a local tag it says `available locally`."""
    host.add_registry_template("14.6", tags=["a", "b"], size=1000)
    free = settings.DEFAULTS["disk_available"]
    assert host.ok("pull", "14.6", "--check-download-size") == {"size": 1000, "cached": 0, "available": free}
    assert [vm["name"] for vm in host.vms()] == ["tpl"]
    host.ok("pull", "-t", "a", "14.6")
    assert host.ok("pull", "14.6", "--check-download-size")["cached"] == 900
    done = host.anka("-j", "pull", "14.6", "--check-download-size", "--tag", "a", "http://r")
    assert json.loads(done.stdout) == {"status": "OK", "code": 0, "body": {}, "message": "14.6: available locally"}


def test_pull_failures(host):
    """Unknown template or tag is code 3; a registry that does not answer and a full disk are other errors."""
    host.add_registry_template("14.6", tags=["a"], size=1000)
    assert host.error("pull", "15") == (3, "15: not found")
    assert host.error("pull", "-t", "z", "14.6") == (3, "14.6: not found")
    host.set(disk_available=999)
    assert host.error("pull", "14.6") == (28, "14.6: No space left on device")
    host.set(registry_down=True)
    for args in (["pull", "14.6"], ["pull", "14.6", "--check-download-size"], ["registry", "list"]):
        assert host.error(*args) == (7, "request failed with result 7: Couldn't connect to server")
    host.set(registry_down=False, registry_url="http://right:8089", disk_available=1000)
    assert host.error("registry", "-r", "http://wrong:8089", "list")[0] == 7
    host.ok("registry", "-r", "http://right:8089/", "pull", "14.6")


def test_registry_down_with_a_local_copy(host):
    """With pull_failback a local copy answers for a registry that is down."""
    host.add_registry_template("14.6", tags=["a"])
    host.ok("pull", "14.6")
    host.set(registry_down=True)
    assert host.error("pull", "14.6")[0] == 7
    host.set(pull_failback=True)
    host.ok("pull", "14.6")


def test_local_checkout_and_fetch_only(host):
    """--fetch-only leaves the checked-out tag alone, `pull -l` checks a local tag out."""
    host.add_registry_template("14.6", tags=["a", "b"])
    host.ok("pull", "-t", "a", "14.6")
    host.ok("pull", "--fetch-only", "-t", "b", "14.6")
    assert host.ok("list", "14.6")[0]["version"] == "a"
    host.ok("pull", "-l", "-t", "b", "14.6")
    assert host.ok("list", "14.6")[0]["version"] == "b"
    assert host.error("pull", "-l", "-t", "z", "14.6") == (3, "z: not found")


def pulling(host):
    """Start a pull that takes long, and wait until it is under way."""
    host.set(delays={"pull": 60})
    process = host.begin("-j", "pull", "14.6")
    eventually(lambda: list((host.home / "ops").iterdir()))
    host.set(delays={})
    return process


def test_two_pulls_at_once_spoil_the_template(host):
    """A second pull of the same template fails, and so does the first; both stand in the events."""
    host.add_registry_template("14.6", tags=["a"])
    host.set(delays={"pull": 1})
    first = host.begin("-j", "pull", "14.6")
    eventually(lambda: list((host.home / "ops").iterdir()))
    assert host.error("pull", "14.6") == (5, "14.6: failed to checkout: Input/output error")
    assert finish(first)[0] == 1
    assert [event["reason"] for event in host.events("corruption")] == ["two pulls at once"]
    assert len(host.events("pull-overlap")) == 1
    assert host.events("pulled") == []


def test_clone_during_a_pull_spoils_the_template(host):
    """A clone while its template is pulled fails, and later clones of that template do not start until it is pulled anew."""
    uuid = host.add_registry_template("14.6", tags=["a", "b"])
    host.ok("pull", "-t", "a", "14.6")
    process = pulling(host)
    assert host.error("clone", "14.6", "one") == (2, f"state_lib/{uuid}.ank: failed to open image, error 2")
    assert [event["reason"] for event in host.events("corruption")] == ["clone during a pull of its template"]
    process.kill()
    finish(process)
    host.ok("clone", "14.6", "two")
    assert host.error("start", "two") == (2, "two: failed to start: No such file or directory")
    assert host.vm("two")["status"] == "failed"
    host.ok("delete", "--yes", "14.6")
    host.ok("pull", "14.6")
    host.ok("clone", "14.6", "three")
    host.ok("start", "three")


def test_overlapping_pulls_of_two_templates_are_noted(host):
    """Pulls of different templates at once work, and stand in the events for a checker of "one pull per host"."""
    host.add_registry_template("14.6")
    host.add_registry_template("15.1")
    process = pulling(host)
    host.ok("pull", "15.1")
    assert len(host.events("pull-overlap")) == 1
    assert host.events("corruption") == []
    process.kill()
    finish(process)


@pytest.mark.parametrize("choice", ["clean", "half", "blocked"])
def test_sigkill_in_mid_pull(host, choice):
    """A killed pull leaves nothing, a template that will not start, or one that blocks the next pull, as the switch says."""
    host.add_registry_template("14.6", tags=["a"])
    host.set(interrupted_pull=choice)
    host.fault("pull", kill_at="middle")
    assert host.anka("pull", "14.6").returncode == -signal.SIGKILL
    listed = "14.6" in [vm["name"] for vm in host.vms()]
    assert listed == (choice != "clean")
    if choice == "half":
        assert json.loads(host.anka("-j", "pull", "14.6").stdout)["message"] == "14.6: available locally"
        host.ok("clone", "14.6", "one")
        assert host.error("start", "one")[0] == 2
    if choice == "blocked":
        assert host.error("pull", "14.6") == (16, "14.6: Resource busy")
    if listed:
        host.ok("delete", "--yes", "14.6")
    host.ok("pull", "14.6")
    host.ok("clone", "14.6", "two")
    host.ok("start", "two")


def test_develop_licence_is_narrower(host):
    """The develop licence runs one VM, and has neither registry nor suspend."""
    host.set(license_type="com.veertu.anka.develop")
    host.run_vms("one")
    host.ok("clone", "tpl", "two")
    assert "maximum number" in host.error("start", "two")[1]
    assert "license" in host.error("registry", "list")[1]
    assert "license" in host.error("suspend", "one")[1]


# -- faults ------------------------------------------------------------------------------------------


def test_error_fault_before_and_after_the_effect(host):
    """An injected ERROR strikes `times` invocations, before the effect or after it."""
    host.fault("clone", times=2, code=99, message="no luck")
    assert host.error("clone", "tpl", "one") == (99, "no luck")
    assert host.anka("clone", "tpl", "one").stderr == b"anka: no luck\n"
    host.ok("clone", "tpl", "one")
    host.fault("clone", when="after", message="lost", exit_status=42)
    assert host.anka("clone", "tpl", "two").returncode == 42
    assert host.vm("two")["status"] == "stopped"
    assert len(host.events("fault")) == 3


def test_output_faults(host):
    """Garbage, nothing, and text on stderr beside a sound reply."""
    host.fault("list", stdout="<html>", exit_status=0)
    host.fault("list", stdout="", exit_status=3)
    host.fault("list", stderr="warning: low disk\n")
    assert host.anka("-j", "list").stdout == b"<html>"
    done = host.anka("-j", "list")
    assert (done.returncode, done.stdout) == (3, b"")
    done = host.anka("-j", "list")
    assert json.loads(done.stdout)["status"] == "OK"
    assert done.stderr == b"warning: low disk\n"


def test_faults_match_arguments_and_commands(host):
    """A fault hits only the command and the arguments it names, `*` any command, until it is cleared."""
    host.fault("clone", match=r"\bone$", message="not this")
    host.ok("clone", "tpl", "two")
    host.error("clone", "tpl", "one")
    host.fault("registry list", message="registry only")
    host.ok("list")
    assert host.error("registry", "-r", "http://r", "list")[1] == "registry only"
    host.fault("*", times=None, message="all")
    host.error("list")
    host.error("show", "tpl")
    host.clear_faults()
    host.ok("list")


@pytest.mark.parametrize(("when", "present"), [("before", False), ("after", True)])
def test_hang_and_kill(host, when, present):
    """A hanging command hangs until it is killed, before its effect or after it."""
    host.fault("clone", hang=True, when=when)
    process = host.begin("clone", "tpl", "one")
    eventually(lambda: host.events("fault"))
    if present:
        eventually(lambda: host.events("cloned"))
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.2)
    process.terminate()
    assert finish(process)[0] == -signal.SIGTERM
    assert ("one" in [vm["name"] for vm in host.vms()]) == present


def test_reply_lost_after_the_effect(host):
    """kill_at="after": the effect is done, the reply is not."""
    host.fault("clone", kill_at="after")
    done = host.anka("-j", "clone", "tpl", "one")
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"")
    assert host.vm("one")["status"] == "stopped"


@pytest.mark.parametrize("when", ["before", "after"])
def test_delays(host, when):
    """A delay fault and the delay setting make a command take that long and succeed."""
    host.fault("list", delay=0.3, when=when)
    begin = time.monotonic()
    host.ok("list")
    assert time.monotonic() - begin >= 0.3
    host.set(delays={"clone": 0.3})
    begin = time.monotonic()
    host.ok("clone", "tpl", "one")
    assert time.monotonic() - begin >= 0.3


def test_run_faults(host):
    """A run can be lost before its command (125) or killed while it goes on."""
    host.run_vms("one")
    host.fault("run", exit_status=125)
    assert host.anka("run", "one", "touch", "here").returncode == 125
    assert not (host.guest_home("one") / "here").exists()
    host.fault("run", kill_at="middle")
    assert host.anka("run", "one", "sleep", "600").returncode == -signal.SIGKILL
    assert len(host.guest_processes("one")) == 1


def test_settings_are_checked(host):
    """An unknown switch, a value outside its choices, and an unknown point are refused."""
    with pytest.raises(ValueError, match="colour"):
        host.set(colour="red")
    with pytest.raises(ValueError, match="empty_list"):
        host.set(empty_list="none")
    with pytest.raises(ValueError, match="sometime"):
        host.fault("list", when="sometime", message="x")


# -- the record, and the end -------------------------------------------------------------------------


def test_calls_and_events_are_recorded(host):
    """Each invocation's argv, times and status, and each life event with the number of running VMs, are on record."""
    host.run_vms("one")
    host.anka("delete", "--yes", "one")
    host.anka("show", "one")
    calls = host.calls()
    assert [(call["argv"][-1], call["status"]) for call in calls[-2:]] == [("one", 0), ("one", 1)]
    assert all(call["start"] <= call["end"] for call in calls)
    assert [(event["event"], event["running"]) for event in host.events()] == [
        ("template-added", 0),
        ("cloned", 0),
        ("started", 1),
        ("stopped", 0),
        ("deleted", 0),
    ]


def test_halt_and_reboot_host(host):
    """A guest's own shutdown and a dead hypervisor end its processes; a reboot ends everything on the host."""
    host.run_vms("one", "two")
    for name in ("one", "two"):
        host.anka("run", "-b", name, "sleep", "600")
    host.halt("one")
    assert [process.vm for process in host.guest_processes()] == [host.vm("two")["uuid"]]
    host.halt("two", status="failed")
    assert (host.vm("two")["status"], host.slots()) == ("failed", [])
    host.ok("start", "one")
    running = host.begin("run", "one", "sleep", "600")
    eventually(lambda: host.guest_processes("one"))
    host.reboot_host()
    finish(running)
    assert host.running() == host.guest_processes() == host.slots() == []
    assert host.events()[-1]["event"] == "host-rebooted"


def test_shutdown_all_ends_hung_commands_and_guests(host):
    """shutdown_all ends hanging commands, guests and their agents, and leaves the VMs' state as it is."""
    host.run_vms("one")
    host.anka("run", "one", "bash", "-c", "sleep 600 & setsid sleep 600 &")
    host.fault("list", hang=True)
    hung = host.begin("list")
    eventually(lambda: host.events("fault"))
    host.shutdown_all()
    assert finish(hung)[0] == -signal.SIGKILL
    assert host.guest_processes() == host.command_pids() == []
    assert host.running() == ["one"]


def test_lost_events_are_written_again(host):
    """Events whose writer died between state and log are written by the next command, once."""
    log = host.home / "events.jsonl"
    host.ok("clone", "tpl", "one")
    whole = log.read_bytes()
    log.write_bytes(whole[:-7])
    host.ok("list")
    assert log.read_bytes() == whole
    host.ok("clone", "tpl", "two")
    assert log.read_bytes().startswith(whole)
    assert [event["event"] for event in host.events()] == ["template-added", "cloned", "cloned"]


def test_ps_listing_is_understood():
    """Where there is no /proc, guests are found in a `ps` listing with environments."""
    listing = "  10     1 Ss   /bin/sh HOME=/x FAKE_ANKA_VM=u-1 USER=anka\n  11    10 S    sleep 5\n  12     1 Z    (sh)\n  x\n"
    table = processes.parse_ps(listing.replace("  x\n", ""))
    assert {pid: (vm, parent) for pid, (vm, parent, _) in table.items()} == {10: ("u-1", 1), 11: ("", 10)}


def test_readme_explains_every_switch():
    """The README's table has each switch with its default, and no other."""
    rows = re.findall(r"^\| `([a-z_]+)` \| `(.*?)` \|", (HERE / "README.md").read_text(), re.MULTILINE)
    assert {name: json.loads(default) for name, default in rows} == settings.DEFAULTS


def test_emulator_imports_nothing_of_the_program():
    """The emulator's own code imports the standard library and itself only."""
    sources = [*HERE.glob("*.py"), *HERE.glob("engine/*.py"), HERE / "bin" / "anka", HERE.parent / "kernel_quota.py"]
    for source in sources:
        if source.name != Path(__file__).name:
            assert not re.search(
                r"^\s*(from|import) +(anklet|msgspec|psutil|yaml)", source.read_text(), re.MULTILINE
            ), source
