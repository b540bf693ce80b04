"""The parts of the contract that only the tart driver has: probe, labels, images, their registry, `tart run`, agents and ssh."""

import os
import signal
import stat
import threading
import time

import psutil
import pytest
from driver_rigs import TartRig, executable
from emulators.vmhost.bench import eventually

from anklet_worker.contract.errors import (
    CliUnavailable,
    Detached,
    FileUnusable,
    Interrupted,
    PullBusy,
    RightsRefused,
    TemporaryError,
    ToolRefused,
    VMLimitReached,
    VMNameExists,
    VMNotFound,
    VMTransient,
)
from anklet_worker.contract.job import VMSpec
from anklet_worker.contract.service import Deadlines, Tart
from anklet_worker.process.orders import Orders
from anklet_worker.vm.driver import VMState
from anklet_worker.vm.tart.runs import Access

REMOTE = "ghcr.io/acme/macos:15"
LOCAL = VMSpec(template="macos")


@pytest.fixture
def new_rig(tmp_path):
    """Makes a rig; none of its processes outlives the test."""
    made = []

    def make(**more):
        made.append(TartRig(tmp_path, **more))
        return made[-1]

    yield make
    for rig in made:
        rig.close()


@pytest.fixture
def rig(new_rig):
    """An emulated host with the local image `macos`, whose guests have an agent, and a driver on it."""
    return new_rig()


@pytest.fixture
def driver(rig):
    """A driver as a worker has it."""
    return rig.driver()


@pytest.fixture
def by_ssh(new_rig, monkeypatch):
    """A host whose image has sshd and no agent; the wait for an agent is short."""
    rig = new_rig(agent=False, sshd=True)
    rig.shorten(monkeypatch, "_AGENT_GRACE", 0.1)
    return rig


def ensure(driver, name, pulls=None):
    """Lock an image briefly; return its id."""
    with driver.image(VMSpec(template=name), lambda: None if pulls is None else pulls.append(1)) as source:
        return source


# ---- probe ----


@pytest.mark.parametrize("version", ["2.27.0", "2.32.1"])
def test_probe_tells_the_version(rig, driver, version):
    """Versions from 2.27 on have `tart exec`."""
    rig.host.set(version=version)
    assert driver.probe().version == version


@pytest.mark.parametrize("version", ["2.26.9", "1.0.0"])
def test_probe_refuses_what_is_too_old(rig, driver, version):
    """The message has the installed version, the oldest accepted one, and how to upgrade."""
    rig.host.set(version=version)
    with pytest.raises(CliUnavailable, match=rf"tart {version} is too old: 2\.27 or newer .* brew upgrade"):
        driver.probe()


def test_probe_needs_tart(rig):
    """Without `tart` on PATH the service cannot run; the message names the PATH."""
    rig.host.environ = lambda **_: {"PATH": "/nowhere"}
    with pytest.raises(CliUnavailable, match=r"tart is not on PATH \(/nowhere\); is it installed"):
        rig.driver().probe()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo dyld: no such library >&2; exit 134", r"exit status 134\): dyld: no such library"),
        ("exit 0", "nothing"),
        ("echo what?", "what[?]"),
    ],
)
def test_probe_refuses_what_it_does_not_understand(rig, tmp_path, script, said):
    """A `tart` that does not start, or answers garbage, makes the service unfit; the message quotes it."""
    env = executable(tmp_path / "odd" / "tart", script)
    rig.host.environ = lambda **_: env
    with pytest.raises(CliUnavailable, match=said):
        rig.driver().probe()


def test_probe_takes_a_build_from_source(rig, tmp_path):
    """A build from source has no version but lists its VMs; a warning says what is needed."""
    env = executable(
        tmp_path / "built" / "tart", f'[ "$1" = --version ] && echo SNAPSHOT && exit; exec {rig.host.bin_dir}/tart "$@"'
    )
    environ = rig.host.environ()
    rig.host.environ = lambda **_: {**environ, **env}
    assert rig.driver().probe().version == "SNAPSHOT"
    assert rig.log.warnings() == [("WARNING", "unknown version of tart; 2.27 or newer is needed", "")]


def test_probe_that_hangs_is_worth_another_start(rig, monkeypatch, tmp_path):
    """A slow probe is a passing failure: the service tries again."""
    rig.shorten(monkeypatch, "_PROBE", 0.5)
    env = executable(tmp_path / "slow" / "tart", "exec sleep 60")
    rig.host.environ = lambda **_: env
    with pytest.raises(TemporaryError, match=r"did not end within 0\.5 s"):
        rig.driver().probe()


# ---- labels ----


@pytest.mark.parametrize(
    ("labels", "image", "expected"),
    [
        (["self-hosted", "tart", "tart-image:macos"], None, "macos"),
        (["Tart", "TART-Image:ghcr.io/Acme/macOS:15"], None, "ghcr.io/Acme/macOS:15"),
        (["tart", "tart-image:one", "tart-image:two"], "three", "one"),
        (["tart"], "three", "three"),
        (["tart"], None, None),
        (["tart", "tart-image:"], "three", ""),
        (["tart-image:macos"], "three", None),
        (["anka", "anka-template:macos"], "three", None),
        ([], "three", None),
    ],
)
def test_labels(rig, labels, image, expected):
    """The image may be the service's own; label and prefix are compared without regard to case; the first match counts."""
    spec = rig.driver(tart=Tart(image=image)).spec_from_labels(labels)
    assert spec == (None if expected is None else VMSpec(template=expected))


# ---- images ----


@pytest.mark.parametrize(
    "name", [".", "..", "../x", "/etc", "a/../b", "ghcr.io/a b", "ghcr.io/-x/y", "ghcr.io/a:", "a/"]
)
def test_impossible_names_reach_no_command(rig, driver, name):
    """Names that Tart's parser refuses, or that lead out of its folder, are refused first."""
    with pytest.raises(VMNotFound, match="is not a possible name of an image"):
        ensure(driver, name)
    assert rig.host.calls() == []


def test_vm_of_a_job_is_no_image(rig, driver):
    """A job cannot look into another job's VM by its name."""
    with pytest.raises(VMNotFound, match="is a job's VM"):
        ensure(driver, rig.vm())


def test_local_image_is_never_pulled(rig):
    """A name without a registry is local under any policy, present or not."""
    driver = rig.driver(tart=Tart(pull="always"))
    assert ensure(driver, "macos") == "macos"
    with pytest.raises(VMNotFound, match=r"image 'nowhere' is not found on this host$"):
        ensure(driver, "nowhere")
    assert rig.argvs("pull") == []


def test_missing_image_is_pulled_once(rig, driver):
    """The pull is announced; the second job finds the image present."""
    rig.host.add_registry_image(REMOTE)
    pulls = []
    assert ensure(driver, REMOTE, pulls) == REMOTE
    assert ensure(driver, REMOTE, pulls) == REMOTE
    assert pulls == [1]
    assert rig.argvs("pull") == [f"pull {REMOTE}"]


def test_name_without_a_tag_is_the_latest(rig, driver):
    """Tart lists such an image with the tag `latest`."""
    rig.host.add_registry_image("ghcr.io/acme/macos:latest")
    for _ in range(2):
        assert ensure(driver, "ghcr.io/acme/macos") == "ghcr.io/acme/macos:latest"
    assert len(rig.argvs("pull")) == 1


def test_policy_always_looks_for_news(rig):
    """Each job gets the registry's newest image; an image named by its digest cannot change."""
    driver = rig.driver(tart=Tart(pull="always"))
    first = rig.host.add_registry_image(REMOTE)
    ensure(driver, REMOTE)
    second = rig.host.add_registry_image(REMOTE)
    ensure(driver, REMOTE)
    assert first != second
    assert f"ghcr.io/acme/macos@{second}" in rig.host.images()
    ensure(driver, f"ghcr.io/acme/macos@{second}")
    assert len(rig.argvs("pull")) == 2


def test_policy_never_pulls_nothing(rig):
    """A missing image is not pulled, and the message says why."""
    rig.host.add_registry_image(REMOTE)
    driver = rig.driver(tart=Tart(pull="never"))
    with pytest.raises(VMNotFound, match=r"tart\.pull is never"):
        ensure(driver, REMOTE)
    rig.host.add_image(REMOTE)
    assert ensure(driver, REMOTE) == REMOTE
    assert rig.argvs("pull") == []


@pytest.mark.parametrize("registry", ["down", "auth"])
def test_registry_in_trouble_leaves_the_local_copy(rig, registry):
    """The local copy is used, with a warning that says why."""
    driver = rig.driver(tart=Tart(pull="always"))
    rig.host.add_image(REMOTE)
    rig.host.set(registry=registry)
    assert ensure(driver, REMOTE) == REMOTE
    [(level, message, err)] = rig.log.warnings()
    assert level == "WARNING"
    assert "using the local copy" in message
    assert "tart pull" in err


def test_registry_that_is_down_is_transient(rig, driver):
    """An image that cannot be pulled now leads to a retry."""
    rig.host.add_registry_image(REMOTE)
    rig.host.set(registry="down")
    with pytest.raises(VMTransient, match="offline"):
        ensure(driver, REMOTE)


def test_registry_that_refuses_is_fatal(rig, driver):
    """Only an operator can help, by logging in."""
    rig.host.add_registry_image(REMOTE)
    rig.host.set(registry="auth")
    with pytest.raises(ToolRefused, match=r"tart pull: .*; log in on this host with `tart login`"):
        ensure(driver, REMOTE)


def test_what_the_registry_does_not_have_is_not_found(driver):
    """An image that the registry lacks is not the same as a registry that fails."""
    with pytest.raises(VMNotFound, match="404"):
        ensure(driver, "ghcr.io/acme/nowhere:1")


def test_pull_that_hangs_is_ended(rig, driver, monkeypatch):
    """A pull has a time limit, after which its locks are free."""
    rig.shorten(monkeypatch, "_PULL", 1.0)
    rig.host.add_registry_image(REMOTE)
    rig.host.fault("pull", when="middle", hang=True)
    with pytest.raises(VMTransient, match="tart pull did not end within 1 s"):
        ensure(driver, REMOTE)
    assert rig.host.command_pids() == []
    assert ensure(driver, REMOTE) == REMOTE


def test_two_services_never_pull_at_once(rig):
    """The second pull is refused, and an image that is being pulled is not cloned."""
    rig.host.add_registry_image(REMOTE)
    rig.host.add_image("ghcr.io/acme/other:1")
    rig.host.set(delays={"pull": 1.0})
    first = threading.Thread(target=lambda: ensure(rig.driver(Orders()), REMOTE))
    first.start()
    rig.wait_for_command("pull")
    for name in (REMOTE, "ghcr.io/acme/third:1"):
        with pytest.raises(PullBusy):
            ensure(rig.driver(Orders()), name)
    assert rig.driver(Orders()).pulling()
    assert ensure(rig.driver(Orders()), "ghcr.io/acme/other:1")
    first.join()
    assert not rig.driver(Orders()).pulling()
    assert ensure(rig.driver(Orders()), REMOTE)


def test_detach_leaves_a_pull_to_its_end_with_its_lock(rig):
    """An upgrade does not restart a pull of hours, and no other pull runs meanwhile."""
    rig.host.add_registry_image(REMOTE)
    rig.host.set(delays={"pull": 1.0})

    def let_go():
        rig.wait_for_command("pull")
        rig.orders.detach()

    thread = threading.Thread(target=let_go)
    thread.start()
    with pytest.raises(Detached):
        ensure(rig.driver(), REMOTE)
    thread.join()
    with pytest.raises(PullBusy):
        ensure(rig.driver(Orders()), REMOTE)
    eventually(lambda: REMOTE in rig.host.images())
    eventually(lambda: not rig.host.command_pids())
    assert ensure(rig.driver(Orders()), REMOTE)
    assert len(rig.argvs("pull")) == 1


def test_image_that_runs_is_not_cloned(rig, driver):
    """A copy of a disk in use would be damaged."""
    rig.host.start_foreign("golden")
    with pytest.raises(VMTransient, match=r"'golden' is running, .* shut it down"):
        ensure(driver, "golden")
    rig.host.stop_foreign("golden")


# ---- clone and start ----


def test_clone_never_replaces(rig, driver):
    """Tart would silently overwrite a VM of that name; here its disk stays as it was."""
    driver.clone("macos", rig.vm())
    before = rig.host.vms()
    with pytest.raises(VMNameExists):
        driver.clone("macos", rig.vm())
    assert rig.host.vms() == before


def test_clone_is_a_machine_of_its_own(rig):
    """A clone has its own MAC address and the service's settings."""
    settings = Tart(cpu=4, memory=8192, display="1920x1080")
    rig.driver(tart=settings).clone("macos", rig.vm())
    assert f"set {rig.vm()} --random-mac --cpu 4 --memory 8192 --display 1920x1080" in rig.argvs("set")
    macs = [vm["mac"] for vm in rig.host.vms()]
    assert len(set(macs)) == 2


def test_clone_logs_the_digest_of_its_image(rig, driver):
    """The digest behind a tag is in the log, beside the VM's name."""
    records = []
    rig.log.emit = records.append
    digest = rig.host.add_registry_image(REMOTE)
    driver.clone(ensure(driver, REMOTE), rig.vm())
    (cloned,) = (record for record in records if record.getMessage() == "VM cloned")
    assert (cloned.vmName, cloned.tartImage, cloned.tartDigest) == (rig.vm(), REMOTE, digest)


def test_failed_clone_leaves_nothing_to_start(rig, driver):
    """A clone that dies halfway leaves no VM; one whose settings fail is deleted by its name."""
    rig.host.fault("clone", kill_at="middle")
    with pytest.raises(VMTransient):
        driver.clone("macos", rig.vm())
    assert rig.vm() not in rig.names()
    rig.host.fault("set", message="Error: The operation couldn't be completed.", code=1)
    with pytest.raises(VMTransient, match="tart set"):
        driver.clone("macos", rig.vm())
    driver.delete(rig.vm())
    assert rig.vm() not in rig.names()


def test_run_has_no_window_and_what_is_configured(rig, tmp_path):
    """The command has no window, and the configured network and folders."""
    (tmp_path / "cache").mkdir()
    settings = Tart(network="softnet", mounts=(f"cache:{tmp_path}/cache:ro", f"all:{tmp_path}"))
    vm = rig.started(rig.driver(tart=settings))
    expected = f"run --no-graphics --net-softnet --dir cache:{tmp_path}/cache:ro --dir all:{tmp_path} {vm}"
    assert rig.argvs("run") == [expected]


def test_run_outlives_the_worker(rig):
    """A detach leaves VM and guest alone, and the next worker's driver reaches both."""
    vm = rig.started(rig.driver())
    rig.orders.detach()
    later = rig.driver(Orders())
    assert {row.name: row.state for row in later.listing()}[vm] is VMState.RUNNING
    assert later.run(vm, "echo still", 20).output == "still"
    later.delete(vm)
    assert rig.host.slots() == []


def test_run_that_dies_is_a_stopped_vm(rig, driver):
    """After a SIGKILL of `tart run` the VM is listed as stopped, a guest command is lost, and the deletion works."""
    vm = rig.started(driver)
    note = driver._runs.of(vm)
    os.kill(note.process.pid, signal.SIGKILL)
    eventually(lambda: {row.name: row.state for row in driver.listing()}[vm] is VMState.STOPPED)
    with pytest.raises(VMTransient, match="is not running"):
        driver.run(vm, "true", 20)
    driver.delete(vm)
    assert rig.host.slots() == []


def test_last_words_of_a_run_are_quoted(rig, driver):
    """When the guest is gone, what `tart run` printed says how."""
    vm = rig.started(driver)
    rig.host.halt(vm, status="failed")
    with pytest.raises(VMTransient, match="tart run: guest has stopped the virtual machine due to error"):
        driver.run(vm, "true", 20)


def test_limit_names_the_other_vms(rig, driver):
    """The error has Tart's words, and nothing of the third VM is left."""
    first = rig.started(driver, 1)
    second = rig.started(driver, 2)
    with pytest.raises(VMLimitReached, match=r"exceeds the system limit \(other running VMs: "):
        rig.started(driver, 3)
    driver.delete(rig.vm(3))
    assert set(rig.host.running()) == {first, second}
    assert rig.names() == {"macos", first, second}


def test_limit_without_other_vms_is_the_same(rig, driver):
    """A place that macOS keeps for a vanished VM has the same error."""
    rig.host.set(limit_always=True)
    with pytest.raises(VMLimitReached):
        rig.started(driver)


def test_locked_keychain_is_diagnosed(rig, driver):
    """No VM starts until a user unlocks the keychain, so the service stops trying."""
    rig.host.set(keychain_locked=True)
    with pytest.raises(RightsRefused, match=r"login keychain is locked.*security unlock-keychain"):
        rig.started(driver)
    driver.delete(rig.vm())
    assert rig.names() == {"macos"}


def test_guest_that_ends_while_it_boots_is_not_waited_for(rig, driver):
    """A failed start is reported at once, with the last words of `tart run`."""
    rig.boots_for(10_000)

    def end():
        eventually(lambda: rig.vm() in rig.host.running())
        rig.host.halt(rig.vm(), status="failed")

    thread = threading.Thread(target=end)
    thread.start()
    with pytest.raises(VMTransient, match="tart run: guest has stopped the virtual machine due to error"):
        rig.started(driver)
    thread.join()


def test_stop_in_the_middle_of_a_start_leaves_nothing(rig, driver):
    """The wait is cut short; the deletion ends the `tart run`."""
    rig.boots_for(10_000)

    def stop():
        rig.wait_for_command("true")
        rig.orders.stop()

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Interrupted):
        rig.started(driver)
    thread.join()
    with rig.orders.shield():
        driver.delete(rig.vm())
    assert rig.host.command_pids() == []
    assert list((rig.folder / "state" / "tart" / "runs").iterdir()) == []


# ---- delete ----


@pytest.mark.parametrize("delay", [0.0, 30.0])
def test_run_that_is_not_seen_yet_is_ended_before_its_files_go(rig, driver, delay, monkeypatch):
    """A `tart run` that was just launched holds no lock yet: no listing shows it running, and `tart stop` finds nothing."""
    rig.shorten(monkeypatch, "_RUN_GRACE", 0.1)
    driver.clone("macos", rig.vm())
    rig.host.fault("run", when="before", delay=delay)
    launched = driver._launch(rig.vm())
    rig.driver(Orders()).delete(rig.vm())
    assert not psutil.pid_exists(launched.process.pid) or launched.status is not None
    assert rig.host.slots() == []
    assert rig.names() == {"macos"}


def test_run_that_was_not_noted_is_found_all_the_same(rig, driver, monkeypatch):
    """The worker died between the launch and the note, so the process is found by the VM's name.

    No other test uses this name.
    """
    vm = rig.vm(os.getpid())
    rig.shorten(monkeypatch, "_RUN_GRACE", 0.1)
    driver.clone("macos", vm)
    rig.host.fault("run", when="before", delay=30.0)
    launched = driver._launch(vm)
    driver._runs._note(vm).unlink()
    rig.wait_for_command("run")
    rig.driver(Orders()).delete(vm)
    eventually(lambda: launched.status is not None)
    assert rig.names() == {"macos"}


def test_stop_that_hangs_does_not_keep_the_vm(rig, driver, monkeypatch):
    """When `tart stop` hangs, the process itself is ended."""
    vm = rig.started(driver)
    rig.shorten(monkeypatch, "_STOP", 0.5)
    rig.shorten(monkeypatch, "_RUN_GRACE", 0.1)
    rig.hang("stop")
    driver.delete(vm)
    assert rig.host.slots() == []
    assert rig.names() == {"macos"}


def test_suspended_vm_is_deleted(rig, driver):
    """A VM that a user suspended by hand is deleted like any other."""
    driver.clone("macos", rig.vm())
    folder = next(path for path in rig.folder.rglob(rig.vm()) if path.is_dir())
    (folder / "state.vzvmsave").write_bytes(b"snapshot")
    driver.delete(rig.vm())
    assert rig.names() == {"macos"}


# ---- by ssh ----


def test_guest_without_an_agent_is_reached_by_ssh(by_ssh):
    """Scripts and files go by ssh, in this worker and in the next."""
    driver = by_ssh.driver()
    vm = by_ssh.started(driver)
    assert driver._runs.of(vm).access is Access.SSH
    later = by_ssh.driver(Orders())
    assert later.run(vm, "echo by ssh; exit 3", 20).status == 3
    assert later.run(vm, "cat; echo $SSH_CONNECTION", 20).output.endswith("22")


def test_agent_is_preferred_to_an_ssh_that_answers_first(new_rig, monkeypatch):
    """The agent starts some seconds after sshd, with the desktop session."""
    rig = new_rig(agent=True, sshd=True)
    rig.shorten(monkeypatch, "_AGENT_GRACE", 60.0)
    rig.boots_for(2)
    driver = rig.driver(deadlines=Deadlines(vm_start=60.0))
    vm = rig.started(driver)
    assert len(rig.argvs("ssh")) == 1
    assert driver._runs.of(vm).access is Access.AGENT


def test_known_image_without_an_agent_is_not_waited_for(by_ssh, monkeypatch):
    """The second VM of that image is in use as soon as ssh answers."""
    by_ssh.shorten(monkeypatch, "_AGENT_GRACE", 1.0)
    driver = by_ssh.driver()
    began = time.monotonic()
    driver.delete(by_ssh.started(driver, 1))
    first = time.monotonic() - began
    by_ssh.shorten(monkeypatch, "_AGENT_GRACE", 600.0)
    by_ssh.started(driver, 2)
    assert first >= 1.0


def test_ssh_keeps_no_host_key_and_forwards_nothing(by_ssh, monkeypatch, tmp_path):
    """The user's ssh configuration is neither read nor changed, and no key or agent is forwarded."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SSH_AUTH_SOCK", "/nowhere")
    by_ssh.started(by_ssh.driver())
    (argv, *_) = by_ssh.argvs("ssh")
    for option in (
        "-F /dev/null",
        "UserKnownHostsFile=/dev/null",
        "GlobalKnownHostsFile=/dev/null",
        "StrictHostKeyChecking=no",
        "PubkeyAuthentication=no",
        "IdentityAgent=none",
        "ForwardAgent=no",
        "ForwardX11=no",
        "ClearAllForwardings=yes",
        "ControlPath=none",
    ):
        assert option in argv
    assert not (tmp_path / "home").exists()


def test_password_comes_from_its_file_and_is_in_no_argv(by_ssh, tmp_path):
    """Only the program that ssh asks reads it; that program and the usual password are private files."""
    by_ssh.host.set(ssh_user="ci", ssh_password="pa ss'\"$(x)")
    path = tmp_path / "password"
    path.write_text("pa ss'\"$(x)\nsecond line\n")
    vm = by_ssh.started(by_ssh.driver(tart=Tart(user="ci", password_file=path)))
    driver = by_ssh.driver(Orders(), tart=Tart(user="ci", password_file=path))
    assert driver.run(vm, "env", 20).output
    assert "pa ss" not in driver.run(vm, "env", 20).output
    assert not [argv for argv in by_ssh.argvs() if "pa ss" in argv]
    askpass = by_ssh.folder / "state" / "tart" / "askpass"
    assert stat.S_IMODE(askpass.stat().st_mode) == 0o700
    assert not (by_ssh.folder / "state" / "tart" / "usual-password").exists()


def test_wrong_password_is_reported(by_ssh):
    """The error after the time-out has ssh's words."""
    by_ssh.host.set(ssh_password="another")
    with pytest.raises(VMTransient, match=r"nor ssh at 192\.168\.64\.\d+ answers .*Permission denied"):
        by_ssh.started(by_ssh.driver(deadlines=Deadlines(vm_start=1.5)))


def test_image_without_agent_and_ssh_is_reported(new_rig):
    """The error names both ways; the address shows that the network is not the cause."""
    rig = new_rig(agent=False, sshd=False)
    with pytest.raises(VMTransient, match=r"neither its guest agent nor ssh at .* answers \(.*Connection refused"):
        rig.started(rig.driver(deadlines=Deadlines(vm_start=1.5)))


def test_guest_without_an_address_is_diagnosed(new_rig):
    """When the 253 leases of a day are used up, the message says what to do."""
    rig = new_rig(agent=False, sshd=True)
    rig.host.set(ip_after_polls=10_000, ip_pause=0.1)
    with pytest.raises(VMTransient, match=r"gave it no address .* DHCPLeaseTimeSecs to 600"):
        rig.started(rig.driver(deadlines=Deadlines(vm_start=1.5)))


def test_host_without_ssh_is_reported(new_rig, tmp_path):
    """Without ssh a guest agent would be enough; the message says what is missing."""
    rig = new_rig(agent=False, sshd=True)
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("tart",):
        (folder / tool).symlink_to(rig.host.bin_dir / tool)
    path = rig.host.environ()
    rig.host.environ = lambda **_: {**path, "PATH": str(folder)}
    with pytest.raises(VMTransient, match="ssh is not on PATH"):
        rig.started(rig.driver(deadlines=Deadlines(vm_start=1.5)))
    rig.driver(Orders()).delete(rig.vm())


@pytest.mark.parametrize("lost", ["closed", "hangs"])
def test_guest_that_is_lost_under_ssh_is_transient_and_betrays_nothing(by_ssh, lost):
    """The connection ends, at the latest when the server stays silent; the error quotes nothing of the script's output."""
    by_ssh.host.set(ssh_lost=lost)
    driver = by_ssh.driver()
    vm = by_ssh.started(driver)

    def lose():
        eventually((by_ssh.host.guest_home(vm) / "begun").exists)
        by_ssh.host.halt(vm)

    thread = threading.Thread(target=lose)
    thread.start()
    with pytest.raises(VMTransient) as caught:
        driver.run(vm, "echo s3cret >&2; touch begun; sleep 300", 30)
    thread.join()
    assert "s3cret" not in str(caught.value)


# ---- scripts and files, both ways ----


@pytest.fixture(params=["agent", "ssh"])
def reached(request, new_rig, monkeypatch):
    """A started VM that is reached by the agent or by ssh: rig, driver, VM."""
    rig = new_rig(agent=request.param == "agent", sshd=request.param == "ssh")
    rig.shorten(monkeypatch, "_AGENT_GRACE", 0.1)
    driver = rig.driver()
    return rig, driver, rig.started(driver)


def test_files_go_in_and_out_unchanged(reached, tmp_path):
    """Any bytes, empty files, several pieces and odd names pass, and the mode is kept."""
    rig, driver, vm = reached
    content = os.urandom(3000) + bytes(range(256)) * 4000
    for name, data in (("odd 'na\"me$(x);.bash", content), ("empty", b"")):
        (tmp_path / name).write_bytes(data)
        (tmp_path / name).chmod(0o751)
        driver.copy_in(vm, tmp_path / name)
        copy = rig.host.guest_home(vm) / name
        assert copy.read_bytes() == data
        assert stat.S_IMODE(copy.stat().st_mode) == 0o751
    (rig.host.guest_home(vm) / "logs").mkdir()
    (rig.host.guest_home(vm) / "logs" / "big.tgz").write_bytes(content)
    (rig.host.guest_home(vm) / "nothing").write_bytes(b"")
    for path, data in (("logs/big.tgz", content), ("nothing", b"")):
        driver.copy_out(vm, path, tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == data
    assert not list(rig.host.guest_home(vm).glob(".anklet*"))


def test_half_a_file_is_not_put_in_place(reached, tmp_path):
    """Input that breaks off leaves the old file in place, and nothing of the new one."""
    rig, driver, vm = reached
    path = tmp_path / "file"
    path.write_text("old")
    driver.copy_in(vm, path)
    for tool in filter(None, (driver._tool, driver._guests._ssh_tool)):
        tool.run = lambda *args, whole=tool.run, stdin=b"", **more: whole(*args, stdin=stdin[:-3], **more)
    path.write_text("new and longer")
    with pytest.raises(VMTransient, match=r"copying file to .* ended with status 1"):
        driver.copy_in(vm, path)
    assert (rig.host.guest_home(vm) / "file").read_text() == "old"
    assert not list(rig.host.guest_home(vm).glob(".anklet*"))


def test_too_large_files_are_refused(rig, driver, monkeypatch, tmp_path):
    """Large files are refused in both directions before they are read."""
    vm = rig.started(driver)
    rig.shorten(monkeypatch, "_LARGEST_COPY", 10)
    (tmp_path / "large").write_bytes(b"x" * 11)
    with pytest.raises(FileUnusable, match="larger than"):
        driver.copy_in(vm, tmp_path / "large")
    (rig.host.guest_home(vm) / "large").write_bytes(b"x" * 11)
    with pytest.raises(FileUnusable, match="larger than"):
        driver.copy_out(vm, "large", tmp_path / "out")


def test_end_is_seen_though_the_last_output_is_lost(rig, driver):
    """The agent may report the end before it has read all output; the script lingers for that."""
    vm = rig.started(driver)
    rig.host.set(exec_tail_lost=1)
    assert driver.run(vm, "echo out; exit 4", 20).status == 4


# ---- reuse of a listing ----


@pytest.mark.parametrize("image", ["macos", REMOTE])
def test_one_listing_before_the_clone(rig, driver, image):
    """From the slot check to the clone: one `tart list`, which shows the image and that the VM's name is free."""
    rig.host.add_image(REMOTE)
    driver.listing()
    driver.clone(ensure(driver, image), rig.vm())
    assert [argv.split()[0] for argv in rig.argvs()][:2] == ["list", "clone"]


def test_image_that_the_listing_shows_running_is_looked_at_again(rig, driver):
    """The image's owner may have shut it down since the listing."""
    rig.host.start_foreign("golden")
    driver.listing()
    rig.host.halt("golden")
    eventually(lambda: "golden" not in rig.host.running())
    assert ensure(driver, "golden") == "golden"
