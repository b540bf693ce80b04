"""Where runners are registered and jobs are looked for: a repository, or an organization. Owns the paths that depend on it."""

from __future__ import annotations

import urllib.parse

import msgspec

from anklet_worker.contract.service import ServiceConfig


class Repo(msgspec.Struct, frozen=True):
    """A repository: where runs and jobs are."""

    owner: str
    name: str

    @property
    def path(self) -> str:
        """Prefix of what belongs to it."""
        return f"/repos/{_quoted(self.owner)}/{_quoted(self.name)}"

    @property
    def keyspace(self) -> str:
        """What the keys of its jobs begin with in the store; the braces keep them on one node of a Redis cluster."""
        return f"anklet:{{{self.owner}/{self.name}}}"


class Scope(msgspec.Struct, frozen=True, kw_only=True):
    """A repository, or (with `repo` empty) an organization."""

    owner: str
    repo: str
    group: str | None = None

    @property
    def path(self) -> str:
        """The scope itself."""
        return Repo(self.owner, self.repo).path if self.repo else f"/orgs/{_quoted(self.owner)}"

    @property
    def runners_path(self) -> str:
        """Prefix of the runners' routes."""
        return f"{self.path}/actions/runners"

    @property
    def keyspace(self) -> str:
        """What the keys of what concerns the whole scope begin with."""
        return Repo(self.owner, self.repo or "*").keyspace

    @property
    def permissions(self) -> dict[str, str]:
        """What a GitHub App must be granted (GitHub REST docs: permissions of each route)."""
        runners = "administration" if self.repo else "organization_self_hosted_runners"
        return {"actions": "read", runners: "write"}

    def registration_url(self, server_url: str) -> str:
        """The URL that a runner is configured with."""
        return f"{server_url}/{self.owner}/{self.repo}" if self.repo else f"{server_url}/{self.owner}"


def scope_of(service: ServiceConfig) -> Scope:
    """The scope that a service is configured for."""
    org = service.registration == "org"
    return Scope(owner=service.owner, repo="" if org else service.repo, group=service.runner.group)


def _quoted(word: str) -> str:
    return urllib.parse.quote(word, safe="")
