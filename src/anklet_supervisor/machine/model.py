"""What the supervisor knows and decides by: plain frozen data. Who changes it is `machine.step`, by replacement."""

from __future__ import annotations

from enum import Enum

import msgspec

from anklet_supervisor.machine.allocator import Allocation
from anklet_supervisor.machine.state import Mode, ServiceState
from anklet_worker.link.messages import Status


class Moment(msgspec.Struct, frozen=True):
    """A point in time on two clocks: `mono` for arithmetic, `wall` (Unix seconds) for people."""

    mono: float
    wall: float


class Fate(Enum):
    """What a reload has decided for a service."""

    #: Nothing: its worker goes on.
    STAYS = "stays"
    #: Its settings have changed: its worker finishes under the old ones, the next one begins with the new.
    REPLACED = "replaced"
    #: It is configured no more: its worker finishes, and the service is forgotten.
    LEAVES = "leaves"


class JobView(msgspec.Struct, frozen=True, kw_only=True):
    """The job that a service has in hand."""

    id: str
    url: str
    name: str
    vm: str
    since: float


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """One configured service. `crashes` and `ready_since` are monotonic seconds, `due` the end of a back-off."""

    name: str
    state: ServiceState = ServiceState.STARTING
    fate: Fate = Fate.STAYS
    status: Status = Status.IDLE
    pid: int | None = None
    restarts: int = 0
    crashes: tuple[float, ...] = ()
    ready_since: float | None = None
    due: float | None = None
    job: JobView | None = None
    #: Why it is fatal or backing off, for people.
    reason: str = ""
    #: It was given up, and has not been ready since.
    given_up: bool = False
    exit_code: int | None = None


class Reload(msgspec.Struct, frozen=True, kw_only=True):
    """Where reloads stand: how many were asked for, which of them is being read, which one was answered last, and how.

    `problems` say why the last one changed nothing: because of the configuration, or of the moment (`refused`). `at` is when it was
    answered, Unix seconds.
    """

    asked: int = 0
    reading: int | None = None
    answered: int = 0
    problems: tuple[str, ...] = ()
    refused: bool = False
    at: float = 0.0


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the supervisor knows and decides by."""

    services: dict[str, Service]
    allocation: Allocation
    mode: Mode = Mode.RUNNING
    once: bool = False
    #: Whether SIGTERM, SIGINT have come once: the second one means more.
    terminated: bool = False
    interrupted: bool = False
    #: Ending in order to be started again: workers have let go of their VMs and jobs.
    restarting: bool = False
    reload: Reload = Reload()
    drain_timeout: float | None = None
    #: When a drain becomes a stop; when workers that still live are killed (None in a stop: that has been done).
    drain_deadline: float | None = None
    stop_deadline: float | None = None
    exit_code: int | None = None
