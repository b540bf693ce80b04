"""How many VMs run on the host, ours and others': counted, and told to the supervisor, which keeps to the limit by it."""

from __future__ import annotations

from collections.abc import Sequence

from anklet_worker.channel import SupervisorLink
from anklet_worker.messages import RunningVMs
from anklet_worker.vm import VMDriver, VMInfo, VMState
from anklet_worker.vm.foreign import virtualization_processes


def report_running_vms(driver: VMDriver, link: SupervisorLink, listing: Sequence[VMInfo] | None = None) -> int:
    """Tell the supervisor which VMs run, by this listing or a new one; how many that are. Raises `VMError`."""
    before = virtualization_processes()
    listing = driver.listing() if listing is None else listing
    names = [vm.name for vm in listing if vm.state is VMState.RUNNING]
    # A VM that another service starts or removes meanwhile is no foreign one.
    processes = min(before, virtualization_processes())
    link.tell(RunningVMs(vms=names, processes=processes))
    return max(len(names), processes)
