"""What happens to the supervisor, and what it does then: the events and effects of `machine.step`. Plain data."""

from __future__ import annotations

import msgspec

from anklet_worker.link import messages as m

# ---- events ----


class Began(msgspec.Struct, frozen=True):
    """The supervisor is ready to start the services."""


class DrainAsked(msgspec.Struct, frozen=True):
    """SIGQUIT: drain."""


class Terminated(msgspec.Struct, frozen=True):
    """SIGTERM: drain; the second one stops."""


class InterruptedBy(msgspec.Struct, frozen=True):
    """SIGINT: stop; the second one exits at once."""


class RestartAsked(msgspec.Struct, frozen=True):
    """SIGUSR2: detach from VMs and jobs, and exit to be started again; the next start adopts them."""


class WorkerStarted(msgspec.Struct, frozen=True):
    """The process of a service exists."""

    service: str
    pid: int


class WorkerSaid(msgspec.Struct, frozen=True):
    """A fact arrived from a worker."""

    service: str
    fact: m.Fact


class WorkerExited(msgspec.Struct, frozen=True):
    """The process is gone, after all of its facts. A negative code is a signal."""

    service: str
    exit_code: int


class StartPutOff(msgspec.Struct, frozen=True):
    """No worker was started: other files are installed than the supervisor runs, until it is restarted."""

    service: str
    reason: str


class ReloadAsked(msgspec.Struct, frozen=True):
    """SIGHUP: read the configuration again."""


class ConfigRead(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration was read again. `changed` are the services whose settings differ from the last reading.

    `drain_timeout` is in seconds.
    """

    services: tuple[str, ...]
    changed: frozenset[str]
    vm_limit: int
    drain_timeout: float | None


class ConfigRefused(msgspec.Struct, frozen=True):
    """The configuration was read again and has errors, one line each."""

    problems: tuple[str, ...]


class Tick(msgspec.Struct, frozen=True):
    """Time has passed: deadlines may be due."""


Event = (
    Began
    | DrainAsked
    | Terminated
    | InterruptedBy
    | RestartAsked
    | ReloadAsked
    | ConfigRead
    | ConfigRefused
    | WorkerStarted
    | WorkerSaid
    | WorkerExited
    | StartPutOff
    | Tick
)


# ---- effects ----


class StartWorker(msgspec.Struct, frozen=True):
    """Start the process of a service."""

    service: str


class Tell(msgspec.Struct, frozen=True):
    """Send a command down a service's pipe."""

    service: str
    command: m.Command


class DetachWorker(msgspec.Struct, frozen=True):
    """Send SIGTERM to the process of a service: it leaves VM, runner and claim as they are, and exits."""

    service: str


class KillWorker(msgspec.Struct, frozen=True):
    """Send SIGKILL to the process of a service."""

    service: str


class PublishSlots(msgspec.Struct, frozen=True):
    """Write the slot table to shared memory. Comes before the commands that grant its slots."""


class ReadConfig(msgspec.Struct, frozen=True):
    """Read the configuration again, in a thread: commands in it may take long."""


class TakeConfig(msgspec.Struct, frozen=True):
    """Adopt the configuration that was read last, and apply the parts that need no restart."""


class RenewSettings(msgspec.Struct, frozen=True):
    """Give a service the settings that were read last, from its next worker on."""

    service: str


class ForgetService(msgspec.Struct, frozen=True):
    """Remove a service's settings and figures. Its directory stays."""

    service: str


class Report(msgspec.Struct, frozen=True):
    """Write a line to the log. `level` is DEBUG, INFO, WARN or ERROR; `problems` is a list within the line."""

    level: str
    message: str
    service: str | None = None
    problems: tuple[str, ...] = ()


class Finish(msgspec.Struct, frozen=True):
    """Exit with this code: nothing is left to do."""

    exit_code: int


Effect = (
    StartWorker
    | Tell
    | DetachWorker
    | KillWorker
    | PublishSlots
    | ReadConfig
    | TakeConfig
    | RenewSettings
    | ForgetService
    | Report
    | Finish
)
