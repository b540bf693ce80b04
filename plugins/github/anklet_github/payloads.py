"""The parts of GitHub's objects that this plugin reads; everything else in a reply is ignored. GitHub REST docs, 2022-11-28."""

from __future__ import annotations

import msgspec


class Run(msgspec.Struct, frozen=True):
    """A workflow run. `name` is the workflow's, `display_title` the run's own; a re-run adds one to `run_attempt`."""

    id: int
    status: str | None = None
    name: str | None = None
    display_title: str | None = None
    run_attempt: int | None = None
    created_at: str | None = None
    updated_at: str | None = None


class Runs(msgspec.Struct, frozen=True):
    """A page of runs."""

    total_count: int
    workflow_runs: list[Run]

    @property
    def items(self) -> list[Run]:
        """What the page lists."""
        return self.workflow_runs


class WorkflowJob(msgspec.Struct, frozen=True):
    """A job of a run. Times are RFC 3339; a re-run of it is another job with another id."""

    id: int
    run_id: int
    name: str
    status: str
    labels: list[str]
    conclusion: str | None = None
    created_at: str | None = None
    html_url: str | None = None
    runner_name: str | None = None
    workflow_name: str | None = None


class Jobs(msgspec.Struct, frozen=True):
    """A page of jobs."""

    total_count: int
    jobs: list[WorkflowJob]

    @property
    def items(self) -> list[WorkflowJob]:
        """What the page lists."""
        return self.jobs


class Runner(msgspec.Struct, frozen=True):
    """A registered runner. `status` is online or offline."""

    id: int
    name: str
    status: str = "offline"
    busy: bool = False


class Runners(msgspec.Struct, frozen=True):
    """A page of runners."""

    total_count: int
    runners: list[Runner]

    @property
    def items(self) -> list[Runner]:
        """What the page lists."""
        return self.runners


class Group(msgspec.Struct, frozen=True):
    """A group of an organization's runners."""

    id: int
    name: str


class Groups(msgspec.Struct, frozen=True):
    """A page of groups."""

    total_count: int
    runner_groups: list[Group]

    @property
    def items(self) -> list[Group]:
        """What the page lists."""
        return self.runner_groups


class Repository(msgspec.Struct, frozen=True):
    """A repository of an organization."""

    name: str
    archived: bool = False
    disabled: bool = False
    pushed_at: str | None = None


class Installation(msgspec.Struct, frozen=True):
    """An installation of a GitHub App."""

    id: int


class InstallationToken(msgspec.Struct, frozen=True):
    """`token` is a secret, good until `expires_at` (RFC 3339)."""

    token: str
    expires_at: str = ""
    permissions: dict[str, str] | None = None


class JitConfig(msgspec.Struct, frozen=True):
    """A registration that was made for one runner. `encoded_jit_config` is a secret."""

    runner: Runner
    encoded_jit_config: str


class RegistrationToken(msgspec.Struct, frozen=True):
    """`token` is a secret, good for an hour."""

    token: str
