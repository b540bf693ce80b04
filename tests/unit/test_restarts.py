"""When a service is given up, and what becomes of the VM that it leaves."""

from anklet_supervisor.machine import allocator, events, restarts
from anklet_supervisor.machine.model import Moment
from anklet_supervisor.machine.state import ServiceState
from anklet_supervisor.machine.step import initial, next_deadline, step
from anklet_worker.link import messages as m
from anklet_worker.link.slots import SlotState


class Host:
    """Two services; A has left a VM in a slot. Workers start at once and die as the test says."""

    def __init__(self, left=()):
        self.now, self.reports, self.started, self.finished = 1000.0, [], [], None
        self.model = initial(["A", "B"], allocator.build(2, 1, left, 0.0), once=False, drain_timeout=None)
        self.feed(events.Began())

    def feed(self, event):
        self.model, effects = step(self.model, event, Moment(self.now, self.now))
        for effect in effects:
            match effect:
                case events.StartWorker(service=name):
                    self.started.append((name, self.now))
                    self.feed(events.WorkerStarted(name, 100 + len(self.started)))
                case events.Report(level=level, service=name):
                    self.reports.append((name, level))
                case events.Finish(exit_code=code):
                    self.finished = code

    @property
    def service(self):
        return self.model.services["A"]

    def dies_until_given_up(self, code):
        """Each worker of A dies as soon as it was started. Seconds until A is FATAL."""
        began = self.now
        while True:
            self.feed(events.WorkerExited("A", code))
            if self.service.state is ServiceState.FATAL:
                return self.now - began
            self.until_due()

    def until_due(self):
        self.now = next_deadline(self.model)
        self.feed(events.Tick())


LEFT = [("A", "vm-1")]


def test_deaths_by_signal_are_given_a_minute():
    """Something outside kills: it may pass, and the service must not be down for good by then."""
    assert Host().dies_until_given_up(-9) >= 60
    assert Host().dies_until_given_up(70) < 60


def test_deaths_by_signal_do_not_go_on_without_end():
    """A service that cannot live is given up all the same."""
    assert Host().dies_until_given_up(-9) < 180


def test_a_service_that_was_given_up_is_started_again_for_the_vm_that_it_left():
    """Its slot would be lost as long as the supervisor lives: no other worker looks after its VM."""
    host = Host(LEFT)
    host.feed(events.WorkerExited("A", 77))
    assert host.service.state is ServiceState.FATAL
    given_up = host.now
    host.until_due()
    assert host.started[-1] == ("A", given_up + restarts.CLEAN_UP_AFTER)
    assert host.service.state is ServiceState.STARTING
    host.feed(events.WorkerSaid("A", m.VMGone(vm="vm-1")))
    host.feed(events.WorkerExited("A", 77))
    assert [slot.state for slot in host.model.allocation.table.slots] == [SlotState.FREE, SlotState.FREE]
    assert next_deadline(host.model) is None


def test_one_trouble_is_one_error():
    """However often the clean-up is tried; an ERROR again after the service was ready."""
    host = Host(LEFT)
    for _ in range(3):
        host.feed(events.WorkerExited("A", 77))
        host.until_due()
    assert [level for name, level in host.reports if name == "A"] == ["ERROR", "WARN", "WARN"]
    host.feed(events.WorkerSaid("A", m.Ready(driver="anka", driver_version="3")))
    host.feed(events.WorkerExited("A", 77))
    assert host.reports[-1] == ("A", "ERROR")


def test_a_service_that_owes_nothing_stays_down():
    """An operator must act."""
    host = Host()
    host.feed(events.WorkerExited("A", 77))
    assert host.service.state is ServiceState.FATAL
    assert next_deadline(host.model) is None


def test_no_clean_up_is_begun_in_a_drain():
    """The next start looks after it."""
    host = Host(LEFT)
    host.feed(events.WorkerExited("A", 77))
    host.feed(events.DrainAsked())
    started = len(host.started)
    host.now += 2 * restarts.CLEAN_UP_AFTER
    host.feed(events.Tick())
    assert len(host.started) == started
    host.feed(events.WorkerExited("B", 0))
    assert host.finished == 0


def test_a_start_that_is_put_off_costs_no_restart():
    """The files of another version are there: the service waits for the restart of the supervisor, however long."""
    host = Host()
    host.feed(events.WorkerExited("A", 70))
    for _ in range(20):
        host.until_due()
        host.feed(events.StartPutOff("A", "version 2 is installed"))
        assert host.service.state is ServiceState.BACKOFF
    assert len(host.service.crashes) == 1
    assert host.service.reason == "version 2 is installed"


def test_what_ends_does_not_wait_for_a_start_that_is_put_off():
    """The VM that A left is for the next start of the supervisor."""
    host = Host(LEFT)
    host.feed(events.WorkerExited("A", 70))
    host.feed(events.DrainAsked())
    host.feed(events.WorkerExited("B", 0))
    host.until_due()
    host.feed(events.StartPutOff("A", "version 2 is installed"))
    assert host.finished == 0
