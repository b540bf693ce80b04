"""A job as its plugin describes it to the core, and the way it ended. Pure data; knows no job system."""

from __future__ import annotations

from enum import Enum

import msgspec


class VMSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The VM that a job asks for.

    `template` names the template (by name or uuid) or image to clone. `tag` is its version, for VM drivers that have tags; None
    means the driver's default.
    """

    template: str
    tag: str | None = None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One job that waits at the origin.

    id: unique within `keyspace`, and the same at every look.
    name, url: for people, in status, logs and history.
    keyspace: starts every key about this job in the store. Services that could run the same job must use the same keyspace.
    vm: the VM that the job needs.
    log_fields: added to every log line about the job. Public facts only.
    details: whatever the plugin needs to go on with the job in a later process. Kept on disk, so never a secret.
    queued_at: when the job began to wait, in Unix seconds; 0 when the origin does not say.
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
        """Return the store key of one fact about this job.

        `claim` is the lease of the host that runs it, `attempts` counts its attempts. The core uses further kinds for its failures.
        """
        return f"{self.keyspace}:{kind}:{self.id}"


class Conclusion(Enum):
    """The result of a job. The core does not tell apart more results than these."""

    #: The job succeeded.
    SUCCESS = "success"
    #: The job itself failed.
    FAILURE = "failure"
    #: A user, or a user's automation, cancelled it.
    CANCELLED = "cancelled"
    #: Any other end: skipped, timed out, neutral.
    OTHER = "other"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The end of the job that ran in our VM.

    Some origins choose by themselves which job a runner gets, so `job_id` may differ from the id of the claimed job.
    """

    conclusion: Conclusion
    job_id: str
    job_name: str
    job_url: str
