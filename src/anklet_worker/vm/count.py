"""Reports to the supervisor which VMs run on the host, ours and others': the supervisor keeps the VM limit by this report."""

from __future__ import annotations

from collections.abc import Sequence

from anklet_worker.link.channel import SupervisorLink
from anklet_worker.link.messages import RunningVMs
from anklet_worker.vm.driver import VMDriver, VMInfo, VMState
from anklet_worker.vm.foreign import counted_listing


def report_running_vms(driver: VMDriver, link: SupervisorLink) -> tuple[Sequence[VMInfo], int]:
    """List all VMs and report the running ones. Gives the listing and the number of running VMs. Raises `VMError`."""
    listing, processes = counted_listing(driver)
    names = [vm.name for vm in listing if vm.state is VMState.RUNNING]
    link.tell(RunningVMs(vms=names, processes=processes))
    return listing, max(len(names), processes)
