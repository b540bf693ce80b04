"""The guest of one VM as a plugin sees it. Implements `anklet_worker.contract.guest.Guest`; knows no job."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from anklet_worker.contract.guest import GuestResult
from anklet_worker.vm.driver import VMDriver


class VMGuest:
    """A VM by its name. Settings are exported in front of the script; both travel on standard input."""

    def __init__(self, driver: VMDriver, vm: str) -> None:
        self._driver = driver
        self._vm = vm

    @property
    def name(self) -> str:
        """The VM's name."""
        return self._vm

    def run(self, script: str, *, env: Mapping[str, str], timeout: float, looks_only: bool = False) -> GuestResult:
        """Run a bash script in the guest's home, for at most `timeout` seconds."""
        return self._driver.run(self._vm, exports(env) + script, timeout, looks_only=looks_only)

    def copy_in(self, source: Path) -> None:
        """Copy a host file to the guest's home."""
        self._driver.copy_in(self._vm, source)

    def copy_out(self, path: str, target: Path) -> None:
        """Copy a file of the guest to the host."""
        self._driver.copy_out(self._vm, path, target)


def exports(env: Mapping[str, str]) -> str:
    """Return lines of bash that export `env`, every value quoted. Raises `ValueError` for a name that bash cannot take."""
    lines = []
    for name, value in env.items():
        if not name.isidentifier() or not name.isascii():
            raise ValueError(f"{name!r} cannot be the name of an environment variable")
        lines.append(f"export {name}={shlex.quote(value)}\n")
    return "".join(lines)
