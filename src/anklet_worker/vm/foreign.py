"""Counts the VMs that run on the host, including those of products that no driver lists. Knows process names, and no driver."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import psutil

from anklet_worker.vm.driver import VMDriver, VMInfo

#: On macOS, each running VM of any product has one XPC process of this name.
_PROCESS_NAME = "com.apple.Virtualization.VirtualMachine"


def virtualization_processes() -> int:
    """Count the processes of running VMs; 0 off macOS, or when the process list is refused."""
    try:
        if not psutil.MACOS:
            return 0
        return sum(process.info["name"] == _PROCESS_NAME for process in psutil.process_iter(["name"]))
    except psutil.Error:
        return 0


def counted_listing(
    driver: VMDriver, count: Callable[[], int] = virtualization_processes
) -> tuple[Sequence[VMInfo], int]:
    """The driver's listing, and how many VM processes the host shows. Raises as `listing` does.

    Processes are counted before and after the listing, and the smaller count is used. One of our services may start or
    remove a VM meanwhile: a single count could then exceed the listing by one, and that one would pass for a foreign VM.
    """
    before = count()
    listing = driver.listing()
    return listing, min(before, count())
