"""`status.json`: what the supervisor is doing, for `status` and for scripts. Its form is stable.

Owns the document and its file; who may see it is the state directory's business.
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
from anklet_worker.state_layout import Place


class JobStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The job that a service has in hand."""

    id: str
    url: str
    name: str
    vm: str
    since: str


class ApiBudget(msgspec.Struct, frozen=True, kw_only=True):
    """What is left of an API's rate limit, as its last answer said; `reset` is when it is renewed."""

    remaining: int
    limit: int
    reset: str


class FailureStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A job that ended otherwise than by success: how (`given back`: it did not run here, for that `reason`), and when."""

    id: str
    name: str
    url: str
    service: str
    ended: str
    reason: str
    at: str


class ReloadStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How many reloads were asked for, which of them was answered last, and when.

    `problems` say why it changed nothing: because of the configuration, or (`refused`) of what the supervisor was about.
    """

    asked: int
    answered: int
    problems: list[str]
    refused: bool
    at: str | None


class ServiceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One service. `state` is its worker's, `status` the metric's word; `reason` says why it is not ready, if it is not.

    `paused`: an operator has paused it; it takes no job once the one in hand is done. `api` is null where no limit is known.
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
    """The whole. Times are RFC 3339; `failures` are the latest, the latest first."""

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
    """The document for a model; `plugins` has the plugin of each service, `budgets` what is known of their API's limits, `paused`
    the services that an operator has paused; `started_at` is Unix seconds."""
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
    """The file; replaced whole. A disk that refuses it is no reason to stop: readers see its age."""

    def __init__(self, state_dir: Path) -> None:
        self._path = Place.STATUS.path(state_dir)

    def write(self, content: StatusDocument) -> None:
        """Replace the file."""
        with contextlib.suppress(OSError):
            write_atomically(self._path, msgspec.json.encode(content) + b"\n", durable=False)


def read(state_dir: Path) -> StatusDocument | None:
    """The last document; None when there is none to be read."""
    try:
        return msgspec.json.decode(Place.STATUS.path(state_dir).read_bytes(), type=StatusDocument)
    except (OSError, *UNREADABLE):
        return None


def written_at(state_dir: Path, default: float) -> float:
    """When the last document was written, Unix seconds; `default` when nobody can tell."""
    try:
        return Place.STATUS.path(state_dir).stat().st_mtime
    except OSError:
        return default


def rfc3339(seconds: float) -> str:
    """A time of the document, from Unix seconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
