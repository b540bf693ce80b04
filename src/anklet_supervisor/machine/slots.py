"""The VM slots within a step: facts from workers change the allocation, and the end of the step publishes and grants. Pure.

`allocator.py` has the rules; this module connects them to the step and to the effects.
"""

from __future__ import annotations

from anklet_supervisor.machine import allocator
from anklet_supervisor.machine.events import PublishSlots, Tell
from anklet_supervisor.machine.state import Mode
from anklet_supervisor.machine.turn import Turn
from anklet_worker.link import messages as m


def apply(turn: Turn, name: str, fact: m.Fact) -> None:
    """Apply a worker's fact to the allocation. Other facts change nothing."""
    allocation, wall = turn.model.allocation, turn.now.wall
    match fact:
        case m.SlotWanted():
            allocation = allocator.want(allocation, name)
        case m.SlotDeclined():
            allocation = allocator.decline(allocation, name)
        case m.SlotOccupied(slot=slot, vm=vm):
            allocation = allocator.occupy(allocation, name, slot, vm, wall)
            turn.slot_answers.append(name)
        case m.SlotReleased(slot=slot):
            allocation = allocator.release(allocation, name, slot)
        case m.VMGone(vm=vm):
            allocation = allocator.vm_gone(allocation, vm)
        case m.VMAdopted(vm=vm):
            allocation = allocator.vm_adopted(allocation, name, vm, wall)
        case m.RunningVMs(vms=vms, processes=processes):
            allocation = allocator.running_vms(allocation, vms, processes)
        case m.StartRefused(vm=vm):
            allocation = allocator.start_refused(allocation, vm, turn.now.mono)
        case m.VMStarted(vm=vm):
            allocation = allocator.vm_started(allocation, vm)
    turn.set(allocation=allocation)


def publish_and_grant(turn: Turn) -> None:
    """At the end of a step: grant slots, publish the table if it changed, and only then answer the workers."""
    _report_host(turn)
    allocation = allocator.hold_back(turn.model.allocation, turn.now.mono)
    grants: list[allocator.Grant] = []
    if turn.model.mode is Mode.RUNNING:
        allocation, grants = allocator.grant(allocation, turn.now.wall)
    turn.set(allocation=allocation)
    if allocation.table != turn.before.allocation.table:
        turn.effects.append(PublishSlots())
    turn.effects.extend(Tell(name, m.SlotAnswered()) for name in turn.slot_answers)
    turn.effects.extend(Tell(grant.service, m.GrantSlot(slot=grant.slot)) for grant in grants)


def _report_host(turn: Turn) -> None:
    before, after = turn.before.allocation.host.degraded, turn.model.allocation.host.degraded
    if after and not before:
        turn.report("ERROR", "the host refuses to run as many VMs as it has slots; retrying now and then")
    elif before and not after:
        turn.report("INFO", "the host runs as many VMs as it has slots again")
