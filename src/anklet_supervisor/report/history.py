"""`jobs.json` in the state directory: the timelines of the latest jobs, for `job show` and for the failures in `status`.

Owns the file. It is history, not state: no decision depends on it, and a lost or damaged file is replaced by an empty one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from anklet_supervisor.report.tally import Counted
from anklet_supervisor.report.timelines import GIVEN_BACK, Timeline, Timelines, durations, failures
from anklet_worker.contract.errors import UNREADABLE
from anklet_worker.files import write_atomically
from anklet_worker.link import messages as m
from anklet_worker.log.service_log import ServiceLog
from anklet_worker.state_layout import Place

#: How many failures the status shows.
FAILURES_SHOWN = 5


class JobHistory:
    """Turns facts into timelines, saves them on request, and logs one line at the end of each attempt."""

    def __init__(self, state_dir: Path, log: ServiceLog) -> None:
        self._path = Place.HISTORY.path(state_dir)
        self._log = log
        self._timelines = Timelines(self._read_or_set_aside())
        self._changed = False

    def _read_or_set_aside(self) -> list[Timeline]:
        lines = _decode(self._path)
        if lines is None:
            kept = Place.DAMAGED_HISTORY.in_folder(self._path.parent)
            with contextlib.suppress(OSError):
                self._path.replace(kept)
            self._log.warning("the job history was damaged; started a new one", extra={"kept": str(kept)})
        return lines or []

    def fact(self, service: str, fact: m.Fact, now: float) -> None:
        """Apply a fact that a worker reported at `now`, Unix seconds."""
        changed, ended = self._timelines.fold(service, fact, now)
        self._changed = self._changed or changed
        if ended is not None:
            self._log.info(
                "timeline of a job",
                extra={
                    "serviceName": ended.service,
                    "jobId": ended.job_id,
                    "jobName": ended.job_name,
                    "jobURL": ended.job_url,
                    "vmName": ended.vm,
                    "attempt": ended.attempt,
                    "ended": ended.ended,
                    "seconds": durations(ended),
                },
            )

    def counted(self) -> Iterator[tuple[str, Counted]]:
        """The outcomes that an earlier supervisor counted, each with the name of its VM."""
        for line in self._timelines.all():
            yield (
                line.vm,
                Counted(claimed_at=line.claimed_at, given_back=line.ended == GIVEN_BACK, finished=line.has_outcome),
            )

    def failures(self) -> list[Timeline]:
        """The latest attempts that did not end in success, latest first."""
        return failures(self._timelines.all(), FAILURES_SHOWN)

    def save(self) -> None:
        """Write the file if anything changed since the last write. If the disk refuses, the next call tries again."""
        if self._changed:
            with contextlib.suppress(OSError):
                write_atomically(self._path, msgspec.json.encode(self._timelines.all()) + b"\n", durable=False)
                self._changed = False


def read(state_dir: Path) -> list[Timeline]:
    """The timelines on file, oldest first; empty without a readable file."""
    return _decode(Place.HISTORY.path(state_dir)) or []


def _decode(path: Path) -> list[Timeline] | None:
    """The timelines in the file; empty if it is not readable, None if it is damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Timeline])
    except OSError:
        return []
    except UNREADABLE:
        return None
