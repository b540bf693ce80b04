"""Driving half of a plugin: runs one claimed job in a VM."""

from __future__ import annotations

from enum import Enum


class Withdrawal(Enum):
    """The answer to: can a job still land in this VM?"""

    #: Nothing is registered any more and no job can land.
    WITHDRAWN = "withdrawn"
    #: A job has landed; follow it.
    STARTED = "started"
    #: What was registered is not there any more, and nobody withdrew it: its job may be over already. A process that takes up what
    #: an earlier one left asks `adopt` what became of it.
    VANISHED = "vanished"
