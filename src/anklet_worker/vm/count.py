"""How many VMs run on the host, ours and others': counted, and told to the supervisor, which keeps to the limit by it."""

from __future__ import annotations

from collections.abc import Sequence

from anklet_worker.link.channel import SupervisorLink
from anklet_worker.link.messages import RunningVMs
from anklet_worker.vm.driver import VMDriver, VMInfo, VMState
from anklet_worker.vm.foreign import counted_listing


def report_running_vms(driver: VMDriver, link: SupervisorLink) -> tuple[Sequence[VMInfo], int]:
    """Tell the supervisor which VMs run; the listing of all, and how many of them run. Raises `VMError`."""
    listing, processes = counted_listing(driver)
    names = [vm.name for vm in listing if vm.state is VMState.RUNNING]
    link.tell(RunningVMs(vms=names, processes=processes))
    return listing, max(len(names), processes)
