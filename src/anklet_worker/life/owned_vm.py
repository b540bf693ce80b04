"""A VM of ours, from its plan to the proof that it is gone: made, started, deleted, with its slot. Whoever uses it borrows it.

Owns the effects of `vm_phases.TABLE`, each announced on record first. Knows no job, no plugin and no origin.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import msgspec

from anklet_worker.contract.backoff import Backoff
from anklet_worker.contract.errors import RetryHere, VMError, VMLimitReached
from anklet_worker.contract.job import VMSpec
from anklet_worker.life.entry import Entry
from anklet_worker.life.guest import VMGuest
from anklet_worker.life.stages import Stages
from anklet_worker.life.vm_phases import VMAction, VMEvent, VMPhase, advance
from anklet_worker.link.channel import SupervisorLink
from anklet_worker.link.messages import (
    SlotOccupied,
    SlotReleased,
    StartRefused,
    Status,
    StatusChanged,
    VMGone,
    VMStarted,
)
from anklet_worker.link.slots import SlotReader, SlotState
from anklet_worker.log.service_log import ServiceLog
from anklet_worker.process.orders import Orders
from anklet_worker.vm.count import report_running_vms
from anklet_worker.vm.driver import VMDriver

#: Seconds that the supervisor has to confirm a slot; it answers within milliseconds, or it is gone.
_CONFIRM_SLOT = 10.0
#: Pauses between two tries to delete a VM.
_DELETE_PAUSES = Backoff(first=0.5, longest=10.0)
#: Events whose phase is on disk before their actions. The other phases reach it with the next write.
_ANNOUNCED = frozenset({VMEvent.CLONE, VMEvent.START})


class VMTools(msgspec.Struct, frozen=True, kw_only=True):
    """What a VM's life needs of the worker."""

    orders: Orders
    link: SupervisorLink
    slots: SlotReader
    driver: VMDriver
    log: ServiceLog


class OwnedVM:
    """The VM that a record names, in whatever phase it is."""

    def __init__(self, entry: Entry, tools: VMTools, stages: Stages) -> None:
        self._entry = entry
        self._tools = tools
        self._stages = stages
        self._slot_released = False
        #: The id to clone from, while the driver keeps the image as it is.
        self._source = ""
        #: Seconds that the deletion may take; 0 for one more try of an earlier one.
        self._patience = 0.0
        self._actions: dict[VMAction, Callable[[], None]] = {
            VMAction.OCCUPY_SLOT: self._occupy_slot,
            VMAction.CLONE: self._clone,
            VMAction.CHECK_SLOT: self._check_slot,
            VMAction.BOOT: self._boot,
            VMAction.DELETE: self._delete,
            VMAction.RELEASE_SLOT: self._release_slot,
        }

    @property
    def name(self) -> str:
        """The VM's name."""
        return self._entry.record.vm

    @property
    def guest(self) -> VMGuest:
        """The VM's guest."""
        return VMGuest(self._tools.driver, self.name)

    def make(self, spec: VMSpec) -> None:
        """Make the VM and start it: image, slot, clone, boot. Raises the `InfrastructureError` that kept it from running."""
        tools, began = self._tools, time.monotonic()
        with tools.driver.image(spec, lambda: self._status(Status.PULLING)) as self._source:
            self._stages.took("template", time.monotonic() - began)
            self._status(Status.RUNNING)
            tools.orders.check()
            self._happen(VMEvent.CLONE)
        tools.orders.check()
        self._happen(VMEvent.START)
        self._happen(VMEvent.ANSWERED)

    def remove(self, patience: float) -> bool:
        """Delete the VM and free its slot; return False when it would not go within `patience` seconds (0: one try).

        Then the slot stays occupied and the record stays for another try. A stop does not cut it short; the caller shields it.
        """
        self._patience = patience
        self._happen(VMEvent.REMOVE)
        return self._phase is VMPhase.GONE

    @property
    def _phase(self) -> VMPhase:
        return self._entry.record.vm_phase

    def _happen(self, event: VMEvent) -> None:
        """Move on: phase first, then its actions."""
        phase, actions = advance(self._phase, event)
        if event in _ANNOUNCED:
            self._entry.announce(vm_phase=phase)
        elif event is VMEvent.REMOVED:
            self._entry.note(vm_phase=phase)
        else:
            self._entry.amend(vm_phase=phase)
        for action in actions:
            self._actions[action]()

    # ---- actions ----

    def _occupy_slot(self) -> None:
        slot = self._entry.record.slot
        if slot is None:
            raise RetryHere("no VM slot in hand")
        self._tools.link.tell(SlotOccupied(slot=slot, vm=self.name))
        self._tools.orders.wait_for(lambda: self._slot_state() is not SlotState.RESERVED, _CONFIRM_SLOT)
        self._check_slot()

    def _check_slot(self) -> None:
        if self._slot_state() is not SlotState.OCCUPIED:
            raise RetryHere("the VM slot was taken away: other VMs run on this host")

    def _slot_state(self) -> SlotState | None:
        slot = self._entry.record.slot
        return None if slot is None else self._tools.slots.state_of(slot)

    def _clone(self) -> None:
        with self._stages.timed("clone"):
            self._tools.driver.clone(self._source, self.name)

    def _boot(self) -> None:
        """Start the VM. The supervisor learns what the host says, since that holds for all services."""
        tools = self._tools
        with self._stages.timed("start"):
            try:
                tools.driver.start(self.name)
            except VMLimitReached:
                with suppress(VMError):
                    # Other VMs may have taken the room a moment ago.
                    report_running_vms(tools.driver, tools.link)
                tools.link.tell(StartRefused(vm=self.name))
                raise
            tools.link.tell(VMStarted(vm=self.name))

    def _delete(self) -> None:
        deadline = time.monotonic() + self._patience
        for pause in _DELETE_PAUSES:
            try:
                self._tools.driver.delete(self.name)
            except VMError as error:
                if time.monotonic() + pause >= deadline:
                    self._report_stuck(error)
                    return
                self._tools.log.warning("deleting the VM failed; trying again", extra={"err": str(error)})
                self._tools.orders.wait(pause)
            else:
                self._happen(VMEvent.REMOVED)
                return

    def _report_stuck(self, error: VMError) -> None:
        """One ERROR; the tries that follow, without patience, are no news."""
        tell = self._tools.log.error if self._patience else self._tools.log.debug
        tell(
            "cannot delete the VM; its slot stays occupied and the deletion is tried again",
            extra={"err": str(error), "vmName": self.name},
        )

    def _release_slot(self) -> None:
        if self._slot_released:
            return
        self._slot_released = True
        slot = self._entry.record.slot
        if slot is not None and self._slot_state() is not None:
            self._tools.link.tell(SlotReleased(slot=slot))
        else:
            self._tools.link.tell(VMGone(vm=self.name))

    def _status(self, status: Status) -> None:
        self._tools.link.tell(StatusChanged(status=status))
