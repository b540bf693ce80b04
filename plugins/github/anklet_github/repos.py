"""Which repositories a service looks through, and which of them at this look. Owns the list of an organization's repositories.

GitHub has no queue of a whole organization, so its repositories are looked through one by one: a few at each look, those with
waiting jobs first, then those that were pushed to, then the ones that were not looked at for longest.
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
from anklet_worker.contract.context import Context
from anklet_worker.contract.service import ServiceConfig

#: Looks at so many repositories at a time: with two lists each this stays far below GitHub's 900 points a minute.
#: Of these so many by what waits in them, the others by how long ago they were looked at.
_AT_A_TIME, _BY_RANK = 15, 10
#: Seconds between two looks at the list of repositories.
_LIST_AGAIN = 300.0
#: A repository that GitHub does not let us see is left out for so many seconds, each time for longer: a new one may need a moment.
_LEFT_OUT_FIRST, _LEFT_OUT_LONGEST = 600.0, 86_400.0
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
        #: Until when a repository is left out, and for how long that was.
        self._left_out: dict[Repo, tuple[float, float]] = {}
        self._named = [Repo(service.owner, name) for name in self._patterns if not _PATTERN.intersection(name)]
        self._take_named()

    def queues(self) -> Sequence[RunQueue]:
        """All that are known."""
        return list(self._queues.values())

    def leave_out(self, repo: Repo) -> bool:
        """GitHub does not let us see this one: do without it for a while. True the first time."""
        self._queues.pop(repo, None)
        _, before = self._left_out.get(repo, (0.0, 0.0))
        seconds = min(before * 2, _LEFT_OUT_LONGEST) or _LEFT_OUT_FIRST
        self._left_out[repo] = (self._clock() + seconds, seconds)
        return not before

    def queue(self, repo: Repo) -> RunQueue:
        """The queue of one repository."""
        if repo not in self._queues:
            self._queues[repo] = RunQueue(self._api, repo, self._context)
        return self._queues[repo]

    def due(self) -> Sequence[RunQueue]:
        """Those to look at now. Raises `ApiTrouble`."""
        self._take_named()
        self._list()
        ranked = sorted(self._queues, key=self._rank)
        chosen, rest = ranked[:_BY_RANK], ranked[_BY_RANK:]
        # However many are busy, each has its turn.
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
        """Bring the list up to date, now and then."""
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
            # A short page is not the last one where a server has a limit of its own for `per_page`.
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
    """Names and patterns of the repositories that a service is for."""
    settings = settings_of(service)
    if not settings.org:
        return [service.repo]
    if settings.repos is not None:
        return [settings.repos] if isinstance(settings.repos, str) else list(settings.repos)
    return [service.repo] if service.repo else ["*"]
