"""VMs and slots of ours that no record explains: a VM without a record, and a slot whose VM does not exist.

Owns which of them this service looks after, and the removal of such a VM. Names with another install id are never touched. Reads
no record and makes no listing.
"""

from __future__ import annotations

from collections.abc import Sequence

from anklet_worker.attempt.attempt import Tools
from anklet_worker.contract.errors import InfrastructureError
from anklet_worker.contract.guest import NAME_PREFIX
from anklet_worker.link.messages import OrphanReaped, VMGone
from anklet_worker.link.setup import WorkerSetup
from anklet_worker.link.slots import SlotState
from anklet_worker.log.once_log import OnceLog
from anklet_worker.vm.driver import VMInfo, VMState
from anklet_worker.vm.names import parse_vm_name, service_tag


class Unexplained:
    """Looks after what carries this service's tag. The service with `sweeps_strays` also covers services no longer configured."""

    def __init__(self, setup: WorkerSetup, tools: Tools, once_log: OnceLog) -> None:
        self._setup = setup
        self._tools = tools
        self._once_log = once_log
        self._tag = service_tag(setup.service.name)
        self._configured = {service_tag(name) for name in setup.services}

    def vms(self, listing: Sequence[VMInfo], on_record: set[str]) -> list[VMInfo]:
        """Return the VMs to look after that exist and are not on record. A VM of another install id is logged once."""
        found = []
        for vm in listing:
            if vm.name in on_record or not vm.name.startswith(NAME_PREFIX):
                continue
            parsed = parse_vm_name(vm.name)
            if parsed is None or parsed.install_id != self._setup.install_id:
                if self._setup.sweeps_strays:
                    self._once_log.warning("leaving a VM of another Anklet alone", vm.name, vmName=vm.name)
            elif self._is_mine(parsed.service_tag):
                found.append(vm)
        return found

    def slots(self, listing: Sequence[VMInfo], on_record: set[str]) -> list[str]:
        """Return the VMs that hold a slot, do not exist, and are not on record."""
        known = on_record | {vm.name for vm in listing}
        return [
            slot.vm
            for slot in self._tools.slots.snapshot().slots
            if slot.state in (SlotState.OCCUPIED, SlotState.ORPHANED)
            and slot.vm
            and slot.vm not in known
            and self._is_mine(service_tag(slot.service))
        ]

    def remove(self, vm: VMInfo) -> None:
        """Delete a VM that `vms` returned, unless it runs and may have a job.

        Only a service of the same name knows the VM's origin and can ask there; otherwise a running VM is left alone.
        """
        tools = self._tools
        parsed = parse_vm_name(vm.name)
        knows_origin = parsed is not None and parsed.service_tag == self._tag
        try:
            if vm.state is VMState.RUNNING and not (knows_origin and tools.plugin.driver.abandoned(vm.name)):
                self._once_log.warning(
                    "a VM of ours without a record may still run a job; leaving it alone", vm.name, vmName=vm.name
                )
                return
            tools.driver.delete(vm.name)
        except InfrastructureError as error:
            self._once_log.warning("could not remove a VM without a record", vm.name, vmName=vm.name, err=str(error))
            return
        tools.log.info("removed a VM without a record", extra={"vmName": vm.name})
        tools.link.tell(VMGone(vm=vm.name))
        tools.link.tell(OrphanReaped())

    def _is_mine(self, tag: str) -> bool:
        return tag == self._tag or (self._setup.sweeps_strays and tag not in self._configured)
