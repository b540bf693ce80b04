"""The slot allocation, explored: the limit always holds, and only proof frees a slot."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from anklet_supervisor.machine import allocator
from anklet_worker.link.slots import SlotState, decode, encode

SERVICES = ["a", "b", "c", "d"]
service = st.sampled_from(SERVICES)
UNUSED = (SlotState.FREE, SlotState.RETIRED)


class SlotAllocation(RuleBasedStateMachine):
    """Services request, occupy, release and die; VMs come and go, foreign ones too."""

    @initialize(limit=st.integers(1, 3), left=st.lists(service, max_size=4))
    def begin(self, limit, left):
        """A supervisor starts with the VMs on record."""
        self.limit = limit
        self.vms = {f"left-{i}": name for i, name in enumerate(left)}
        self.allocation = allocator.build(limit, 7, [(name, vm) for vm, name in self.vms.items()], 1.0)
        self.held = {}
        self.used_refs = set()
        self.counter = 0
        for vm in list(self.vms)[limit:]:
            del self.vms[vm]  # counted as foreign, not by a slot

    def grant(self):
        """Grant free slots, as the supervisor does at the end of each step."""
        self.allocation, grants = allocator.grant(self.allocation, 2.0)
        for grant in grants:
            used = [slot for slot in self.allocation.table.slots if slot.state not in UNUSED]
            assert len(used) <= self.limit, "a grant beyond the limit"
            key = (grant.slot.index, grant.slot.generation, grant.slot.nonce)
            assert key not in self.used_refs, "a grant repeats an earlier one"
            self.used_refs.add(key)
            self.held.setdefault(grant.service, []).append(grant.slot)

    @rule(name=service)
    def asks(self, name):
        """A service requests a slot."""
        if not self.held.get(name):
            self.allocation = allocator.want(self.allocation, name)
        self.grant()

    @rule(name=service)
    def declines(self, name):
        """A service withdraws its request."""
        self.allocation = allocator.decline(self.allocation, name)
        if name in self.held:
            self.held[name] = [ref for ref in self.held[name] if self.state_of(ref) is SlotState.OCCUPIED]
        self.grant()

    @rule(name=service)
    def occupies(self, name):
        """A worker announces its VM, and makes it only if the table then says so."""
        for ref in self.held.get(name, []):
            if self.state_of(ref) is SlotState.RESERVED:
                self.counter += 1
                vm = f"vm-{self.counter}"
                self.allocation = allocator.occupy(self.allocation, name, ref, vm, 3.0)
                if self.state_of(ref) is SlotState.OCCUPIED:
                    self.vms[vm] = name
                else:
                    self.held[name].remove(ref)
                break
        self.grant()

    @rule(name=service, data=st.data())
    def occupies_with_an_old_grant(self, name, data):
        """A worker announces a VM with an expired grant; it must not get the slot."""
        if not self.used_refs:
            return
        index, generation, nonce = data.draw(st.sampled_from(sorted(self.used_refs)))
        ref = allocator.SlotRef(index=index, generation=generation, nonce=nonce)
        if ref in self.held.get(name, []):
            return
        before = self.allocation
        self.allocation = allocator.occupy(self.allocation, name, ref, "straggler", 3.0)
        assert self.allocation == before

    @rule(name=service)
    def releases(self, name):
        """A worker's VM is gone and it says so."""
        for ref in self.held.pop(name, []):
            slot = self.allocation.table.slots[ref.index]
            if slot.ref == ref:
                self.vms.pop(slot.vm, None)
            self.allocation = allocator.release(self.allocation, name, ref)
        self.grant()

    @rule(name=service)
    def dies(self, name):
        """A worker dies; its VM, if any, lives on."""
        self.allocation = allocator.worker_gone(self.allocation, name)
        self.held.pop(name, None)
        owned = [vm for vm, owner in self.vms.items() if owner == name]
        if owned:
            assert allocator.owes(self.allocation, name)
        self.grant()

    @rule(data=st.data())
    def vm_proven_gone(self, data):
        """A successor has deleted the VM."""
        orphans = [slot.vm for slot in self.allocation.table.slots if slot.state is SlotState.ORPHANED]
        if orphans:
            vm = data.draw(st.sampled_from(orphans))
            self.vms.pop(vm, None)
            self.allocation = allocator.vm_gone(self.allocation, vm)
        self.grant()

    @rule(limit=st.integers(1, 4))
    def another_limit(self, limit):
        """A reload: slots in use stay, and a surplus slot is retired when it is free."""
        before = [slot for slot in self.allocation.table.slots if slot.state not in UNUSED]
        self.limit = limit
        self.allocation = allocator.resize(self.allocation, limit)
        assert [slot for slot in self.allocation.table.slots if slot.state not in UNUSED] == before
        self.grant()

    @rule(foreign=st.integers(0, 3), processes=st.integers(0, 4))
    def listing(self, foreign, processes):
        """A worker lists the running VMs."""
        seen = [*self.vms, *(f"foreign-{i}" for i in range(foreign))]
        self.allocation = allocator.running_vms(self.allocation, seen, processes)
        assert self.allocation.table.foreign == max(foreign, processes - len(self.vms), 0)
        self.grant()

    def state_of(self, ref):
        """The state of a grant's slot; None if the slot now belongs to another grant."""
        slot = self.allocation.table.slots[ref.index]
        return slot.state if slot.ref == ref else None

    @invariant()
    def limit_holds(self):
        """There are never more VMs than slots, and each VM has a slot of its own."""
        if not hasattr(self, "allocation"):
            return
        slots = self.allocation.table.slots
        free = [slot for slot in slots if slot.state is SlotState.FREE]
        assert [slot.index for slot in slots] == list(range(len(slots)))
        assert self.allocation.table.limit == self.limit or (self.allocation.table.limit > self.limit and not free)
        named = [slot.vm for slot in slots if slot.vm]
        assert sorted(named) == sorted(self.vms), "a VM without a slot, or a slot freed without proof"

    @invariant()
    def bytes_say_the_same(self):
        """The table survives its encoding."""
        if hasattr(self, "allocation"):
            assert decode(encode(self.allocation.table)) == self.allocation.table


TestSlotAllocation = SlotAllocation.TestCase
TestSlotAllocation.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
