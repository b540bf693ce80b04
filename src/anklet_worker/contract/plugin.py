"""What a plugin is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from anklet_worker.contract.context import Context
from anklet_worker.contract.driver import Withdrawal
from anklet_worker.contract.guest import Guest
from anklet_worker.contract.job import Job, Outcome

#: Raised when the contract changes in a way that an old plugin cannot follow.
API_VERSION = 1


class Plugin(Protocol):
    """One service's plugin. Made once in a worker process by the plugin's factory, with the `Context`.

    Calls come from one thread, one after the other. Exceptions: those of `anklet_worker.errors` (`RetryHere`,
    `RetryElsewhere`, `JobLost`, `VMError`, `ServiceFatal`); all others are taken for bugs. `Interrupted` and `Detached`
    (from the context) pass through untouched.
    """

    def look(self) -> Sequence[Job]:
        """Return the jobs that this service could run now, best first. A look changes nothing anywhere."""
        ...

    def claim(self, job: Job) -> bool:
        """Called with VM slot and lease in hand: is the job still to be had? False gives both back. A question, which changes
        nothing: it is asked again before `drive` when the lease may have been another's meanwhile."""
        ...

    def drive(self, job: Job, guest: Guest) -> Outcome:
        """Run the job in the started VM and follow it to its end. Called at most once for a VM."""
        ...

    def adopt(self, job: Job, guest: Guest) -> Outcome:
        """Follow to its end a job that an earlier process started in this VM."""
        ...

    def withdraw(self, job: Job, guest_name: str) -> Withdrawal:
        """Before a VM with no job in it is removed: see to it that none can land. Idempotent, bounded in time."""
        ...

    def settle(self, job: Job, guest_name: str) -> bool:
        """After the VM is gone: remove what was registered for it outside. Idempotent, bounded; False: a debt, ask again.

        Asked when the plugin has remembered anything about the attempt: what it changes outside, it announces so.
        """
        ...

    def collect(self, job: Job, guest: Guest, folder: Path) -> None:
        """Before a VM that was driven goes: save into `folder` what somebody will want to read of it. Bounded in time and size."""
        ...

    def abandoned(self, guest_name: str) -> bool:
        """True when the origin says that nothing runs in that VM of ours, which no record explains."""
        ...

    def close(self) -> None:
        """Give back connections."""
        ...


class PluginFactory(Protocol):
    """What an entry point, or `plugin` in a plugin.py, is: makes the plugin of one service.

    `api_version` is the contract's version that it was written for. Raises `ServiceFatal` when the service cannot run.
    """

    api_version: int

    def __call__(self, context: Context) -> Plugin:
        """Make the plugin of one service."""
        ...
