"""Every key of the configuration as data: name, kind, range, default, and a line of documentation.

One table for each section, beside the typed values that the host's own sections become. The loader obeys the tables, and the
table of keys in docs/configuration.md is `markdown()`. Defaults stand in the types; a table repeats none. Knows no file and no
environment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path

import msgspec

from anklet_supervisor.config import moved as config_moved
from anklet_supervisor.config.moved import Moved
from anklet_worker.contract.service import Database, Deadlines, Runner, ServiceConfig, Tart, WorkflowFilter
from anklet_worker.vm import drivers

_YEAR = 366 * 24 * 3600.0
_LARGEST_ID = 10**15  # far above any id, far below where a float would round it
_PORTS = (1, 65535)
DRIVERS = tuple(sorted(drivers.names()))


class Kind(Enum):
    """What a value must be; the value is how people are told."""

    TEXT = "text"
    CHOICE = "one of"
    LEVEL = "log level"
    INTEGER = "whole number"
    SECONDS = "seconds"
    FLAG = "true or false"
    DIRECTORY = "directory"
    FILE = "file"
    URL = "URL"
    REDIS = "Redis address"
    PATTERNS = "list of regular expressions"
    TEXTS = "list of texts"
    SECRET = "secret"  # noqa: S105  a kind of value, not one
    PRIVATE_KEY = "PEM file or text"
    SERVICES = "list of services"
    SECTION = "section"


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """One key.

    `least` and `most` bound a number (`above`: more than that); `form` is a regular expression for the whole text, `wanted` says it
    in words; `default` is what the documentation says when the typed value does not say it. `unused`: accepted with a warning.
    `quoted`: a bare number is a mistake.
    """

    name: str
    kind: Kind
    doc: str
    default: str = ""
    choices: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None
    above: float | None = None
    form: str = ""
    wanted: str = ""
    section: Section | None = None
    unused: bool = False
    quoted: bool = False
    from_environment: bool = True


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """One mapping of the file. `values` is the type that it becomes; `moved` says what keys of the original's files are here."""

    name: str
    keys: tuple[Key, ...]
    values: type[msgspec.Struct]
    moved: Mapping[str, Moved] = {}

    def names(self) -> dict[str, Key]:
        """Every name that may stand in the mapping. A secret has three: its own, `_file` and `_command`."""
        return {name: key for key in self.keys for name in spellings(key)}


class LogConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Where the log goes (None: standard output), how much of it (DEBUG, INFO, ERROR or dev), and when its file is rotated.

    `max_megabytes` 0: by somebody else, newsyslog for one.
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


def spellings(key: Key) -> tuple[str, ...]:
    """The names under which a key may be given."""
    if key.kind in (Kind.SECRET, Kind.PRIVATE_KEY):
        return (key.name, f"{key.name}_file", f"{key.name}_command")
    return (key.name,)


def _seconds(name: str, doc: str, *, least: float | None = None, above: float | None = None, default: str = "") -> Key:
    return Key(name=name, kind=Kind.SECONDS, doc=doc, least=least, above=above, most=_YEAR, default=default)


def _choice(name: str, doc: str, *choices: str, default: str = "") -> Key:
    return Key(name=name, kind=Kind.CHOICE, doc=doc, choices=choices, default=default)


def _section(section: Section, doc: str) -> Key:
    return Key(name=section.name, kind=Kind.SECTION, doc=doc, section=section)


LOG = Section(
    name="log",
    values=LogConfig,
    moved=config_moved.LOG,
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
    moved=config_moved.METRICS,
    keys=(
        Key(name="host", kind=Kind.TEXT, doc="address to listen on", form=r"[A-Za-z0-9.:_-]+", wanted="an address"),
        Key(name="port", kind=Kind.INTEGER, doc="port to listen on", least=_PORTS[0], most=_PORTS[1]),
    ),
)
WORKFLOWS = Section(
    name="workflows",
    values=WorkflowFilter,
    keys=(
        Key(
            name="include",
            kind=Kind.PATTERNS,
            doc="keep workflows of these names, excluded or not; alone: take no others",
            default="all",
        ),
        Key(name="exclude", kind=Kind.PATTERNS, doc="leave out workflows of these names", default="none"),
    ),
)
DATABASE = Section(
    name="database",
    values=Database,
    moved=config_moved.DATABASE,
    keys=(
        Key(name="enabled", kind=Kind.FLAG, doc="share claims with other hosts by Redis; else they stay on this host"),
        Key(
            name="url",
            kind=Kind.REDIS,
            doc="host, host:port, or a `redis://` or `rediss://` (TLS) URL",
            default="localhost",
        ),
        Key(name="port", kind=Kind.INTEGER, doc="Redis' port", least=_PORTS[0], most=_PORTS[1]),
        Key(name="user", kind=Kind.TEXT, doc="Redis' user"),
        Key(name="password", kind=Kind.SECRET, doc="its password"),
        Key(name="database", kind=Kind.INTEGER, doc="number of the Redis database", least=0, most=65535),
    ),
)
RUNNER = Section(
    name="runner",
    values=Runner,
    keys=(
        Key(
            name="version",
            kind=Kind.TEXT,
            doc="runner for images that hold none",
            default="the plugin's",
            form=r"\d+\.\d+\.\d+",
            wanted="a version like 2.330.0",
        ),
        Key(
            name="sha256",
            kind=Kind.TEXT,
            doc="checksum of its archive",
            form=r"[0-9A-Fa-f]{64}",
            wanted="64 hexadecimal digits",
        ),
        Key(name="download_url", kind=Kind.URL, doc="where its archive is, instead of GitHub's releases"),
        Key(name="group", kind=Kind.TEXT, doc="runner group, for runners of an organization"),
    ),
)
DEADLINES = Section(
    name="deadlines",
    values=Deadlines,
    keys=(
        _seconds("vm_start", "from the start of a VM until its guest takes commands", above=0),
        _seconds("runner_online", "from the runner's start until it is online", above=0),
        _seconds("job_start", "from the runner being online until a job runs on it", above=0),
        _seconds("cleanup", "for each step of cleaning up", above=0),
    ),
)
TART = Section(
    name="tart",
    values=Tart,
    keys=(
        Key(
            name="image",
            kind=Kind.TEXT,
            doc="image for jobs whose labels name none",
            form=r"[^-\s]\S*",
            wanted="an image's name",
        ),
        _choice("pull", "when to pull an image", "if-not-present", "always", "never"),
        Key(name="cpu", kind=Kind.INTEGER, doc="processors of a VM", default="the image's", least=1, most=1024),
        Key(name="memory", kind=Kind.INTEGER, doc="memory of a VM in MB", default="the image's", least=1, most=2**24),
        Key(
            name="display",
            kind=Kind.TEXT,
            doc="size of a VM's display",
            default="the image's",
            form=r"[1-9]\d{0,4}x[1-9]\d{0,4}(?:pt|px)?",
            wanted="a size like 1920x1080",
        ),
        _choice(
            "network", "how a VM is on the network; softnet keeps it from the host's and other VMs", "shared", "softnet"
        ),
        Key(
            name="mounts",
            kind=Kind.TEXTS,
            default="none",
            doc="folders of the host that guests see in `/Volumes/My Shared Files`, as `name:/path` or `name:/path:ro`",
            form=r"[A-Za-z0-9._-]+:/[^:,]*(?::ro)?",
            wanted="name:/path or name:/path:ro",
        ),
        Key(
            name="user",
            kind=Kind.TEXT,
            doc="the guest's user, for images without Tart's guest agent, which are reached by ssh",
            default="admin",
            form=r"[A-Za-z0-9_][A-Za-z0-9._-]*",
            wanted="a user's name",
        ),
        Key(
            name="password_file",
            kind=Kind.FILE,
            doc="file that holds that user's password, in its first line",
            default="the usual images' password",
        ),
    ),
)
_NAME_FORM = r"(?!\.+$)[A-Za-z0-9._-]{1,100}"
_NAME_WANTED = "a name of letters, digits, '.', '_' and '-'"
SERVICE = Section(
    name="services[]",
    values=ServiceConfig,
    keys=(
        Key(
            name="name",
            kind=Kind.TEXT,
            doc="unique; also a directory's name",
            default="required",
            from_environment=False,
        ),
        Key(name="plugin", kind=Kind.TEXT, doc="where jobs come from", default="required"),
        Key(name="owner", kind=Kind.TEXT, doc="user or organization", form=_NAME_FORM, wanted=_NAME_WANTED),
        Key(name="repo", kind=Kind.TEXT, doc="repository of that owner", form=_NAME_FORM, wanted=_NAME_WANTED),
        _choice("registration", "whose runners: the repository's or the organization's", "repo", "org"),
        Key(name="token", kind=Kind.SECRET, doc="access token", quoted=True),
        Key(name="private_key", kind=Kind.PRIVATE_KEY, doc="key of a GitHub App, instead of a token"),
        Key(
            name="app_id",
            kind=Kind.TEXT,
            doc="the App's id or client id",
            form=r"[A-Za-z0-9._-]+",
            wanted="an App's id",
        ),
        Key(
            name="installation_id",
            kind=Kind.INTEGER,
            doc="the App's installation",
            default="looked up",
            least=0,
            most=_LARGEST_ID,
        ),
        Key(
            name="registry_url",
            kind=Kind.URL,
            doc="Anka registry to pull templates from",
            default="anka's default registry",
        ),
        _seconds("sleep_interval", "pause between two looks for jobs", least=0),
        _section(WORKFLOWS, "regular expressions for a workflow's whole name"),
        _section(DATABASE, "Redis, shared by several hosts"),
        _choice("vm_driver", "what runs VMs", *DRIVERS, default="the host's"),
        _section(TART, "settings of the driver tart"),
        _choice("runner_mode", "how a runner is registered", "jit", "token"),
        _section(RUNNER, "the runner program in the guest"),
        _section(DEADLINES, "how long a stage may take, in seconds"),
        Key(name="api_url", kind=Kind.URL, doc="for GitHub Enterprise Server `https://HOST/api/v3`"),
        Key(name="server_url", kind=Kind.URL, doc="for GitHub Enterprise Server `https://HOST`"),
        _choice("script_arguments", "`original` for guest scripts written for the original", "settings", "original"),
        _seconds("lease_ttl", "how long a claim outlives its host", least=1, default="the host's"),
        Key(
            name="job_retry_attempts",
            kind=Kind.INTEGER,
            doc="tries of one job on new VMs before it is left to others",
            default="the host's",
            least=0,
            most=1000,
        ),
    ),
    moved=config_moved.SERVICE,
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
        _section(LOG, "the log"),
        Key(
            name="log_file_dir",
            kind=Kind.TEXT,
            doc="use log.file_dir",
            unused=True,
            from_environment=False,
        ),
        _section(METRICS, "the metrics endpoint"),
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
        _choice("vm_driver", "what runs VMs", *DRIVERS),
        _seconds("drain_timeout", "seconds after which a drain becomes a stop", above=0, default="none"),
        _seconds("lease_ttl", "seconds that a claim outlives its host", least=1),
        Key(
            name="job_retry_attempts",
            kind=Kind.INTEGER,
            doc="tries of one job on new VMs before it is left to others",
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
    moved=config_moved.HOST,
)


def default_of(section: Section, key: Key) -> str:
    """A key's default, for people."""
    if key.default:
        return key.default
    for field in msgspec.structs.fields(section.values):
        if field.name == key.name:
            return "" if field.default in (None, "", msgspec.NODEFAULT) else _plain(field.default)
    return ""


def rows(section: Section = HOST, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Name, kind, default and documentation of every key in use, sections unfolded, in the order of the tables."""
    for key in section.keys:
        if key.unused:
            continue
        if key.section is not None:
            deeper = f"{prefix}{key.name}[]." if key.kind is Kind.SERVICES else f"{prefix}{key.name}."
            yield from rows(key.section, deeper)
        else:
            kind = ", ".join(key.choices) if key.choices else key.kind.value
            yield prefix + key.name, kind, default_of(section, key), key.doc


def markdown() -> str:
    """The table of keys, for docs/configuration.md."""
    head = "| key | value | default | meaning |\n|---|---|---|---|\n"
    return head + "".join(f"| `{name}` | {kind} | {default} | {doc} |\n" for name, kind, default, doc in rows())


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)
