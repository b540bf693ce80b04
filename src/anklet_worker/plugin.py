"""The plugin contract, what the core gives to a plugin, and how plugins are found.

A plugin finds jobs and drives them inside a VM that the core made. It never makes or deletes a VM, never loops for ever,
never sleeps but by its context's `wait`, keeps no state between calls but what it `remember`s, and dies by no exception but
those of `anklet_worker.errors`. The core never names a plugin.
"""

from __future__ import annotations

import importlib.util
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from enum import Enum
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from anklet_worker.errors import ConfigError

if TYPE_CHECKING:
    import logging

    from anklet_worker.config import ServiceConfig
    from anklet_worker.job import Job, Outcome
    from anklet_worker.vm import GuestResult, VMSpec

#: Raised when the contract changes in a way that an old plugin cannot follow.
API_VERSION = 1
ENTRY_POINT_GROUP = "anklet.plugins"


class Status(Enum):
    """What a service is doing, in the words of the metric `service_status`."""

    IDLE = "idle"
    RUNNING = "running"
    PULLING = "pulling"
    LIMIT_PAUSED = "limit_paused"
    PAUSED = "paused"
    STOPPED = "stopped"
    FAILED = "failed"


class Figure(Enum):
    """What a plugin may report beside facts about jobs. The values are the endings of metrics' names."""

    #: Calls of the API that the credentials have left until the limit is reset, how many they have in all, and Unix time of that.
    API_CALLS_LEFT = "api_calls_left"
    API_CALLS_LIMIT = "api_calls_limit"
    API_LIMIT_RESETS_AT = "api_limit_resets_at_timestamp_seconds"
    #: Queued jobs that have waited for long and that nobody has claimed.
    STALE_JOBS = "stale_jobs"
    #: Runners (or the like) of this host that are registered, offline, and without a VM.
    LEFT_RUNNERS = "left_runners"
    #: How many of these were removed just now; summed up.
    SWEPT_RUNNERS = "swept_runners"


class Withdrawal(Enum):
    """The answer to: can a job still land in this VM?"""

    #: Nothing is registered any more and no job can land.
    WITHDRAWN = "withdrawn"
    #: A job has landed; follow it.
    STARTED = "started"
    #: What was registered is not there any more, and nobody withdrew it: its job may be over already. A process that takes up what
    #: an earlier one left asks `adopt` what became of it.
    VANISHED = "vanished"


class Guest(Protocol):
    """What a plugin may do inside the VM of the job that it drives."""

    @property
    def name(self) -> str:
        """The VM's name, unique for ever; fit to be a runner's name (at most 63 characters of [a-z0-9-])."""
        ...

    def run(self, script: str, *, env: Mapping[str, str], timeout: float, looks_only: bool = False) -> GuestResult:
        """Run a bash script in the guest's home; `env` is exported first. Both travel on standard input, never in an argv.

        A script that `looks_only` waits for something and changes nothing: an order ends it, and nobody waits for it.
        Raises `VMError` when its end was not seen within `timeout` seconds.
        """
        ...

    def copy_in(self, source: Path) -> None:
        """Copy a host file to the guest's home. Raises `VMError`."""
        ...

    def copy_out(self, path: str, target: Path) -> None:
        """Copy a file of the guest, named relative to its home, to the host file `target`. Raises `VMError`."""
        ...


class Board(Protocol):
    """What services with the same store (of a host, or with Redis of many) tell each other, so that one finds out for all.

    Keys begin with the keyspace of what they are about. Never raises: while the store is away the board is empty, and each
    service finds out for itself. Nothing on it is a secret.
    """

    def turn(self, key: str, seconds: float) -> bool:
        """True for one service at a time, which has the turn for so many seconds (asking again prolongs it)."""
        ...

    def pass_on(self, key: str) -> None:
        """Give the turn back before its time, so that another gets it."""
        ...

    def holder(self, key: str) -> str | None:
        """Who has a turn, or the lease `Job.key("claim")` of a job; None: nobody, or it cannot be told."""
        ...

    def count(self, key: str, seconds: float, amount: int = 1) -> int | None:
        """Add to a counter of all and return it; it is forgotten so many seconds after the last addition. None: not to be had."""
        ...

    def post(self, key: str, text: str, seconds: float) -> None:
        """Leave a note for all, instead of an earlier one, for so many seconds."""
        ...

    def read(self, key: str) -> str | None:
        """The note, if there is one."""
        ...


class Context(Protocol):
    """What the core gives to a plugin."""

    @property
    def service(self) -> ServiceConfig:
        """The service's configuration."""
        ...

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger] | logging.Logger:
        """The service's log; while a job is in hand each line bears the job's fields."""
        ...

    @property
    def plugins_path(self) -> Path:
        """Where the operator's replacements for files of plugins stand, a folder for each plugin."""
        ...

    @property
    def state_dir(self) -> Path:
        """A directory of this service that survives restarts, for caches; never for secrets."""
        ...

    @property
    def board(self) -> Board:
        """What services with the same store tell each other."""
        ...

    @property
    def vm_prefix(self) -> str:
        """What the names of this host's VMs begin with, and those of no other host's."""
        ...

    @property
    def draining(self) -> bool:
        """True when no new job may be taken."""
        ...

    def known_vms(self) -> set[str]:
        """Names of all VMs of ours that exist, or that a record of any service announces. Raises `VMError`."""
        ...

    def check(self) -> None:
        """Raise `Interrupted` or `Detached` if ordered so. Call before anything that could be orphaned."""
        ...

    def wait(self, seconds: float) -> None:
        """Sleep, unless an order cuts it short by the same exceptions."""
        ...

    def limit_paused(self) -> AbstractContextManager[None]:
        """While the `with` lasts, the service's status is `limit_paused`; the core tells all others."""
        ...

    def api_called(self, route: str, outcome: str, seconds: float) -> None:
        """Count a call of the origin's API. `route` is a template of a closed list ("GET /repos/{owner}/{repo}"), `outcome` a
        status code, or a word for none; `seconds` is how long it took."""
        ...

    def report(self, figure: Figure, value: float) -> None:
        """Report a figure that the plugin alone can know."""
        ...

    def spec_from_labels(self, labels: Sequence[str]) -> VMSpec | None:
        """What these labels ask of this service's VM driver, or None when they do not ask for it."""
        ...

    def remember(self, **facts: str | int) -> None:
        """Write facts about the attempt in hand to its record, durably, before the effect that they announce. No secret."""
        ...

    def recall(self) -> Mapping[str, str | int]:
        """What has been remembered about the attempt in hand, also by an earlier process."""
        ...

    def runner_online(self) -> None:
        """What runs the job in our VM is in touch with the origin. May be called again, or not at all; for people and metrics."""
        ...

    def job_started(self, job: Job) -> None:
        """The origin says that `job` runs in our VM (it may be another than the one asked for). May be called again."""
        ...


class Plugin(Protocol):
    """One service's plugin. Made once in a worker process by the plugin's factory, with the `Context`.

    Calls come from one thread, one after the other. Exceptions: those of `anklet_worker.errors` (`RetryHere`,
    `RetryElsewhere`, `JobLost`, `VMError`, `ServiceFatal`); all others are taken for bugs. `Interrupted` and `Detached`
    (from the context) pass through untouched.
    """

    def look(self) -> Sequence[Job]:
        """Return the jobs that this service could run now, best first. A look changes nothing anywhere."""
        ...

    def claim(self, job: Job) -> bool:
        """Called with VM slot and lease in hand: is the job still to be had? False gives both back. A question, which changes
        nothing: it is asked again before `drive` when the lease may have been another's meanwhile."""
        ...

    def drive(self, job: Job, guest: Guest) -> Outcome:
        """Run the job in the started VM and follow it to its end. Called at most once for a VM."""
        ...

    def adopt(self, job: Job, guest: Guest) -> Outcome:
        """Follow to its end a job that an earlier process started in this VM."""
        ...

    def withdraw(self, job: Job, guest_name: str) -> Withdrawal:
        """Before a VM with no job in it is removed: see to it that none can land. Idempotent, bounded in time."""
        ...

    def settle(self, job: Job, guest_name: str) -> bool:
        """After the VM is gone: remove what was registered for it outside. Idempotent, bounded; False: a debt, ask again.

        Asked when the plugin has remembered anything about the attempt: what it changes outside, it announces so.
        """
        ...

    def collect(self, job: Job, guest: Guest, folder: Path) -> None:
        """Before a VM that was driven goes: save into `folder` what somebody will want to read of it. Bounded in time and size."""
        ...

    def abandoned(self, guest_name: str) -> bool:
        """True when the origin says that nothing runs in that VM of ours, which no record explains."""
        ...

    def close(self) -> None:
        """Give back connections."""
        ...


class PluginFactory(Protocol):
    """What an entry point, or `plugin` in a plugin.py, is: makes the plugin of one service.

    `api_version` is the contract's version that it was written for. Raises `ServiceFatal` when the service cannot run.
    """

    api_version: int

    def __call__(self, context: Context) -> Plugin:
        """Make the plugin of one service."""
        ...


def names(plugins_path: Path) -> set[str]:
    """Names of all plugins to be had here: entry points and `plugins_path/<name>/plugin.py`. Loads none of them."""
    found = {point.name for point in entry_points(group=ENTRY_POINT_GROUP)}
    if plugins_path.is_dir():
        found |= {entry.name for entry in plugins_path.iterdir() if (entry / "plugin.py").is_file()}
    return found


def load(name: str, plugins_path: Path) -> PluginFactory:
    """Load a plugin's factory. An entry point comes first; a file never shadows it.

    Raises `ConfigError` when there is none, when others may write the file, when it is broken or of another API version.
    """
    factory = _from_entry_point(name) or _from_file(name, plugins_path)
    if factory is None:
        raise ConfigError(f"no plugin named {name!r}: neither installed nor at {plugins_path / name / 'plugin.py'}")
    version = getattr(factory, "api_version", None)
    if version != API_VERSION:
        raise ConfigError(f"plugin {name!r} is written for plugin API {version!r}; this program has {API_VERSION}")
    return factory


def _from_entry_point(name: str) -> PluginFactory | None:
    for point in entry_points(group=ENTRY_POINT_GROUP, name=name):
        return cast("Callable[[], PluginFactory]", point.load)()
    return None


def _from_file(name: str, plugins_path: Path) -> PluginFactory | None:
    path = plugins_path / name / "plugin.py"
    if not path.is_file():
        return None
    for guarded in (path, path.parent):
        _refuse_if_others_may_write(guarded)
    spec = importlib.util.spec_from_file_location(f"anklet_plugin_{name}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"{path} does not load: {type(error).__name__}: {error}") from error
    factory = getattr(module, "plugin", None)
    if factory is None:
        raise ConfigError(f"{path} defines no 'plugin'")
    return cast("PluginFactory", factory)


def _refuse_if_others_may_write(path: Path) -> None:
    info = path.stat()
    if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or info.st_uid not in (os.geteuid(), 0):
        raise ConfigError(f"{path} can be changed by others than you; chmod go-w it, or chown it to yourself")
