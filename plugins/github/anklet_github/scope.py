"""Where runners are registered and jobs are looked for. Owns the paths of GitHub's API that depend on it."""

from __future__ import annotations

import urllib.parse

import msgspec

from anklet_worker.config import ServiceConfig


class Scope(msgspec.Struct, frozen=True):
    """A repository."""

    owner: str
    repo: str

    @property
    def repo_path(self) -> str:
        """Prefix of what belongs to the repository: runs, jobs."""
        return f"/repos/{_quoted(self.owner)}/{_quoted(self.repo)}"

    @property
    def runners_path(self) -> str:
        """Prefix of the runners' routes."""
        return f"{self.repo_path}/actions/runners"

    @property
    def keyspace(self) -> str:
        """What the keys of its jobs begin with in the store; the braces keep them on one node of a Redis cluster."""
        return f"anklet:{{{self.owner}/{self.repo}}}"

    def registration_url(self, server_url: str) -> str:
        """The URL that a runner is configured with."""
        return f"{server_url}/{self.owner}/{self.repo}"


def scope_of(service: ServiceConfig) -> Scope:
    """The scope that a service is configured for."""
    return Scope(service.owner, service.repo)


def _quoted(word: str) -> str:
    return urllib.parse.quote(word, safe="")
