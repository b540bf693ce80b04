"""The emulated tart: pulls, the registry, and injected faults.

Owns the proof that every injected fault takes effect.
"""

from __future__ import annotations

import signal
import subprocess

import pytest
from emulators.tart.bench import eventually, finish

IMAGE = "ghcr.io/acme/macos:v1"


def pulling(host, image=IMAGE):
    """Start a slow pull and wait until it is in flight."""
    host.set(delays={"pull": 60})
    process = host.begin("pull", image)
    eventually(lambda: list((host.home / "ops").iterdir()))
    host.set(delays={})
    return process


def test_pull_and_clone(host, directory):
    """A pull fills the cache, by tag and by digest; a second pull has nothing to do; clones have the image's home."""
    home = directory / "files"
    home.mkdir()
    (home / "hello").write_text("from the registry")
    digest = host.add_registry_image(IMAGE, home_files=home)
    assert host.ok("pull", IMAGE) == f"pulling {IMAGE}...\npulling manifest...\npulling disk...\n"
    assert host.images() == [IMAGE, f"ghcr.io/acme/macos@{digest}"]
    assert host.ok("pull", IMAGE).splitlines()[2] == f"ghcr.io/acme/macos@{digest} image is already cached and linked!"
    host.ok("clone", IMAGE, "one")
    assert (host.guest_home("one") / "hello").read_text() == "from the registry"
    assert [event["event"] for event in host.events()] == ["template-added", "pulled", "cloned"]


def test_pull_of_a_local_name_and_of_no_name(host):
    """There is nothing to pull for a local VM's name; a name that is neither local nor remote does not parse."""
    assert host.ok("pull", "tpl") == '"tpl" is a local image, nothing to pull here!\n'
    status, text = host.error("pull", "nobody")
    assert (status, text.startswith("failed to parse remote name: ")) == (1, True)
    assert host.error("pull", "ghcr.io/acme/macos@sha256:12")[0] == 1


def test_clone_pulls_only_what_is_not_there(host):
    """A clone of a remote name pulls if the cache lacks it, and does not look for a newer one otherwise."""
    first = host.add_registry_image(IMAGE)
    host.ok("clone", IMAGE, "one")
    second = host.add_registry_image(IMAGE)
    host.ok("clone", IMAGE, "two")
    assert len(host.events("pulled")) == 1
    assert host.ok("fqn", IMAGE).strip().endswith(first)
    host.ok("pull", IMAGE)
    assert host.ok("fqn", IMAGE).strip().endswith(second)
    assert len(host.images()) == 2  # the old one was removed, because no tag points to it


def test_pull_by_digest_stays(host):
    """An image that was pulled by digest survives the removal of its tag."""
    digest = host.add_registry_image(IMAGE)
    name = f"ghcr.io/acme/macos@{digest}"
    host.ok("pull", name)
    host.ok("pull", IMAGE)
    host.ok("delete", IMAGE)
    assert host.images() == [name]
    host.ok("delete", name)
    assert host.images() == []


def test_registry_failures(host):
    """A missing tag or name (404), a failed login, no network: status 1 and Tart's text after `Error: `."""
    host.add_registry_image(IMAGE)
    for name in ("ghcr.io/acme/macos:v2", "ghcr.io/acme/linux"):
        done = host.tart("pull", name)
        assert done.returncode == 1
        assert done.stderr.startswith(b'Error: UnexpectedHTTPStatusCode(when: "pulling manifest", code: 404, details: ')
    host.set(registry="auth")
    assert host.tart("pull", IMAGE).stderr.startswith(b"Error: AuthFailed(why: ")
    host.set(registry="down")
    assert host.tart("clone", IMAGE, "one").stderr.startswith(b"Error: The Internet connection appears to be offline.")
    host.set(registry="up", registry_user=["me", "secret"])
    assert host.tart("pull", IMAGE).returncode == 1
    host.ok("pull", IMAGE, TART_REGISTRY_USERNAME="me", TART_REGISTRY_PASSWORD="secret")
    assert [vm["name"] for vm in host.vms()] == ["tpl"]


def test_two_pulls_wait_for_each_other(host):
    """A second pull from the same registry host waits for the first, says so, and then finds the image."""
    host.add_registry_image(IMAGE)
    host.set(delays={"pull": 0.5})
    first = host.begin("pull", IMAGE)
    eventually(lambda: list((host.home / "ops").iterdir()))
    second = host.begin("pull", IMAGE)
    assert finish(first)[0] == 0
    status, out, _ = finish(second)
    assert status == 0
    assert b"waiting for lock...\n" in out
    assert len(host.events("pulled")) == 1


@pytest.mark.parametrize("choice", ["clean", "corrupt"])
def test_sigkill_in_mid_pull(host, choice):
    """A killed pull leaves only leftovers under tmp/, or an image whose clones do not start, as the switch says."""
    host.add_registry_image(IMAGE)
    host.set(interrupted_pull=choice)
    process = pulling(host)
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    host.ok("list")
    assert len(host.events("pull-interrupted")) == 1
    assert list((host.home / "tart" / "tmp").iterdir()) == []
    if choice == "corrupt":
        assert "already cached" in host.ok("pull", IMAGE)
        host.ok("clone", IMAGE, "one")
        status, text = host.error("run", "one")
        assert (status, text) == (1, "Internal Virtualization error. The virtual machine failed to start.")
        host.ok("delete", IMAGE)
    host.ok("pull", IMAGE)
    host.ok("clone", IMAGE, "two")
    assert host.run_vm("two").poll() is None


def test_disk_full_and_automatic_pruning(host):
    """A pull and a clone make room by removing other images, unless told not to; without enough room a pull fails."""
    old = "ghcr.io/acme/old:v1"
    host.add_image(old)
    host.add_registry_image(IMAGE)
    host.set(disk_available=30 * 10**9)
    done = host.tart("pull", IMAGE, TART_NO_AUTO_PRUNE="")
    assert (done.returncode, b"out of space" in done.stderr) == (1, True)
    assert old in host.images()
    host.ok("pull", IMAGE)
    assert old not in host.images()
    assert [event["event"] for event in host.events()][-2:] == ["pruned", "pulled"]
    host.set(disk_available=10 * 10**9)
    host.ok("clone", "tpl", "one", TART_NO_AUTO_PRUNE="1")
    assert IMAGE in host.images()
    host.ok("clone", "tpl", "two", "--prune-limit", "5")
    assert IMAGE in host.images()
    host.ok("clone", IMAGE, "three")  # the image being cloned stays
    assert IMAGE in host.images()
    host.ok("clone", "tpl", "four")
    assert host.images() == []


def test_error_fault_before_and_after_the_effect(host):
    """An injected error strikes `times` invocations, before the effect or after it."""
    host.fault("clone", times=2, code=2, message="no luck")
    assert host.error("clone", "tpl", "one") == (2, "no luck")
    assert host.error("clone", "tpl", "one") == (2, "no luck")
    host.ok("clone", "tpl", "one")
    host.fault("clone", when="after", message="lost", exit_status=42)
    assert host.error("clone", "tpl", "two") == (42, "lost")
    assert host.vm("two")["status"] == "stopped"
    assert len(host.events("fault")) == 3


def test_output_faults(host):
    """Garbage, empty output, and text on stderr beside a correct reply."""
    host.fault("list", stdout="<html>")
    host.fault("list", stdout="", exit_status=3)
    host.fault("list", stderr="warning: low disk\n")
    assert host.ok("list", "--format", "json") == "<html>"
    assert host.error("list", "--format", "json") == (3, "")
    done = host.tart("list", "-q")
    assert (done.stdout, done.stderr) == (b"tpl\n", b"warning: low disk\n")


def test_interrupted_commands(host):
    """SIGINT ends a command with 1: Tart cancels its work."""
    host.fault("list", hang=True)
    process = host.begin("list")
    eventually(lambda: host.events("fault"))
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 1


def test_run_faults(host):
    """`tart run` may die before it locks, with the lock held, or some time after the start; the VM then ends with it."""
    host.fault("run", message="boom")
    assert host.error("run", "tpl") == (1, "boom")
    host.fault("run", kill_at="middle")
    assert host.tart("run", "tpl").returncode == -signal.SIGKILL
    assert host.vm("tpl")["status"] == "stopped"
    assert host.events("started") == []
    host.fault("run", when="after", delay=0.2, message="Softnet failed: process terminated", exit_status=1)
    assert host.run_vm("tpl").wait(20) == 1
    assert host.said("tpl") == "Softnet failed: process terminated\n"
    eventually(lambda: not host.running())
    assert host.slots() == []
    host.fault("run", kill_at="after")
    assert host.tart("run", "tpl").returncode == -signal.SIGKILL
    eventually(lambda: not host.running())


def test_slow_boot(host):
    """During the delay of `run` the VM shows running, its guest does not answer, and `stop` ends it."""
    host.set(delays={"run": 60})
    run = host.begin("run", "tpl")
    eventually(lambda: host.vm("tpl")["status"] == "running")
    assert host.error("exec", "tpl", "true")[0] == 1
    host.ok("stop", "tpl")
    assert finish(run)[0] == 0


def test_exec_faults(host):
    """An exec can be lost before its command starts, or be killed while the command runs."""
    host.run_vms("one")
    host.fault("exec", message="Error: unavailable (14): connection reset", exit_status=1)
    assert host.error("exec", "one", "touch", "here")[0] == 1
    assert not (host.guest_home("one") / "here").exists()
    host.set(killed_exec_guest="lives")
    host.fault("exec", kill_at="middle")
    assert host.tart("exec", "one", "sleep", "600").returncode == -signal.SIGKILL
    assert len(host.guest_processes("one")) == 1


def test_killed_hypervisor(host):
    """After the VM's own process is killed, `tart run` reports an error, and the next look settles the rest."""
    host.run_vms("one")
    pid = int((host.home / "guests" / host.vm("one")["uuid"] / "hypervisor").read_text())
    host.tart("exec", "one", "bash", "-c", "setsid sleep 600 &")
    subprocess.run(["kill", "-9", str(pid)], check=True)
    assert host.runs["one"].wait(20) == 0
    assert "due to error" in host.said("one")
    assert host.guest_processes() == host.running() == host.slots() == []
    assert host.events("stopped")[0]["reason"] == "hypervisor-killed"
