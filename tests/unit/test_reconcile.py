"""Reconciling at start and every minute: which records, VMs and slots of an earlier process are kept, and which are removed."""

import subprocess
import time

import msgspec
import psutil
import pytest
from attempt_fakes import JOB, OUTCOME
from test_service_loop import REF, Bench

from anklet_worker.attempt.reconcile import Reconciler
from anklet_worker.attempt.shared_listing import SharedListing
from anklet_worker.contract.errors import RecordsUnreadable, RightsRefused, VMTransient
from anklet_worker.life.attempt_phases import Phase
from anklet_worker.life.holder import Holder
from anklet_worker.life.records import Record, RecordBook
from anklet_worker.life.vm_phases import VMPhase
from anklet_worker.link.messages import OrphanReaped, VMGone
from anklet_worker.link.slots import Slot, SlotState
from anklet_worker.process.command import InFlight
from anklet_worker.store.lazy_store import LazyStore
from anklet_worker.store.lease import LeaseKeeper
from anklet_worker.vm.driver import VMInfo, VMState
from anklet_worker.vm.names import vm_name

MINE = vm_name("00000001", "S", "77", 1)
FORMER = vm_name("00000001", "former", "77", 1)
FOREIGN = vm_name("00000002", "S", "77", 1)


@pytest.fixture
def bench(tmp_path):
    """A worker of S, the only configured service, for which no job waits."""
    bench = Bench(tmp_path)
    bench.plugin.jobs = []
    return bench


#: The phase of an attempt's VM, unless a test sets another one.
VM_PHASES = {
    Phase.CLAIMED: VMPhase.MAKING,
    Phase.DRIVING: VMPhase.READY,
    Phase.STARTED: VMPhase.READY,
    Phase.ENDED: VMPhase.GOING,
}


def record(vm=MINE, phase=Phase.STARTED, **more):
    """A record as an earlier process left it."""
    return msgspec.structs.replace(
        Record(
            service="S",
            host_id="h",
            boot_id="b",
            driver="fake",
            job=JOB,
            attempt=1,
            vm=vm,
            slot=REF,
            vm_phase=VM_PHASES.get(phase, VMPhase.READY),
            phase=phase,
            claimed_at=1.0,
        ),
        **more,
    )


def put(bench, one, service="S"):
    """Write a record to disk."""
    book = RecordBook(bench.setup.state_dir / "services" / service)
    book.save(one)
    return book


def reconcile(bench):
    """Reconcile as if the minute were over for all services of the host."""
    bench.loop._reconciler._shared._path.unlink(missing_ok=True)
    return soon(bench)


def soon(bench):
    """Reconcile as if the minute were over for this service, while another one of the host has just made a listing."""
    bench.loop._reconciler._due = 0.0
    return bench.loop._reconciler.reconcile()


def gone(bench):
    """The VMs that were reported as gone."""
    return [fact.vm for fact in bench.link.told if isinstance(fact, VMGone)]


# ---- records ----


def test_a_job_that_still_runs_is_to_be_followed(bench):
    """Its VM was started in this boot and runs."""
    put(bench, record())
    bench.driver.vms = {MINE: True}
    assert [left.vm for left in bench.loop.reconcile()] == [MINE]
    assert bench.driver.vms == {MINE: True}


@pytest.mark.parametrize("change", [{"boot_id": "earlier"}, {"phase": Phase.CLAIMED, "vm_phase": VMPhase.STARTING}])
def test_what_runs_no_job_goes(bench, change):
    """After a reboot the VM no longer runs its job, whatever the listing says. And a VM without a job is of no use."""
    put(bench, record(**change))
    bench.driver.vms = {MINE: True}
    assert bench.loop.reconcile() == []
    bench.assert_idle()
    assert bench.link.told.count(OrphanReaped()) == 1


def test_a_store_that_refuses_us_leaves_no_vm_behind(bench):
    """The store's password changed while the worker was dead: its VMs are removed even though the service cannot go on."""

    def refuse():
        raise RightsRefused("wrong password")

    log = bench.tools.log
    store = LazyStore(refuse, 60.0, log)
    leases = LeaseKeeper(store, "o", 60.0, log)
    reconciler = Reconciler(bench.setup, msgspec.structs.replace(bench.tools, leases=leases))
    vms = [vm_name("00000001", "S", "77", number) for number in (1, 2)]
    for vm in vms:
        put(bench, record(vm, phase=Phase.CLAIMED, vm_phase=VMPhase.STARTING))
    bench.driver.vms = dict.fromkeys(vms, True)
    assert reconciler.at_start() == []
    bench.assert_idle()
    leases.close()


def test_a_vm_that_cannot_be_removed_is_no_orphan_reaped(bench):
    """The VM stays on record."""
    bench.script.plan("delete", VMTransient("busy"))
    put(bench, record(phase=Phase.CLAIMED, vm_phase=VMPhase.STARTING))
    bench.driver.vms = {MINE: True}
    bench.loop.reconcile()
    assert OrphanReaped() not in bench.link.told
    assert gone(bench) == []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"host_id": "other"}, "leaving a record of another host alone; was the state directory copied?"),
        ({"driver": "other"}, "leaving a record of another VM driver alone, with its VM"),
    ],
)
def test_what_this_worker_cannot_judge_is_left_alone_by_every_pass(bench, change, line):
    """At start, when debts are settled, and every minute; logged once."""
    book = put(bench, record(**change))
    bench.driver.vms = {MINE: True}
    bench.loop.reconcile()
    bench.loop._debts.settle()
    reconcile(bench)
    assert bench.driver.vms == {MINE: True}
    assert len(book.load()[0]) == 1
    assert bench.lines("ERROR") == [line]


def test_a_vm_of_a_newer_record_is_left_alone(bench):
    """It is on record, although this program cannot read it, so VM and slot stay."""
    folder = bench.setup.service_dir / "records"
    (folder / f"{MINE}.json").write_text('{"version":99}')
    bench.driver.vms = {MINE: False}
    bench.slots.table = (Slot(index=0, state=SlotState.ORPHANED, service="S", vm=MINE),)
    for _ in range(2):
        bench.loop.reconcile()
        bench.loop._debts.settle()
    assert bench.driver.vms == {MINE: False}
    assert gone(bench) == []
    assert bench.lines("ERROR") == ["cannot read a record; its VM is found by name"]


@pytest.mark.parametrize(("abandoned", "left"), [(True, {}), (False, {MINE: True})])
def test_the_vm_of_a_damaged_record_lives_while_its_job_runs(bench, abandoned, left):
    """The VM is found by its name, and the origin says whether it runs a job."""
    (bench.setup.service_dir / "records" / f"{MINE}.json").write_text("{")
    bench.script.plan("abandoned", *[lambda: abandoned] * 2)
    bench.driver.vms = {MINE: True}
    bench.loop.reconcile()
    reconcile(bench)
    assert bench.driver.vms == left
    assert len(bench.lines("WARNING")) == (0 if abandoned else 1)


def test_records_that_cannot_be_listed_remove_nothing(bench):
    """Without the records, every VM would seem to have none."""
    bench.driver.vms = {MINE: False}
    (bench.setup.service_dir / "records").rmdir()
    with pytest.raises(RecordsUnreadable):
        bench.loop.reconcile()
    assert bench.driver.vms == {MINE: False}


# ---- VMs and slots ----


def test_strays_are_found_while_the_worker_lives(bench):
    """VMs of this service and of former services without a record are removed, others' never."""
    bench.loop.reconcile()
    bench.driver.vms = {MINE: False, FORMER: False, FOREIGN: False, "somebody": True}
    reconcile(bench)
    assert bench.driver.vms == {FOREIGN: False, "somebody": True}
    assert sorted(gone(bench)) == sorted([MINE, FORMER])


def test_a_slot_without_a_vm_is_freed(bench):
    """Even while the worker waits for a slot. Not if the VM exists or is on record: a clone in flight is in no listing."""
    put(bench, record(vm=FORMER), "former").save(record(vm=FORMER, host_id="other"))
    bench.slots.table = (
        Slot(index=0, state=SlotState.ORPHANED, service="S", vm=MINE),
        Slot(index=1, state=SlotState.OCCUPIED, service="former", vm=FORMER),
        Slot(index=2, state=SlotState.OCCUPIED, service="another", vm="x"),
    )
    bench.loop._reconciler._due = 0.0
    bench.loop._slots.clean_up()
    assert sorted(gone(bench)) == sorted([MINE, "x"])


def test_what_fills_the_slots_is_retried_while_the_worker_waits_for_one(bench):
    """A VM that could not be deleted may hold the slot that the worker waits for."""
    put(bench, record(phase=Phase.ENDED))
    bench.driver.vms = {MINE: True}
    bench.loop._slots.clean_up()
    bench.assert_idle()


def test_one_listing_a_minute_serves_all_services(tmp_path):
    """The first service makes the listing; the others read it, and make their own only if it shows work to do."""
    first, second = Bench(tmp_path), Bench(tmp_path)
    for number in (1, 2):
        reconcile(first)
        soon(second)
        assert (first.script.trace.count("list"), second.script.trace.count("list")) == (number, 0)
    second.driver.vms = first.driver.vms = {MINE: False}
    reconcile(first)
    assert first.driver.vms == {}
    seen = [VMInfo(name=MINE, uuid="u", state=VMState.STOPPED)]
    first.loop._reconciler._shared.share(seen, time.monotonic())
    soon(second)
    assert second.script.trace.count("list") == 1


def test_an_old_listing_is_none(tmp_path):
    """A listing counts for a minute. One from before a reboot, when the clock started again, or a damaged one does not count."""
    shared = SharedListing(tmp_path / "vms.json")
    assert shared.latest(0.0) is None
    shared.share([], 100.0)
    assert [shared.latest(now) for now in (99.0, 100.0, 159.0, 160.0)] == [None, [], [], None]
    (tmp_path / "vms.json").write_text("{")
    assert shared.latest(100.0) is None


def test_an_idle_minute_asks_nobody_but_the_driver_once(bench):
    """One listing, no call to the origin, no deletion."""
    bench.loop.reconcile()
    bench.script.trace.clear()
    reconcile(bench)
    assert bench.script.trace == ["list"]
    assert bench.loop._reconciler.reconcile() == []
    assert bench.script.trace == ["list"]


# ---- former services ----


def of_former(bench, **change):
    """A record of a former service with the same origin."""
    return record(vm=FORMER, service="former", origin=bench.setup.service.origin, facts={"runner": FORMER}, **change)


@pytest.mark.parametrize("phase", [Phase.CLAIMED, Phase.DRIVING, Phase.STARTED])
def test_a_former_services_vm_goes_when_its_runner_has_no_job(bench, phase):
    """Its runner, record and slot go too: a service of the same origin can ask there and settle."""
    book = put(bench, of_former(bench, phase=phase), "former")
    bench.driver.vms, bench.plugin.registered = {FORMER: True}, {FORMER}
    bench.loop.reconcile()
    assert (bench.driver.vms, bench.plugin.registered) == ({}, set())
    assert book.load() == ([], [])
    assert FORMER in gone(bench)


def test_a_former_services_job_is_not_killed(bench):
    """While the origin says that the job runs, it is left alone and logged once. When it is over, it is cleaned up."""
    book = put(bench, of_former(bench), "former")
    bench.driver.vms = {FORMER: True}
    bench.script.plan("abandoned", lambda: False, lambda: False)
    bench.loop.reconcile()
    reconcile(bench)
    assert bench.driver.vms == {FORMER: True}
    assert bench.lines("WARNING") == ["a VM of a former service may still run a job; leaving it alone"]
    reconcile(bench)
    assert bench.driver.vms == {}
    assert book.load() == ([], [])


@pytest.mark.parametrize(("running", "left"), [(True, {FORMER: True}), (False, {})])
def test_without_knowing_the_origin_only_a_vm_that_does_not_run_goes(bench, running, left):
    """No service can ask the origin. But a stopped VM runs no job."""
    book = put(bench, record(vm=FORMER, origin="elsewhere"), "former")
    bench.driver.vms = {FORMER: running}
    bench.loop.reconcile()
    assert bench.driver.vms == left
    assert "abandoned" not in bench.script.trace
    assert len(book.load()[0]) == len(left)


def test_a_former_service_whose_worker_still_finishes_is_its_own(bench):
    """Its worker holds the lock, so nothing of it is touched."""
    book = put(bench, of_former(bench, phase=Phase.CLAIMED), "former")
    bench.driver.vms = {FORMER: False}
    with Holder(bench.setup.state_dir / "services" / "former").at_once():
        bench.loop.reconcile()
    assert bench.driver.vms == {FORMER: False}
    assert len(book.load()[0]) == 1


def test_a_command_that_a_former_services_worker_left_is_waited_for(bench):
    """A clone in flight is in no listing, so its end is awaited first."""
    book = put(bench, of_former(bench, phase=Phase.CLAIMED), "former")
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as command:
        created = psutil.Process(command.pid).create_time()
        book.note_in_flight(InFlight(pid=command.pid, created=created, verb="clone", expendable=True))
        bench.loop.reconcile()
        assert command.wait(10) < 0
    assert book.in_flight() is None
    assert book.load() == ([], [])


def test_an_outcome_of_a_former_service_is_told(bench):
    """The outcome was on record, and no other process reports it."""
    put(bench, of_former(bench, phase=Phase.ENDED, outcome=OUTCOME), "former")
    bench.loop.reconcile()
    assert bench.link.kinds().count("JobFinished") == 1


# ---- VMs without an attempt ----


def unused(bench, **change):
    """A VM that no attempt borrows, as a process left it."""
    return record(**{"job": None, "phase": None, "attempt": 0, "vm_phase": VMPhase.READY, "slot": None, **change})


@pytest.mark.parametrize("vm_phase", VMPhase)
@pytest.mark.parametrize("lives", [True, False])
def test_a_vm_that_no_attempt_borrows_goes(bench, vm_phase, lives):
    """In whatever phase it is, the VM is removed, its slot is freed, and its record goes."""
    book = put(bench, unused(bench, vm_phase=vm_phase))
    bench.driver.vms = {MINE: lives}
    if vm_phase in (VMPhase.PLANNED, VMPhase.GONE):
        bench.driver.vms = {}
    assert bench.loop.reconcile() == []
    assert bench.driver.vms == {}
    assert MINE in gone(bench)
    assert book.load() == ([], [])
    assert "abandoned" not in bench.script.trace


def test_an_unused_vm_that_will_not_go_stays_on_record(bench):
    """Its slot stays occupied, and the next pass over the records tries again."""
    book = put(bench, unused(bench))
    bench.driver.vms = {MINE: True}
    bench.script.plan("delete", VMTransient("hangs"))
    assert bench.loop.reconcile() == []
    assert MINE not in gone(bench)
    assert [left.vm for left in book.load()[0]] == [MINE]
    reconcile(bench)
    assert bench.driver.vms == {}
    assert book.load() == ([], [])
