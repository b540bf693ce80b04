"""The context: what a plugin gets from the core for the life of a worker. Configuration, log, board, waits, metrics.

Knows no attempt. What belongs to one attempt at a job is `JobInHand`, in `driver`.
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
    """Passed once to the plugin's factory, which keeps it. Use it from the thread that calls the plugin."""

    @property
    def service(self) -> ServiceConfig:
        """The configuration of this service."""
        ...

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger] | logging.Logger:
        """The log of this service. For a line about one job use `JobInHand.log`, which adds the job's fields."""
        ...

    @property
    def plugins_path(self) -> Path:
        """The operator's folder for plugins. `<plugins_path>/<plugin>/` may hold files that replace the plugin's own."""
        ...

    @property
    def state_dir(self) -> Path:
        """A directory of this service that survives restarts. For caches; never for secrets."""
        ...

    @property
    def board(self) -> Board:
        """Notes, counters and turns that all services with the same store share."""
        ...

    @property
    def vm_prefix(self) -> str:
        """The start of the name of every VM of this host. No other host's VM names start with it."""
        ...

    @property
    def draining(self) -> bool:
        """True when the service must take no new job."""
        ...

    def known_vms(self) -> set[str]:
        """Return the names of this host's VMs: those that exist, and those that a record of any service announces.

        A registration at the origin whose name starts with `vm_prefix` and is not in this set is left over. Raises `VMError`.
        """
        ...

    def check(self) -> None:
        """Raise `Interrupted` after a stop, `Detached` after a detach. Call it before an effect that would be left over."""
        ...

    def wait(self, seconds: float) -> None:
        """Sleep for `seconds`. A stop or a detach ends the sleep at once; raises as `check` does."""
        ...

    def limit_paused(self) -> AbstractContextManager[None]:
        """Show the service's status as `limit_paused` during the `with` block, while it waits for a rate limit."""
        ...

    def api_called(self, route: str, outcome: str, seconds: float) -> None:
        """Count a call of the origin's API and the `seconds` it took. Both words become metric labels, so keep them few.

        `route` is a template from a closed list, such as "GET /repos/{owner}/{repo}". `outcome` is the status code, or a short word
        when there was no answer.
        """
        ...

    def report(self, figure: Figure, value: float) -> None:
        """Report a figure that the plugin's rules declare: the value of a gauge, or the growth of a counter. Others are dropped."""
        ...

    def api_budget(self, left: float, limit: float, resets_at: float) -> None:
        """Report the rate limit of the origin's API: `left` of `limit` calls remain until `resets_at` (Unix seconds)."""
        ...

    def spec_from_labels(self, labels: Sequence[str]) -> VMSpec | None:
        """Return the VM that a job's labels ask for; None when the labels do not name this service's VM driver."""
        ...
