"""The closed set of steps that a watch can take next. `verdict.py` chooses one, `watch.py` performs it."""

from __future__ import annotations

import msgspec

from anklet_github.evidence import Found
from anklet_worker.contract.errors import InfrastructureError
from anklet_worker.contract.job import Outcome


class LookIntoGuest(msgspec.Struct, frozen=True):
    """Begin a new round: wait in the guest until its runner changes, at most this many seconds."""

    seconds: float


class Pause(msgspec.Struct, frozen=True):
    """Begin a new round, or the questions of one, after this many seconds."""

    seconds: float


class AskJob(msgspec.Struct, frozen=True):
    """Ask GitHub about the job. `in_list`: look for it in the list of its run first, which is free while nothing changes."""

    in_list: bool


class AskRunner(msgspec.Struct, frozen=True):
    """Ask GitHub about our runner."""


class Search(msgspec.Struct, frozen=True):
    """Search for the job that our runner got, by the runner's name. `ended_too`: among jobs that are over as well."""

    ended_too: bool


class SwitchTo(msgspec.Struct, frozen=True):
    """Watch the job that was found instead of ours."""

    found: Found


class Withdraw(msgspec.Struct, frozen=True):
    """Remove the registration, so that no job can land, and end the watch for this reason; go on if GitHub keeps the runner."""

    reason: InfrastructureError


class Conclude(msgspec.Struct, frozen=True):
    """The job is over. `by_guest`: the outcome is the runner's own report, because GitHub does not report the end."""

    outcome: Outcome
    by_guest: bool = False


class GiveUp(msgspec.Struct, frozen=True):
    """End the watch with this error. Nothing is left that could be withdrawn."""

    error: InfrastructureError


#: A step after which the watch goes on, or ends with an error.
Step = LookIntoGuest | Pause | AskJob | AskRunner | Search | SwitchTo | Withdraw | GiveUp
Decision = Step | Conclude
