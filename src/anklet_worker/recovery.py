"""What a new worker does before it is ready: look at what an earlier process left, keep what still runs, remove the rest.

Works from the records, and for VMs that no record explains, from their names: only names with our install id are touched.
"""

from __future__ import annotations

from collections.abc import Sequence

from anklet_worker.attempt import Attempt, Tools
from anklet_worker.context import WorkerContext
from anklet_worker.errors import InfrastructureError
from anklet_worker.job import may_have_vm
from anklet_worker.messages import OrphanReaped, VMGone
from anklet_worker.records import Record
from anklet_worker.setup import WorkerSetup
from anklet_worker.vm import NAME_PREFIX, VMInfo, VMState, parse_vm_name, service_tag


def recover(setup: WorkerSetup, tools: Tools, context: WorkerContext) -> list[Record]:
    """Clean up after earlier processes; return the records of attempts whose jobs still run, to be followed.

    Raises `VMError` when the VMs cannot be listed: nothing may be taken on then.
    """
    listing = tools.driver.listing()
    running = {vm.name for vm in listing if vm.state is VMState.RUNNING}
    records, problems = tools.book.load()
    for problem in problems:
        tools.log.error("a record cannot be read; what it named is found by its VM's name", extra={"err": problem})
    still_running = []
    for record in records:
        if record.host_id != setup.host_id:
            tools.log.error(
                "a record of another host is left alone; was the state directory copied?", extra={"vmName": record.vm}
            )
            continue
        attempt = Attempt.of(record, tools)
        context.attempt = attempt
        try:
            lives = record.boot_id == setup.boot_id and record.vm in running
            if attempt.take_up(vm_lives=lives):
                still_running.append(attempt.record)
            elif may_have_vm(record.phase):
                tools.link.tell(OrphanReaped())
        finally:
            context.attempt = None
    _sweep(setup, tools, {record.vm for record in records}, listing)
    if setup.sweeps_strays:
        _tell_gone(setup, tools, {vm.name for vm in listing})
    return still_running


def _sweep(setup: WorkerSetup, tools: Tools, on_record: set[str], listing: Sequence[VMInfo]) -> None:
    """Remove VMs of ours that no record explains: stopped ones at once, running ones when nothing runs in them."""
    tags = {service_tag(name) for name in setup.services}
    mine = service_tag(setup.service.name)
    for vm in listing:
        if vm.name in on_record or not vm.name.startswith(NAME_PREFIX):
            continue
        parsed = parse_vm_name(vm.name)
        if parsed is None or parsed.install_id != setup.install_id:
            if setup.sweeps_strays:
                tools.log.warning("a VM of another Anklet is on this host; it is left alone", extra={"vmName": vm.name})
        elif parsed.service_tag == mine or (parsed.service_tag not in tags and setup.sweeps_strays):
            _remove_stray(tools, vm, knows_origin=parsed.service_tag == mine)


def _tell_gone(setup: WorkerSetup, tools: Tools, existing: set[str]) -> None:
    """What the records of services that are no more name, and what does not exist, holds no slot. The records stay, for the case
    that the service comes back."""
    for path in setup.state_dir.glob("services/*/records/*.json"):
        if path.parents[1].name not in setup.services and path.stem not in existing:
            tools.link.tell(VMGone(vm=path.stem))


def _remove_stray(tools: Tools, vm: VMInfo, *, knows_origin: bool) -> None:
    try:
        if vm.state is VMState.RUNNING and not (knows_origin and tools.plugin.abandoned(vm.name)):
            tools.log.warning(
                "a VM of ours that no record explains still runs a job, perhaps; left alone", extra={"vmName": vm.name}
            )
            return
        tools.driver.delete(vm.name)
    except InfrastructureError as error:
        tools.log.warning(
            "a VM that no record explains could not be removed", extra={"vmName": vm.name, "err": str(error)}
        )
        return
    tools.log.info("removed a VM that no record explains", extra={"vmName": vm.name})
    tools.link.tell(VMGone(vm=vm.name))
    tools.link.tell(OrphanReaped())
