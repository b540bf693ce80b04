"""Which service gets a VM slot, and when a slot is free again. Pure: a table and a queue in, a table and a queue out.

FREE -> RESERVED (granted, first come, first served) -> OCCUPIED (a VM is about to be made) -> FREE (the VM is proved gone). When a
worker dies, its RESERVED slot is FREE again, as no VM was made, and its OCCUPIED slot becomes ORPHANED: the slot belongs to the VM,
not to the worker. Running VMs without a slot are foreign and count against the limit. A smaller limit retires slots as they become
free; a larger one brings them back or adds some.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from anklet_supervisor.machine import host_limit
from anklet_supervisor.machine.host_limit import HostLimit
from anklet_worker.link.messages import SlotRef
from anklet_worker.link.slots import Slot, SlotState, SlotTable

# Odd, so that multiplying by it visits every 62-bit number once: nonces do not repeat.
_NONCE_STEP = 0x1E3779B97F4A7C15
_NONCE_MASK = (1 << 62) - 1


class Allocation(msgspec.Struct, frozen=True, kw_only=True):
    """The slot table, and the services that wait for a slot, in the order of their requests.

    `limit`: how many VMs may run at once. `drawn` counts the nonces drawn from `seed`. `host` is the limit learned from refusals.
    """

    table: SlotTable
    limit: int
    waiting: tuple[str, ...] = ()
    seed: int = 0
    drawn: int = 0
    host: HostLimit = HostLimit()


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """A slot for a service."""

    service: str
    slot: SlotRef


def build(limit: int, seed: int, left_behind: Iterable[tuple[str, str]], wall: float) -> Allocation:
    """The allocation at the start. VMs that records name (`left_behind`: service, VM) are orphaned until they are proved gone.

    Those beyond the number of slots count as foreign until the first listing. `wall` is Unix seconds.
    """
    found = list(left_behind)
    slots = []
    for index in range(limit):
        if index < len(found):
            service, vm = found[index]
            slots.append(Slot(index=index, state=SlotState.ORPHANED, generation=1, since=wall, service=service, vm=vm))
        else:
            slots.append(Slot(index=index))
    table = SlotTable(slots=tuple(slots), foreign=max(0, len(found) - limit))
    return Allocation(table=table, limit=limit, seed=seed & _NONCE_MASK)


def resize(allocation: Allocation, limit: int) -> Allocation:
    """Change the limit. A surplus slot in use is retired when it is free again."""
    return _fit(msgspec.structs.replace(allocation, limit=limit))


def _fit(allocation: Allocation) -> Allocation:
    """Retire, restore or add slots until there are as many as the limit; slots in use stay."""
    slots = list(allocation.table.slots)
    excess = allocation.table.limit - allocation.limit
    for slot in reversed(slots) if excess > 0 else slots:
        if excess > 0 and slot.state is SlotState.FREE:
            slots[slot.index] = msgspec.structs.replace(slot, state=SlotState.RETIRED)
            excess -= 1
        elif excess < 0 and slot.state is SlotState.RETIRED:
            slots[slot.index] = _free(slot)
            excess += 1
    slots += [Slot(index=len(slots) + more) for more in range(-excess)]
    return msgspec.structs.replace(allocation, table=msgspec.structs.replace(allocation.table, slots=tuple(slots)))


def want(allocation: Allocation, service: str) -> Allocation:
    """A service requests a slot. A second request changes nothing."""
    if service in allocation.waiting:
        return allocation
    return msgspec.structs.replace(allocation, waiting=(*allocation.waiting, service))


def decline(allocation: Allocation, service: str) -> Allocation:
    """A service withdraws its request, and returns a granted slot that it has not used."""
    waiting = tuple(name for name in allocation.waiting if name != service)
    freed = msgspec.structs.replace(allocation, waiting=waiting)
    return _change_where(freed, lambda slot: slot.service == service and slot.state is SlotState.RESERVED, _free)


def grant(allocation: Allocation, wall: float) -> tuple[Allocation, list[Grant]]:
    """Grant free slots to waiting services, first come, first served."""
    allocation = _fit(allocation)
    grants: list[Grant] = []
    while allocation.waiting and allocation.table.available > 0:
        service, *rest = allocation.waiting
        slot = next(slot for slot in allocation.table.slots if slot.state is SlotState.FREE)
        drawn = allocation.drawn + 1
        reserved = Slot(
            index=slot.index,
            state=SlotState.RESERVED,
            generation=(slot.generation + 1) & 0xFFFFFFFF,
            nonce=(allocation.seed + drawn * _NONCE_STEP) & _NONCE_MASK,
            since=wall,
            service=service,
        )
        allocation = msgspec.structs.replace(
            allocation, table=_put(allocation.table, reserved), waiting=tuple(rest), drawn=drawn
        )
        grants.append(Grant(service=service, slot=reserved.ref))
    return allocation, grants


def occupy(allocation: Allocation, service: str, ref: SlotRef, vm: str, wall: float) -> Allocation:
    """A VM is about to be made in the slot.

    Refused if the grant is no longer valid, or if foreign VMs took the room meanwhile. The worker sees it in the table.
    """
    slot = _find(allocation.table, ref)
    if slot is None or slot.service != service or slot.state is not SlotState.RESERVED:
        return allocation
    free = sum(other.state is SlotState.FREE for other in allocation.table.slots)
    if allocation.table.foreign > free:
        return _set(allocation, _free(slot))
    return _set(allocation, msgspec.structs.replace(slot, state=SlotState.OCCUPIED, vm=vm, since=wall))


def release(allocation: Allocation, service: str, ref: SlotRef) -> Allocation:
    """The worker reports that the slot holds no VM: none was made, or it is proved gone."""
    slot = _find(allocation.table, ref)
    if slot is None or slot.service != service:
        return allocation
    return _set(allocation, _free(slot))


def vm_gone(allocation: Allocation, vm: str) -> Allocation:
    """The VM is proved gone."""
    return _change_where(allocation, lambda slot: slot.vm == vm and slot.state is not SlotState.FREE, _free)


def vm_adopted(allocation: Allocation, service: str, vm: str, wall: float) -> Allocation:
    """A new worker has adopted its predecessor's VM."""

    def occupied(slot: Slot) -> Slot:
        return msgspec.structs.replace(slot, state=SlotState.OCCUPIED, service=service, since=wall)

    return _change_where(allocation, lambda slot: slot.vm == vm and slot.state is SlotState.ORPHANED, occupied)


def worker_gone(allocation: Allocation, service: str) -> Allocation:
    """The worker process is gone: its reserved slots become free, its occupied slots orphaned."""

    def orphaned(slot: Slot) -> Slot:
        return msgspec.structs.replace(slot, state=SlotState.ORPHANED)

    after = decline(allocation, service)
    return _change_where(after, lambda slot: slot.service == service and slot.state is SlotState.OCCUPIED, orphaned)


def running_vms(allocation: Allocation, seen: Sequence[str], processes: int) -> Allocation:
    """Count foreign VMs: those in the listing `seen` without a slot.

    `processes` counts Apple's virtualization processes, which include VMs that no driver lists. The larger figure holds.
    """
    with_slot = {slot.vm for slot in allocation.table.slots if slot.vm}
    known = sum(vm in with_slot for vm in seen)
    foreign = max(len(seen) - known, processes - known)
    return msgspec.structs.replace(allocation, table=msgspec.structs.replace(allocation.table, foreign=max(0, foreign)))


def start_refused(allocation: Allocation, vm: str, mono: float) -> Allocation:
    """The host refused, because of its limit, to start this VM, which has a slot."""
    others = _may_run(allocation.table, without=vm) + allocation.table.foreign
    host = host_limit.refused(allocation.host, others, allocation.table.limit, mono)
    return msgspec.structs.replace(allocation, host=host)


def vm_started(allocation: Allocation, vm: str) -> Allocation:
    """The host started this VM."""
    running = _may_run(allocation.table, without=vm) + allocation.table.foreign + 1
    return msgspec.structs.replace(allocation, host=host_limit.started(allocation.host, running))


def hold_back(allocation: Allocation, mono: float) -> Allocation:
    """Hold back the slots that the host cannot fill, as its refusals have shown."""
    slots = allocation.table.limit
    held_back = slots - host_limit.allowed(allocation.host, slots, mono)
    if held_back == allocation.table.held_back:
        return allocation
    return msgspec.structs.replace(allocation, table=msgspec.structs.replace(allocation.table, held_back=held_back))


def slots_due(allocation: Allocation) -> float | None:
    """When to grant a held-back slot for a try, monotonic seconds; None without one, or while the try runs."""
    host, slots = allocation.host, allocation.table.limit
    waits = host.ceiling is not None and allocation.table.held_back > slots - min(slots, host.ceiling + 1)
    return host.retry_at if waits else None


def _may_run(table: SlotTable, without: str) -> int:
    """How many slots hold a VM that may run, not counting the VM `without`."""
    return sum(slot.state in (SlotState.OCCUPIED, SlotState.ORPHANED) and slot.vm != without for slot in table.slots)


def owes(allocation: Allocation, service: str) -> bool:
    """True when a VM of this service may exist that no worker looks after."""
    return any(slot.service == service and slot.state is SlotState.ORPHANED for slot in allocation.table.slots)


def _free(slot: Slot) -> Slot:
    return Slot(index=slot.index, generation=slot.generation)


def _find(table: SlotTable, ref: SlotRef) -> Slot | None:
    if ref.index >= len(table.slots) or table.slots[ref.index].ref != ref:
        return None
    return table.slots[ref.index]


def _put(table: SlotTable, slot: Slot) -> SlotTable:
    slots = tuple(slot if old.index == slot.index else old for old in table.slots)
    return msgspec.structs.replace(table, slots=slots)


def _set(allocation: Allocation, slot: Slot) -> Allocation:
    return msgspec.structs.replace(allocation, table=_put(allocation.table, slot))


def _change_where(
    allocation: Allocation, matches: Callable[[Slot], bool], change: Callable[[Slot], Slot]
) -> Allocation:
    slots = tuple(change(slot) if matches(slot) else slot for slot in allocation.table.slots)
    return msgspec.structs.replace(allocation, table=msgspec.structs.replace(allocation.table, slots=slots))
