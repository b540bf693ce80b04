"""One repository's queue: finds the waiting jobs with as few calls as possible, once for all services.

Services that share a store and a login take turns: one looks and posts the result on the board, the others read it there. A look
uses conditional requests, which are free while nothing changes, and asks for the jobs of a run only when the run may have changed.
Knows nothing about labels, VMs or runners.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import msgspec

from anklet_github.api import Api
from anklet_github.payloads import Jobs, Run, Runs, WorkflowJob
from anklet_github.scope import Repo
from anklet_github.trouble import ApiTrouble, LimitPause, NotFound, Refused
from anklet_worker.contract.context import Context
from anklet_worker.contract.errors import UNREADABLE

#: A run in progress can still hold queued jobs (matrix, needs), so every look lists both main states. Runs in the other states
#: rarely hold any: each look lists one of these states, in turn.
_MAIN_STATES, _OTHER_STATES = ("queued", "in_progress"), ("requested", "waiting", "pending")
#: The most new and changed runs whose jobs one look asks for: the oldest new ones, and the changed ones asked about longest ago.
#: The first jobs of a deep queue must not wait for the last; the next looks find those.
_MOST_NEW, _MOST_CHANGED = 40, 20
#: The most unchanged runs whose jobs one look asks for, those asked about longest ago first: GitHub does not promise that a run's
#: `updated_at` changes with its jobs.
_ASKED_ANYWAY = 20
#: How long a result stays valid: this many intervals between two looks, and at least this many seconds.
_VALID_FOR_INTERVALS, _VALID_FOR_AT_LEAST = 6.0, 60.0
#: The share of the interval for which a service keeps the turn: it should get it again at its next look.
_TURN_PART = 0.9
#: Seconds for which the board counts the jobs that left a list.
_COUNTED_FOR = 3600.0
#: Length in seconds and number of the pauses while another service looks.
_NAP, _MOST_NAPS = 0.1, 30
#: The number of ended runs to search for the job of a runner that is gone.
_LATEST_RUNS = 20


class Waiting(msgspec.Struct, frozen=True):
    """A queued job and its run."""

    job: WorkflowJob
    run: Run


class Snapshot(msgspec.Struct, frozen=True):
    """The result of a look. `found_at` is Unix seconds."""

    found_at: float
    waiting: list[Waiting]


class _SeenRun:
    """A run and its jobs as last asked for. `asked_at` is monotonic seconds."""

    def __init__(self, run: Run, jobs: list[WorkflowJob], asked_at: float) -> None:
        self.run = run
        self.jobs = jobs
        self.asked_at = asked_at


class RunQueue:
    """The queue of one repository."""

    def __init__(self, api: Api, repo: Repo, context: Context) -> None:
        self.repo = repo
        self._api = api
        self._context = context
        self._board = context.board
        self._interval = context.service.sleep_interval
        # One login may see what another does not, and a refused login must be noticed: each login looks for itself.
        self._key = f"{repo.keyspace}:queue:{api.identity}"
        # A service that looks often must not wait for one that looks seldom.
        self._turn = f"{self._key}:every-{self._interval:g}"
        self._seen: dict[int, _SeenRun] = {}
        self._others: dict[str, list[Run]] = {}
        self._looks = 0
        self._snapshot: Snapshot | None = None
        self._looked_at: float | None = None
        self._left: dict[str, int | None] = {}
        self._hold_due = 0.0

    def waiting(self) -> list[Waiting]:
        """The queued jobs, as found now, or by another service a moment ago. Raises `ApiTrouble`."""
        if not self._my_turn():
            posted = self._posted()
            self._snapshot = posted or self._snapshot
            return [] if posted is None else posted.waiting
        if not self._api.has_room_to_look() and (backlog := self._backlog()):
            # Working from the last result is better than standing still until the rate limit allows a look.
            self.pass_on()
            return backlog
        try:
            self._snapshot = Snapshot(time.time(), list(self._look()))
        except ApiTrouble:
            # Another host may reach GitHub.
            self.pass_on()
            raise
        self._looked_at = time.monotonic()
        self._board.post(self._key, msgspec.json.encode(self._snapshot).decode(), self._valid_for)
        self._board.post(f"{self._turn}:fresh", "", self._interval)
        return self._snapshot.waiting

    def pass_on(self) -> None:
        """Give up the turn, because we will not look for a while: the next service need not wait for it to end."""
        self._board.pass_on(f"{self._turn}:turn")

    def _my_turn(self) -> bool:
        """Return True when this service should look; False when another one has just posted its result."""
        for _ in range(_MOST_NAPS):
            if self._board.turn(f"{self._turn}:turn", self._interval * _TURN_PART):
                return True
            if self._board.read(f"{self._turn}:fresh") is not None:
                return False
            # Another service is looking right now.
            self._context.wait(_NAP)
        return False

    def _backlog(self) -> list[Waiting]:
        """The last result of any service. Each of its jobs is checked again before it is claimed."""
        self._snapshot = self._posted() or self._snapshot
        return self.last(self._valid_for)

    def last(self, most: float) -> list[Waiting]:
        """The queued jobs as last seen, if that was at most `most` seconds ago. Sends nothing."""
        if self._snapshot is None or not 0 <= time.time() - self._snapshot.found_at <= most:
            return []
        return self._snapshot.waiting

    def was_seen_waiting(self, job_id: str, since: float) -> bool:
        """Return True when a service has seen the job queued after `since` (Unix seconds). Reads only the board."""
        posted = self._posted()
        return (
            posted is not None and posted.found_at > since and any(str(one.job.id) == job_id for one in posted.waiting)
        )

    def looked_within(self, seconds: float) -> bool:
        """Return True when this service itself looked within the last `seconds`."""
        return self._looked_at is not None and time.monotonic() - self._looked_at <= seconds

    @property
    def active(self) -> bool:
        """True when the queue held a run that was not over, as this or another service last saw it."""
        return bool(self._seen) or bool(self.last(float("inf")))

    def leaves(self, state: str) -> None:
        """Note on the board that a job of ours leaves this state, so that the next look expects an empty list of it."""
        self._board.count(f"{self.repo.keyspace}:left-{state}", _COUNTED_FOR)

    def jobs(self, run_id: int) -> list[WorkflowJob]:
        """The jobs of a run's latest attempt. Raises `ApiTrouble`."""
        return self._api.get_all(f"{self.repo.path}/actions/runs/{run_id}/jobs", Jobs, filter="latest")

    def job(self, job_id: int) -> WorkflowJob:
        """One job. Raises `NotFound`."""
        return self._api.get(f"{self.repo.path}/actions/jobs/{job_id}", WorkflowJob)

    def find_by_runner(self, runner_name: str, *, ended_too: bool) -> tuple[WorkflowJob, Run] | None:
        """The job that GitHub gave to the runner of this name. `ended_too`: search the latest ended runs as well."""
        for run in self._unique(
            (*self._runs("in_progress"), *self._runs("queued"), *(self._ended() if ended_too else ()))
        ):
            for job in self.jobs(run.id):
                if job.runner_name == runner_name:
                    return job, run
        return None

    @property
    def _valid_for(self) -> float:
        return max(_VALID_FOR_AT_LEAST, self._interval * _VALID_FOR_INTERVALS)

    def _posted(self) -> Snapshot | None:
        text = self._board.read(self._key)
        if text is None:
            return None
        try:
            return msgspec.json.decode(text, type=Snapshot)
        except UNREADABLE:
            # Posted by another version of this program; the next look replaces it.
            return None

    def _look(self) -> Iterator[Waiting]:
        runs = [run for state in _MAIN_STATES for run in self._runs(state, emptied=self._was_left(state))]
        turn = _OTHER_STATES[self._looks % len(_OTHER_STATES)]
        self._looks += 1
        try:
            self._others[turn] = self._runs(turn)
        except (LimitPause, Refused):
            raise
        except ApiTrouble as error:
            # Older servers do not know all of these states. The jobs in the main states must be found all the same.
            self._context.log.debug("cannot list the runs of a state", extra={"state": turn, "err": str(error)})
        runs = list(self._alive([*runs, *(run for others in self._others.values() for run in others)]))
        self._refresh(runs)
        for run in runs:
            seen = self._seen.get(run.id)
            # The jobs of a run that has changed since may be taken.
            if seen is not None and seen.run == run:
                yield from (Waiting(job, run) for job in seen.jobs if job.status == "queued")

    def _alive(self, runs: Iterable[Run]) -> Iterator[Run]:
        """Each run once, without ended ones: a server's lists may be late, and it may ignore the filter."""
        return (run for run in self._unique(runs) if run.status != "completed")

    def _refresh(self, runs: list[Run]) -> None:
        """Ask for the jobs of new and changed runs, and of some that seem unchanged, as far as the budget allows."""
        self._seen = {run.id: self._seen[run.id] for run in runs if run.id in self._seen}
        for run in self._worth_asking(runs):
            if not self._api.has_room_to_look():
                return
            self._hold_turn()
            path = f"{self.repo.path}/actions/runs/{run.id}/jobs"
            try:
                jobs = self._api.get_all(path, Jobs, urgent=False, filter="latest")
            except NotFound:
                # The run was deleted after it was listed.
                jobs = []
            self._seen[run.id] = _SeenRun(run, jobs, time.monotonic())

    def _worth_asking(self, runs: list[Run]) -> list[Run]:
        """The runs whose jobs to ask for: new ones, oldest first; then those asked about longest ago."""
        new = sorted((run for run in runs if run.id not in self._seen), key=lambda run: run.id)
        known = sorted((run for run in runs if run.id in self._seen), key=lambda run: self._seen[run.id].asked_at)
        changed = [run for run in known if self._seen[run.id].run != run]
        unchanged = [run for run in known if self._seen[run.id].run == run]
        return [*new[:_MOST_NEW], *changed[:_MOST_CHANGED], *unchanged[:_ASKED_ANYWAY]]

    def _hold_turn(self) -> None:
        """Renew the turn during a look that takes longer, so that no other service begins the same look."""
        now = time.monotonic()
        if now >= self._hold_due:
            kept = self._interval * _TURN_PART
            self._hold_due = now + kept / 3
            self._board.turn(f"{self._turn}:turn", kept)

    def _was_left(self, state: str) -> bool:
        """Return True when a job of any service has left this state since the last look."""
        before, now = self._left.get(state), self._board.count(f"{self.repo.keyspace}:left-{state}", _COUNTED_FOR, 0)
        self._left[state] = now
        return now != before

    def _runs(self, state: str, *, emptied: bool = False) -> list[Run]:
        path = f"{self.repo.path}/actions/runs"
        return self._api.get_all(path, Runs, urgent=False, emptied=emptied, configured=True, status=state)

    def _ended(self) -> list[Run]:
        path = f"{self.repo.path}/actions/runs"
        return self._api.get(path, Runs, status="completed", per_page=_LATEST_RUNS).items

    @staticmethod
    def _unique(runs: Iterable[Run]) -> Iterator[Run]:
        seen: set[int] = set()
        for run in runs:
            if run.id not in seen:
                seen.add(run.id)
                yield run
