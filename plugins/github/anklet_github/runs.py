"""One repository's queue: the jobs that wait in it, found with as few calls as may be, and found once for all who ask.

Services that share a store and a login take turns: one looks and leaves what it found on the board, the others read it there.
Whoever looks asks conditionally (what has not changed costs nothing) and asks for the jobs of a run only when the run may have
changed. Knows nothing of labels, VMs or runners.
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

#: A run in progress can still hold queued jobs (matrix, needs), so both are looked through each time. Runs in the other states
#: rarely hold any: one of these states at each look, in turn.
_MAIN_STATES, _OTHER_STATES = ("queued", "in_progress"), ("requested", "waiting", "pending")
#: Of the runs that are new, and of those that have changed, so many are asked about in one look: the oldest, and those that were
#: asked about longest ago. The first jobs of a deep queue must not wait for the last; these come with the next looks.
_MOST_NEW, _MOST_CHANGED = 40, 20
#: So many runs that seem unchanged are asked about all the same, the longest unasked first: GitHub does not promise that a run's
#: `updated_at` changes with its jobs.
_ASKED_ANYWAY = 20
#: What was found is good for so many intervals between two looks, and at least so many seconds.
_GOOD_FOR_INTERVALS, _GOOD_FOR_AT_LEAST = 6.0, 60.0
#: Part of the interval for which the turn is kept: the same service shall get it again at its next look.
_TURN_PART = 0.9
#: For so long services tell each other of the jobs that left a list.
_TOLD_FOR = 3600.0
#: Seconds and number of the pauses in which somebody else's look is waited for.
_NAP, _MOST_NAPS = 0.1, 30
#: How many ended runs are searched for the job of a runner that has come and gone.
_LATEST_RUNS = 20


class Waiting(msgspec.Struct, frozen=True):
    """A queued job and its run."""

    job: WorkflowJob
    run: Run


class Snapshot(msgspec.Struct, frozen=True):
    """The queue as it was found. `found_at` is Unix seconds."""

    found_at: float
    waiting: list[Waiting]


class _SeenRun:
    """What was learned about a run at the last look."""

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
        # What one login sees another may not, and a login that is refused must show: each looks for itself.
        self._key = f"{repo.keyspace}:queue:{api.identity}"
        # Services that look more often than others must not wait for these.
        self._turn = f"{self._key}:every-{self._interval:g}"
        self._seen: dict[int, _SeenRun] = {}
        self._others: dict[str, list[Run]] = {}
        self._looks = 0
        self._snapshot: Snapshot | None = None
        self._looked_at: float | None = None
        self._left: dict[str, int | None] = {}
        self._hold_due = 0.0

    def waiting(self) -> list[Waiting]:
        """The queued jobs, as found now, or by somebody else a moment ago. Raises `ApiTrouble`."""
        if not self._my_turn():
            told = self._told()
            self._snapshot = told or self._snapshot
            return [] if told is None else told.waiting
        if not self._api.has_room_to_look() and (backlog := self._backlog()):
            # To stand still until the limit lets us look would be worse than to go by what was seen last.
            self.pass_on()
            return backlog
        try:
            self._snapshot = Snapshot(time.time(), list(self._look()))
        except ApiTrouble:
            # Another host may reach GitHub.
            self.pass_on()
            raise
        self._looked_at = time.monotonic()
        self._board.post(self._key, msgspec.json.encode(self._snapshot).decode(), self._good_for)
        self._board.post(f"{self._turn}:fresh", "", self._interval)
        return self._snapshot.waiting

    def pass_on(self) -> None:
        """We shall not look for a while: whoever comes next need not wait for our turn to end."""
        self._board.pass_on(f"{self._turn}:turn")

    def _my_turn(self) -> bool:
        """Whether to look; False when another has, or will have told what it found by the time that this returns."""
        for _ in range(_MOST_NAPS):
            if self._board.turn(f"{self._turn}:turn", self._interval * _TURN_PART):
                return True
            if self._board.read(f"{self._turn}:fresh") is not None:
                return False
            # It is looking right now.
            self._context.wait(_NAP)
        return False

    def _backlog(self) -> list[Waiting]:
        """What was found last, by whomever; each of these is asked about before it is taken."""
        self._snapshot = self._told() or self._snapshot
        return self.last(self._good_for)

    def last(self, most: float) -> list[Waiting]:
        """The queued jobs as last seen, if that was not more than `most` seconds ago; asks nobody."""
        if self._snapshot is None or not 0 <= time.time() - self._snapshot.found_at <= most:
            return []
        return self._snapshot.waiting

    def was_seen_waiting(self, job_id: str, since: float) -> bool:
        """Whether any service has seen the job queued after this moment (Unix seconds). Asks nobody but the board."""
        told = self._told()
        return told is not None and told.found_at > since and any(str(one.job.id) == job_id for one in told.waiting)

    def looked_within(self, seconds: float) -> bool:
        """Whether we ourselves looked that lately."""
        return self._looked_at is not None and time.monotonic() - self._looked_at <= seconds

    @property
    def active(self) -> bool:
        """Whether it had any run that was not over, as last seen, or told by whoever looked."""
        return bool(self._seen) or bool(self.last(float("inf")))

    def leaves(self, state: str) -> None:
        """A job of ours leaves this state: the list of it may be empty again, as whoever looks next will expect."""
        self._board.count(f"{self.repo.keyspace}:left-{state}", _TOLD_FOR)

    def jobs(self, run_id: int) -> list[WorkflowJob]:
        """The jobs of a run's latest attempt. Raises `ApiTrouble`."""
        return self._api.get_all(f"{self.repo.path}/actions/runs/{run_id}/jobs", Jobs, filter="latest")

    def job(self, job_id: int) -> WorkflowJob:
        """One job. Raises `NotFound`."""
        return self._api.get(f"{self.repo.path}/actions/jobs/{job_id}", WorkflowJob)

    def find_by_runner(self, runner_name: str, *, ended_too: bool) -> tuple[WorkflowJob, Run] | None:
        """The job that GitHub gave to the runner of this name. With `ended_too`, also among the latest runs that are over."""
        for run in self._unique(
            (*self._runs("in_progress"), *self._runs("queued"), *(self._ended() if ended_too else ()))
        ):
            for job in self.jobs(run.id):
                if job.runner_name == runner_name:
                    return job, run
        return None

    @property
    def _good_for(self) -> float:
        return max(_GOOD_FOR_AT_LEAST, self._interval * _GOOD_FOR_INTERVALS)

    def _told(self) -> Snapshot | None:
        text = self._board.read(self._key)
        if text is None:
            return None
        try:
            return msgspec.json.decode(text, type=Snapshot)
        except UNREADABLE:
            # Of another version of this program; it is about to be replaced.
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
            # Servers of some years ago do not know all of these states; what waits in the main ones must be seen.
            self._context.log.debug("runs of a state could not be listed", extra={"state": turn, "err": str(error)})
        runs = list(self._alive([*runs, *(run for others in self._others.values() for run in others)]))
        self._refresh(runs)
        for run in runs:
            seen = self._seen.get(run.id)
            # One that has changed since it was asked about may have lost its job to another.
            if seen is not None and seen.run == run:
                yield from (Waiting(job, run) for job in seen.jobs if job.status == "queued")

    def _alive(self, runs: Iterable[Run]) -> Iterator[Run]:
        """Each once, and none that is over: a server may be late with its lists, or know no filter."""
        return (run for run in self._unique(runs) if run.status != "completed")

    def _refresh(self, runs: list[Run]) -> None:
        """Learn the jobs of runs that are new or changed, and of some that seem unchanged; as many as there is room for."""
        self._seen = {run.id: self._seen[run.id] for run in runs if run.id in self._seen}
        for run in self._worth_asking(runs):
            if not self._api.has_room_to_look():
                return
            self._hold_turn()
            path = f"{self.repo.path}/actions/runs/{run.id}/jobs"
            try:
                jobs = self._api.get_all(path, Jobs, urgent=False, filter="latest")
            except NotFound:
                # Deleted since it was listed.
                jobs = []
            self._seen[run.id] = _SeenRun(run, jobs, time.monotonic())

    def _worth_asking(self, runs: list[Run]) -> list[Run]:
        """New ones first, the oldest of them first; then those that were asked about longest ago."""
        new = sorted((run for run in runs if run.id not in self._seen), key=lambda run: run.id)
        known = sorted((run for run in runs if run.id in self._seen), key=lambda run: self._seen[run.id].asked_at)
        changed = [run for run in known if self._seen[run.id].run != run]
        unchanged = [run for run in known if self._seen[run.id].run == run]
        return [*new[:_MOST_NEW], *changed[:_MOST_CHANGED], *unchanged[:_ASKED_ANYWAY]]

    def _hold_turn(self) -> None:
        """A look may take longer than the turn for it: nobody else shall begin the same one."""
        now = time.monotonic()
        if now >= self._hold_due:
            kept = self._interval * _TURN_PART
            self._hold_due = now + kept / 3
            self._board.turn(f"{self._turn}:turn", kept)

    def _was_left(self, state: str) -> bool:
        """Whether a job of ours, whoever's, has left this state since the last look."""
        before, now = self._left.get(state), self._board.count(f"{self.repo.keyspace}:left-{state}", _TOLD_FOR, 0)
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
