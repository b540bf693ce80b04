"""A host that refuses a VM although a slot is free: what the supervisor learns, when it retries, and when the host recovers."""

import pytest

from anklet_supervisor.machine import allocator
from anklet_supervisor.machine.events import PublishSlots, Report, Tell, Tick, WorkerSaid
from anklet_supervisor.machine.host_limit import HostLimit, allowed, refused, started
from anklet_supervisor.machine.model import Moment
from anklet_supervisor.machine.step import initial, next_deadline, step
from anklet_worker.link import messages as m

ERROR = Report("ERROR", "the host refuses to run as many VMs as it has slots; retrying now and then")
RECOVERED = Report("INFO", "the host runs as many VMs as it has slots again")


def test_a_host_that_is_full_is_right():
    """A refusal while other VMs fill the host teaches nothing."""
    assert refused(HostLimit(), 2, 2, 0.0) == HostLimit()


def test_the_first_refusal_is_a_short_wait():
    """A Mac needs a moment to free a place after its VM is gone, so the first pause is short."""
    limit = refused(HostLimit(), 0, 2, 100.0)
    assert not limit.degraded
    assert [allowed(limit, 2, now) for now in (100.0, 101.9, 102.0)] == [0, 0, 1]
    assert started(limit, 1) == HostLimit()


def test_the_pauses_double_up_to_ten_minutes():
    """From the second refusal on, the host is degraded."""
    limit, now, pauses = HostLimit(), 0.0, []
    for number in range(10):
        limit = refused(limit, 0, 2, now)
        assert limit.degraded == (number > 0)
        pauses.append(limit.retry_at - now)
        now = limit.retry_at
    assert pauses == [2, 15, 30, 60, 120, 240, 480, 600, 600, 600]


def test_a_host_may_refuse_for_months():
    """Without a reboot, the host is tried every ten minutes."""
    limit, now = HostLimit(), 0.0
    for _ in range(1100):
        limit = refused(limit, 0, 2, now)
        pause, now = limit.retry_at - now, limit.retry_at
    assert pause == 600.0
    assert limit.refusals == 1100


def test_refusals_of_starts_that_were_under_way_are_one():
    """Two services start at once and both are refused: that counts as one refusal, with the lower ceiling."""
    limit = refused(refused(HostLimit(), 1, 2, 0.0), 0, 2, 0.5)
    assert limit == HostLimit(ceiling=0, refusals=1, retry_at=2.0)


def test_a_start_below_the_ceiling_proves_nothing():
    """Only a successful start beyond the ceiling clears it."""
    limit = HostLimit(ceiling=1, refusals=3, retry_at=9.0)
    assert started(limit, 1) == limit
    assert started(limit, 2) == HostLimit()


@pytest.mark.parametrize(
    ("ceiling", "now", "may"), [(None, 0.0, 2), (0, 0.0, 0), (1, 0.0, 1), (0, 9.0, 1), (2, 9.0, 2)]
)
def test_never_more_than_the_slots(ceiling, now, may):
    """The limit never exceeds the number of slots, whatever the ceiling is."""
    assert allowed(HostLimit(ceiling=ceiling, refusals=1, retry_at=9.0), 2, now) == may


class Supervisor:
    """The machine and the effects it returned."""

    def __init__(self, *services):
        self.model = initial(list(services), allocator.build(2, 1, [], 0.0), once=False, drain_timeout=None)
        self.now = 0.0
        self.effects = []

    def see(self, event):
        """Feed an event; return its effects."""
        self.model, effects = step(self.model, event, Moment(self.now, self.now))
        self.effects += effects
        return effects

    def grant_to(self, service):
        """Request a slot for the service; return the granted one, if any."""
        effects = self.see(WorkerSaid(service, m.SlotWanted()))
        return next(
            (e.command.slot for e in effects if isinstance(e, Tell) and isinstance(e.command, m.GrantSlot)), None
        )

    def start(self, service, vm, *, refuse):
        """The service makes a VM in a slot. The host starts or refuses it; a refused VM is removed."""
        slot = self.grant_to(service)
        self.see(WorkerSaid(service, m.SlotOccupied(slot=slot, vm=vm)))
        if not refuse:
            return self.see(WorkerSaid(service, m.VMStarted(vm=vm)))
        effects = self.see(WorkerSaid(service, m.StartRefused(vm=vm)))
        self.see(WorkerSaid(service, m.SlotReleased(slot=slot)))
        return effects

    def tick_to(self, now):
        """Let time pass."""
        assert next_deadline(self.model) <= now
        self.now = now
        return self.see(Tick())

    @property
    def available(self):
        """The slot table as workers see it."""
        return self.model.allocation.table.available


def test_a_degraded_host_takes_no_job_and_recovers_by_itself():
    """The limit holds for all services together: one ERROR, one try at a time, and recovery when a start succeeds."""
    host = Supervisor("A", "B")
    assert ERROR not in host.start("A", "vm-1", refuse=True)
    assert host.available == 0
    assert host.grant_to("B") is None
    granted = [e.service for e in host.tick_to(2.0) if isinstance(e, Tell) and isinstance(e.command, m.GrantSlot)]
    assert granted == ["B"]
    host.see(WorkerSaid("B", m.SlotDeclined()))
    assert ERROR in host.start("A", "vm-2", refuse=True)
    assert host.available == 0
    assert PublishSlots() in host.tick_to(17.0)
    assert host.available == 1
    assert ERROR not in host.start("B", "vm-3", refuse=True)
    host.tick_to(47.0)
    assert RECOVERED in host.start("B", "vm-4", refuse=False)
    assert host.available == 1
    assert host.effects.count(ERROR) == 1
    assert next_deadline(host.model) is None


def test_what_the_host_does_run_it_goes_on_running():
    """With one of two places lost, the other still runs job after job, and tries for a second VM continue."""
    host = Supervisor("A", "B")
    host.start("A", "vm-1", refuse=False)
    for now in (0.0, 2.0):
        if now:
            host.tick_to(now)
        host.start("B", f"vm-b{now}", refuse=True)
    assert host.effects.count(ERROR) == 1
    assert host.available == 0
    host.see(WorkerSaid("A", m.VMGone(vm="vm-1")))
    assert host.available == 1
    host.start("A", "vm-2", refuse=False)
    assert (host.available, host.effects.count(RECOVERED)) == (0, 0)
    host.tick_to(17.0)
    assert host.available == 1
    host.start("B", "vm-3", refuse=False)
    assert host.effects.count(RECOVERED) == 1


def test_others_vms_are_no_fault_of_the_host():
    """The worker lists all VMs before it reports a refusal. Others' VMs explain it, so the host is not degraded."""
    host = Supervisor("A")
    slot = host.grant_to("A")
    host.see(WorkerSaid("A", m.SlotOccupied(slot=slot, vm="vm-1")))
    host.see(WorkerSaid("A", m.RunningVMs(vms=["x", "y"], processes=2)))
    host.see(WorkerSaid("A", m.StartRefused(vm="vm-1")))
    assert host.model.allocation.host == HostLimit()
