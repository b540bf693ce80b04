"""What a job is: as its plugin describes it to the core, and how it ended. Pure data; knows no job system."""

from __future__ import annotations

from enum import Enum

import msgspec


class VMSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a job asks for: a template (name or uuid) or image, and for drivers that have them, a tag."""

    template: str
    tag: str | None = None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A job as its plugin describes it to the core.

    `id` is unique in its `keyspace` (what hosts share: the keys in the store begin with it) and stable; `vm` is what it wants
    to run in; `log_fields` go into every log line about it (public facts only); `details` are the plugin's own, kept in the
    record so that a later process can go on (never a secret). `queued_at`: since when it waits, Unix seconds; 0: not known.
    """

    id: str
    name: str
    url: str
    keyspace: str
    vm: VMSpec
    log_fields: dict[str, str | int] = {}
    details: dict[str, str | int | list[str]] = {}
    queued_at: float = 0.0

    def key(self, kind: str) -> str:
        """The job's key in the store: `claim` (its lease), `attempts` (a counter), and what `retries.py` keeps of its failures."""
        return f"{self.keyspace}:{kind}:{self.id}"


class Conclusion(Enum):
    """How a job ended, in the words of its origin as far as the core tells them apart."""

    #: The job did what it was to do.
    SUCCESS = "success"
    #: The job itself failed.
    FAILURE = "failure"
    #: Its user (or their automation) cancelled it.
    CANCELLED = "cancelled"
    #: Anything else: skipped, timed out, neutral.
    OTHER = "other"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a job that ran in our VM. `job` may differ from the one asked for, where the origin dealt another one."""

    conclusion: Conclusion
    job_id: str
    job_name: str
    job_url: str
