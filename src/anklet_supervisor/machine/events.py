"""What happens to the supervisor, and what it does about it: the events and effects of `machine.step`. Plain data."""

from __future__ import annotations

import msgspec

from anklet_worker.link import messages as m

# ---- events ----


class Began(msgspec.Struct, frozen=True):
    """The supervisor is set up; start the services."""


class DrainAsked(msgspec.Struct, frozen=True):
    """SIGQUIT."""


class Terminated(msgspec.Struct, frozen=True):
    """SIGTERM: a drain; the second one is a stop."""


class InterruptedBy(msgspec.Struct, frozen=True):
    """SIGINT: a stop; the second one exits at once."""


class RestartAsked(msgspec.Struct, frozen=True):
    """SIGUSR2: let go of VMs and jobs, and end, to be started again; the next start goes on with them."""


class WorkerStarted(msgspec.Struct, frozen=True):
    """The process of a service exists."""

    service: str
    pid: int


class WorkerSaid(msgspec.Struct, frozen=True):
    """A fact came up the pipe."""

    service: str
    fact: m.Fact


class WorkerExited(msgspec.Struct, frozen=True):
    """The process is gone, and everything that it had said has been heard. Negative codes are signals."""

    service: str
    exit_code: int


class StartPutOff(msgspec.Struct, frozen=True):
    """No worker was started: other files are installed than the supervisor runs, until it is restarted."""

    service: str
    reason: str


class ReloadAsked(msgspec.Struct, frozen=True):
    """SIGHUP: read the configuration again."""


class ConfigRead(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration has been read again. `changed` are the services whose settings differ from those last read."""

    services: tuple[str, ...]
    changed: frozenset[str]
    vm_limit: int
    drain_timeout: float | None


class ConfigRefused(msgspec.Struct, frozen=True):
    """The configuration has been read again and cannot be used; one line for each problem."""

    problems: tuple[str, ...]


class Tick(msgspec.Struct, frozen=True):
    """Time has passed."""


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
    """SIGTERM the process of a service: it leaves VM, runner and claim as they are, and ends."""

    service: str


class KillWorker(msgspec.Struct, frozen=True):
    """SIGKILL the process of a service."""

    service: str


class PublishSlots(msgspec.Struct, frozen=True):
    """Write the slot table to shared memory. Comes before any grant in it is told."""


class ReadConfig(msgspec.Struct, frozen=True):
    """Read the configuration again, beside the loop: it may take its time."""


class TakeConfig(msgspec.Struct, frozen=True):
    """What was read last is the configuration from now on: what can be applied at once is applied."""


class RenewSettings(msgspec.Struct, frozen=True):
    """From its next worker on, a service has the settings that were read last."""

    service: str


class ForgetService(msgspec.Struct, frozen=True):
    """A service is no more: no settings, no figures. Its directory stays."""

    service: str


class Report(msgspec.Struct, frozen=True):
    """Write a line to the log. `level` is one of DEBUG, INFO, WARN, ERROR; `problems` are lines of their own within it."""

    level: str
    message: str
    service: str | None = None
    problems: tuple[str, ...] = ()


class Finish(msgspec.Struct, frozen=True):
    """Nothing is left to do: exit with this code."""

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
