"""Two drivers on one host: the listing covers both, and each call goes to the driver that has the VM."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anklet_supervisor.machine import allocator
from anklet_worker.contract.errors import CliUnavailable, VMTransient
from anklet_worker.contract.guest import NAME_PREFIX, GuestResult
from anklet_worker.contract.job import VMSpec
from anklet_worker.vm.driver import VMState
from anklet_worker.vm.memory import MemoryDriver, MemoryHost, MemoryVM
from anklet_worker.vm.side_by_side import SideBySide

OURS = NAME_PREFIX
#: Steps that concern one VM.
CALLS = ("clone", "start", "run", "copy_in", "copy_out", "delete")


class Driver(MemoryDriver):
    """The driver in memory. It records its calls, and its listing raises `trouble`."""

    def __init__(self, name, **vms):
        super().__init__(MemoryHost(most_running=99), self.answer, self.watch, name=name)
        for vm, state in vms.items():
            self.host.add(f"{OURS}{vm}", VMState(state))
        self.asked = []
        self.trouble = None

    def watch(self, step, vm):
        if step == "list" and self.trouble is not None:
            raise self.trouble
        if step in CALLS:
            self.asked.append((step, vm.removeprefix(OURS)))

    def answer(self, vm, script, timeout):
        return GuestResult(status=0, output=f"ran by {self.name}")


class Host:
    """A service's driver `a`, and another service's driver `b`."""

    def __init__(self, a=None, b=None):
        self.a = Driver("a", **(a or {}))
        self.b = Driver("b", **(b or {}))
        self.said = []
        log = logging.Logger("side")  # noqa: LOG001  a logger of its own, shared with no other test
        log.addHandler(self)
        self.level = logging.DEBUG
        self.driver = SideBySide(self.a, [self.b], log)

    def handle(self, record):
        self.said.append((record.levelname, record.getMessage()))


@pytest.fixture
def host():
    """One running VM with each driver, and a stopped one with `b`."""
    return Host({"a": "running"}, {"b": "running", "off": "stopped"})


def test_a_service_makes_its_vms_with_its_own_driver(host):
    """Probe, labels, images and clones never reach the other driver."""
    driver = host.driver
    host.a.host.add("image")
    assert driver.name == "a"
    assert driver.probe().product == "a"
    assert driver.spec_from_labels(["a", "a-image:image"]) == VMSpec(template="image")
    assert driver.spec_from_labels(["b", "b-image:image"]) is None
    with driver.image(VMSpec(template="image"), lambda: None) as source:
        driver.clone(source, f"{OURS}new")
    driver.start(f"{OURS}new")
    driver.delete(f"{OURS}new")
    assert host.a.asked == [("clone", "new"), ("start", "new"), ("delete", "new")]
    assert host.b.asked == []


def test_the_listing_covers_both_drivers(host):
    """A running VM of either driver is in the listing."""
    assert {row.name.removeprefix(OURS): row.state.value for row in host.driver.listing()} == {
        "a": "running",
        "b": "running",
        "off": "stopped",
    }


def test_a_call_goes_to_the_driver_that_has_the_vm(tmp_path):
    """A VM that a former configuration left with the other driver is adopted there, and deleted there."""
    host = Host({"a": "running"}, {"off": "stopped"})
    host.b.host.vms[f"{OURS}b"] = MemoryVM(name=f"{OURS}b", uuid="b", state=VMState.STOPPED, home=tmp_path / "home")
    (tmp_path / "home").mkdir()
    (tmp_path / "file").write_text("x")
    driver, vm = host.driver, f"{OURS}b"
    driver.start(vm)
    assert driver.run(vm, "x", 1.0).output == "ran by b"
    driver.copy_in(vm, tmp_path / "file")
    driver.copy_out(vm, "file", tmp_path / "back")
    driver.delete(vm)
    assert [what for what, _ in host.b.asked] == ["start", "run", "copy_in", "copy_out", "delete"]
    assert driver.run(f"{OURS}a", "x", 1.0).output == "ran by a"
    assert host.b.host.vms.keys() == {f"{OURS}off"}


def test_a_missing_vm_goes_to_the_own_driver(host):
    """Each driver reports a missing VM in its own words."""
    host.driver.delete(f"{OURS}nowhere")
    assert host.a.asked == [("delete", "nowhere")]


@pytest.mark.parametrize("trouble", [VMTransient("hangs"), CliUnavailable("b is not on PATH")])
def test_trouble_of_another_driver_does_not_stop_the_service(host, trouble):
    """Its VMs are missing in the listing, which is logged once per outage; the service's own work goes on."""
    host.a.host.add("image")
    host.b.trouble = trouble
    for _ in range(2):
        assert [row.name for row in host.driver.listing()] == [f"{OURS}a", "image"]
    host.driver.clone("image", f"{OURS}new")
    host.driver.delete(f"{OURS}new")
    assert len(host.said) == 1
    host.b.trouble = None
    assert len(host.driver.listing()) == 4
    host.b.trouble = trouble
    host.driver.listing()
    assert len(host.said) == 2


def test_a_vm_that_may_be_elsewhere_is_not_taken_for_gone(host):
    """While the other driver cannot list, a VM that it may have does not count as deleted."""
    host.b.trouble = VMTransient("hangs")
    with pytest.raises(VMTransient, match=f"cannot find the driver of {OURS}b: b cannot list"):
        host.driver.delete(f"{OURS}b")
    assert host.a.asked == []
    host.b.trouble = None
    host.driver.delete(f"{OURS}b")
    assert host.b.asked == [("delete", "b")]


def test_a_driver_whose_tool_is_gone_has_no_vm(host):
    """A service that changed its driver goes on after the former driver's tool was removed."""
    host.b.trouble = CliUnavailable("b is not on PATH")
    host.driver.delete(f"{OURS}b")
    assert host.a.asked == [("delete", "b")]


def test_trouble_of_the_own_driver_is_raised(host):
    """The service cannot work without its own driver."""
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
    """A VM with a slot is never foreign and a foreign one counts once, whichever service lists."""
    drivers = {"a": Driver("a"), "b": Driver("b")}
    records = []
    for number, (side, state) in enumerate(ours):
        drivers[side].host.add(f"ours-{number}", VMState(state))
        records.append((f"service-{side}", f"ours-{number}"))
    for side, count in (("a", foreign_a), ("b", foreign_b)):
        for number in range(count):
            drivers[side].host.add(f"foreign-{side}-{number}", VMState.RUNNING)
    own, other = drivers[lister], drivers["b" if lister == "a" else "a"]
    seen = [row.name for row in SideBySide(own, [other], None).listing() if row.state is VMState.RUNNING]
    processes = len(seen) + hidden if counts_processes else 0
    allocation = allocator.running_vms(allocator.build(2, 7, records, 1.0), seen, processes)
    expected = foreign_a + foreign_b + (hidden if counts_processes else 0)
    assert allocation.table.foreign == expected
    assert allocation.table.available == max(0, 2 - len(ours) - expected)
