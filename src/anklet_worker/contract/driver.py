"""The driving half of a plugin: runs one claimed job inside a VM that the core made, and removes its traces at the origin.

Knows no VM tool and no slot. It never makes or deletes a VM.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Protocol

from anklet_worker.contract.guest import Guest
from anklet_worker.contract.job import Job, Outcome


class Withdrawal(Enum):
    """The answer to the question: can a job still land in this VM?"""

    #: Nothing is registered any longer, so no job can land.
    WITHDRAWN = "withdrawn"
    #: A job has landed; watch it.
    STARTED = "started"
    #: The registration is gone, and we did not remove it: its job may already be over. A process that reconciles what an earlier
    #: one left calls `adopt` to learn what became of it.
    VANISHED = "vanished"


class JobInHand(Protocol):
    """The attempt that the core is making at one job: what a plugin may know of it, record about it and report of it."""

    @property
    def job(self) -> Job:
        """The job that was claimed. The origin may have put another one into the VM; then `job_started` names that one."""
        ...

    @property
    def vm(self) -> str:
        """The VM's name, unique for all time; it serves as the runner's name (at most 63 characters of [a-z0-9-])."""
        ...

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger] | logging.Logger:
        """The service's log; each line bears the job's fields."""
        ...

    def remember(self, **facts: str | int) -> None:
        """Put facts about this attempt on record, durably, before the effect that they announce. Never a secret.

        Raises `RecordNotWritten` when the disk refuses; the effect must then not happen.
        """
        ...

    def recall(self) -> Mapping[str, str | int]:
        """Return what has been remembered about this attempt, by an earlier process too."""
        ...

    def runner_online(self) -> None:
        """Report that the runner in the VM has contacted the origin. Optional, repeatable; for timelines and metrics."""
        ...

    def job_started(self, job: Job) -> None:
        """Report that the origin runs `job` in our VM; it may be another job than the claimed one. Repeatable."""
        ...


class Driver(Protocol):
    """Drives the jobs of one service, one at a time. Calls come from one thread, one after the other.

    Raises the errors of `anklet_worker.contract.errors`, whose `retry` says who should try again; any other exception counts as a
    bug. `Interrupted` and `Detached` (raised by the context) must pass through untouched.
    """

    def claim(self, job: Job) -> bool:
        """Return whether the job can still be run. The VM slot and the lease are in hand; False gives both back.

        A question that changes nothing: it is asked again before `drive` when the lease may have been lost meanwhile.
        """
        ...

    def drive(self, hand: JobInHand, guest: Guest) -> Outcome:
        """Run the job in the started VM and watch it to its end. Called at most once for a VM."""
        ...

    def adopt(self, hand: JobInHand, guest: Guest) -> Outcome:
        """Watch to its end a job that an earlier process started in this VM."""
        ...

    def withdraw(self, hand: JobInHand) -> Withdrawal:
        """Make sure that no job can land in a VM that has none, before the VM is removed. Idempotent, bounded in time."""
        ...

    def settle(self, hand: JobInHand) -> bool:
        """Remove what was registered for a VM that is gone. Idempotent, bounded in time; False leaves a debt and asks again later.

        Called only when the plugin has remembered something about the attempt: it announces there what it changes outside.
        """
        ...

    def collect(self, hand: JobInHand, guest: Guest, folder: Path) -> None:
        """Copy into `folder` what people will want to read of a driven VM, before it goes. Bounded in time and size."""
        ...

    def abandoned(self, vm: str) -> bool:
        """Return True when the origin says that nothing runs in this VM of ours, which no record explains."""
        ...
