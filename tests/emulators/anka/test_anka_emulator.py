"""The emulated anka: its command line, listing and records, and the claims of its README.

Owns the proof of the emulator as a program; knows nothing of the program that is tested with it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from emulators.anka.bench import eventually, finish
from emulators.anka.engine import settings
from emulators.vmhost import processes

HERE = Path(__file__).resolve().parent


def test_bare_command_exits_zero(host):
    """`anka` alone prints its usage and exits 0."""
    done = host.anka()
    assert done.returncode == 0
    assert b"Usage" in done.stdout


def test_static_executable_works_from_path(host):
    """The executable in bin/ needs only its folder on PATH, FAKE_ANKA_HOME, and any python3."""
    path = f"{HERE / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        ["anka", "version"], env={**host.env(), "PATH": path}, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "Anka Build Basic version 3.9.1 (build 216)\n"
    assert [entry.name for entry in (HERE / "bin").iterdir()] == ["anka"]


def test_refuses_to_run_without_a_host():
    """Without FAKE_ANKA_HOME the emulator refuses to run, with a status that no Anka error has."""
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


def test_list_mixes_templates_and_clones(host):
    """`list` shows templates and clones alike; `version` is absent for a VM without a tag."""
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
    """list, show, clone, start, stop, cp, delete and modify report `<id>: not found`, code 3."""
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
    """An empty `list -r` has the shape that the switch chooses, and status 0."""
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
    """Without an accepted EULA, `list` answers ERROR with an object body."""
    host.set(eula_accepted=False)
    assert "EULA" in host.error("list")[1]


def test_calls_and_events_are_recorded(host):
    """Each invocation's argv, times and status, and each life-cycle event with the number of running VMs, are recorded."""
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
    """A guest's own shutdown and a dead hypervisor end the guest's processes; a reboot ends everything on the host."""
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
    """shutdown_all ends hanging commands, guests and their agents, and does not change the VMs' state."""
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
    """If a writer dies between state and log, the next command writes its events again, once."""
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
    """Without /proc, guests are found in a `ps` listing with environments."""
    listing = "  10     1 Ss   /bin/sh HOME=/x FAKE_ANKA_VM=u-1 USER=anka\n  11    10 S    sleep 5\n  12     1 Z    (sh)\n  x\n"
    table = processes.parse_ps(listing.replace("  x\n", ""), "FAKE_ANKA_VM=")
    assert {pid: (vm, parent) for pid, (vm, parent, _) in table.items()} == {10: ("u-1", 1), 11: ("", 10)}


def test_readme_explains_every_switch():
    """The README's table has each switch with its default, and no other."""
    rows = re.findall(r"^\| `([a-z_]+)` \| `(.*?)` \|", (HERE / "README.md").read_text(), re.MULTILINE)
    assert {name: json.loads(default) for name, default in rows} == settings.DEFAULTS


def test_emulator_imports_nothing_of_the_program():
    """The emulator's own code imports only the standard library and itself."""
    shared = [HERE.parent / "kernel_quota.py", *HERE.parent.glob("vmhost/*.py")]
    sources = [*HERE.glob("*.py"), *HERE.glob("engine/*.py"), HERE / "bin" / "anka", *shared]
    for source in sources:
        if not source.name.startswith("test_"):
            assert not re.search(
                r"^\s*(from|import) +(anklet|msgspec|psutil|yaml)", source.read_text(), re.MULTILINE
            ), source
