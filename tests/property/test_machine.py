"""The step function, explored with histories that a host could produce."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from anklet_supervisor.machine import allocator, events, restarts
from anklet_supervisor.machine.model import Fate, Moment
from anklet_supervisor.machine.state import ALIVE, FINAL, Mode, ServiceState
from anklet_supervisor.machine.step import initial, step
from anklet_worker.link import messages as m
from anklet_worker.link.slots import SlotState

SERVICES = ["alpha", "beta", "gamma"]
name_of = st.sampled_from([*SERVICES, "delta"])
#: Some codes are listed more often, so that they are drawn more often.
EXIT_CODES = [0, 64, 69, 70, 75, 77, 78, -9, -9, -9, -9, -15, -15]
ORDERS = [events.DrainAsked(), events.Terminated(), events.InterruptedBy(), events.RestartAsked()]
HOLDING = (SlotState.OCCUPIED, SlotState.ORPHANED)


class Worker:
    """A live process: its granted slot, its VM, and the settings that it started with."""

    def __init__(self, revision):
        self.slot = None
        self.vm = None
        self.revision = revision


class Host:
    """Performs effects as the loop does, with imaginary processes, and knows which VMs really exist."""

    def __init__(self, *, once=False, drain_timeout=None, left=0):
        self.now = 1000.0
        self.alive = {}
        self.told = []
        self.finished = None
        self.vms = {f"left-{number}": SERVICES[number] for number in range(left)}
        allocation = allocator.build(2, 11, [(service, vm) for vm, service in self.vms.items()], 1.0)
        self.before = self.model = initial(SERVICES, allocation, once=once, drain_timeout=drain_timeout)
        self.starts = 0
        self.reading = False
        self.asked = self.asked_when_read = 0
        self.configured = tuple(SERVICES)
        self.proposed = {}
        self.newest = dict.fromkeys(SERVICES, 0)
        self.in_force = dict(self.newest)

    def feed(self, event):
        """One step, with everything that follows from it."""
        self.asked += isinstance(event, events.ReloadAsked)
        queue = [event]
        while queue:
            self.before = self.model
            self.model, effects = step(self.model, queue.pop(0), Moment(self.now, self.now))
            queue.extend(event for effect in effects for event in self.perform(effect))

    def perform(self, effect):
        """Perform one effect; return the events that it causes."""
        match effect:
            case events.StartWorker(service=name):
                assert name not in self.alive, "two live processes of one service"
                self.starts += 1
                self.alive[name] = Worker(self.in_force[name])
                return [events.WorkerStarted(name, 4000 + self.starts)]
            case events.Tell(service=name, command=command):
                self.told.append((name, command))
                self.tell(name, command)
            case events.DetachWorker():
                assert self.model.restarting, "a worker was sent away from its job"
            case events.KillWorker(service=name):
                assert self.model.mode is Mode.STOPPING, "a worker was killed"
                if name in self.alive:
                    del self.alive[name]
                    return [events.WorkerExited(name, -9)]
            case events.Finish(exit_code=code):
                assert self.finished is None, "finished twice"
                self.finished = code
            case _:
                self.perform_on_config(effect)
        return []

    def tell(self, name, command):
        """Deliver a command to a worker."""
        if isinstance(command, m.Stop):
            assert self.model.mode is Mode.STOPPING, "a job was interrupted"
        if isinstance(command, m.GrantSlot):
            used = [s for s in self.model.allocation.table.slots if s.state not in (SlotState.FREE, SlotState.RETIRED)]
            assert len(used) <= self.model.allocation.limit, "more slots were given than may run"
            if name in self.alive:
                self.alive[name].slot = command.slot

    def perform_on_config(self, effect):
        """Perform an effect on the configuration."""
        match effect:
            case events.ReadConfig():
                assert not self.reading, "the configuration is read twice at once"
                self.reading = True
                self.asked_when_read = self.asked
            case events.TakeConfig():
                assert self.asked_when_read == self.asked, "an older configuration than was asked for"
                self.newest = self.proposed
                self.configured = tuple(self.proposed)
            case events.RenewSettings(service=name):
                assert name not in self.alive, "settings were changed under a living worker"
                service = self.before.services.get(name)
                if service is not None and service.state is ServiceState.BACKOFF:
                    assert not allocator.owes(self.before.allocation, name), "its job may not be found any more"
                self.in_force[name] = self.newest[name]
            case events.ForgetService(service=name):
                assert name not in self.alive, "a service with a process was forgotten"
                del self.in_force[name]

    def say(self, name, fact):
        """A worker says something."""
        self.feed(events.WorkerSaid(name, fact))

    def exit(self, name, code):
        """A worker process ends; its VM stays."""
        if name in self.alive:
            del self.alive[name]
            self.feed(events.WorkerExited(name, code))

    def clean_up(self, name):
        """A worker proves that every VM of its service is gone."""
        for vm in [vm for vm, owner in self.vms.items() if owner == name]:
            del self.vms[vm]
            self.say(name, m.VMGone(vm=vm))

    def slot_of(self, ref):
        """The slot of a grant; None if the slot now belongs to another grant."""
        slot = self.model.allocation.table.slots[ref.index]
        return slot if slot.ref == ref else None


class Supervision(RuleBasedStateMachine):
    """Workers announce, request, make VMs and die; operators order and reload; facts are lost or repeated."""

    @initialize(
        once=st.sampled_from([False, False, False, True]),
        timeout=st.sampled_from([None, 30.0]),
        left=st.integers(0, 2),
        hangs=st.sampled_from([False, False, True]),
    )
    def begin(self, once, timeout, left, hangs):
        """A supervisor starts."""
        self.hangs = hangs
        self.vm_count = 0
        self.said = []
        self.revision = 0
        self.host = Host(once=once, drain_timeout=timeout, left=left)
        self.host.feed(events.Began())

    @property
    def running(self):
        """True until the supervisor has finished."""
        return hasattr(self, "host") and self.host.finished is None

    def say(self, name, fact):
        """A live worker reports something, which may be repeated later."""
        self.said.append((name, fact))
        self.host.say(name, fact)

    @rule(name=name_of, what=st.sampled_from(["ready", "want", "decline", "failed"]))
    def says(self, name, what):
        """A live worker announces, requests a slot, or withdraws its request."""
        if not self.running or name not in self.host.alive:
            return
        worker = self.host.alive[name]
        if what == "ready":
            self.say(name, m.Ready(driver="anka", driver_version="3"))
        elif what == "failed":
            self.say(name, m.Failed(reason="x"))
        elif what == "want" and worker.slot is None:
            self.say(name, m.SlotWanted())
        elif what == "decline" and worker.vm is None:
            worker.slot = None
            self.say(name, m.SlotDeclined())

    @rule(name=name_of, is_lost=st.sampled_from([False, False, True]))
    def makes_a_vm(self, name, is_lost):
        """A worker requests a slot, announces its VM, reads the table, and makes the VM if the table says so."""
        worker = self.host.alive.get(name) if self.running else None
        if worker is not None and worker.slot is None:
            self.say(name, m.SlotWanted())
        if worker is None or worker.slot is None or worker.vm is not None:
            return
        self.vm_count += 1
        vm = f"vm-{self.vm_count}"
        if not is_lost:
            self.say(name, m.SlotOccupied(slot=worker.slot, vm=vm))
        slot = self.host.slot_of(worker.slot)
        if slot is not None and slot.state is SlotState.OCCUPIED and slot.vm == vm:
            worker.vm = vm
            self.host.vms[vm] = name
        else:
            worker.slot = None

    @rule(name=name_of, is_lost=st.booleans())
    def removes_its_vm(self, name, is_lost):
        """A worker's VM is gone, and it says so."""
        worker = self.host.alive.get(name) if self.running else None
        if worker is None or worker.slot is None:
            return
        ref, worker.slot = worker.slot, None
        self.host.vms.pop(worker.vm, None)
        worker.vm = None
        if not is_lost:
            self.say(name, m.SlotReleased(slot=ref))

    @rule(name=name_of, adopts=st.booleans())
    def looks_after_what_was_left(self, name, adopts):
        """A successor adopts a VM, or proves that it is gone."""
        worker = self.host.alive.get(name) if self.running else None
        if worker is None:
            return
        for vm in [vm for vm, owner in self.host.vms.items() if owner == name and vm != worker.vm]:
            if adopts:
                self.say(name, m.VMAdopted(vm=vm))
            else:
                del self.host.vms[vm]
                self.say(name, m.VMGone(vm=vm))

    @rule(data=st.data())
    def a_fact_comes_twice(self, data):
        """A service repeats an earlier fact: that frees no slot that holds a VM."""
        old = [(name, fact) for name, fact in self.said if self.running and name in self.host.alive]
        if old:
            self.host.say(*data.draw(st.sampled_from(old)))

    @rule()
    def drained_workers_finish(self):
        """Workers of services that change or leave clean up and exit."""
        if self.running and self.host.model.mode is Mode.RUNNING:
            for name in list(self.host.alive):
                if self.host.model.services[name].fate is not Fate.STAYS:
                    self.host.clean_up(name)
                    self.host.exit(name, 0)

    @rule(name=name_of, code=st.sampled_from(EXIT_CODES))
    def exits(self, name, code):
        """A worker process ends."""
        if self.running:
            self.host.exit(name, code)

    @rule(event=st.sampled_from([*ORDERS, *[None] * 12]))
    def ordered(self, event):
        """A signal arrives occasionally."""
        if self.running and event is not None:
            self.host.feed(event)

    @rule(times=st.integers(1, 2))
    def reload_asked(self, times):
        """A reload is requested, perhaps during another one."""
        for _ in range(times):
            if self.running:
                self.host.feed(events.ReloadAsked())

    @rule(
        is_asked_first=st.booleans(),
        names=st.lists(name_of, min_size=1, unique=True),
        changed=st.sets(name_of),
        limit=st.integers(1, 3),
        broken=st.sampled_from([False, False, False, True]),
    )
    def config_arrives(self, is_asked_first, names, changed, limit, broken):
        """The supervisor has finished reading a configuration."""
        if is_asked_first:
            self.reload_asked(1)
        if not self.running or not self.host.reading:
            return
        self.host.reading = False
        if broken:
            before = self.host.model.services
            self.host.feed(events.ConfigRefused(("config.yml:1:1: no",)))
            assert self.host.model.services == before
            return
        self.revision += 1
        known = self.host.newest
        self.host.proposed = {n: known[n] if n in known and n not in changed else self.revision for n in names}
        self.host.feed(
            events.ConfigRead(
                services=tuple(names),
                changed=frozenset(n for n in names if n in known and n in changed),
                vm_limit=limit,
                drain_timeout=None,
            )
        )

    @rule(seconds=st.sampled_from([0.5, 2.0, 20.0, 61.0, 400.0]))
    def time_passes(self, seconds):
        """The loop's timer fires."""
        if self.running:
            self.host.now += seconds
            self.host.feed(events.Tick())

    @invariant()
    def processes_match_states(self):
        """A service has a process exactly in the states in `ALIVE`."""
        if not self.running:
            return
        for service in self.host.model.services.values():
            assert (service.name in self.host.alive) == (service.state in ALIVE), service
            if service.state is ServiceState.FATAL:
                assert service.reason, "a fatal service does not say why"

    @invariant()
    def the_configured_services_are_there(self):
        """The model has all configured services, and no others except those that are leaving."""
        if not self.running:
            return
        services = self.host.model.services
        assert set(self.host.configured) <= set(services)
        assert all(services[name].fate is Fate.LEAVES for name in set(services) - set(self.host.configured))

    @invariant()
    def a_worker_keeps_its_settings(self):
        """A worker keeps the settings of its start. An unchanged one already has the newest."""
        if not self.running:
            return
        for name, worker in self.host.alive.items():
            assert worker.revision == self.host.in_force[name]
            if self.host.model.mode is Mode.RUNNING and self.host.model.services[name].fate is Fate.STAYS:
                assert worker.revision == self.host.newest[name]

    @invariant()
    def every_vm_has_its_slot(self):
        """Only proof frees a slot, whatever is lost, repeated, reloaded or killed."""
        if not hasattr(self, "host"):
            return
        held = [slot.vm for slot in self.host.model.allocation.table.slots if slot.state in HOLDING]
        assert len(held) == len(set(held))
        assert set(self.host.vms) <= set(held), "a VM without a slot"

    @invariant()
    def the_limit_holds(self):
        """There are more slots than the limit only while the surplus is in use."""
        if not self.running:
            return
        allocation = self.host.model.allocation
        free = [slot for slot in allocation.table.slots if slot.state is SlotState.FREE]
        if self.host.model.mode is Mode.RUNNING:
            assert allocation.table.limit == allocation.limit or (
                allocation.table.limit > allocation.limit and not free
            )

    @invariant()
    def restarts_are_bounded(self):
        """No service is started more often than the budget allows within its period: deaths by signal get a minute, and a service
        that was given up is started again for its clean-up only."""
        if hasattr(self, "host"):
            for service in self.host.model.services.values():
                lasted = service.crashes[-1] - service.crashes[0] if service.crashes else 0.0
                passing = lasted < restarts.PASSING_TROUBLE and len(service.crashes) <= restarts.MAX_CRASHES + 2
                assert len(service.crashes) <= restarts.MAX_CRASHES or service.given_up or passing

    def teardown(self):
        """Reloads take effect, and a stop ends in bounded steps: workers obey it or are killed."""
        if not self.running:
            return
        self.settle()
        self.host.feed(events.Terminated())
        self.host.feed(events.Terminated())
        for _ in range(100):
            if self.host.finished is not None:
                break
            for name in [] if self.hangs else list(self.host.alive):
                self.host.clean_up(name)
                self.host.exit(name, 0)
            self.host.now += 61.0
            self.host.feed(events.Tick())
        assert self.host.finished is not None, "a stop that does not end"
        assert all(service.state in FINAL for service in self.host.model.services.values())

    def settle(self):
        """Drained workers finish: then the services are the configured ones, each with its newest settings."""
        if self.host.model.mode is not Mode.RUNNING or self.hangs:
            return
        for _ in range(20):
            for name in list(self.host.alive):
                if self.host.model.services[name].fate is not Fate.STAYS:
                    self.host.clean_up(name)
                    self.host.exit(name, 0)
            self.host.now += 61.0
            self.host.feed(events.Tick())
        if self.host.finished is None:
            assert tuple(self.host.model.services) == self.host.configured
            assert self.host.in_force == self.host.newest


TestSupervision = Supervision.TestCase
TestSupervision.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
