"""Chooses the repositories whose queues a service looks at. Owns the list of an organization's repositories.

GitHub has no queue of a whole organization, so the service looks at a few repositories at a time: first those with waiting jobs,
then those with new pushes, then those whose last look is oldest. Knows nothing about labels or VMs.
"""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from anklet_github.api import Api
from anklet_github.payloads import Repository
from anklet_github.runs import RunQueue
from anklet_github.scope import Repo
from anklet_github.settings import settings_of
from anklet_github.trouble import ApiTrouble
from anklet_worker.contract.backoff import Backoff
from anklet_worker.contract.context import Context
from anklet_worker.contract.service import ServiceConfig

#: Repositories in one look: with two lists each this stays far below GitHub's 900 points a minute. The second figure says how many
#: of them are chosen by rank; the others are those whose last look is oldest.
_AT_A_TIME, _BY_RANK = 15, 10
#: Seconds between two requests for the list of repositories.
_LIST_AGAIN = 300.0
#: How long a repository that GitHub does not let us see is left out, longer each time: a new one may need a moment.
_LEFT_OUT = Backoff(first=600.0, longest=86_400.0)
_PER_PAGE = 100
_PATTERN = frozenset("*?[")

_Repositories: TypeAlias = list[Repository]


class Repos:
    """The repositories of one service."""

    def __init__(self, api: Api, context: Context, clock: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._context = context
        self._clock = clock
        service = context.service
        self._patterns = wanted(service)
        self._queues: dict[Repo, RunQueue] = {}
        self._looked_at: dict[Repo, float] = {}
        self._pushed: dict[Repo, str] = {}
        self._pushed_since: set[Repo] = set()
        self._listed_at: float | None = None
        #: Until when a repository is left out, and for how long the next time.
        self._left_out: dict[Repo, tuple[float, Backoff]] = {}
        self._named = [Repo(service.owner, name) for name in self._patterns if not _PATTERN.intersection(name)]
        self._take_named()

    def queues(self) -> Sequence[RunQueue]:
        """The queues of all known repositories."""
        return list(self._queues.values())

    def leave_out(self, repo: Repo) -> bool:
        """Leave out a repository that GitHub does not let us see, for a while. Return True the first time."""
        self._queues.pop(repo, None)
        first = repo not in self._left_out
        backoff = _LEFT_OUT if first else self._left_out[repo][1]
        self._left_out[repo] = (self._clock() + backoff.pause, backoff.next())
        return first

    def queue(self, repo: Repo) -> RunQueue:
        """The queue of one repository."""
        if repo not in self._queues:
            self._queues[repo] = RunQueue(self._api, repo, self._context)
        return self._queues[repo]

    def due(self) -> Sequence[RunQueue]:
        """The queues to look at now. Raises `ApiTrouble`."""
        self._take_named()
        self._list()
        ranked = sorted(self._queues, key=self._rank)
        chosen, rest = ranked[:_BY_RANK], ranked[_BY_RANK:]
        # Quiet repositories get their turn however many are busy.
        chosen += sorted(rest, key=self._last_looked_at)[: _AT_A_TIME - len(chosen)]
        now = self._clock()
        self._looked_at.update(dict.fromkeys(chosen, now))
        self._pushed_since.difference_update(chosen)
        return [self._queues[repo] for repo in chosen]

    def _rank(self, repo: Repo) -> tuple[bool, bool, float]:
        busy = bool(self._queues[repo].last(float("inf")))
        return (not busy, repo not in self._pushed_since, self._last_looked_at(repo))

    def _last_looked_at(self, repo: Repo) -> float:
        return self._looked_at.get(repo, float("-inf"))

    def _take_named(self) -> None:
        for repo in self._named:
            if not self._is_left_out(repo):
                self.queue(repo)

    def _is_left_out(self, repo: Repo) -> bool:
        return repo in self._left_out and self._clock() < self._left_out[repo][0]

    def _list(self) -> None:
        """Update the list of the organization's repositories when it is due."""
        if len(self._named) == len(self._patterns):
            return
        now = self._clock()
        if self._listed_at is not None and now - self._listed_at < _LIST_AGAIN:
            return
        try:
            found = list(self._fetch())
        except ApiTrouble:
            if self._listed_at is None:
                raise
            return
        self._listed_at = now
        self._take_over(found)

    def _fetch(self) -> Iterable[Repository]:
        path = f"/orgs/{self._context.service.owner}/repos"
        for page in range(1, 1000):
            found = self._api.get(path, _Repositories, urgent=False, per_page=_PER_PAGE, page=page)
            yield from found
            # A short page need not be the last one: a server may have its own limit for `per_page`.
            if not found:
                return

    def _take_over(self, found: list[Repository]) -> None:
        owner = self._context.service.owner
        wanted_now = {Repo(owner, one.name): one.pushed_at or "" for one in found if self._wants(one)}
        for repo in set(self._queues) - set(wanted_now) - set(self._named):
            del self._queues[repo]
        for repo, pushed_at in wanted_now.items():
            if self._is_left_out(repo):
                continue
            self.queue(repo)
            if self._pushed.get(repo) not in (None, pushed_at):
                self._pushed_since.add(repo)
            self._pushed[repo] = pushed_at

    def _wants(self, repository: Repository) -> bool:
        if repository.archived or repository.disabled:
            return False
        return any(fnmatch.fnmatchcase(repository.name.lower(), pattern.lower()) for pattern in self._patterns)


def wanted(service: ServiceConfig) -> list[str]:
    """Names and patterns of the repositories that a service serves."""
    settings = settings_of(service)
    if not settings.org:
        return [service.repo]
    if settings.repos is not None:
        return [settings.repos] if isinstance(settings.repos, str) else list(settings.repos)
    return [service.repo] if service.repo else ["*"]
