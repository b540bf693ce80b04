"""Removes registrations of this host's runners that are offline and have neither a VM nor a record.

Every clean-up removes its own runner. This catches the rest: a reply that was lost for good, a state directory that was deleted.
Only names with this host's install id are touched, and only a few at a time: when most runners look offline, GitHub is in trouble.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

import msgspec

from anklet_github.figures import LEFT_RUNNERS, SWEPT_RUNNERS
from anklet_github.payloads import Runner
from anklet_github.runners import RunnerBusy, RunnerRegistry
from anklet_github.trouble import ApiTrouble
from anklet_worker.contract.context import Context
from anklet_worker.contract.errors import UNREADABLE, InfrastructureError, ServiceFatal
from anklet_worker.contract.guest import NAME_PREFIX

#: Seconds between two sweeps of a host, and the most random seconds added, so that hosts do not sweep together.
_INTERVAL, _SPREAD = 300.0, 60.0
#: Seconds for which a runner must have been offline.
_OFFLINE_FOR = 600.0
#: The most removals in one sweep: this many, or this share of all our runners if that is more.
_MOST, _MOST_PART = 5, 0.25
#: Seconds for which services share the list of a scope's runners.
_SHARED_FOR = 240.0
#: From this many runners on, nothing is removed when at least this share of them is offline.
_MASS, _MASS_PART = 8, 0.5


class Sweeper:
    """Sweeps the runners of one scope, for one host. `clock` gives monotonic seconds."""

    def __init__(
        self,
        runners: RunnerRegistry,
        keyspace: str,
        context: Context,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._runners = runners
        self._key = f"{keyspace}:runners"
        self._context = context
        self._clock = clock
        self._jitter = jitter
        self._due = clock() + _INTERVAL + _SPREAD * jitter()
        self._offline_since: dict[int, float] = {}

    def sweep_if_due(self) -> None:
        """Sweep when it is due. Never raises for trouble with GitHub: the next sweep tries again."""
        now = self._clock()
        if now < self._due:
            return
        self._due = now + _INTERVAL + _SPREAD * self._jitter()
        # One service of the host sweeps for all.
        if not self._context.board.turn(f"{self._key}:{self._context.vm_prefix}turn", _INTERVAL / 2):
            return
        try:
            self._sweep(now)
        except (ApiTrouble, InfrastructureError, ServiceFatal) as error:
            # A login that may not list runners does not end the service either.
            self._context.log.debug("cannot sweep runners", extra={"err": str(error)})

    def _sweep(self, now: float) -> None:
        anklets = [runner for runner in self._listed() if runner.name.startswith(NAME_PREFIX)]
        left = self._left(anklets)
        self._context.report(LEFT_RUNNERS, len(left))
        self._offline_since = {runner.id: self._offline_since.get(runner.id, now) for runner in left}
        for runner in chosen(anklets, left, self._offline_since, now):
            try:
                self._runners.remove(runner.name, runner.id)
            except RunnerBusy:
                continue
            self._context.report(SWEPT_RUNNERS, 1)
            self._context.log.info("removed a runner that has no VM and no record", extra={"runnerName": runner.name})

    def _left(self, anklets: Sequence[Runner]) -> list[Runner]:
        prefix = self._context.vm_prefix
        offline = [one for one in anklets if one.name.startswith(prefix) and one.status != "online" and not one.busy]
        known = self._context.known_vms() if offline else set()
        return [runner for runner in offline if runner.name not in known]

    def _listed(self) -> list[Runner]:
        """The scope's runners, as a service with the same store listed them a moment ago, or as GitHub lists them now."""
        posted = self._context.board.read(self._key)
        if posted is not None:
            try:
                return msgspec.json.decode(posted, type=list[Runner])
            except UNREADABLE:
                pass
        runners = self._runners.all()
        self._context.board.post(self._key, msgspec.json.encode(runners).decode(), _SHARED_FOR)
        return runners


def chosen(
    anklets: Sequence[Runner], left: Sequence[Runner], offline_since: dict[int, float], now: float
) -> list[Runner]:
    """The runners to remove now, out of those that are `left` behind. `anklets` are the runners of all our hosts."""
    offline = sum(runner.status != "online" for runner in anklets)
    if len(anklets) >= _MASS and offline >= len(anklets) * _MASS_PART and offline > len(left):
        return []
    ripe = [runner for runner in left if now - offline_since[runner.id] >= _OFFLINE_FOR]
    return ripe[: max(_MOST, int(len(anklets) * _MOST_PART))]
