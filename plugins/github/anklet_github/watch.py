"""Follows a job to its end, with three witnesses: the runner's process in the guest, the runner and the job in GitHub's API.

Owns what is concluded from what they say. The guest tells at once and costs no call, so it is asked all the time; GitHub confirms.
When the guest cannot tell, GitHub is polled. An error of either never ends the watch. A VM is fungible: GitHub may give our runner
another job with the same labels, and then that one is followed.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from anklet_github.discovery import Discovery
from anklet_github.guest import DEPRECATED, GuestScripts, Sighting
from anklet_github.payloads import Run, Runner, WorkflowJob
from anklet_github.runners import RunnerBusy, RunnerRegistry
from anklet_github.scope import Repo
from anklet_github.trouble import ApiTrouble, NotFound
from anklet_worker.contract.context import Context
from anklet_worker.contract.driver import JobInHand
from anklet_worker.contract.errors import InfrastructureError, JobLost, RetryElsewhere, RetryHere, VMError, VMNotFound
from anklet_worker.contract.guest import Guest
from anklet_worker.contract.job import Conclusion, Outcome

#: While a runner waits for its job, GitHub is asked so often, in seconds (it costs nothing while nothing changes).
_ASK_WAITING = 5.0
#: A working runner is believed for so long; then GitHub is asked whether the job still runs. Sooner where GitHub does not see the
#: runner at work any more, which is asked so often (and costs nothing while nothing changes).
_ASK_WORKING, _ASK_RUNNER = 600.0, 60.0
#: Where GitHub may have dealt our runner another job, it is asked so long after the runner took one up. Short jobs are
#: over by then.
_ASK_RIVALS = 10.0
#: Where that is not known, another service may see our job waiting still: the board is looked at so often, and what was seen so
#: long after the runner took up a job counts (hosts' clocks differ).
_LOOK_AT_BOARD, _SEEN_LATER = 30.0, 10.0
#: A job that our busy runner got is searched for in every run that is not over. One that cannot be found (in a repository that we
#: do not look through, say) is searched for after pauses that grow from the first of these to the second.
_SEARCH_FIRST, _SEARCH_LONGEST = 1.0, 300.0
#: Pauses between questions while only GitHub can tell, and while it has not yet noticed what the guest says.
_POLL_FIRST, _POLL_LONGEST = 0.25, 5.0
#: For so long a job must be unknown to GitHub before it counts as vanished: 404 has been seen for live jobs in outages.
#: While the guest says that its runner works, an incident that hides both is likelier than a job that is no more.
_VANISHED_AFTER, _VANISHED_AT_WORK = 120.0, 3600.0
#: A runner that is over in the guest while GitHub shows its job as running, or cannot be asked; and the reverse.
_DISAGREEMENT = 120.0
#: A runner that ended well, by its own word, and ran nothing that GitHub knows of.
_IDLE_END = 20.0
_CONCLUSIONS = {"success": Conclusion.SUCCESS, "failure": Conclusion.FAILURE, "cancelled": Conclusion.CANCELLED}
_RESULTS = {"Succeeded": Conclusion.SUCCESS, "Failed": Conclusion.FAILURE, "Canceled": Conclusion.CANCELLED}
_UNSEEN = Sighting(state="unseen", status="?", removed=False, words="")
_GONE = Sighting(state="gone", status="?", removed=False, words="")
#: A guest that does not tell is asked again after so many seconds.
_BLIND_FOR = 30.0


class Watching(msgspec.Struct, frozen=True, kw_only=True):
    """What a watch works with. `clock` gives monotonic seconds."""

    context: Context
    discovery: Discovery
    runners: RunnerRegistry
    scripts: GuestScripts
    clock: Callable[[], float] = time.monotonic


class Watch:
    """Follows the job for which a runner was started in `guest`, or whatever job that runner got."""

    def __init__(self, watching: Watching, hand: JobInHand, guest: Guest) -> None:
        self._w = watching
        self._hand = hand
        self._job = hand.job
        self._guest = guest
        self._begun = watching.clock()
        #: The runner works on a job, by the word of one witness.
        self._working_since: float | None = None
        #: GitHub says that the job runs in our runner.
        self._confirmed = False
        self._asked_at = self._runner_asked_at = self._begun
        #: The guest itself has told of the work; else GitHub is asked on, for the guest may not tell of the end either.
        self._witnessed = False
        self._poll = _POLL_FIRST
        self._since: dict[str, float] = {}
        self._blind_until = self._begun
        #: The guest's last word is that the runner works.
        self._at_work = False
        #: The runner itself named another job than ours, or somebody has seen ours waiting still.
        self._doubtful = False
        self._noted_at = 0.0
        self._search_at, self._search_pause = self._begun, _SEARCH_FIRST
        #: The guest's runner said that GitHub has removed its registration.
        self.removed = False

    def to_the_end(self) -> Outcome:
        """Wait for the end. Raises `JobLost` when our runner gets no job any more, `RetryHere` when it never came to work."""
        while True:
            sighting = self._look_into_guest()
            self._at_work = self._witnessed and sighting.state in ("working", "waiting")
            outcome = self._judge(sighting)
            if outcome is not None:
                return outcome

    # ---- the guest ----

    def _look_into_guest(self) -> Sighting:
        if self._w.clock() < self._blind_until:
            return _UNSEEN
        try:
            sighting = self._w.scripts.wait(self._guest, self._patience(), working=self._witnessed)
        except VMNotFound:
            return _GONE
        except VMError as error:
            self._lasting("guest", "the guest does not tell of its runner; asking GitHub instead", error)
            sighting = _UNSEEN
        if sighting.state == "unseen":
            self._blind_until = self._w.clock() + _BLIND_FOR
            return sighting
        self._over("guest", "the guest tells of its runner again")
        self.removed = self.removed or sighting.removed
        if sighting.online:
            self._hand.runner_online()
        if sighting.state == "working":
            self._witnessed = True
            if self._working_since is None:
                self._doubtful = sighting.job_name not in (None, self._job.name)
                self._note_work()
        return sighting

    def _patience(self) -> float:
        """For how long nothing but the guest need be asked, in seconds."""
        now = self._w.clock()
        if self._working_since is None or not self._witnessed:
            return min(_ASK_WAITING, self._w.context.service.deadlines.runner_online)
        if self._may_be_another():
            return min(_ASK_RUNNER, max(1.0, self._working_since + _ASK_RIVALS - now, self._search_at - now))
        longest = _ASK_RUNNER if self._confirmed else _LOOK_AT_BOARD
        return min(longest, max(1.0, self._runner_asked_at + _ASK_RUNNER - now))

    def _may_be_another(self) -> bool:
        """Whether the job in our runner may be another than ours, for all that is known."""
        if self._confirmed:
            return False
        queue = self._w.discovery.queue_of(self._job)
        self._doubtful = self._doubtful or queue.was_seen_waiting(self._job.id, self._noted_at + _SEEN_LATER)
        return self._doubtful or self._w.discovery.has_rivals(self._job)

    def _note_work(self) -> None:
        self._working_since = self._asked_at = self._runner_asked_at = self._w.clock()
        self._noted_at = time.time()
        self._hand.job_started(self._job)
        self._w.discovery.queue_of(self._job).leaves("queued")
        self._hand.log.info("job in progress")

    # ---- GitHub ----

    def _judge(self, sighting: Sighting) -> Outcome | None:
        """What the guest's word comes to; GitHub is asked where that is not enough."""
        if sighting.over:
            return self._confirm_end(sighting)
        if sighting.state != "unseen":
            # An end that the guest takes back was none; the real one shall have its time.
            for what in ("idle", "end"):
                self._since.pop(what, None)
        if sighting.state in ("working", "waiting") and not self._is_due():
            return None
        if sighting.state == "unseen":
            self._w.context.wait(self._poll)
            self._poll = min(self._poll * 2, _POLL_LONGEST)
        return self._ask()

    def _is_due(self) -> bool:
        now = self._w.clock()
        if self._working_since is None or not self._witnessed:
            return True
        if self._may_be_another() and (self._doubtful or now - self._working_since >= _ASK_RIVALS):
            return now >= self._search_at
        return now - self._asked_at >= _ASK_WORKING or (
            now - self._runner_asked_at >= _ASK_RUNNER and not self._is_seen_at_work()
        )

    def _is_seen_at_work(self) -> bool:
        """Whether GitHub sees our runner at work, or cannot tell."""
        self._runner_asked_at = self._w.clock()
        try:
            runner = self._w.runners.find(self._guest.name)
        except ApiTrouble as error:
            self._lasting("github", "GitHub cannot be asked about the runner", error)
            return True
        return runner is not None and runner.busy

    def _ask(self) -> Outcome | None:
        """Ask GitHub about the job, as long as it is asked in vain."""
        self._asked_at = self._runner_asked_at = self._w.clock()
        try:
            job = self._fetch()
        except NotFound:
            self._missing()
            return None
        except ApiTrouble as error:
            self._lasting("github", "GitHub cannot be asked about the job; it goes on", error)
            return None
        self._since.pop("missing", None)
        self._over("github", "GitHub answers again")
        return self._weigh(job)

    def _fetch(self) -> WorkflowJob:
        """The job as GitHub has it now. Before it runs, its run's list is asked: that costs nothing while nothing has changed."""
        queue = self._w.discovery.queue_of(self._job)
        if self._confirmed or self._working_since is not None:
            return queue.job(int(self._job.id))
        found = next((job for job in self._w.discovery.siblings(self._job) if str(job.id) == self._job.id), None)
        return queue.job(int(self._job.id)) if found is None else found

    def _weigh(self, job: WorkflowJob) -> Outcome | None:
        if job.status == "completed" and self._surely_ours(job):
            return self._outcome(job)
        if job.runner_name == self._guest.name:
            self._confirm()
        if self._confirmed:
            return None
        if job.status == "completed" and not job.runner_name and self._working_since is not None:
            return self._whose_work(job)
        gone = job.status == "completed" or bool(job.runner_name)
        why = f"GitHub gave it to {job.runner_name}" if job.runner_name else "it ended before our runner had it"
        return self._without_our_job(why if gone else "", job_is_gone=gone)

    def _surely_ours(self, job: WorkflowJob) -> bool:
        return self._confirmed or job.runner_name == self._guest.name

    def _whose_work(self, job: WorkflowJob) -> Outcome | None:
        """Our job is over and names no runner, and ours works. It was cancelled while ours had it; or before any had it, and then
        ours works on another one, which must not lose its VM."""
        try:
            runner = self._w.runners.find(self._guest.name)
            busy = runner is not None and runner.busy
            found = self._search(ended_too=not busy)
        except ApiTrouble as error:
            self._lasting("github", "GitHub cannot be asked about the runner", error)
            return None
        if found is not None:
            self._follow(*found)
            return self._weigh(found[0])
        self._doubtful = True
        if busy:
            self._since.pop("idle at work", None)
            return None
        # What the guest sees at work is not ended by one look at a list that may be late; it ends by itself, as a rule.
        return None if self._at_work and not self._lasts("idle at work", _DISAGREEMENT) else self._outcome(job)

    def _search(self, *, ended_too: bool) -> tuple[WorkflowJob, Run, Repo] | None:
        """The job that our runner got; while it is at work for somebody, searched for ever more seldom."""
        if self._w.clock() < self._search_at and (self._at_work or not ended_too):
            return None
        found = self._find(ended_too=ended_too)
        if found is None:
            self._search_at = self._w.clock() + self._search_pause
            self._search_pause = min(self._search_pause * 2, _SEARCH_LONGEST)
        return found

    def _find(self, *, ended_too: bool) -> tuple[WorkflowJob, Run, Repo] | None:
        return self._w.discovery.find_by_runner(self._guest.name, ended_too=ended_too, near=self._job)

    def _confirm(self) -> None:
        self._confirmed = True
        if self._working_since is None:
            self._note_work()

    def _outcome(self, job: WorkflowJob) -> Outcome:
        self._confirm()
        self._w.discovery.queue_of(self._job).leaves("in_progress")
        conclusion = _CONCLUSIONS.get(job.conclusion or "", Conclusion.OTHER)
        return Outcome(conclusion=conclusion, job_id=str(job.id), job_name=job.name, job_url=job.html_url or "")

    # ---- the runner is over ----

    def _confirm_end(self, sighting: Sighting) -> Outcome | None:
        """No runner runs in the guest any more: GitHub says what became of its job, at once or in a moment."""
        if sighting.status == DEPRECATED:
            self._withdraw(
                RetryElsewhere("GitHub does not serve the runner's version any more; put a newer one into the image")
            )
        outcome = self._what_it_ran()
        if outcome is not None:
            return outcome
        if self._lasts("idle", _ASK_WAITING):
            # GitHub has had a moment.
            self._doubt_the_end(sighting)
        if self._lasts("end", _DISAGREEMENT):
            return self._by_the_guests_word(sighting)
        self._w.context.wait(self._poll)
        self._poll = min(self._poll * 2, _POLL_LONGEST)
        return None

    def _what_it_ran(self) -> Outcome | None:
        try:
            mine = self._ours()
            over = mine is not None and mine.status == "completed"
            if mine is not None and over and self._surely_ours(mine):
                return self._outcome(mine)
            found = self._find(ended_too=True)
            if found is not None:
                self._follow(*found)
                return self._outcome(found[0]) if found[0].status == "completed" else None
            if mine is not None and over and not mine.runner_name and self._working_since is not None:
                # Cancelled while it ran, a job may name no runner any more; then the guest's word counts.
                return self._outcome(mine)
        except ApiTrouble as error:
            self._lasting("github", "GitHub cannot be asked about the job", error)
        return None

    def _ours(self) -> WorkflowJob | None:
        """Our job, if GitHub knows it still. A run that was started anew meanwhile lists the jobs of that attempt."""
        try:
            listed = self._w.discovery.siblings(self._job)
            mine = next((job for job in listed if str(job.id) == self._job.id), None)
            return self._w.discovery.queue_of(self._job).job(int(self._job.id)) if mine is None else mine
        except NotFound:
            return None

    def _doubt_the_end(self, sighting: Sighting) -> None:
        """The guest says that the runner is over, and GitHub knows of no end. A run.sh may have left the runner in the background,
        where GitHub hears from it; else a runner that has worked will be found in time, and one that has not had its chance."""
        try:
            runner = self._w.runners.find(self._guest.name)
        except ApiTrouble as error:
            self._lasting("github", "GitHub cannot be asked about the runner", error)
            return
        if sighting.left and runner is not None:
            if runner.status == "online":
                self._since.pop("end", None)
            if self._working_since is None and not runner.busy:
                self._check_deadlines(runner)
        elif self._working_since is None and (runner is None or self._had_its_chance(sighting)):
            self._withdraw(RetryHere(f"job {self._job.id}: its runner ended, and ran nothing that can be found"))

    def _had_its_chance(self, sighting: Sighting) -> bool:
        """A run.sh that says that all is well may know more than we see."""
        return sighting.status != "0" or self._lasts("idle", _IDLE_END)

    def _by_the_guests_word(self, sighting: Sighting) -> Outcome:
        """GitHub does not say what became of the job, for long: the VM is not kept for that."""
        conclusion = _RESULTS.get(sighting.result or "", Conclusion.OTHER)
        if not self._confirmed and self._working_since is None:
            raise RetryHere(f"job {self._job.id}: its runner ended, and GitHub does not say whether it ran anything")
        self._hand.log.warning(
            "the runner has ended and GitHub does not say how its job did; going by the runner's own word",
            extra={"conclusion": conclusion.value},
        )
        return Outcome(conclusion=conclusion, job_id=self._job.id, job_name=self._job.name, job_url=self._job.url)

    # ---- our runner without our job ----

    def _without_our_job(self, why: str, *, job_is_gone: bool) -> Outcome | None:
        """Our runner does not run our job. What does it do? GitHub may have given it another one with the same labels."""
        if (
            not job_is_gone
            and self._working_since is None
            and not self._waited(self._w.context.service.deadlines.runner_online)
        ):
            return None
        try:
            runner = self._w.runners.find(self._guest.name)
            if runner is None or runner.busy:
                return self._follow_the_other(gone=runner is None)
        except ApiTrouble as error:
            self._lasting("github", "GitHub cannot be asked about the runner", error)
            return None
        if job_is_gone:
            self._withdraw(JobLost(f"job {self._job.id}: {why}"))
        else:
            self._check_deadlines(runner)
        return None

    def _withdraw(self, reason: InfrastructureError) -> None:
        """Remove the registration and raise the reason; return when a job has landed just now, to be found at the next look."""
        try:
            self._w.runners.remove(self._guest.name)
        except RunnerBusy:
            return
        except ApiTrouble as error:
            self._lasting("github", "GitHub cannot be asked to remove the runner", error)
            return
        raise reason

    def _follow_the_other(self, *, gone: bool) -> Outcome | None:
        """Learn by the runner's name which job it got, and follow that one. A runner that is gone has run its one job."""
        found = self._search(ended_too=gone)
        if not gone:
            self._since.pop("gone", None)
        if found is None:
            if gone and not (self._at_work and not self._lasts("gone", _VANISHED_AT_WORK)):
                raise RetryHere(
                    f"job {self._job.id}: its runner is gone from GitHub, and ran nothing that can be found"
                )
            return None
        self._follow(*found)
        return self._weigh(found[0])

    def _follow(self, job: WorkflowJob, run: Run, repo: Repo) -> None:
        """This is the job that our runner got."""
        if str(job.id) != self._job.id:
            self._job = self._w.discovery.describe(job, run, self._job.vm, repo)
            self._hand.log.info(
                "GitHub gave our runner another job; following it",
                extra={"otherJobId": job.id, "otherJobURL": job.html_url},
            )
            # The one that it was made for goes back to the queue now.
            self._hand.job_started(self._job)
        self._confirm()

    def _check_deadlines(self, runner: Runner) -> None:
        """The runner must come online in time, and then get a job in time; else it is withdrawn and the job tried anew."""
        deadlines = self._w.context.service.deadlines
        if runner.status == "online":
            self._hand.runner_online()
        elif self._waited(deadlines.runner_online):
            self._withdraw(
                RetryHere(f"job {self._job.id}: its runner did not come online within {deadlines.runner_online:g} s")
            )
        if self._waited(deadlines.runner_online + deadlines.job_start):
            self._withdraw(
                RetryHere(f"job {self._job.id}: its runner was online and got no job within {deadlines.job_start:g} s")
            )

    def _waited(self, seconds: float) -> bool:
        return self._w.clock() - self._begun >= seconds

    # ---- trouble ----

    def _missing(self) -> None:
        """404 is ambiguous: it must last, and our runner must be gone too, before the job counts as vanished."""
        if "missing" not in self._since:
            self._hand.log.warning("GitHub does not know the job (404); looking on")
        if not self._lasts("missing", _VANISHED_AT_WORK if self._at_work else _VANISHED_AFTER):
            return
        try:
            runner = self._w.runners.find(self._guest.name)
        except ApiTrouble as error:
            self._lasting("github", "GitHub cannot be asked about the runner", error)
            return
        if runner is None or not runner.busy:
            raise JobLost(f"job {self._job.id} has vanished from GitHub")
        self._since["missing"] = self._w.clock()

    def _lasts(self, what: str, seconds: float) -> bool:
        """True when `what` began so many seconds ago; begins it."""
        return self._w.clock() - self._since.setdefault(what, self._w.clock()) >= seconds

    def _lasting(self, what: str, message: str, error: Exception) -> None:
        """One WARN for a trouble, however long it lasts."""
        if what not in self._since:
            self._hand.log.warning(message, extra={"err": str(error)})
        self._since.setdefault(what, self._w.clock())

    def _over(self, what: str, message: str) -> None:
        if self._since.pop(what, None) is not None:
            self._hand.log.info(message)
