"""How many virtual machines the host itself shows, whoever runs them. Knows process names, and no driver."""

from __future__ import annotations

import psutil

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
