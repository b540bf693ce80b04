"""The keys of a service that the core understands, as data. A plugin adds its own (`anklet_worker.contract.rules`)."""

from __future__ import annotations

from anklet_supervisor.config import moved
from anklet_worker.contract.service import Database, Deadlines, ServiceConfig, Tart
from anklet_worker.contract.settings import PORTS, Key, Kind, Section, choice, duration, nested
from anklet_worker.vm import drivers

DRIVERS = tuple(sorted(drivers.names()))

DATABASE = Section(
    name="database",
    values=Database,
    moved=moved.DATABASE,
    keys=(
        Key(name="enabled", kind=Kind.FLAG, doc="share claims with other hosts by Redis; else they stay on this host"),
        Key(
            name="url",
            kind=Kind.REDIS,
            doc="host, host:port, or a `redis://` or `rediss://` (TLS) URL",
            default="localhost",
        ),
        Key(name="port", kind=Kind.INTEGER, doc="Redis' port", least=PORTS[0], most=PORTS[1]),
        Key(name="user", kind=Kind.TEXT, doc="Redis' user"),
        Key(name="password", kind=Kind.SECRET, doc="its password"),
        Key(name="database", kind=Kind.INTEGER, doc="number of the Redis database", least=0, most=65535),
    ),
)
DEADLINES = Section(
    name="deadlines",
    values=Deadlines,
    keys=(
        duration("vm_start", "from the start of a VM until its guest takes commands", above=0),
        duration("runner_online", "from the runner's start until it is online", above=0),
        duration("job_start", "from the runner being online until a job runs on it", above=0),
        duration("cleanup", "for each step of cleaning up", above=0),
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
        choice("pull", "when to pull an image", "if-not-present", "always", "never"),
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
        choice(
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
PLUGIN = Key(name="plugin", kind=Kind.TEXT, doc="where jobs come from", default="required")
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
        PLUGIN,
        Key(name="owner", kind=Kind.TEXT, doc="user or organization", form=_NAME_FORM, wanted=_NAME_WANTED),
        Key(name="repo", kind=Kind.TEXT, doc="repository of that owner", form=_NAME_FORM, wanted=_NAME_WANTED),
        Key(
            name="registry_url",
            kind=Kind.URL,
            doc="Anka registry to pull templates from",
            default="anka's default registry",
        ),
        duration("sleep_interval", "pause between two looks for jobs", least=0),
        nested(DATABASE, "Redis, shared by several hosts"),
        choice("vm_driver", "what runs VMs", *DRIVERS, default="the host's"),
        nested(TART, "settings of the driver tart"),
        nested(DEADLINES, "how long each stage may take"),
        duration("lease_ttl", "how long a claim outlives its host", least=1, default="the host's"),
        Key(
            name="job_retry_attempts",
            kind=Kind.INTEGER,
            doc="tries of one job on new VMs before this host leaves it to others",
            default="the host's",
            least=0,
            most=1000,
        ),
    ),
    moved=moved.SERVICE,
)
