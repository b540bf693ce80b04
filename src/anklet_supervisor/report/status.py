"""`status.json`: what the supervisor is doing, for `status` and for scripts. Its form is stable.

Owns the document and its file. Does not know when it is due (see `pace.py`), nor who may read it: the state directory is private.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Container, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

import msgspec

from anklet_supervisor.machine.model import Model, Reload
from anklet_supervisor.report.timelines import Timeline
from anklet_worker import __version__
from anklet_worker.contract.errors import UNREADABLE
from anklet_worker.files import write_atomically
from anklet_worker.link.slots import SlotState

_FILE_NAME = "status.json"


class JobStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The job that a service has in hand."""

    id: str
    url: str
    name: str
    vm: str
    since: str


class ApiBudget(msgspec.Struct, frozen=True, kw_only=True):
    """What is left of an API's rate limit, by its last answer; `reset` is when the limit starts over."""

    remaining: int
    limit: int
    reset: str


class FailureStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A job that did not succeed: how it ended (`given back`: it did not run here, because of `reason`), and when."""

    id: str
    name: str
    url: str
    service: str
    ended: str
    reason: str
    at: str


class ReloadStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How many reloads were requested, which of them was answered last, and when.

    `problems` say why it changed nothing: the configuration is wrong, or (`refused`) the supervisor takes no reload at present.
    """

    asked: int
    answered: int
    problems: list[str]
    refused: bool
    at: str | None


class ServiceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One service. `state` is its worker's, `status` the metric's word; `reason` says why it is not ready, else it is empty.

    `paused`: an operator has paused it, so it takes no further job. `api` is null where no limit is known.
    """

    name: str
    plugin: str
    state: str
    status: str
    pid: int | None
    restarts: int
    job: JobStatus | None
    reason: str = ""
    paused: bool = False
    api: ApiBudget | None = None


class SlotStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One VM slot."""

    index: int
    state: str
    service: str | None
    vm: str | None
    since: str | None


class StatusDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The whole document. Times are RFC 3339; `failures` are the most recent ones, newest first."""

    mode: str
    pid: int
    version: str
    started_at: str
    services: list[ServiceStatus]
    slots: list[SlotStatus]
    failures: list[FailureStatus] = []
    reload: ReloadStatus | None = None


def document(
    model: Model,
    plugins: dict[str, str],
    started_at: float,
    failures: Sequence[Timeline] = (),
    budgets: Mapping[str, ApiBudget] = MappingProxyType({}),
    paused: Container[str] = (),
) -> StatusDocument:
    """Make the document for a model.

    `plugins` maps services to their plugins, `budgets` to their API's limits where one is known. `paused` are the services that an
    operator has paused. `started_at` is Unix seconds.
    """
    services = [
        ServiceStatus(
            name=service.name,
            plugin=plugins[service.name],
            state=service.state.value,
            status=service.status.value,
            pid=service.pid,
            restarts=service.restarts,
            job=None
            if service.job is None
            else JobStatus(
                id=service.job.id,
                url=service.job.url,
                name=service.job.name,
                vm=service.job.vm,
                since=rfc3339(service.job.since),
            ),
            reason=service.reason,
            paused=service.name in paused,
            api=budgets.get(service.name),
        )
        for service in model.services.values()
    ]
    slots = [
        SlotStatus(
            index=slot.index,
            state=slot.state.name.lower(),
            service=slot.service or None,
            vm=slot.vm or None,
            since=rfc3339(slot.since) if slot.since else None,
        )
        for slot in model.allocation.table.slots
        if slot.state is not SlotState.RETIRED
    ]
    return StatusDocument(
        mode=model.mode.value,
        pid=os.getpid(),
        version=__version__,
        started_at=rfc3339(started_at),
        services=services,
        slots=slots,
        failures=[_failure(line) for line in failures],
        reload=_reload(model.reload),
    )


def _reload(reload: Reload) -> ReloadStatus | None:
    if not reload.asked:
        return None
    return ReloadStatus(
        asked=reload.asked,
        answered=reload.answered,
        problems=list(reload.problems),
        refused=reload.refused,
        at=rfc3339(reload.at) if reload.answered else None,
    )


def _failure(line: Timeline) -> FailureStatus:
    return FailureStatus(
        id=line.job_id,
        name=line.job_name,
        url=line.job_url,
        service=line.service,
        ended=line.ended,
        reason=line.reason,
        at=rfc3339(line.steps.get("finished", 0.0)),
    )


class StatusFile:
    """The file, which each write replaces whole. A disk that refuses it stops nothing: readers see the file's age."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / _FILE_NAME

    def write(self, content: StatusDocument) -> None:
        """Replace the file."""
        with contextlib.suppress(OSError):
            write_atomically(self._path, msgspec.json.encode(content) + b"\n", durable=False)


def read(state_dir: Path) -> StatusDocument | None:
    """The last document; None when it is missing or unreadable."""
    try:
        return msgspec.json.decode((state_dir / _FILE_NAME).read_bytes(), type=StatusDocument)
    except (OSError, *UNREADABLE):
        return None


def written_at(state_dir: Path, default: float) -> float:
    """When the last document was written, Unix seconds; `default` when the file is missing."""
    try:
        return (state_dir / _FILE_NAME).stat().st_mtime
    except OSError:
        return default


def rfc3339(seconds: float) -> str:
    """RFC 3339 with milliseconds, from Unix seconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
