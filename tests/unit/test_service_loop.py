"""The passes of one service: their steps in order, and what happens to a job that cannot be run."""

import logging
import pathlib

import msgspec
import pytest
from attempt_fakes import JOB, FakeDriver, FakeLeases, FakeLink, FakePlugin, FakeSlots, Script, worker_setup

from anklet_worker.attempt.archive import Archive
from anklet_worker.attempt.attempt import Tools
from anklet_worker.attempt.retries import JobBackoff
from anklet_worker.context import Surroundings, WorkerContext
from anklet_worker.contract.errors import (
    AnswerUnreadable,
    Detached,
    ImageUnusable,
    Interrupted,
    PullBusy,
    RetryElsewhere,
    RetryHere,
    RightsRefused,
    StoreUnavailable,
    ToolRefused,
    VMLimitReached,
    VMNotFound,
    VMTransient,
)
from anklet_worker.contract.figures import Figure
from anklet_worker.contract.service import ServiceConfig
from anklet_worker.life.records import RecordBook
from anklet_worker.link.messages import STAGES, ApiBudgetSeen, QueueSeen, SlotRef, StageTook, Status, StatusChanged
from anklet_worker.link.slots import SlotState
from anklet_worker.log.service_log import ServiceLog
from anklet_worker.loop import ServiceLoop
from anklet_worker.process.orders import Orders
from anklet_worker.store.memory import MemoryStore, Shelf
from anklet_worker.vm.driver import DriverInfo

REF = SlotRef(index=0, generation=1, nonce=7)
DRIVER = DriverInfo(product="fake", version="1")

DEPTH = Figure("depth", "How deep the well is, in metres.")


class Clock:
    """Monotonic seconds that pass only when a test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class TimedOrders(Orders):
    """Orders whose waits move the clock instead of taking time. `later` plans what happens meanwhile."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock
        self.waits = []
        self._planned = []

    def later(self, seconds, act):
        """Call `act` once the clock has moved on by `seconds`."""
        self._planned.append((self.clock.now + seconds, act))

    def wait_for(self, condition, seconds):
        self.check()
        if condition() or not seconds:
            return condition()
        self.waits.append(seconds)
        self.clock.now += seconds
        for planned in [planned for planned in self._planned if planned[0] <= self.clock.now]:
            self._planned.remove(planned)
            planned[1]()
        return condition()


class Bench:
    """A service loop that makes one pass (--once), with everything around it in memory."""

    def __init__(self, folder, *, retries=5, once=True):
        self.script = Script()
        self.clock = Clock()
        self.orders = Orders() if once else TimedOrders(self.clock)
        self.slots = FakeSlots(REF)
        self.driver = FakeDriver(self.script)
        self.plugin = FakePlugin(self.script)
        self.leases = FakeLeases()
        self.link = FakeLink(self.slots, self.orders)
        # Its clock stands at 0, so an entry's expiry is its time to live.
        self.store = MemoryStore(Shelf(clock=lambda: 0.0))
        self.records = []
        service = ServiceConfig(
            name="S", plugin="fake", sleep_interval=60.0, job_retry_attempts=retries, figures=(DEPTH,)
        )
        self.setup = worker_setup(service, folder, once=once)
        logger = logging.getLogger(f"test-{id(self)}")
        logger.addHandler(_Keep(self.records))
        logger.propagate = False
        logger.setLevel(logging.DEBUG)
        log = ServiceLog(logger, {})
        self.tools = Tools(
            orders=self.orders,
            link=self.link,
            slots=self.slots,
            book=RecordBook(self.setup.service_dir),
            driver=self.driver,
            plugin=self.plugin,
            leases=self.leases,
            log=log,
            archive=Archive(folder),
            cleanup_deadline=0.0,
        )
        self.context = WorkerContext(
            self.setup, self.orders, self.link, Surroundings(driver=self.driver, board=None, log=log)
        )
        self.loop = ServiceLoop(self.setup, self.tools, self.store, self.clock)

    def one_pass(self):
        """Make one pass, as with --once."""
        self.loop.serve(DRIVER, [])

    def after_the_pauses(self):
        """Move the clock on so far that no job is put off any longer."""
        self.clock.now += 100_000.0

    def expiries(self):
        """The expiry of each lease in the store."""
        return {key: entry.expires_at for key, entry in self.store.shelf.leases.items()}

    def lines(self, level):
        """The messages logged at one level, in order."""
        return [record.getMessage() for record in self.records if record.levelname == level]

    def assert_idle(self):
        """Nothing is in hand."""
        assert self.slots.state is SlotState.FREE
        assert self.leases.held == set()
        assert self.driver.vms == {}
        assert self.tools.book.load() == ([], [])


class _Keep(logging.Handler):
    def __init__(self, records):
        super().__init__()
        self.records = records

    def emit(self, record):
        self.records.append(record)


@pytest.fixture
def bench(tmp_path):
    """A service loop for which one job waits."""
    return Bench(tmp_path)


def test_a_pass_looks_then_takes_a_slot_then_claims(bench):
    """A pass requests a slot only if there is a job, and claims a job only if it has a slot."""
    bench.one_pass()
    assert bench.script.trace[:3] == ["look", "list", "claim"]
    assert "JobFinished" in bench.link.kinds()
    assert bench.link.kinds()[-2] == "AttemptOver"
    bench.assert_idle()


def test_readiness_comes_before_the_first_look(bench):
    """The first fact is Ready."""
    bench.one_pass()
    assert bench.link.kinds()[0] == "Ready"


def test_without_a_free_slot_nothing_is_looked_for_until_one_comes(bench):
    """On a full host the slot comes first, so the origin gets no call until then."""
    bench.slots.state = SlotState.OCCUPIED
    bench.one_pass()
    assert bench.script.trace[:2] == ["list", "look"]


def test_without_a_job_no_slot_is_asked_for(bench):
    """An idle pass makes one look and nothing else."""
    bench.plugin.jobs = []
    bench.one_pass()
    assert bench.script.trace == ["look"]
    bench.assert_idle()


def test_a_job_that_somebody_else_holds_is_left_to_them(bench):
    """The lease decides, and the slot is released."""
    bench.leases.take = lambda _key: False
    bench.one_pass()
    assert "claim" not in bench.script.trace
    bench.assert_idle()


def test_a_job_that_is_not_to_be_had_any_more_is_given_back(bench):
    """The plugin says that the job can no longer run, so lease and slot are released."""
    bench.script.plan("claim", lambda: False)
    bench.one_pass()
    assert "image" not in bench.script.trace
    bench.assert_idle()


def test_a_claim_that_fails_gives_the_lease_back(bench):
    """An origin that does not answer leaves no claim behind."""
    bench.script.plan("claim", RetryHere("origin down"))
    bench.one_pass()
    assert bench.lines("WARNING") == ["cannot look for jobs now; trying again"]
    bench.assert_idle()


def test_vms_that_are_not_ours_leave_no_room(bench):
    """Two foreign VMs run: the slot is released, nothing is claimed, and the status is paused."""
    bench.driver.vms = {"theirs": True, "other": True}
    bench.one_pass()
    assert "claim" not in bench.script.trace
    assert bench.slots.state is SlotState.FREE
    assert any(kind == "RunningVMs" for kind in bench.link.kinds())
    assert bench.lines("WARNING") == ["other VMs run on this host; no room for a job"]


def test_a_listing_that_fails_is_not_room(bench):
    """If the VMs cannot be listed, no job is taken."""
    bench.script.plan("list", RetryHere("anka hangs"))
    bench.one_pass()
    assert "claim" not in bench.script.trace
    bench.assert_idle()


@pytest.mark.parametrize("mark", ["drain_file", "pause_file"])
def test_a_mark_on_the_disk_pauses_the_service(bench, mark):
    """While the file exists, for the host or for this service, there is no look."""
    getattr(bench.setup, mark).touch()
    bench.one_pass()
    assert bench.script.trace == []


def test_a_mark_that_may_not_be_looked_for_is_none(bench, monkeypatch):
    """Its folder may belong to another user, after a `sudo mkdir` for example. That does not end the worker."""
    exists = pathlib.Path.exists

    def refuse(path):
        if path == bench.setup.drain_file:
            raise PermissionError(13, "Permission denied")
        return exists(path)

    monkeypatch.setattr(pathlib.Path, "exists", refuse)
    bench.one_pass()
    assert "JobFinished" in bench.link.kinds()


def test_the_source_keeps_house_after_the_claim_and_after_the_job(bench):
    """The source learns which job was claimed before it runs, and again when the service is idle."""
    bench.script.plan("drive", lambda: bench.script.trace.append(list(bench.plugin.claimed)))
    bench.one_pass()
    assert [JOB] in bench.script.trace
    assert bench.plugin.claimed == [JOB, None]
    bench.one_pass()
    assert bench.plugin.claimed == [JOB, None, None]


def test_trouble_with_housekeeping_costs_no_job(bench):
    """Failed housekeeping is done later."""
    bench.script.plan("housekeep", RetryHere("GitHub is away"))
    bench.one_pass()
    assert "JobFinished" in bench.link.kinds()


def test_a_pause_during_the_look_takes_no_job(bench, monkeypatch):
    """A pause between look and claim still counts."""
    look = bench.plugin.find

    def look_and_pause():
        bench.setup.pause_file.touch()
        return look()

    monkeypatch.setattr(bench.plugin, "find", look_and_pause)
    bench.one_pass()
    assert "claim" not in bench.script.trace
    bench.assert_idle()


def test_a_failed_attempt_backs_off(bench):
    """The job goes back and is put off, with one WARN."""
    bench.script.plan("start", RetryHere("did not boot"))
    bench.one_pass()
    bench.one_pass()
    assert bench.script.trace.count("claim") == 1
    assert bench.lines("WARNING") == ["the job goes back to the queue"]
    assert bench.lines("ERROR") == []
    bench.assert_idle()


@pytest.mark.parametrize(("error", "counted"), [(RetryHere("x"), 1), (RetryElsewhere("x"), 1), (PullBusy("x"), 0)])
def test_a_busy_pull_is_no_failure_of_the_job(bench, error, counted):
    """A busy pull does not count against the tries of a job."""
    bench.script.plan("image", error)
    bench.one_pass()
    assert bench.store.count(JOB.key("failures@00000001"), 60.0, 0) == counted


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (VMTransient("lost"), 2.0),
        (StoreUnavailable("away"), 2.0),
        (PullBusy("the image is being cloned"), 2.0),
        (VMNotFound("no such template"), 30.0),
        (AnswerUnreadable("garbage"), 2.0),
        (ToolRefused("EULA"), 600.0),
        (ImageUnusable("failed"), 600.0),
    ],
)
def test_a_failure_says_for_how_long_this_host_leaves_the_job_alone(bench, error, seconds):
    """A short pause when the fault may pass, a longer one for another host, the longest when only an operator can help."""
    bench.loop._put_off._backoff = JobBackoff(bench.clock, lambda: 0.0)
    bench.script.plan("image", error)
    bench.one_pass()
    assert {record.anklet["backoffSeconds"] for record in bench.records if "backoffSeconds" in record.anklet} == {
        seconds
    }


def test_what_an_operator_must_mend_is_one_error(bench):
    """One ERROR, however many jobs it stops. Each try counts, so that the job is given up in the end."""
    bench.script.plan("image", *[ToolRefused("anka clone: EULA needs to be accepted; accept it")] * 2)
    for _ in range(2):
        bench.after_the_pauses()
        bench.one_pass()
    assert bench.lines("ERROR") == ["this host cannot run the job until an operator acts; other hosts can"]
    assert bench.lines("WARNING") == ["the job goes back to the queue"] * 2
    assert bench.store.count(JOB.key("failures@00000001"), 60.0, 0) == 2
    bench.assert_idle()


@pytest.fixture
def pulling(tmp_path):
    """A service that runs until its job has ended, on a host where another service pulls."""
    bench = Bench(tmp_path, once=False)
    bench.driver.host.pulling = True
    bench.script.plan("image", PullBusy("another pull runs on this host"))
    bench.script.plan("collect", bench.orders.drain)
    return bench


def end_pull(bench):
    """The other service's pull ends."""
    bench.driver.host.pulling = False


def test_a_job_that_waits_for_a_pull_is_tried_as_soon_as_it_ends(pulling):
    """The pull lock is looked at once a second; no back-off and no idle wait comes on top."""
    pulling.orders.later(5.5, lambda: end_pull(pulling))
    pulling.loop.serve(DRIVER, [])
    assert pulling.orders.waits == [1.0] * 6
    assert pulling.lines("WARNING") == ["the job goes back to the queue"]
    assert pulling.script.trace.count("claim") == 2
    assert "JobFinished" in pulling.link.kinds()
    pulling.assert_idle()


def test_a_pull_that_hangs_does_not_hold_a_job_for_ever(pulling):
    """After ten minutes the job is tried anyway: only another pull ends one that hangs without its worker."""
    pulling.loop.serve(DRIVER, [])
    assert pulling.clock.now - 1000.0 == pytest.approx(600.0)
    assert "JobFinished" in pulling.link.kinds()


def test_the_pull_lock_is_looked_at_only_while_a_job_waits_for_it(pulling):
    """Without such a job the idle wait is a single one, whatever the host pulls."""
    pulling.plugin.jobs = []
    pulling.orders.later(100.0, pulling.orders.drain)
    pulling.loop.serve(DRIVER, [])
    assert pulling.orders.waits == [60.0, 60.0]


def test_a_service_that_is_paused_when_the_pull_ends_waits_as_usual(pulling):
    """The job stays where it is, and nothing spins."""

    def end_and_pause():
        end_pull(pulling)
        pulling.setup.pause_file.touch()

    pulling.orders.later(2.5, end_and_pause)
    pulling.orders.later(100.0, pulling.orders.drain)
    pulling.loop.serve(DRIVER, [])
    assert pulling.orders.waits == [1.0, 1.0, 1.0, 60.0, 60.0]
    assert pulling.script.trace.count("claim") == 1


def test_a_host_that_refuses_vms_costs_no_job_anything(bench):
    """No try is counted and the job is not put off, because the supervisor holds back the slots."""
    bench.script.plan("start", VMLimitReached("full"))
    bench.one_pass()
    assert bench.store.count(JOB.key("failures@00000001"), 60.0, 0) == 0
    assert bench.loop._put_off.without([JOB]) == [JOB]
    bench.one_pass()
    assert "JobFinished" in bench.link.kinds()
    bench.assert_idle()


def test_a_service_whose_slots_are_held_back_says_that_it_pauses(bench):
    """Its status is paused while it waits for a slot."""
    bench.slots.held_back = 2
    bench.loop._slots.clean_up()
    assert bench.link.told == [StatusChanged(status=Status.PAUSED)]


def test_a_job_that_fails_too_often_is_left_to_others_for_a_while(tmp_path):
    """After job_retry_attempts this host leaves the job queued, with one ERROR. Later it tries again, at growing intervals and with
    a WARN each time, because the cause may be gone."""
    bench = Bench(tmp_path, retries=0)
    bench.script.plan("start", RetryHere("did not boot"), RetryHere("did not boot"))
    bench.one_pass()
    assert bench.lines("ERROR") == ["the job failed too often on this host; it stays queued and is tried again later"]
    mine = JOB.key("given-up@00000001")
    assert bench.expiries() == {mine: 600.0}
    bench.after_the_pauses()
    bench.one_pass()
    assert bench.script.trace.count("claim") == 1
    bench.assert_idle()
    for seconds in (1200.0, None):
        bench.store.shelf.leases.clear()
        bench.after_the_pauses()
        bench.one_pass()
        assert bench.expiries() == ({} if seconds is None else {mine: seconds})
    assert len(bench.lines("ERROR")) == 1
    assert "JobFinished" in bench.link.kinds()


def test_a_vm_that_would_not_go_is_looked_after_before_the_next_job(bench):
    """A job may take days, and the VM's slot would be lost for as long. After some minutes the service takes a job anyway."""
    bench.script.plan("delete", *[VMTransient("busy")] * 3)
    bench.one_pass()
    tried = bench.script.trace.count("delete")
    bench.plugin.jobs = [msgspec.structs.replace(JOB, id="78")]
    bench.one_pass()
    assert bench.script.trace.count("claim") == 1
    assert bench.script.trace.count("delete") == tried + 1
    bench.one_pass()
    assert bench.script.trace.count("delete") == tried + 1
    bench.loop._debts._stuck_since -= 300.0
    bench.one_pass()
    assert bench.script.trace.count("claim") == 2


def test_an_outage_of_the_store_takes_no_job(bench):
    """Nothing is claimed without the store. The store logs its own outage."""

    def refuse(operation):
        raise StoreUnavailable("store away")

    allow, bench.store.shelf.before = bench.store.shelf.before, refuse
    bench.one_pass()
    bench.one_pass()
    assert "claim" not in bench.script.trace
    assert bench.lines("WARNING") == []
    bench.store.shelf.before = allow
    bench.one_pass()
    assert "JobFinished" in bench.link.kinds()


def test_a_disk_that_takes_no_record_takes_no_job(bench, monkeypatch):
    """One WARN, no look and no claim while it lasts. Then the service goes on by itself."""
    with monkeypatch.context() as patch:
        patch.setattr("anklet_worker.life.records.write_atomically", _disk_full)
        for _ in range(3):
            bench.one_pass()
        assert bench.lines("WARNING") == ["cannot look for jobs now; trying again"]
        assert bench.script.trace.count("look") == 1
        bench.assert_idle()
    bench.one_pass()
    assert "JobFinished" in bench.link.kinds()
    assert bench.lines("INFO")[-1] == "looking for jobs again"
    bench.assert_idle()


def _disk_full(*_args, **_more):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    "error", [Interrupted("stopped"), Detached("let go"), RightsRefused("401"), ZeroDivisionError()]
)
def test_whatever_ends_a_claim_gives_the_lease_back(bench, error):
    """Nothing exists yet, so other hosts can have the job at once."""
    bench.script.plan("claim", error)
    with pytest.raises(type(error)):
        bench.one_pass()
    bench.assert_idle()


def test_a_stop_in_the_middle_ends_the_service_clean(bench):
    """The interruption passes through, and nothing is left."""
    bench.script.plan("started", Interrupted("stopped"))
    with pytest.raises(Interrupted):
        bench.one_pass()
    bench.assert_idle()


def test_debts_are_settled_before_the_next_look(bench):
    """A later pass tries again to remove a runner."""
    bench.script.plan("settle", lambda: False)
    bench.one_pass()
    assert len(bench.tools.book.load()[0]) == 1
    bench.loop._debts.settle_at_next_pass()
    bench.one_pass()
    bench.assert_idle()


def test_a_record_that_is_damaged_while_running_is_told(tmp_path):
    """The record is moved aside, and the pass goes on."""
    bench = Bench(tmp_path)
    bench.plugin.jobs = []
    (bench.setup.service_dir / "records" / "anklet-vm-x.json").write_text("{")
    bench.one_pass()
    assert bench.lines("ERROR") == ["cannot read a record; its VM is found by name"]
    assert "look" in bench.script.trace


def test_the_queue_is_told_when_it_changes(tmp_path):
    """The queue is reported when it changes, not at every look."""
    bench = Bench(tmp_path)
    old, new = (msgspec.structs.replace(JOB, id=str(n), queued_at=float(n)) for n in (5, 9))
    bench.plugin.jobs = [new, old]
    for _ in range(2):
        bench.loop._find_jobs()
    bench.plugin.jobs = []
    bench.loop._find_jobs()
    assert [fact for fact in bench.link.told if isinstance(fact, QueueSeen)] == [
        QueueSeen(waiting=2, oldest=5.0),
        QueueSeen(waiting=0, oldest=0.0),
    ]


def test_the_stages_of_a_job_are_told(tmp_path):
    """Each stage is reported once; `queue` only if the origin says since when the job waited."""
    bench = Bench(tmp_path)
    bench.plugin.jobs = [msgspec.structs.replace(JOB, queued_at=1.0)]
    bench.one_pass()
    told = [fact.stage for fact in bench.link.told if isinstance(fact, StageTook)]
    assert sorted(told) == sorted(STAGES)
    assert [stage for stage in told if stage in ("register", "wait", "run")] == ["register", "wait", "run"]


def test_a_figure_that_is_no_number_is_not_told(bench):
    """No message can carry NaN, and a plugin's mistake must not end its worker."""
    for value in (float("nan"), float("inf"), 3.0):
        bench.context.report(DEPTH, value)
    assert [fact.value for fact in bench.link.told] == [3.0]


def test_a_figure_that_is_not_declared_is_said_once(bench):
    """The supervisor would not publish it; the plugin's author should know why."""
    for _ in range(2):
        bench.context.report(Figure("width", "How wide the well is."), 1.0)
    assert bench.link.told == []
    assert len(bench.lines("WARNING")) == 1


def test_the_budget_of_an_api_is_told_when_it_can_be(bench):
    """All three figures, or nothing."""
    bench.context.api_budget(1.0, 2.0, float("inf"))
    bench.context.api_budget(1.0, 2.0, 3.0)
    assert bench.link.told == [ApiBudgetSeen(left=1.0, limit=2.0, resets_at=3.0)]
