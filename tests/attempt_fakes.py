"""In-memory stand-ins for an attempt's surroundings. They record all calls in one common order."""

from anklet_worker.contract.driver import Withdrawal
from anklet_worker.contract.errors import AnkletError
from anklet_worker.contract.job import Conclusion, Job, Outcome, VMSpec
from anklet_worker.link.setup import WorkerSetup
from anklet_worker.link.slots import SlotState
from anklet_worker.vm.driver import VMState
from anklet_worker.vm.memory import MemoryDriver, MemoryHost

JOB = Job(id="77", name="build", url="https://example.test/77", keyspace="anklet:{a/b}", vm=VMSpec(template="t"))
OUTCOME = Outcome(conclusion=Conclusion.SUCCESS, job_id="77", job_name="build", job_url="https://example.test/77")


def worker_setup(service, folder, *, install_id="00000001", once=False):
    """The setup of a worker whose service is the only one of its host. All files of the host are in `folder`."""
    return WorkerSetup(
        service=service,
        services=(service.name,),
        sweeps_strays=True,
        once=once,
        install_id=install_id,
        host_id="h",
        boot_id="b",
        state_dir=folder,
        work_dir=folder,
        plugins_path=folder,
        drain_file=folder / ".drain",
        log_level="INFO",
    )


class Script:
    """Says what happens at each step: the exceptions to raise or the functions to call, in their order."""

    def __init__(self):
        self.trace = []
        self._planned = {}

    def plan(self, step, *actions):
        """Plan the next times that `step` is reached; None lets it pass."""
        self._planned[step] = list(actions)

    def is_planned(self, step):
        """True if something is planned for this step."""
        return bool(self._planned.get(step))

    def reach(self, step):
        """Reach a step: record it, and do what is planned."""
        self.trace.append(step)
        planned = self._planned.get(step)
        action = planned.pop(0) if planned else None
        if isinstance(action, BaseException):
            raise action
        return action() if callable(action) else action


class FakeDriver(MemoryDriver):
    """The shipped driver in memory. Each of its steps is one of the script's; `vms` shows the VMs as name -> running."""

    def __init__(self, script):
        super().__init__(MemoryHost(most_running=99), hook=lambda step, _vm: script.reach(step), name="fake")
        self.vms = {}

    @property
    def vms(self):
        return {vm.name: vm.state is VMState.RUNNING for vm in self.host.vms.values() if vm.name != JOB.vm.template}

    @vms.setter
    def vms(self, running):
        self.host.vms.clear()
        self.host.add(JOB.vm.template)
        for name, runs in running.items():
            self.host.add(name, VMState.RUNNING if runs else VMState.STOPPED)


class FakePlugin:
    """A plugin with one job and one registration. Source and driver are the same object."""

    api_version = 2

    def __init__(self, script):
        self.script = script
        self.jobs = [JOB]
        self.registered = set()
        self.claimed = []
        self.source = self.driver = self

    def find(self):
        self.script.reach("look")
        return list(self.jobs)

    def housekeep(self, claimed):
        self.claimed.append(claimed)
        if self.script.is_planned("housekeep"):
            self.script.reach("housekeep")

    def claim(self, job):
        answer = self.script.reach("claim")
        return True if answer is None else answer

    def drive(self, hand, guest):
        self.script.reach("drive")
        hand.remember(runner=guest.name)
        self.registered.add(guest.name)
        self.script.reach("registered")
        hand.job_started(hand.job)
        self.script.reach("running")
        self.registered.discard(guest.name)
        self.jobs.remove(hand.job)
        return OUTCOME

    def adopt(self, hand, guest):
        self.script.reach("adopt")
        self.registered.discard(guest.name)
        self.jobs = [other for other in self.jobs if other.id != hand.job.id]
        return OUTCOME

    def withdraw(self, hand):
        answer = self.script.reach("withdraw")
        if answer is None:
            self.registered.discard(hand.vm)
            return Withdrawal.WITHDRAWN
        return answer

    def settle(self, hand):
        answer = self.script.reach("settle")
        if answer is False:
            return False
        self.registered.discard(hand.vm)
        return True

    def collect(self, hand, guest, folder):
        self.script.reach("collect")
        (folder / "log").write_text(guest.name)

    def abandoned(self, vm):
        answer = self.script.reach("abandoned")
        return True if answer is None else answer

    def close(self):
        self.script.reach("close")


class FakeLink:
    """Grants slots as a supervisor with one free slot would, and keeps all facts."""

    def __init__(self, slots, orders):
        self.told = []
        self.slots = slots
        self.orders = orders
        self.heard = set()
        #: True for a supervisor that hangs, or dies before it reads the facts.
        self.deaf = False

    def tell(self, fact):
        self.told.append(fact)
        self.slots.hear(fact)

    def tell_outcome(self, fact):
        self.tell(fact)
        if not self.deaf:
            self.heard.add(fact.vm)

    def has_heard(self, vm):
        return vm in self.heard

    def forget_outcome(self, vm):
        self.heard.discard(vm)

    def acquire_slot(self, patience, while_waiting):
        return self.slots.grant()

    def kinds(self):
        """The names of the facts, in order."""
        return [type(fact).__name__ for fact in self.told]


class FakeSlots:
    """The slot table with one slot."""

    def __init__(self, ref):
        self.ref = ref
        self.state = SlotState.FREE
        #: The rows of the whole slot table.
        self.table = ()
        self.held_back = 0

    def grant(self):
        self.state = SlotState.RESERVED
        return self.ref

    def hear(self, fact):
        kind = type(fact).__name__
        if kind == "SlotOccupied" and self.state is SlotState.RESERVED:
            self.state = SlotState.OCCUPIED
        elif kind in ("SlotReleased", "VMGone"):
            self.state = SlotState.FREE

    def state_of(self, ref):
        return self.state if self.state is not SlotState.FREE else None

    def snapshot(self):
        class Table:
            available = int(self.state is SlotState.FREE)
            foreign = 0
            limit = 2
            held_back = self.held_back
            slots = self.table

        return Table


class FakeLeases:
    """Held leases as a set."""

    def __init__(self):
        self.held = set()
        self.gone = set()
        self.doubtful = set()

    def take(self, key):
        self.held.add(key)
        return True

    def give_back(self, key):
        self.held.discard(key)

    def lost(self, key):
        return key in self.gone

    def may_have_been_lost(self, key):
        return key in self.doubtful


class Crash(AnkletError):
    """The process dies here."""
