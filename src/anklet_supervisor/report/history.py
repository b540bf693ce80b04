"""`jobs.json` in the state directory: the timelines of the latest jobs, for `job show` and for what `status` says of failures.

Owns the file. It is history, not state: nothing is decided by it, and one that is lost or damaged is begun anew.
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
    """Takes in facts, keeps the file up to date when told to, and writes a line to the log at the end of each attempt."""

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
            self._log.warning("the history of jobs was damaged and is begun anew", extra={"kept": str(kept)})
        return lines or []

    def fact(self, service: str, fact: m.Fact, now: float) -> None:
        """What a worker reported, at `now`, Unix seconds."""
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
        """What an earlier supervisor has counted, by VM."""
        for line in self._timelines.all():
            yield (
                line.vm,
                Counted(claimed_at=line.claimed_at, given_back=line.ended == GIVEN_BACK, finished=line.has_outcome),
            )

    def failures(self) -> list[Timeline]:
        """The latest attempts that ended otherwise than by success, the latest first."""
        return failures(self._timelines.all(), FAILURES_SHOWN)

    def save(self) -> None:
        """Write the file if anything has changed since it was written. A disk that refuses it is no reason to stop; it is asked
        again at the next call."""
        if self._changed:
            with contextlib.suppress(OSError):
                write_atomically(self._path, msgspec.json.encode(self._timelines.all()) + b"\n", durable=False)
                self._changed = False


def read(state_dir: Path) -> list[Timeline]:
    """The timelines that are on file, oldest first; none when there is no file to be read."""
    return _decode(Place.HISTORY.path(state_dir)) or []


def _decode(path: Path) -> list[Timeline] | None:
    """What the file holds, nothing when it cannot be read; None when it is damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Timeline])
    except OSError:
        return []
    except UNREADABLE:
        return None
