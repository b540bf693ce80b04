"""The finding half of the plugin: queued jobs that ask for a VM of this service, and the upkeep at GitHub beside that.

How GitHub's queue is asked stands in `runs.py`, which jobs are ours in `discovery.py`, what is swept in `sweep.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from anklet_github.discovery import Discovery
from anklet_github.sweep import Sweeper
from anklet_worker.contract.job import Job


class GithubSource:
    """Implements `anklet_worker.contract.source.Source`."""

    def __init__(self, discovery: Discovery, sweeper: Sweeper) -> None:
        self._discovery = discovery
        self._sweeper = sweeper

    def find(self) -> Sequence[Job]:
        """Return the queued jobs whose labels ask for a VM of ours, oldest first. Raises `ApiTrouble`."""
        return self._discovery.look()

    def housekeep(self, claimed: Job | None) -> None:
        """Busy: pass the fleet's turn on. Idle: sweep runners, so that no claimed job waits for that."""
        if claimed is None:
            self._sweeper.sweep_if_due()
        else:
            self._discovery.leave_to_others(claimed)
