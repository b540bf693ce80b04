"""Where runners are registered and jobs are found: a repository, or an organization. Owns the API paths that depend on it."""

from __future__ import annotations

import urllib.parse

import msgspec

from anklet_github.settings import settings_of
from anklet_worker.contract.service import ServiceConfig


class Repo(msgspec.Struct, frozen=True):
    """A repository, with its runs and jobs."""

    owner: str
    name: str

    @property
    def path(self) -> str:
        """Prefix of its routes."""
        return f"/repos/{_quoted(self.owner)}/{_quoted(self.name)}"

    @property
    def keyspace(self) -> str:
        """Prefix of its jobs' keys in the store; the braces keep them on one node of a Redis cluster."""
        return f"anklet:{{{self.owner}/{self.name}}}"


class Scope(msgspec.Struct, frozen=True, kw_only=True):
    """A repository, or (with `repo` empty) an organization."""

    owner: str
    repo: str
    group: str | None = None

    @property
    def path(self) -> str:
        """The route of the scope itself."""
        return Repo(self.owner, self.repo).path if self.repo else f"/orgs/{_quoted(self.owner)}"

    @property
    def runners_path(self) -> str:
        """Prefix of the runners' routes."""
        return f"{self.path}/actions/runners"

    @property
    def keyspace(self) -> str:
        """Prefix of the keys in the store that are about the whole scope."""
        return Repo(self.owner, self.repo or "*").keyspace

    @property
    def permissions(self) -> dict[str, str]:
        """The permissions that a GitHub App needs (GitHub REST docs, the page of each route)."""
        runners = "administration" if self.repo else "organization_self_hosted_runners"
        return {"actions": "read", runners: "write"}

    def registration_url(self, server_url: str) -> str:
        """The URL for configuring a runner."""
        return f"{server_url}/{self.owner}/{self.repo}" if self.repo else f"{server_url}/{self.owner}"


def scope_of(service: ServiceConfig) -> Scope:
    """The scope that a service is configured for."""
    settings = settings_of(service)
    return Scope(owner=service.owner, repo="" if settings.org else service.repo, group=settings.runner.group)


def _quoted(word: str) -> str:
    return urllib.parse.quote(word, safe="")
