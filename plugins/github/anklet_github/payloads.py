"""The fields of GitHub's objects that this plugin reads; decoding ignores all others. GitHub REST docs, version 2022-11-28."""

from __future__ import annotations

import msgspec


class Run(msgspec.Struct, frozen=True):
    """A workflow run. `name` is that of the workflow, `display_title` that of the run; a re-run adds one to `run_attempt`."""

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
        """The items of the page."""
        return self.workflow_runs


class WorkflowJob(msgspec.Struct, frozen=True):
    """A job of a run. Times are RFC 3339. A re-run is another job with another id."""

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
        """The items of the page."""
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
        """The items of the page."""
        return self.runners


class Group(msgspec.Struct, frozen=True):
    """A runner group of an organization."""

    id: int
    name: str


class Groups(msgspec.Struct, frozen=True):
    """A page of runner groups."""

    total_count: int
    runner_groups: list[Group]

    @property
    def items(self) -> list[Group]:
        """The items of the page."""
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
    """A GitHub App's token. `token` is a secret, valid until `expires_at` (RFC 3339)."""

    token: str
    expires_at: str = ""
    permissions: dict[str, str] | None = None


class JitConfig(msgspec.Struct, frozen=True):
    """A just-in-time registration of one runner. `encoded_jit_config` is a secret."""

    runner: Runner
    encoded_jit_config: str


class RegistrationToken(msgspec.Struct, frozen=True):
    """A token to register runners with. `token` is a secret, valid for an hour."""

    token: str
