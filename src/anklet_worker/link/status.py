"""A service's state as its supervisor sees it: the status, the queue, and trouble that keeps jobs from being looked for.

Owns what was reported last, so that nothing is reported twice. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from anklet_worker.contract.errors import InfrastructureError, StoreUnavailable
from anklet_worker.contract.job import Job
from anklet_worker.link.channel import SupervisorLink
from anklet_worker.link.messages import QueueSeen, Status, StatusChanged
from anklet_worker.log.service_log import ServiceLog


class StatusReporter:
    """Reports the state of one service, for the life of its worker."""

    def __init__(self, link: SupervisorLink, log: ServiceLog) -> None:
        self._link = link
        self._log = log
        #: The kind of error that began the present trouble.
        self._trouble: str | None = None
        self._queue: QueueSeen | None = None

    def show(self, status: Status) -> None:
        """Report what the service does now."""
        self._link.tell(StatusChanged(status=status))

    def queue(self, jobs: Sequence[Job]) -> None:
        """Report how many jobs wait and since when, if that has changed."""
        seen = QueueSeen(waiting=len(jobs), oldest=min((job.queued_at for job in jobs if job.queued_at), default=0.0))
        if seen != self._queue:
            self._queue = seen
            self._link.tell(seen)

    def trouble(self, error: InfrastructureError) -> None:
        """Log one WARN per outage, however many passes it costs. The store logs its own outages."""
        if isinstance(error, StoreUnavailable):
            self._log.debug("cannot claim jobs now; trying again", extra={"err": str(error)})
            return
        if self._trouble != type(error).__name__:
            self._log.warning("cannot look for jobs now; trying again", extra={"err": str(error)})
        self._trouble = type(error).__name__

    def trouble_over(self) -> None:
        """Log the end of an outage, if there was one."""
        if self._trouble is not None:
            self._log.info("looking for jobs again")
        self._trouble = None
