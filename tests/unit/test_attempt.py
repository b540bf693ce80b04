"""One attempt at one job: the order of its effects, and what is left after a failure, a stop, or a death at any step."""

import contextlib
import logging
import subprocess

import msgspec
import pytest
from attempt_fakes import JOB, OUTCOME, FakeDriver, FakeLeases, FakeLink, FakePlugin, FakeSlots, Script

from anklet_supervisor.report.tally import Tally
from anklet_worker.attempt.archive import Archive
from anklet_worker.attempt.attempt import Attempt, Tools
from anklet_worker.contract.driver import Withdrawal
from anklet_worker.contract.errors import (
    Detached,
    Interrupted,
    JobLost,
    RetryElsewhere,
    RetryHere,
    RightsRefused,
    VMLimitReached,
    VMNotFound,
    VMTransient,
)
from anklet_worker.contract.service import ServiceConfig
from anklet_worker.files import write_atomically
from anklet_worker.life.attempt_phases import Phase
from anklet_worker.life.guest import exports
from anklet_worker.life.records import Record, RecordBook
from anklet_worker.life.vm_phases import VMPhase
from anklet_worker.link.messages import SlotRef
from anklet_worker.link.slots import SlotState
from anklet_worker.log.service_log import ServiceLog
from anklet_worker.process.orders import Orders

VM = "anklet-vm-00000001-0000aa-77-1"
REF = SlotRef(index=0, generation=1, nonce=7)
CLAIM = JOB.key("claim")
#: Every step of a successful job, in order.
STEPS = [
    "image",
    "clone",
    "cloned",
    "start",
    "started",
    "drive",
    "registered",
    "running",
    "collect",
    "delete",
    "settle",
]


class Bench:
    """An attempt with its surroundings in memory. Only the record is on disk."""

    def __init__(self, folder):
        self.script = Script()
        self.orders = Orders()
        self.slots = FakeSlots(REF)
        self.driver = FakeDriver(self.script)
        self.plugin = FakePlugin(self.script)
        self.leases = FakeLeases()
        self.book = RecordBook(folder)
        self.link = FakeLink(self.slots, self.orders)
        self.tools = Tools(
            orders=self.orders,
            link=self.link,
            slots=self.slots,
            book=self.book,
            driver=self.driver,
            plugin=self.plugin,
            leases=self.leases,
            log=ServiceLog(logging.getLogger("test"), {}),
            archive=Archive(folder),
            cleanup_deadline=0.0,
        )

    def begin(self):
        """Claim the job, as the service loop does."""
        self.slots.grant()
        self.leases.take(CLAIM)
        record = Record(
            service="S",
            host_id="h",
            boot_id="b",
            driver="fake",
            job=JOB,
            attempt=1,
            vm=VM,
            slot=REF,
            vm_phase=VMPhase.PLANNED,
            phase=Phase.CLAIMED,
            claimed_at=1.0,
        )
        self.book.save(record)
        return self.hold(record)

    def hold(self, record):
        """Return the attempt of a record."""
        return Attempt(record, self.tools)

    def records(self):
        """The records on disk."""
        records, problems = self.book.load()
        assert not problems
        return records

    def counted(self):
        """The successes and the jobs given back that the supervisor counts from the facts it got."""
        tally = Tally()
        tally.add_service(ServiceConfig(name="S", plugin="fake"), 0.0)
        for fact in self.link.told:
            tally.fold("S", fact, 0.0)
        return tally.successes, tally.services["S"].given_back

    def reconcile(self):
        """Reconcile the records and adopt what runs, as the next process does."""
        for record in self.records():
            attempt = self.hold(record)
            if attempt.reconcile(vm_lives=self.driver.vms.get(VM, False)):
                attempt.adopt()

    def assert_nothing_left(self):
        """No VM, registration, claim, occupied slot or record is left."""
        assert self.driver.vms == {}
        assert self.plugin.registered == set()
        assert self.leases.held == set()
        assert self.slots.state is SlotState.FREE
        assert self.records() == []


@pytest.fixture
def bench(tmp_path):
    """A fresh bench."""
    return Bench(tmp_path / "service")


def test_a_job_from_claim_to_cleanup(bench):
    """Each effect happens in its order, the outcome is reported before the VM goes, and nothing is left."""
    assert bench.begin().run() == OUTCOME
    assert bench.script.trace == STEPS
    kinds = [kind for kind in bench.link.kinds() if kind not in ("StageTook", "StatusChanged")]
    assert kinds == ["SlotOccupied", "VMStarted", "JobStarted", "JobFinished", "SlotReleased"]
    bench.assert_nothing_left()


def test_every_effect_is_on_record_before_it_happens(bench):
    """When a step is reached, the phase that announces it is already on disk."""
    seen = {}

    def look(step):
        (record,) = bench.records()
        seen.setdefault(step, (record.vm_phase, record.phase))

    for step in STEPS:
        bench.script.plan(step, lambda step=step: look(step))
    bench.begin().run()
    assert seen["clone"] == (VMPhase.MAKING, Phase.CLAIMED)
    assert seen["start"] == (VMPhase.STARTING, Phase.CLAIMED)
    assert seen["drive"] == (VMPhase.READY, Phase.DRIVING)
    assert seen["running"] == (VMPhase.READY, Phase.STARTED)
    assert seen["delete"] == (VMPhase.READY, Phase.ENDED)
    assert seen["settle"] == (VMPhase.GONE, Phase.ENDED)


def test_the_plugins_facts_are_on_record_before_its_effect(bench):
    """What the plugin remembered is on disk when it registers."""
    seen = []
    bench.script.plan("registered", lambda: seen.append(bench.records()[0].facts))
    bench.begin().run()
    assert seen == [{"runner": VM}]


@pytest.mark.parametrize(
    "error", [VMTransient("x"), VMLimitReached("x"), RetryHere("x"), RetryElsewhere("x"), JobLost("x"), VMNotFound("x")]
)
@pytest.mark.parametrize("step", ["image", "clone", "cloned", "start", "started", "drive", "registered", "running"])
def test_a_failure_at_any_step_leaves_nothing(bench, step, error):
    """The error of the failed step is raised, and everything made until then is removed."""
    bench.script.plan(step, error)
    with pytest.raises(type(error)):
        bench.begin().run()
    bench.assert_nothing_left()
    assert bench.link.kinds().count("JobGivenBack") == 1
    assert "JobFinished" not in bench.link.kinds()


def test_rights_that_are_refused_before_the_job_leave_nothing(bench):
    """The service cannot go on, but its VM is removed first. What cannot be removed at the origin stays on record."""
    bench.script.plan("registered", RightsRefused("403"))
    bench.script.plan("withdraw", RightsRefused("403"))
    bench.script.plan("settle", RightsRefused("403"))
    with pytest.raises(RightsRefused):
        bench.begin().run()
    assert bench.driver.vms == {}
    assert bench.slots.state is SlotState.FREE
    assert bench.records()[0].vm_phase is VMPhase.GONE


def test_rights_that_are_refused_during_the_job_cost_no_job(bench):
    """A token is revoked while a job runs: VM and job go on, and stay on record until an operator has acted."""
    bench.script.plan("running", RightsRefused("401"))
    with pytest.raises(RightsRefused):
        bench.begin().run()
    assert bench.driver.vms == {VM: True}
    attempt = bench.hold(bench.records()[0])
    assert attempt.reconcile(vm_lives=True)
    assert attempt.adopt() == OUTCOME
    bench.assert_nothing_left()


def test_a_host_that_refuses_a_vm_is_told_with_what_runs(bench):
    """The facts come in this order: the listing, so that others' VMs count, then the refusal, then the free slot."""
    bench.script.plan("start", VMLimitReached("full"))
    with pytest.raises(VMLimitReached):
        bench.begin().run()
    kinds = bench.link.kinds()
    told = [kinds.index(kind) for kind in ("RunningVMs", "StartRefused", "JobGivenBack", "SlotReleased")]
    assert told == sorted(told)
    assert "VMStarted" not in kinds


def test_a_refusal_is_told_without_a_listing_too(bench):
    """Even if the VM tool cannot list at that moment."""
    bench.script.plan("start", VMLimitReached("full"))
    bench.script.plan("list", VMTransient("hangs"))
    with pytest.raises(VMLimitReached):
        bench.begin().run()
    assert "StartRefused" in bench.link.kinds()
    bench.assert_nothing_left()


def test_a_registration_without_a_job_goes_before_its_vm(bench):
    """No job may land in a VM that is about to be deleted, so the registration is withdrawn first."""
    bench.script.plan("registered", RetryHere("never came online"))
    with pytest.raises(RetryHere):
        bench.begin().run()
    trace = bench.script.trace
    assert trace.index("withdraw") < trace.index("delete")


def test_a_job_that_landed_meanwhile_is_followed(bench):
    """The registration cannot be withdrawn because a job runs on it, so that job is watched to its end."""
    bench.script.plan("registered", RetryHere("seemed to hang"))
    bench.script.plan("withdraw", Withdrawal.STARTED)
    assert bench.begin().run() == OUTCOME
    trace = bench.script.trace
    assert trace.index("withdraw") < trace.index("adopt") < trace.index("delete")
    bench.assert_nothing_left()


def test_an_origin_that_does_not_answer_cannot_hold_the_slot(bench):
    """If the registration cannot be withdrawn, the VM is deleted anyway and a debt stays on record."""
    bench.script.plan("registered", RetryHere("x"))
    bench.script.plan("withdraw", RetryHere("origin down"))
    bench.script.plan("settle", RetryHere("origin down"))
    with pytest.raises(RetryHere, match="x"):
        bench.begin().run()
    assert bench.driver.vms == {}
    assert bench.slots.state is SlotState.FREE
    assert bench.leases.held == set()
    (debt,) = bench.records()
    assert debt.vm_phase is VMPhase.GONE
    bench.hold(debt).retry_cleanup()
    bench.assert_nothing_left()


def test_a_vm_that_cannot_be_deleted_keeps_its_slot(bench):
    """Without proof that the VM is gone, the slot stays occupied and the record stays for another try."""
    bench.script.plan("delete", VMTransient("hangs"))
    bench.begin().run()
    assert bench.slots.state is SlotState.OCCUPIED
    (record,) = bench.records()
    assert (record.phase, record.vm_may_exist) == (Phase.ENDED, True)
    bench.hold(record).retry_cleanup()
    bench.assert_nothing_left()


def test_a_stop_before_the_job_withdraws_first(bench):
    """A stop gives back a job that has not started: registration, VM, claim, in this order."""
    bench.script.plan("registered", Interrupted("stopped"))
    with pytest.raises(Interrupted):
        bench.begin().run()
    assert bench.script.trace[-3:] == ["withdraw", "delete", "settle"]
    bench.assert_nothing_left()


def test_a_stop_during_the_job_takes_the_vm_first(bench):
    """The VM is deleted without a question to the origin, so that an outage of it holds no slot."""
    bench.script.plan("running", Interrupted("stopped"))
    with pytest.raises(Interrupted):
        bench.begin().run()
    assert bench.script.trace[-2:] == ["delete", "settle"]
    assert "withdraw" not in bench.script.trace
    bench.assert_nothing_left()


def test_a_lost_lease_is_seen_before_anything_is_registered(bench):
    """A host does not register a runner after another host took the claim."""
    bench.script.plan("started", lambda: bench.leases.gone.add(CLAIM))
    with pytest.raises(JobLost):
        bench.begin().run()
    assert "drive" not in bench.script.trace
    bench.assert_nothing_left()


@pytest.mark.parametrize("still_queued", [True, False])
def test_a_lease_in_doubt_means_to_ask_again_before_anything_is_registered(bench, still_queued):
    """The store was away, or this process was stopped, for so long that the job may have another owner or be over."""
    bench.leases.doubtful.add(CLAIM)
    bench.script.plan("claim", lambda: still_queued)
    attempt = bench.begin()
    if still_queued:
        assert attempt.run() == OUTCOME
    else:
        with pytest.raises(JobLost):
            attempt.run()
    assert ("drive" in bench.script.trace) == still_queued
    bench.assert_nothing_left()


def test_nobody_is_asked_about_a_lease_in_doubt_once_the_job_runs(bench):
    """A job that runs is watched to its end, whatever happens to its lease."""
    bench.script.plan("running", lambda: bench.leases.gone.add(CLAIM) or bench.leases.doubtful.add(CLAIM))
    assert bench.begin().run() == OUTCOME
    assert "claim" not in bench.script.trace
    bench.assert_nothing_left()


def test_a_slot_that_was_taken_away_is_seen_before_the_vm(bench):
    """No VM is made in a slot that the slot table does not confirm."""
    attempt = bench.begin()
    bench.slots.state = SlotState.FREE
    with pytest.raises(RetryHere, match="slot"):
        attempt.run()
    assert "clone" not in bench.script.trace
    assert bench.records() == []


class Killed(BaseException):
    """Imitates kill -9 inside one process: nothing in the program catches it."""


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("step", [*STEPS, "withdraw"])
def test_a_death_at_any_step_is_cleaned_up_by_the_next_process(tmp_path, step, times):
    """After a death at each step, and at the same step of the next process, nothing is left and the job ran once."""
    bench = Bench(tmp_path / "service")
    bench.script.plan(step, *[Killed()] * times)
    outcomes = []
    with contextlib.suppress(Killed):
        outcomes.append(bench.begin().run())
    for _ in range(times + 1):
        for record in bench.records():
            attempt = bench.hold(record)
            try:
                if attempt.reconcile(vm_lives=bench.driver.vms.get(VM, False)):
                    outcomes.append(attempt.adopt())
            except Killed:
                continue
    bench.assert_nothing_left()
    if "JobStarted" in bench.link.kinds():
        assert bench.counted() == (1, 0)
    elif step != "withdraw":
        assert bench.counted() == (0, 1)


@pytest.mark.parametrize("when", ["told", "collect", "delete", "settle"])
def test_a_death_behind_the_outcome_loses_and_doubles_nothing(bench, when):
    """The outcome is on record and is reported again, whether or not the supervisor got it before; it counts once."""
    if when == "told":
        bench.link.tell_outcome = _die
    else:
        bench.script.plan(when, Killed())
    with pytest.raises(Killed):
        bench.begin().run()
    assert bench.records()[0].outcome == OUTCOME
    bench.link.__dict__.pop("tell_outcome", None)
    bench.reconcile()
    assert bench.counted() == (1, 0)
    bench.assert_nothing_left()


def _die(_fact):
    raise Killed


def test_an_outcome_that_nobody_heard_stays_on_record(bench, monkeypatch):
    """A supervisor that hangs and dies has counted nothing: the next process reports again. VM and slot do not wait for it."""
    monkeypatch.setattr("anklet_worker.attempt.attempt._HEARD_PATIENCE", 0.01)
    bench.link.deaf = True
    bench.begin().run()
    assert (bench.driver.vms, bench.slots.state, bench.leases.held) == ({}, SlotState.FREE, set())
    assert bench.records()[0].vm_phase is VMPhase.GONE
    bench.link.told.clear()
    bench.link.deaf = False
    bench.reconcile()
    assert bench.counted() == (1, 0)
    bench.assert_nothing_left()


def test_a_detach_leaves_everything_as_it_is(bench):
    """The next worker finds VM, registration, claim and record untouched."""
    bench.script.plan("running", Detached("let go"))
    with pytest.raises(Detached):
        bench.begin().run()
    assert bench.driver.vms == {VM: True}
    assert bench.plugin.registered == {VM}
    assert bench.leases.held == {CLAIM}
    assert bench.records()[0].phase is Phase.STARTED
    attempt = bench.hold(bench.records()[0])
    assert attempt.reconcile(vm_lives=True)
    assert attempt.adopt() == OUTCOME
    bench.assert_nothing_left()


@pytest.mark.parametrize("step", [*STEPS[:-1], "list", "settle"])
def test_a_detach_at_any_step_leaves_the_rest_to_the_next_process(bench, step):
    """A detach after the job's end or during the clean-up loses nothing and counts nothing twice."""
    if step == "list":
        bench.script.plan("start", VMLimitReached("full"))
    bench.script.plan(step, Detached("let go"))
    with pytest.raises(Detached):
        bench.begin().run()
    assert len(bench.records()) == 1
    bench.reconcile()
    bench.assert_nothing_left()
    assert sum(bench.counted()) == 1


@pytest.mark.parametrize("step", STEPS)
def test_a_bug_at_any_step_leaves_the_rest_to_the_next_process(bench, step):
    """After a bug, VM and record stay as they are, and the next process cleans up or adopts the job."""
    attempt = bench.begin()
    bench.script.plan(step, ZeroDivisionError("bug"))
    with pytest.raises(ZeroDivisionError):
        attempt.run()
    assert len(bench.records()) == 1
    bench.reconcile()
    bench.assert_nothing_left()
    assert sum(bench.counted()) == 1


def landed(bench):
    """A job runs in the VM, and the process that started it is dead."""
    bench.script.plan("running", Killed())
    with pytest.raises(Killed):
        bench.begin().run()
    (record,) = bench.records()
    return bench.hold(record)


def test_a_stop_ends_a_job_that_is_followed(bench):
    """A stop ends an adopted job like any other: VM first, without a question to the origin."""
    attempt = landed(bench)
    bench.script.plan("adopt", Interrupted("stopped"))
    assert attempt.reconcile(vm_lives=True)
    with pytest.raises(Interrupted):
        attempt.adopt()
    assert "withdraw" not in bench.script.trace
    bench.assert_nothing_left()
    assert bench.counted() == (0, 1)


@pytest.mark.parametrize("end", [Detached("let go"), ZeroDivisionError("bug")])
def test_a_process_that_ends_while_it_follows_a_job_leaves_it(bench, end):
    """A detach leaves it for the third process."""
    attempt = landed(bench)
    bench.script.plan("adopt", end)
    with pytest.raises(type(end)):
        attempt.adopt()
    assert bench.driver.vms == {VM: True}
    bench.reconcile()
    bench.assert_nothing_left()
    assert bench.counted() == (1, 0)


def test_rights_that_are_refused_while_a_job_is_followed_cost_no_job(bench):
    """The job goes on, and stays on record until an operator has acted."""
    attempt = landed(bench)
    bench.script.plan("adopt", RightsRefused("401"))
    with pytest.raises(RightsRefused):
        attempt.adopt()
    assert bench.driver.vms == {VM: True}
    bench.reconcile()
    bench.assert_nothing_left()


@pytest.mark.parametrize("ran", [True, False])
def test_a_job_that_came_and_went_between_two_processes_is_told(bench, ran):
    """Its runner vanished: the plugin finds out what it ran. If it ran nothing, the job is given back exactly once."""
    bench.script.plan("registered", Killed())
    with pytest.raises(Killed):
        bench.begin().run()
    bench.script.plan("withdraw", *[Withdrawal.VANISHED] * 3)
    if ran:
        bench.reconcile()
    else:
        bench.script.plan("adopt", RetryHere("it ran nothing"))
        with pytest.raises(RetryHere):
            bench.reconcile()
    bench.assert_nothing_left()
    assert bench.counted() == ((1, 0) if ran else (0, 1))


@pytest.mark.parametrize("problem", [RetryHere("origin down"), RightsRefused("401")])
def test_a_job_that_may_have_landed_is_not_killed_because_the_origin_does_not_answer(bench, problem):
    """The process died after the registration, and the next one cannot ask the origin whether a job landed: the guest shows it."""
    bench.script.plan("registered", Killed())
    with pytest.raises(Killed):
        bench.begin().run()
    bench.script.plan("withdraw", problem)
    bench.reconcile()
    assert "adopt" in bench.script.trace
    bench.assert_nothing_left()
    assert bench.counted() == (1, 0)


def test_a_job_that_cannot_be_followed_is_tried_ever_more_seldom(bench, monkeypatch):
    """The origin says that a job landed, but watching it fails each time: the pauses grow, and the attempt does not end."""
    pauses = []
    monkeypatch.setattr(bench.orders, "wait", pauses.append)
    bench.script.plan("registered", RetryHere("x"))
    bench.script.plan("withdraw", *[Withdrawal.STARTED] * 8)
    bench.script.plan("adopt", *[RetryHere("y")] * 7)
    assert bench.begin().run() == OUTCOME
    assert pauses == [0.0, 0.0, 1.0, 2.0, 5.0, 10.0, 30.0, 30.0, 30.0]


def test_a_disk_that_fills_up_costs_no_job_that_has_started(bench, monkeypatch):
    """The record cannot be written, so a later process asks the origin because of the older record."""
    monkeypatch.setattr("anklet_worker.life.records.write_atomically", _full_from_start(bench))
    bench.script.plan("registered", lambda: bench.script.trace.append("disk full"))
    assert bench.begin().run() == OUTCOME
    bench.assert_nothing_left()
    assert bench.counted() == (1, 0)


def _full_from_start(bench):
    def write(path, data, **more):
        if "disk full" in bench.script.trace:
            raise OSError(28, "No space left on device")
        return write_atomically(path, data, **more)

    return write


def test_a_vm_that_will_not_go_does_not_hold_the_claim(bench):
    """Other hosts can run the job; slot and record stay."""
    bench.script.plan("started", RetryHere("x"))
    bench.script.plan("delete", VMTransient("busy"))
    with pytest.raises(RetryHere):
        bench.begin().run()
    assert bench.leases.held == set()
    assert bench.slots.state is SlotState.OCCUPIED
    assert len(bench.records()) == 1


def test_a_full_disk_stops_the_job_before_any_effect(bench, monkeypatch):
    """If a record cannot be written, its effect does not happen. Clean-up goes on without records."""
    attempt = bench.begin()
    monkeypatch.setattr("anklet_worker.life.records.write_atomically", _disk_full)
    with pytest.raises(RetryElsewhere, match="No space left"):
        attempt.run()
    assert "clone" not in bench.script.trace
    assert bench.driver.vms == {}
    assert bench.leases.held == set()


def _disk_full(*_args, **_more):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    "value", ["plain", "with 'quotes' and \"more\"", "$(touch hacked)", "a;b", "line\nline", "x" * 300, "", "-n"]
)
def test_exports_survive_a_shell(value, tmp_path):
    """Bash gets every value exactly as it is, and runs no part of it."""
    script = exports({"SETTING": value}) + 'printf %s "$SETTING"'
    shown = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert shown.stdout == value
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["A B", "A=B", "1A", "", "A;touch x", "Ä"])
def test_exports_refuse_what_is_no_name(name):
    """Only plain identifiers are accepted as names of variables."""
    with pytest.raises(ValueError, match="name"):
        exports({name: "x"})


def test_records_keep_a_slot_reference(bench):
    """A record is read back as it was written."""
    attempt = bench.begin()
    (record,) = bench.records()
    assert record == attempt.record
    assert msgspec.json.decode(msgspec.json.encode(record), type=Record) == record
