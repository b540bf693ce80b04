"""The emulated tart: its command line, listings and records, and the claims of its README.

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
from emulators.tart.bench import eventually, finish
from emulators.tart.engine import settings

HERE = Path(__file__).resolve().parent
IMAGE = "ghcr.io/acme/macos:v1"


def test_version_and_overview(host):
    """`--version` prints nothing but the version; `tart` alone prints its commands and exits 0."""
    assert host.ok("--version") == "2.32.1\n"
    assert "clone" in host.ok()
    host.set(version="2.26.0")
    assert host.ok("--version") == "2.26.0\n"


def test_static_executables_work_from_path(host):
    """The executables in bin/ need only their folder on PATH, FAKE_TART_HOME, and any python3."""
    env = {**host.env(), "PATH": f"{HERE / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(["tart", "list", "-q"], env=env, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "tpl\n"
    done = subprocess.run(["ssh", "nowhere"], env=env, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr.startswith("ssh: Could not resolve hostname nowhere")) == (255, True)
    assert sorted(entry.name for entry in (HERE / "bin").iterdir()) == ["ssh", "tart"]


@pytest.mark.parametrize(
    "args",
    [
        ["frobnicate"],
        ["--frobnicate"],
        ["list", "--frobnicate"],
        ["list", "tpl"],
        ["list", "--source", "cloud"],
        ["list", "--format", "yaml"],
        ["get"],
        ["clone", "tpl"],
        ["clone", "tpl", "a", "b"],
        ["clone", "tpl", "not/local"],
        ["clone", "--concurrency", "0", "tpl", "a"],
        ["pull"],
        ["run"],
        ["run", "tpl", "--net-softnet", "--net-bridged", "en0"],
        ["run", "tpl", "--net-softnet-allow=0.0.0.0/0", "--net-host"],
        ["run", "tpl", "--vnc", "--vnc-experimental"],
        ["run", "tpl", "--dir", "/no/such/folder"],
        ["run", "tpl", "--dir", "/usr", "--dir", "/var"],
        ["run", "tpl", "--suspendable", "--dir", "/usr"],
        ["exec", "tpl"],
        ["exec", "-x", "tpl", "true"],
        ["ip", "tpl", "--wait", "soon"],
        ["ip", "tpl", "--resolver", "dns"],
        ["stop", "tpl", "--timeout", "-1"],
        ["set", "tpl", "--cpu", "many"],
        ["rename", "tpl", "a/b"],
        ["rename", "nobody", "b"],
        ["rename", "tpl", "tpl"],
        ["delete"],
        ["prune"],
        ["prune", "--entries", "all", "--older-than", "1"],
        ["login", "ghcr.io", "--username", "me"],
        ["push", "tpl", IMAGE],
        ["export", "tpl"],
        ["import", "file", "tpl"],
    ],
)
def test_unknown_things_on_the_command_line_are_refused(host, args):
    """An unknown command or option, a value out of range and exclusive options: 64, `Error: ...` on stderr, no effect."""
    status, text = host.error(*args)
    assert status == 64
    assert text.startswith("Error: ")
    assert "\nUsage: tart" in text
    assert [vm["name"] for vm in host.vms()] == ["tpl"]


def test_errors_have_tarts_words_and_statuses(host):
    """2 for a VM that does not exist or does not run, 1 for one that lacks files; printed bare, on stderr."""
    gone = (2, 'the specified VM "x" does not exist')
    for args in (
        ["get", "x"],
        ["clone", "x", "y"],
        ["run", "x"],
        ["stop", "x"],
        ["suspend", "x"],
        ["ip", "x"],
        ["set", "x"],
    ):
        assert host.error(*args) == gone
    assert host.error("exec", "x", "true") == gone
    assert host.error("delete", "x") == gone
    assert host.error("get", "a/b")[0] == 2
    for args in (["stop", "tpl"], ["suspend", "tpl"], ["exec", "tpl", "true"]):
        assert host.error(*args) == (2, 'VM "tpl" is not running')
    (host.home / "tart" / "vms" / "tpl" / "nvram.bin").unlink()
    assert host.error("get", "tpl") == (1, "VM is missing some of its files (config.json, disk.img or nvram.bin)")
    assert host.listed() == {}


def test_list_formats(host):
    """JSON as Swift prints it, a text table without `Running`, names alone with -q; local first, images twice."""
    host.add_image(IMAGE)
    text = host.ok("list", "--format", "json")
    assert '"Name" : "ghcr.io\\/acme\\/macos:v1"' in text
    rows = json.loads(text)
    assert [(row["Source"], row["Name"].split("@")[0]) for row in rows] == [
        ("local", "tpl"),
        ("OCI", IMAGE),
        ("OCI", "ghcr.io/acme/macos"),
    ]
    tpl = rows[0]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", tpl.pop("Accessed"))
    assert tpl == {"Source": "local", "Name": "tpl", "Disk": 50, "Size": 25, "Running": False, "State": "stopped"}
    assert host.ok("list", "--source", "local", "-q") == "tpl\n"
    names = host.ok("list", "--source=oci", "--quiet").splitlines()
    assert names[0] == IMAGE
    assert re.fullmatch("ghcr.io/acme/macos@sha256:[0-9a-f]{64}", names[1])
    head, *lines = host.ok("list").splitlines()
    assert head.split() == ["Source", "Name", "Disk", "Size", "Accessed", "State"]
    assert lines[0].split()[-1] == "stopped"


def test_empty_list(host):
    """An empty listing is an empty JSON array over three lines, or no text."""
    host.ok("delete", "tpl")
    assert host.ok("list", "--format", "json") == "[\n\n]\n"
    assert host.ok("list", "-q") == ""
    assert host.ok("list") == "\n"


def test_get_and_set(host):
    """`get` shows the hardware, `set` changes it; a disk never shrinks, and fewer cores than the minimum are refused."""
    host.ok("set", "tpl", "--cpu", "6", "--memory", "12288", "--disk-size", "80", "--display", "1200x800")
    assert json.loads(host.ok("get", "tpl", "--format", "json")) == {
        "OS": "darwin",
        "CPU": 6,
        "Memory": 12288,
        "Disk": 80,
        "DiskFormat": "raw",
        "Size": "25.000",
        "Display": "1200x800",
        "Running": False,
        "State": "stopped",
    }
    assert "1200x800" in host.ok("get", "tpl")
    mac = host.vm("tpl")["mac"]
    host.ok("set", "tpl", "--random-mac", "--random-serial")
    assert host.vm("tpl")["mac"] != mac
    assert host.error("set", "tpl", "--disk-size", "79")[0] == 1
    assert "should be larger than the current disk size of" in host.error("set", "tpl", "--disk-size", "79")[1]
    assert host.error("set", "tpl", "--cpu", "1")[0] == 1


def test_fqn_and_rename(host):
    """`fqn` names a pulled image by its digest; `rename` keeps the VM and its guest."""
    host.add_image(IMAGE)
    assert re.fullmatch("ghcr.io/acme/macos@sha256:[0-9a-f]{64}\n", host.ok("fqn", IMAGE))
    uuid = host.vm("tpl")["uuid"]
    host.ok("rename", "tpl", "other")
    assert [(vm["name"], vm["uuid"]) for vm in host.vms()] == [("other", uuid)]


def test_prune(host):
    """`prune` removes images or VMs that were used long ago or exceed a budget."""
    host.add_image(IMAGE)
    host.ok("prune", "--older-than", "1")
    assert len(host.images()) == 2
    host.ok("prune", "--space-budget", "30")
    assert len(host.images()) == 2
    host.ok("prune", "--space-budget", "20")
    assert host.images() == []
    host.ok("prune", "--entries", "vms", "--older-than", "0")
    assert host.vms() == []


def test_login(host):
    """`login` reads a password from standard input and tries it."""
    host.set(registry_user=["me", "secret"])
    host.ok("login", "ghcr.io", "--username", "me", "--password-stdin", stdin=b"secret\n")
    assert host.error("login", "ghcr.io", "--username", "me", "--password-stdin", stdin=b"no")[0] == 1


def test_old_versions_lack_what_came_later(host):
    """Before 2.27 `exec` is an unknown argument, before 2.28 the resolver `agent`, before 2.31 `Accessed`."""
    host.set(version="2.26.3")
    status, text = host.error("exec", "tpl", "true")
    assert (status, text.splitlines()[0]) == (64, "Error: Unexpected argument 'exec'")
    assert host.error("ip", "tpl", "--resolver", "agent")[0] == 64
    assert "Accessed" not in host.listed()["tpl"]


def test_tart_home(host, directory):
    """TART_HOME names another folder for Tart, which is created."""
    elsewhere = str(directory / "elsewhere")
    assert host.ok("list", "-q", TART_HOME=elsewhere) == ""
    assert host.error("get", "tpl", TART_HOME=elsewhere)[0] == 2


def test_options_after_names_and_the_terminator(host):
    """Options may follow names; after `--` there are only names."""
    host.ok("clone", "tpl", "one", "--insecure")
    host.ok("clone", "--", "tpl", "--two")
    host.ok("delete", "--", "--two", "one")
    assert [vm["name"] for vm in host.vms()] == ["tpl"]


def test_noise_stays_on_stderr(host):
    """The noise switch writes to stderr and leaves stdout alone."""
    host.set(stderr_noise="objc[123]: class duplicated")
    done = host.tart("list", "-q")
    assert (done.stdout, done.stderr) == (b"tpl\n", b"objc[123]: class duplicated\n")


def test_calls_and_events_are_recorded(host):
    """Each invocation's argv, times and status, and each life-cycle event with the number of running VMs, are recorded."""
    host.ok("clone", "tpl", "one")
    run = host.run_vm("one")
    host.ok("stop", "one")
    run.wait()
    host.ok("delete", "one")
    host.error("get", "one")
    calls = host.calls()
    assert [(call["argv"][0], call["status"]) for call in calls] == [
        ("clone", 0),
        ("run", 0),
        ("stop", 0),
        ("delete", 0),
        ("get", 2),
    ]
    assert all(call["start"] <= call["end"] for call in calls)
    assert [(event["event"], event["running"], event["name"]) for event in host.events()] == [
        ("template-added", 0, "tpl"),
        ("cloned", 0, "one"),
        ("started", 1, "one"),
        ("stopped", 0, "one"),
        ("deleted", 0, "one"),
    ]
    assert host.max_running() == 1


def test_shutdown_all_ends_vms_commands_and_guests(host):
    """shutdown_all ends `tart run`, hanging commands, guests and their agents; afterwards the VMs are stopped."""
    host.run_vms("one")
    host.tart("exec", "one", "bash", "-c", "sleep 600 & setsid sleep 600 &")
    host.fault("list", hang=True)
    hung = host.begin("list")
    eventually(lambda: host.events("fault"))
    host.shutdown_all()
    assert finish(hung)[0] == -signal.SIGKILL
    assert host.guest_processes() == host.command_pids() == host.running() == host.slots() == []
    assert host.vm("one")["status"] == "stopped"
    assert [event["event"] for event in host.events()][-1] == "stopped"


def test_settings_are_checked(host):
    """A value outside a switch's choices is refused."""
    with pytest.raises(ValueError, match="registry"):
        host.set(registry="somewhere")


def test_readme_explains_every_switch():
    """The README's table has each switch with its default, and no other."""
    rows = re.findall(r"^\| `([a-z_]+)` \| `(.*?)` \|", (HERE / "README.md").read_text(), re.MULTILINE)
    assert {name: json.loads(default) for name, default in rows} == settings.DEFAULTS


def test_emulator_imports_nothing_of_the_program():
    """The emulator's own code imports only the standard library, itself and the emulators' shared code."""
    for source in [*HERE.glob("*.py"), *HERE.glob("engine/*.py"), *HERE.glob("bin/*")]:
        if not source.name.startswith("test_"):
            found = re.findall(r"^\s*(?:from|import) +(anklet|msgspec|psutil|yaml)", source.read_text(), re.MULTILINE)
            assert found == [], source
