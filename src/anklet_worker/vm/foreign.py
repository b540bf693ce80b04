"""Which virtual machines run on the host, whoever runs them. Knows process names, and no driver by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import psutil

from anklet_worker.vm.driver import VMDriver, VMInfo

#: Each running VM of any product has one such XPC process on macOS.
_PROCESS_NAME = "com.apple.Virtualization.VirtualMachine"


def virtualization_processes() -> int:
    """Count the processes of running VMs; 0 where that cannot be told (off macOS, or when the listing is refused)."""
    try:
        if not psutil.MACOS:
            return 0
        return sum(process.info["name"] == _PROCESS_NAME for process in psutil.process_iter(["name"]))
    except psutil.Error:
        return 0


def counted_listing(
    driver: VMDriver, count: Callable[[], int] = virtualization_processes
) -> tuple[Sequence[VMInfo], int]:
    """What the driver lists, and how many VMs the host shows to run in all. Raises as `listing` does.

    Counted before and after the listing, the smaller holds: a VM that a service of ours starts or removes meanwhile would be one
    process more than are listed, and be taken for a foreign one.
    """
    before = count()
    listing = driver.listing()
    return listing, min(before, count())
