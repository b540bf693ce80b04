"""The VM driver in memory: what the contract tests do not cover."""

import pytest

from anklet_worker.contract.errors import PullBusy, VMError, VMLimitReached, VMTransient
from anklet_worker.contract.guest import GuestResult
from anklet_worker.contract.job import VMSpec
from anklet_worker.vm.memory import MemoryDriver, MemoryHost

VM = "anklet-vm-00000001-000001-7-1"


@pytest.fixture
def host():
    """A host without homes, with the template `macos`."""
    made = MemoryHost()
    made.add("macos", tag="v1")
    return made


def started(driver, name=VM):
    """A running VM."""
    driver.clone("macos", name)
    driver.start(name)


def test_missing_tag_is_pulled_from_the_registry(host):
    """The pull is announced, and replaces the local tag."""
    host.registry.add(("macos", "v2"))
    pulls = []
    for _ in range(2):
        with MemoryDriver(host).image(VMSpec(template="macos", tag="v2"), lambda: pulls.append(1)):
            pass
    assert (pulls, host.vms["macos"].tag) == ([1], "v2")


def test_two_pulls_never_run_at_once(host):
    """A driver says when its host pulls, and refuses a second pull meanwhile."""
    host.registry |= {("macos", "v2"), ("macos", "v3")}
    driver, seen = MemoryDriver(host), []

    def during_the_pull():
        seen.append(driver.pulling())
        with pytest.raises(PullBusy), driver.image(VMSpec(template="macos", tag="v3"), lambda: None):
            pass

    with driver.image(VMSpec(template="macos", tag="v2"), during_the_pull):
        assert not driver.pulling()
    assert seen == [True]


def test_hook_sees_each_step_and_injects_faults(host):
    """A fault before a step leaves everything unchanged; one after it leaves the effect."""
    steps = []

    def hook(step, vm):
        steps.append((step, vm))
        if step == "started":
            raise VMTransient("the guest is lost")

    driver = MemoryDriver(host, hook=hook)
    with pytest.raises(VMTransient):
        started(driver)
    assert steps == [("clone", VM), ("cloned", VM), ("start", VM), ("started", VM)]
    assert host.running() == [VM]


def test_callable_answers_guest_scripts(host):
    """The callable gets the VM, the script and its time limit."""
    driver = MemoryDriver(
        host, lambda vm, script, timeout: GuestResult(status=3, output=f"{vm.name} {script} {timeout}")
    )
    started(driver)
    assert driver.run(VM, "true", 5.0) == GuestResult(status=3, output=f"{VM} true 5.0")


def test_limit_of_the_host_holds_for_all_its_drivers(host):
    """Two drivers of one host share its VMs."""
    started(MemoryDriver(host), f"{VM}1")
    started(MemoryDriver(host), f"{VM}2")
    with pytest.raises(VMLimitReached):
        started(MemoryDriver(host), f"{VM}3")


def test_host_without_a_folder_copies_nothing(host, tmp_path):
    """The error says what is missing."""
    driver = MemoryDriver(host)
    started(driver)
    with pytest.raises(VMError, match="without a folder"):
        driver.copy_out(VM, "log", tmp_path / "log")
