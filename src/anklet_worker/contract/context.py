"""What the core gives to a plugin for the life of a worker: its service's configuration, a log, waits, reports.

What belongs to one attempt at a job is `JobInHand`, in `driver`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from anklet_worker.contract.board import Board
from anklet_worker.contract.figures import Figure
from anklet_worker.contract.job import VMSpec
from anklet_worker.contract.service import ServiceConfig


class Context(Protocol):
    """What the core gives to a plugin."""

    @property
    def service(self) -> ServiceConfig:
        """The service's configuration."""
        ...

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger] | logging.Logger:
        """The service's log. Lines about one job belong into the `log` of the job in hand."""
        ...

    @property
    def plugins_path(self) -> Path:
        """Where the operator's replacements for files of plugins stand, a folder for each plugin."""
        ...

    @property
    def state_dir(self) -> Path:
        """A directory of this service that survives restarts, for caches; never for secrets."""
        ...

    @property
    def board(self) -> Board:
        """What services with the same store tell each other."""
        ...

    @property
    def vm_prefix(self) -> str:
        """What the names of this host's VMs begin with, and those of no other host's."""
        ...

    @property
    def draining(self) -> bool:
        """True when no new job may be taken."""
        ...

    def known_vms(self) -> set[str]:
        """Names of all VMs of ours that exist, or that a record of any service announces. Raises `VMError`."""
        ...

    def check(self) -> None:
        """Raise `Interrupted` or `Detached` if ordered so. Call before anything that could be orphaned."""
        ...

    def wait(self, seconds: float) -> None:
        """Sleep, unless an order ends the wait early with the same exceptions."""
        ...

    def limit_paused(self) -> AbstractContextManager[None]:
        """Set the service's status to `limit_paused` while the `with` lasts; afterwards it is what it was."""
        ...

    def api_called(self, route: str, outcome: str, seconds: float) -> None:
        """Count a call of the origin's API. `route` is a template of a closed list ("GET /repos/{owner}/{repo}"), `outcome` a
        status code, or a word for none; `seconds` is how long it took."""
        ...

    def report(self, figure: Figure, value: float) -> None:
        """Report a figure that the plugin's rules declare: a gauge's value, or what a counter grew by. Others are dropped."""
        ...

    def api_budget(self, left: float, limit: float, resets_at: float) -> None:
        """Report how many calls of the origin's API the login has left out of `limit`, until `resets_at` (Unix seconds)."""
        ...

    def spec_from_labels(self, labels: Sequence[str]) -> VMSpec | None:
        """What these labels ask of this service's VM driver, or None when they do not ask for it."""
        ...
