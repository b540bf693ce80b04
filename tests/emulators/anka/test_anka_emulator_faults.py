"""The emulated anka: the registry, pulls and their corruption, and injected faults.

Owns the proof that the emulator fails exactly as requested.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time

import pytest
from emulators.anka.bench import eventually, finish
from emulators.anka.engine import settings


def test_registry_list_and_show(host):
    """The registry lists templates with their latest tag and shows them; unknown ones are code 3."""
    uuid = host.add_registry_template("14.6", tags=["a", "b"])
    assert host.ok("registry", "list") == [{"uuid": uuid, "name": "14.6", "latest": "b"}]
    assert host.ok("registry", "--remote", "http://r:8089", "list") == host.ok("registry", "-a", "http://r", "list")
    assert host.ok("registry", "show", uuid, "-t", "a")["version"] == "a"
    assert host.error("registry", "show", "x") == (3, "x: not found")
    assert len(host.ok("registry", "--list")) == len(host.ok("registry", "list-repos")) == 1


def test_pull_prints_progress_then_the_result(host, directory):
    """A pull prints several JSON lines; the last is the result, with or without a newline. The template is then local."""
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
    """--check-download-size reports sizes and changes nothing; for a local tag it reports `available locally`."""
    host.add_registry_template("14.6", tags=["a", "b"], size=1000)
    free = settings.DEFAULTS["disk_available"]
    assert host.ok("pull", "14.6", "--check-download-size") == {"size": 1000, "cached": 0, "available": free}
    assert [vm["name"] for vm in host.vms()] == ["tpl"]
    host.ok("pull", "-t", "a", "14.6")
    assert host.ok("pull", "14.6", "--check-download-size")["cached"] == 900
    done = host.anka("-j", "pull", "14.6", "--check-download-size", "--tag", "a", "http://r")
    assert json.loads(done.stdout) == {"status": "OK", "code": 0, "body": {}, "message": "14.6: available locally"}


def test_pull_failures(host):
    """An unknown template or tag is code 3; a registry that does not answer and a full disk are other errors."""
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
    """With pull_failback, a local copy answers for a registry that is down."""
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
    """Start a slow pull and wait until it is in flight."""
    host.set(delays={"pull": 60})
    process = host.begin("-j", "pull", "14.6")
    eventually(lambda: list((host.home / "ops").iterdir()))
    host.set(delays={})
    return process


def test_two_pulls_at_once_spoil_the_template(host):
    """A second pull of the same template fails, and so does the first; the events record both."""
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
    """A clone while its template is pulled fails; later clones of that template do not start until a new pull of it."""
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
    """Concurrent pulls of different templates work; the events record them for a checker of "one pull per host"."""
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
    """A killed pull leaves nothing, a template that does not start, or one that blocks the next pull, as the switch says."""
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
    """The develop licence allows one VM, and neither registry nor suspend."""
    host.set(license_type="com.veertu.anka.develop")
    host.run_vms("one")
    host.ok("clone", "tpl", "two")
    assert "maximum number" in host.error("start", "two")[1]
    assert "license" in host.error("registry", "list")[1]
    assert "license" in host.error("suspend", "one")[1]


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
    """Garbage, empty output, and text on stderr beside a correct reply."""
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
    """A fault hits only the command and the arguments that it names, or with `*` any command, until it is cleared."""
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
    """With kill_at="after", the effect is complete but the reply is lost."""
    host.fault("clone", kill_at="after")
    done = host.anka("-j", "clone", "tpl", "one")
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"")
    assert host.vm("one")["status"] == "stopped"


@pytest.mark.parametrize("when", ["before", "after"])
def test_delays(host, when):
    """With a delay fault or the delay setting, a command takes that long and succeeds."""
    host.fault("list", delay=0.3, when=when)
    begin = time.monotonic()
    host.ok("list")
    assert time.monotonic() - begin >= 0.3
    host.set(delays={"clone": 0.3})
    begin = time.monotonic()
    host.ok("clone", "tpl", "one")
    assert time.monotonic() - begin >= 0.3


def test_run_faults(host):
    """A run can be lost before its command starts (125), or be killed while the command runs."""
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
