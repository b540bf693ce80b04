"""Two drivers on one host: one listing, and each VM's own driver for what is asked of it."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anklet_supervisor.machine import allocator
from anklet_worker.contract.errors import CliUnavailable, VMTransient
from anklet_worker.vm.driver import VMInfo, VMState
from anklet_worker.vm.side_by_side import SideBySide


class Driver:
    """Remembers what it was asked; `trouble` is raised by its listing."""

    def __init__(self, name, **vms):
        self.name = name
        self.vms = {vm.replace("_", "-"): VMState(state) for vm, state in vms.items()}
        self.asked = []
        self.trouble = None

    def probe(self):
        return f"probe of {self.name}"

    def spec_from_labels(self, labels):
        return f"spec of {self.name}"

    def image(self, spec, on_pull):
        return f"image of {self.name}"

    def listing(self):
        if self.trouble is not None:
            raise self.trouble
        return [VMInfo(name=name, uuid="", state=state) for name, state in self.vms.items()]

    def clone(self, source, vm):
        self.asked.append(("clone", vm))
        self.vms[vm] = VMState.STOPPED

    def start(self, vm):
        self.asked.append(("start", vm))

    def run(self, vm, script, timeout, *, looks_only=False):
        self.asked.append(("run", vm))
        return f"ran by {self.name}"

    def copy_in(self, vm, source):
        self.asked.append(("copy_in", vm))

    def copy_out(self, vm, path, target):
        self.asked.append(("copy_out", vm))

    def delete(self, vm):
        self.asked.append(("delete", vm))
        self.vms.pop(vm, None)


class Host:
    """A service's driver `a`, and another service's driver `b`."""

    def __init__(self, a=None, b=None):
        self.a = Driver("a", **(a or {}))
        self.b = Driver("b", **(b or {}))
        self.said = []
        log = logging.Logger("side")  # noqa: LOG001  not shared with anyone
        log.addHandler(self)
        self.level = logging.DEBUG
        self.driver = SideBySide(self.a, [self.b], log)

    def handle(self, record):
        self.said.append((record.levelname, record.getMessage()))


@pytest.fixture
def host():
    """A VM on each side."""
    return Host({"vm_a": "running"}, {"vm_b": "running", "off": "stopped"})


def test_what_a_service_makes_is_its_own_drivers(host):
    """Probe, labels, images and clones are no matter of the other driver's."""
    driver = host.driver
    assert driver.name == "a"
    assert driver.probe() == "probe of a"
    assert driver.spec_from_labels([]) == "spec of a"
    assert driver.image(None, None) == "image of a"
    driver.clone("source", "new")
    driver.start("new")
    driver.delete("new")
    assert host.a.asked == [("clone", "new"), ("start", "new"), ("delete", "new")]
    assert host.b.asked == []


def test_the_listing_is_of_both(host):
    """Nothing that runs is overlooked."""
    assert {row.name: row.state.value for row in host.driver.listing()} == {
        "vm-a": "running",
        "vm-b": "running",
        "off": "stopped",
    }


def test_a_vm_is_its_drivers(host):
    """What a former configuration left with the other driver is followed there, and deleted there."""
    driver = host.driver
    assert driver.run("vm-b", "x", 1.0) == "ran by b"
    driver.copy_in("vm-b", None)
    driver.copy_out("vm-b", "p", None)
    driver.start("vm-b")
    driver.delete("vm-b")
    assert [what for what, _ in host.b.asked] == ["run", "copy_in", "copy_out", "start", "delete"]
    assert driver.run("vm-a", "x", 1.0) == "ran by a"
    assert host.b.vms.keys() == {"off"}


def test_a_vm_that_nobody_has_is_its_own_drivers_to_miss(host):
    """Each driver has its own words for that."""
    host.driver.delete("nowhere")
    assert host.a.asked == [("delete", "nowhere")]


@pytest.mark.parametrize("trouble", [VMTransient("hangs"), CliUnavailable("b is not on PATH")])
def test_another_driver_in_trouble_holds_nobody_up(host, trouble):
    """Its VMs are not seen, which is told once for each outage; the service's own work goes on."""
    host.b.trouble = trouble
    for _ in range(2):
        assert [row.name for row in host.driver.listing()] == ["vm-a"]
    host.driver.clone("source", "new")
    host.driver.delete("new")
    assert len(host.said) == 1
    host.b.trouble = None
    assert len(host.driver.listing()) == 3
    host.b.trouble = trouble
    host.driver.listing()
    assert len(host.said) == 2


def test_a_vm_of_unknown_place_is_not_taken_for_gone(host):
    """While the other driver cannot tell whether it has the VM, nobody says that it is deleted."""
    host.b.trouble = VMTransient("hangs")
    with pytest.raises(VMTransient, match="cannot find the driver of vm-b: b cannot list"):
        host.driver.delete("vm-b")
    assert host.a.asked == []
    host.b.trouble = None
    host.driver.delete("vm-b")
    assert host.b.asked == [("delete", "vm-b")]


def test_a_driver_whose_tool_is_gone_has_no_vm(host):
    """A service that moved to another driver, on a host where the former tool was removed, is not held up for ever."""
    host.b.trouble = CliUnavailable("b is not on PATH")
    host.driver.delete("vm-b")
    assert host.a.asked == [("delete", "vm-b")]


def test_trouble_of_ones_own_is_trouble(host):
    """The service cannot work then."""
    host.a.trouble = VMTransient("hangs")
    with pytest.raises(VMTransient):
        host.driver.listing()


STATES = st.sampled_from(["running", "stopped"])


@given(
    ours=st.lists(st.tuples(st.sampled_from("ab"), STATES), max_size=2),
    foreign_a=st.integers(0, 2),
    foreign_b=st.integers(0, 2),
    hidden=st.integers(0, 2),
    counts_processes=st.booleans(),
    lister=st.sampled_from("ab"),
)
def test_each_running_vm_counts_once(ours, foreign_a, foreign_b, hidden, counts_processes, lister):
    """Whichever service lists: a VM with a slot is never foreign, whoever runs it, and a foreign one counts once."""
    drivers = {"a": Driver("a"), "b": Driver("b")}
    records = []
    for number, (side, state) in enumerate(ours):
        drivers[side].vms[f"ours-{number}"] = VMState(state)
        records.append((f"service-{side}", f"ours-{number}"))
    for side, count in (("a", foreign_a), ("b", foreign_b)):
        drivers[side].vms.update({f"foreign-{side}-{n}": VMState.RUNNING for n in range(count)})
    own, other = drivers[lister], drivers["b" if lister == "a" else "a"]
    seen = [row.name for row in SideBySide(own, [other], None).listing() if row.state is VMState.RUNNING]
    processes = len(seen) + hidden if counts_processes else 0
    allocation = allocator.running_vms(allocator.build(2, 7, records, 1.0), seen, processes)
    expected = foreign_a + foreign_b + (hidden if counts_processes else 0)
    assert allocation.table.foreign == expected
    assert allocation.table.available == max(0, 2 - len(ours) - expected)
