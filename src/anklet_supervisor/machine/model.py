"""Everything that the supervisor knows and decides by: plain frozen data. Only `machine.step` changes it, by replacement."""

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

    #: No change: its worker goes on.
    STAYS = "stays"
    #: Its settings changed: its worker finishes with the old ones, and the next worker starts with the new.
    REPLACED = "replaced"
    #: It is no longer configured: its worker finishes, then the service is removed.
    LEAVES = "leaves"


class JobView(msgspec.Struct, frozen=True, kw_only=True):
    """The job that a service has in hand. `since` is the claim, Unix seconds."""

    id: str
    url: str
    name: str
    vm: str
    since: float


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """One service. `crashes`, `ready_since` and `due` (the end of a back-off) are monotonic seconds."""

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
    #: Why it is fatal or in back-off, for people.
    reason: str = ""
    #: It was given up, and has not been ready since.
    given_up: bool = False
    exit_code: int | None = None


class Reload(msgspec.Struct, frozen=True, kw_only=True):
    """The state of reloads: how many were requested, which one is being read, and which one was answered last.

    `problems` say why the last one changed nothing: errors in the configuration, or a supervisor that does not reload now
    (`refused`). `at` is the time of the answer, Unix seconds.
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
    #: True after the first SIGTERM or SIGINT: the second one means more.
    terminated: bool = False
    interrupted: bool = False
    #: True when the supervisor exits to be started again: workers detach from their VMs and jobs.
    restarting: bool = False
    reload: Reload = Reload()
    drain_timeout: float | None = None
    #: Monotonic seconds at which a drain becomes a stop, and at which the workers that still run are killed. In a stop, None as
    #: `stop_deadline` means that they were killed.
    drain_deadline: float | None = None
    stop_deadline: float | None = None
    exit_code: int | None = None
