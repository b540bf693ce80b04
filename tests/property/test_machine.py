"""The supervisor's step function, explored by histories that a host could produce."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from anklet_supervisor import allocator, backoff, machine
from anklet_supervisor.state import ALIVE, FINAL, Mode, ServiceState
from anklet_worker import messages as m
from anklet_worker.slots import SlotState

SERVICES = ["alpha", "beta", "gamma"]
name_of = st.sampled_from(SERVICES)
EXIT_CODES = [0, 64, 69, 70, 75, 77, 78, -9, -15]


class Host:
    """Performs effects as the loop does, with imaginary processes."""

    def __init__(self, *, once=False, drain_timeout=None, left=()):
        self.now = 1000.0
        self.alive = {}
        self.told = []
        self.detached = set()
        self.finished = None
        allocation = allocator.build(2, 11, left, 1.0)
        self.model = machine.initial(SERVICES, allocation, once=once, drain_timeout=drain_timeout)
        self.starts = 0
        self.vms = {}

    def feed(self, event):
        """One step, with everything that follows from it."""
        queue = [event]
        while queue:
            self.model, effects = machine.step(self.model, queue.pop(0), machine.Moment(self.now, self.now))
            queue.extend(self.perform(effects))

    def perform(self, effects):
        """Perform effects; return the events that they cause."""
        events = []
        for effect in effects:
            match effect:
                case machine.StartWorker(service=name):
                    assert name not in self.alive, "two live processes of one service"
                    self.starts += 1
                    self.alive[name] = None
                    events.append(machine.WorkerStarted(name, 4000 + self.starts))
                case machine.Tell(service=name, command=command):
                    self.told.append((name, command))
                    if name in self.alive and isinstance(command, m.GrantSlot):
                        self.alive[name] = command.slot
                case machine.DetachWorker(service=name):
                    self.detached.add(name)
                case machine.KillWorker(service=name):
                    if name in self.alive:
                        del self.alive[name]
                        events.append(machine.WorkerExited(name, -9))
                case machine.Finish(exit_code=code):
                    assert self.finished is None, "finished twice"
                    self.finished = code
        return events

    def exit(self, name, code):
        """A worker process ends."""
        if name in self.alive:
            del self.alive[name]
            self.feed(machine.WorkerExited(name, code))


class Supervision(RuleBasedStateMachine):
    """Workers announce, ask, die; operators order; time passes."""

    @initialize(once=st.booleans(), timeout=st.sampled_from([None, 30.0]), left=st.integers(0, 2))
    def begin(self, once, timeout, left):
        """A supervisor starts."""
        behind = [(SERVICES[i], f"left-{i}") for i in range(left)]
        self.host = Host(once=once, drain_timeout=timeout, left=behind)
        self.host.feed(machine.Began())

    @property
    def running(self):
        """True until the supervisor has finished."""
        return hasattr(self, "host") and self.host.finished is None

    @rule(name=name_of, fact=st.sampled_from(["ready", "want", "occupy", "release", "gone", "failed"]))
    def says(self, name, fact):
        """A live worker says something."""
        if not self.running or name not in self.host.alive:
            return
        slot = self.host.alive[name]
        facts = {
            "ready": m.Ready(driver="anka", driver_version="3"),
            "want": m.SlotWanted(),
            "failed": m.Failed(reason="x"),
        }
        if fact in facts:
            self.host.feed(machine.WorkerSaid(name, facts[fact]))
        elif fact == "gone":
            for index, service in enumerate(SERVICES):
                if service == name:
                    self.host.feed(machine.WorkerSaid(name, m.VMGone(vm=f"left-{index}")))
        elif slot is not None:
            if fact == "occupy":
                self.host.feed(
                    machine.WorkerSaid(name, m.SlotOccupied(slot=slot, vm=f"vm-{slot.generation}-{slot.index}"))
                )
            else:
                self.host.alive[name] = None
                self.host.feed(machine.WorkerSaid(name, m.SlotReleased(slot=slot)))

    @rule(name=name_of, code=st.sampled_from(EXIT_CODES))
    def exits(self, name, code):
        """A worker process ends."""
        if self.running:
            self.host.exit(name, code)

    @rule(
        event=st.sampled_from(
            [machine.DrainAsked(), machine.Terminated(), machine.InterruptedBy(), machine.RestartAsked()]
        )
    )
    def ordered(self, event):
        """A signal arrives."""
        if self.running:
            self.host.feed(event)

    @rule(seconds=st.sampled_from([0.5, 2.0, 20.0, 61.0, 400.0]))
    def time_passes(self, seconds):
        """The loop's timer fires."""
        if self.running:
            self.host.now += seconds
            self.host.feed(machine.Tick())

    @invariant()
    def processes_match_states(self):
        """A service has a process exactly in the states that say so, and a final one never has."""
        if not self.running:
            return
        for service in self.host.model.services.values():
            assert (service.name in self.host.alive) == (service.state in ALIVE), service
            if service.state is ServiceState.FATAL:
                assert service.reason, "a fatal service does not say why"

    @invariant()
    def no_grant_outside_running(self):
        """Who drains or stops is granted nothing, and slots never exceed the limit."""
        if not self.running:
            return
        table = self.host.model.allocation.table
        assert len(table.slots) == 2
        if self.host.model.mode is not Mode.RUNNING:
            waiting_for_tick = [s for s in table.slots if s.state is SlotState.RESERVED]
            grants_told = [c for _, c in self.host.told if isinstance(c, m.GrantSlot)]
            assert len(waiting_for_tick) <= len(grants_told)

    @invariant()
    def restarts_are_bounded(self):
        """Nobody is started more often than the budget allows within its period."""
        if hasattr(self, "host"):
            for service in self.host.model.services.values():
                assert len(service.crashes) <= backoff.MAX_CRASHES or service.state is ServiceState.FATAL

    def teardown(self):
        """A stop ends in bounded steps: workers that obey it end, those that do not are killed."""
        if not self.running:
            return
        self.host.feed(machine.Terminated())
        self.host.feed(machine.Terminated())
        for _ in range(100):
            if self.host.finished is not None:
                break
            for name in list(self.host.alive):
                for index, service in enumerate(SERVICES):
                    if service == name:
                        self.host.feed(machine.WorkerSaid(name, m.VMGone(vm=f"left-{index}")))
                self.host.exit(name, 0)
            self.host.now += 61.0
            self.host.feed(machine.Tick())
        assert self.host.finished is not None, "a stop that does not end"
        assert all(service.state in FINAL for service in self.host.model.services.values())


TestSupervision = Supervision.TestCase
TestSupervision.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
