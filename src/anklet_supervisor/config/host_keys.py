"""The host's keys as data, and the typed values that they become. Defaults stand in the types; the tables repeat none."""

from __future__ import annotations

from pathlib import Path

import msgspec

from anklet_supervisor.config import moved
from anklet_supervisor.config.service_keys import DRIVERS, SERVICE
from anklet_worker.contract.service import ServiceConfig
from anklet_worker.contract.settings import PORTS, Key, Kind, Section, choice, duration, nested


class LogConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Where the log goes (None: standard output), its level (DEBUG, INFO, ERROR or dev), and when its file is rotated.

    `max_megabytes` 0: never by this program (newsyslog may do it).
    """

    file_dir: Path | None = None
    level: str = "INFO"
    max_megabytes: int = 100
    keep: int = 5


class MetricsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Where the metrics endpoint listens."""

    host: str = "127.0.0.1"
    port: int = 8080


class SupervisorConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The host's configuration. Directories are absolute; times are seconds (`drain_timeout` None: a drain has no limit)."""

    state_dir: Path
    plugins_path: Path
    pid_file_dir: Path
    work_dir: Path = Path("/tmp")  # noqa: S108  what the original documents; nothing secret or predictable is put there
    log: LogConfig = LogConfig()
    metrics: MetricsConfig = MetricsConfig()
    vm_limit: int = 2
    vm_driver: str = "anka"
    drain_timeout: float | None = None
    lease_ttl: float = 60.0
    job_retry_attempts: int = 5
    services: tuple[ServiceConfig, ...] = ()

    def secrets(self) -> tuple[str, ...]:
        """Every secret text of every service, for redaction."""
        return tuple(dict.fromkeys(secret for service in self.services for secret in service.secrets()))


LOG = Section(
    name="log",
    values=LogConfig,
    moved=moved.LOG,
    keys=(
        Key(
            name="file_dir",
            kind=Kind.DIRECTORY,
            doc="an existing directory, for `anklet.log`",
            default="standard output",
        ),
        Key(name="level", kind=Kind.LEVEL, doc="DEBUG, INFO, ERROR or dev; `LOG_LEVEL` overrides it"),
        Key(
            name="max_megabytes",
            kind=Kind.INTEGER,
            doc="size at which `anklet.log` becomes `anklet.log.1`; 0: never, newsyslog does it",
            least=0,
            most=100_000,
        ),
        Key(name="keep", kind=Kind.INTEGER, doc="how many earlier log files stay", least=0, most=1000),
    ),
)
METRICS = Section(
    name="metrics",
    values=MetricsConfig,
    moved=moved.METRICS,
    keys=(
        Key(name="host", kind=Kind.TEXT, doc="address to listen on", form=r"[A-Za-z0-9.:_-]+", wanted="an address"),
        Key(name="port", kind=Kind.INTEGER, doc="port to listen on", least=PORTS[0], most=PORTS[1]),
    ),
)
HOST = Section(
    name="",
    values=SupervisorConfig,
    keys=(
        Key(name="work_dir", kind=Kind.DIRECTORY, doc="an existing directory: where commands run, and scratch space"),
        Key(
            name="pid_file_dir",
            kind=Kind.DIRECTORY,
            doc="an existing directory, for `anklet.pid`",
            default="`state_dir`",
        ),
        nested(LOG, "the log"),
        Key(
            name="log_file_dir",
            kind=Kind.TEXT,
            doc="use log.file_dir",
            unused=True,
            from_environment=False,
        ),
        nested(METRICS, "the metrics endpoint"),
        Key(
            name="state_dir",
            kind=Kind.DIRECTORY,
            doc="records, slots and status; on a local disk",
            default="`~/Library/Application Support/anklet-supervisor`; on Linux `~/.local/state/anklet-supervisor`",
        ),
        Key(
            name="plugins_path",
            kind=Kind.DIRECTORY,
            doc="plugins and guest scripts of your own",
            default="`~/.config/anklet/plugins`",
        ),
        Key(name="vm_limit", kind=Kind.INTEGER, doc="running VMs at once; on macOS at most 2", least=1, most=64),
        choice("vm_driver", "what runs VMs", *DRIVERS),
        duration("drain_timeout", "how long a drain may take before it becomes a stop", above=0, default="none"),
        duration("lease_ttl", "how long a claim outlives its host", least=1),
        Key(
            name="job_retry_attempts",
            kind=Kind.INTEGER,
            doc="tries of one job on new VMs before this host leaves it to others",
            least=0,
            most=1000,
        ),
        Key(
            name="services",
            kind=Kind.SERVICES,
            doc="one entry for each service",
            default="required",
            section=SERVICE,
            from_environment=False,
        ),
    ),
    moved=moved.HOST,
)
