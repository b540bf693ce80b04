"""`status.json`: what the supervisor is doing, for the `status` command and for scripts. Its format is stable.

Owns the document and the file. The permissions of the state directory decide who can read it.
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
    """The job that a service has in hand. `since` is the time of the claim."""

    id: str
    url: str
    name: str
    vm: str
    since: str


class ApiBudget(msgspec.Struct, frozen=True, kw_only=True):
    """What is left of an API's rate limit, from its last answer; `reset` is the time when it is full again."""

    remaining: int
    limit: int
    reset: str


class FailureStatus(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt that did not end in success. `ended` is the conclusion, or `given back` (it did not run here) with a `reason`."""

    id: str
    name: str
    url: str
    service: str
    ended: str
    reason: str
    at: str


class ReloadStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How many reloads were requested, which one was answered last, and when (`at`).

    `problems` say why it changed nothing: errors in the configuration, or a supervisor that does not reload now (`refused`).
    """

    asked: int
    answered: int
    problems: list[str]
    refused: bool
    at: str | None


class ServiceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One service. `state` is its worker's state, `status` the word of the metric, `reason` why it is not ready.

    `paused`: an operator paused it; it takes no job after the one in hand. `api` is null if no limit is known.
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
    """The whole document. Times are RFC 3339; `failures` has the latest ones, latest first."""

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
    """The document for a model.

    `plugins` maps services to plugins and `budgets` services to rate limits; `paused` has the services that an operator paused.
    `started_at` is Unix seconds.
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
    """The file, replaced atomically. If the disk refuses, the old file stays, and readers see its age."""

    def __init__(self, state_dir: Path) -> None:
        self._path = Place.STATUS.path(state_dir)

    def write(self, content: StatusDocument) -> None:
        """Replace the file."""
        with contextlib.suppress(OSError):
            write_atomically(self._path, msgspec.json.encode(content) + b"\n", durable=False)


def read(state_dir: Path) -> StatusDocument | None:
    """The last document; None without a readable one."""
    try:
        return msgspec.json.decode(Place.STATUS.path(state_dir).read_bytes(), type=StatusDocument)
    except (OSError, *UNREADABLE):
        return None


def written_at(state_dir: Path, default: float) -> float:
    """When the last document was written, Unix seconds; `default` if unknown."""
    try:
        return Place.STATUS.path(state_dir).stat().st_mtime
    except OSError:
        return default


def rfc3339(seconds: float) -> str:
    """Unix seconds as the document writes times: RFC 3339, UTC, milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
