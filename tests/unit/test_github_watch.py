"""The github plugin's watch: what is concluded from what the guest and GitHub say of a job and its runner."""

import pytest
from anklet_github.guest import Sighting
from anklet_github.payloads import Run, Runner
from anklet_github.runners import RunnerBusy
from anklet_github.scope import Repo
from anklet_github.trouble import ApiTrouble, NotFound
from anklet_github.watch import Watch, Watching
from github_fakes import MINE, FakeContext, FakeHand, workflow_job
from msgspec.structs import replace

from anklet_worker.contract.errors import JobLost, RetryElsewhere, RetryHere, VMNotFound, VMTransient
from anklet_worker.contract.job import Conclusion, Job, VMSpec

REPO = Repo("acme", "app")
ONLINE = Runner(9, MINE, "online", busy=False)
BUSY = Runner(9, MINE, "online", busy=True)
OFFLINE = Runner(9, MINE, "offline", busy=False)


def sight(state, status="?", words="", *, removed=False):
    """What the guest says."""
    return Sighting(state=state, status=status, removed=removed, words=words)


WAITING, WORKING, UNSEEN = sight("waiting"), sight("working"), sight("unseen")
ENDED = sight("ended", "0", removed=True)


class FakeScripts:
    """The guest's word, one after the other; the last one lasts. Waiting takes its time."""

    def __init__(self, sightings, context):
        self.sightings, self.context = list(sightings), context
        self.limits = []

    def wait(self, guest, limit, *, working):
        self.limits.append(limit)
        sighting = self.sightings.pop(0) if len(self.sightings) > 1 else self.sightings[0]
        if isinstance(sighting, Exception):
            raise sighting
        if sighting.state in ("waiting", "working"):
            self.context.now += limit if sighting.state == "waiting" or working else 0.5
        return sighting


class FakeDiscovery:
    """GitHub's word about the job, one after the other; an exception is raised; the last one lasts."""

    def __init__(self, answers, found=None, *, rivals=False):
        self.answers, self.found, self.rivals = list(answers), found, rivals
        self.seen = False
        self.asked = 0

    def _next(self):
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def queue_of(self, job):
        return self

    def was_seen_waiting(self, job_id, since):
        return self.seen

    def leaves(self, state):
        """Told for the next look."""

    def job(self, job_id):
        return self._next()

    def siblings(self, job):
        return [self._next()]

    def has_rivals(self, job):
        return self.rivals

    def find_by_runner(self, name, *, ended_too, near):
        self.asked += 1
        last = self.answers[0]
        if getattr(last, "runner_name", None) == name:
            return last, Run(7), REPO
        return self.found

    def describe(self, job, run, spec, repo):
        return Job(
            id=str(job.id), name=job.name, url="", keyspace=repo.keyspace, vm=spec, details={"run_id": 7, "repo": "app"}
        )


class FakeRunners:
    """Our runner, as GitHub lists it; `busy` refuses its removal."""

    def __init__(self, runner=None):
        self.runner = runner
        self.removed = 0

    def find(self, name):
        return self.runner

    def remove(self, name):
        if self.runner is not None and self.runner.busy:
            raise RunnerBusy("busy")
        self.removed += 1
        self.runner = None


class Guest:
    """A VM."""

    name = MINE


class Bench:
    """A watch of job 1, with everything around it."""

    def __init__(self, sightings, answers, runner=ONLINE, found=None, *, rivals=False):
        self.context = FakeContext()
        self.discovery = FakeDiscovery(answers, found, rivals=rivals)
        self.runners = FakeRunners(runner)
        self.scripts = FakeScripts(sightings, self.context)
        watching = Watching(
            context=self.context,
            discovery=self.discovery,
            runners=self.runners,
            scripts=self.scripts,
            clock=lambda: self.context.now,
        )
        job = self.discovery.describe(workflow_job(1), Run(7), VMSpec(template="t"), REPO)
        self.watch = Watch(watching, FakeHand(job, self.context), Guest())

    def end(self):
        """The outcome."""
        return self.watch.to_the_end()


def running(number=1):
    """The job runs on our runner."""
    return workflow_job(number, status="in_progress", runner_name=MINE)


def ended(conclusion, number=1, runner_name=MINE):
    """The job is over."""
    return workflow_job(number, status="completed", conclusion=conclusion, runner_name=runner_name)


QUEUED = workflow_job(1)

# ---- the usual ----


@pytest.mark.parametrize(
    ("conclusion", "expected"),
    [
        ("success", Conclusion.SUCCESS),
        ("failure", Conclusion.FAILURE),
        ("cancelled", Conclusion.CANCELLED),
        ("timed_out", Conclusion.OTHER),
        ("skipped", Conclusion.OTHER),
        (None, Conclusion.OTHER),
    ],
)
def test_a_job_is_followed_to_its_conclusion(conclusion, expected):
    """The guest tells of start and end; GitHub is asked once, for the conclusion. The start is told once."""
    bench = Bench([WORKING, ENDED], [ended(conclusion)])
    assert bench.end().conclusion is expected
    assert bench.context.started == ["1"]
    assert bench.discovery.asked == 1
    assert bench.watch.removed


def test_the_end_in_the_guest_is_the_end():
    """Nothing is waited for once the guest has told: what GitHub knows already is taken at once."""
    bench = Bench([WORKING, ENDED], [ended("success")])
    bench.end()
    assert bench.context.waits == []


def test_a_job_too_quick_to_be_seen_at_work_counts():
    """Its runner is over at the first look."""
    bench = Bench([ENDED], [ended("success")])
    assert bench.end().conclusion is Conclusion.SUCCESS
    assert bench.context.started == ["1"]


def test_github_may_need_a_moment_to_notice_the_end():
    """The guest is ahead of GitHub."""
    bench = Bench([WORKING, ENDED], [running(), running(), running(), ended("failure")], BUSY)
    assert bench.end().conclusion is Conclusion.FAILURE
    assert bench.context.now < 10


def test_there_is_no_ceiling_for_a_job_that_runs_and_few_questions():
    """Self-hosted jobs may run for five days; GitHub is asked now and then whether it still knows the job."""
    bench = Bench([*[WORKING] * 1500, ENDED], [*[running()] * 140, ended("success")], BUSY)
    assert bench.end().conclusion is Conclusion.SUCCESS
    assert bench.context.now > 20 * 3600
    assert bench.discovery.asked <= bench.context.now / 590 + 2


def test_a_job_that_github_ended_under_a_hanging_runner_is_over():
    """The runner does not notice (a worker that hangs after a cancel): GitHub's word is enough."""
    bench = Bench([WORKING], [running(), ended("cancelled")], BUSY)
    assert bench.end().conclusion is Conclusion.CANCELLED
    assert bench.context.now < 1300


@pytest.mark.parametrize("runner", [None, ONLINE])
def test_a_runner_that_github_does_not_see_at_work_is_asked_about(runner):
    """The guest says that it works on; GitHub has no job for it any more: the end is noticed within a minute."""
    bench = Bench([WORKING], [ended("success")], runner)
    assert bench.end().conclusion is Conclusion.SUCCESS
    assert bench.context.now <= 65


def test_an_outage_while_a_runner_works_is_no_news():
    """GitHub cannot tell whether it sees the runner: nothing is concluded."""
    bench = Bench([*[WORKING] * 8, ENDED], [ended("success")], BUSY)
    bench.runners.find = _no_answer
    assert bench.end().conclusion is Conclusion.SUCCESS
    assert bench.discovery.asked == 1


# ---- runners that tell less than ours ----


def test_a_runner_that_shows_no_work_in_the_guest_is_followed_by_github():
    """A plain script as run.sh, without logs, that does not even end: the end is noticed within seconds."""
    bench = Bench([WAITING], [QUEUED, running(), running(), ended("failure")], BUSY)
    assert bench.end().conclusion is Conclusion.FAILURE
    assert bench.context.now <= 25
    assert set(bench.scripts.limits) == {5}


LEFT_BEHIND = Sighting(state="ended", status="0", removed=False, words="", left=True)


def test_a_runner_in_the_background_is_waited_for():
    """run.sh returns at once and leaves the runner behind: GitHub hears from it, for as long as the job lasts."""
    bench = Bench([LEFT_BEHIND], [*[QUEUED] * 8, *[running()] * 200, ended("success")], ONLINE)
    assert bench.end().conclusion is Conclusion.SUCCESS
    assert bench.context.now > 300
    assert max(bench.context.waits) <= 5


def test_a_runner_in_the_background_that_gets_no_job_is_withdrawn_in_time():
    """The deadlines hold for it as for any other."""
    bench = Bench([LEFT_BEHIND], [QUEUED], ONLINE)
    with pytest.raises(RetryHere, match="no job within 120"):
        bench.end()
    assert 240 <= bench.context.now <= 250


def test_what_a_job_left_behind_does_not_keep_a_dead_runner():
    """A process of the job lives on; GitHub does not hear from the runner: after two minutes it is over."""
    bench = Bench([WORKING, LEFT_BEHIND], [running()], Runner(9, MINE, "offline", busy=True))
    assert bench.end().conclusion is Conclusion.OTHER
    assert bench.context.now <= 140


def test_a_runner_that_says_that_all_is_well_is_given_a_little_longer():
    """Something that cannot be seen in the guest may work for it; GitHub may deal it the job any moment."""
    bench = Bench([sight("ended", "0")], [*[QUEUED] * 5, running(), ended("success")], ONLINE)
    assert bench.end().conclusion is Conclusion.SUCCESS
    idle = Bench([sight("ended", "0")], [QUEUED], ONLINE)
    with pytest.raises(RetryHere, match="ran nothing"):
        idle.end()
    assert idle.context.now <= 30


@pytest.mark.parametrize("sightings", [[WORKING, ENDED], [ENDED]])
@pytest.mark.parametrize("confirmed", [True, False])
def test_a_run_that_was_started_anew_before_its_end_was_seen_does_not_hide_it(sightings, confirmed):
    """The list of its jobs is that of the new attempt; our job is asked for by itself, also one that was too quick to be seen."""
    bench = Bench(sightings, [ended("cancelled")], None)
    bench.discovery.siblings = lambda _: [workflow_job(99)]
    bench.watch.evidence = replace(bench.watch.evidence, confirmed=confirmed)
    assert bench.end().conclusion is Conclusion.CANCELLED
    assert bench.context.now <= 10


def test_another_job_is_found_though_the_run_of_ours_was_deleted():
    """Cancelled, and then deleted by somebody; our runner had got another one by then."""
    bench = Bench([WORKING, ENDED], [NotFound("404")], None, found=(ended("success", 2), Run(8), REPO))
    assert bench.end().job_id == "2"
    assert bench.context.now <= 10


def test_a_vm_that_could_not_be_found_for_a_moment_does_not_shorten_the_end():
    """Hours later GitHub needs a moment to notice the end, and has it."""
    bench = Bench([WORKING, VMNotFound("x"), *[WORKING] * 60, ENDED], [running()], BUSY, rivals=True)
    ended_at = []

    def job(_=None):
        if len(bench.scripts.sightings) == 1 and not ended_at:
            ended_at.append(bench.context.now)
        return ended("failure") if ended_at and bench.context.now > ended_at[0] + 10 else running()

    bench.discovery.job, bench.discovery.siblings = job, lambda _: [job()]
    assert bench.end().conclusion is Conclusion.FAILURE
    assert bench.context.logged("WARNING") == []


# ---- without the guest's word ----


@pytest.mark.parametrize("blind", [UNSEEN, VMTransient("anka run failed")])
def test_where_the_guest_does_not_tell_github_is_polled(blind):
    """Another's start script, or a guest that takes no commands: the end is seen within seconds all the same."""
    bench = Bench([blind], [QUEUED, running(), running(), ended("success")], BUSY)
    assert bench.end().conclusion is Conclusion.SUCCESS
    assert bench.context.started == ["1"]
    assert max(bench.context.waits) <= 5


def test_a_guest_that_comes_back_is_believed_again():
    """One WARN while it does not tell, one INFO when it does."""
    bench = Bench([WORKING, VMTransient("x"), WORKING, ENDED], [*[running()] * 20, ended("success")], BUSY)
    assert bench.end().conclusion is Conclusion.SUCCESS
    assert len(bench.context.logged("WARNING")) == 1


@pytest.mark.parametrize("error", [ApiTrouble("502"), ApiTrouble("no answer"), NotFound("404 once")])
def test_an_error_of_github_never_ends_the_watch(error):
    """The job goes on, and so does the watch (the original deleted the VM under a running job)."""
    bench = Bench([UNSEEN], [running(), error, error, error, running(), ended("success")], BUSY)
    assert bench.end().conclusion is Conclusion.SUCCESS
    assert bench.runners.removed == 0
    assert len(bench.context.logged("WARNING")) == 1


def test_a_job_that_stays_unknown_while_its_runner_is_idle_has_vanished():
    """404 for two minutes, and a runner without a job: nothing is to be waited for."""
    bench = Bench([UNSEEN], [running(), NotFound("404")])
    with pytest.raises(JobLost, match="vanished"):
        bench.end()
    assert bench.context.now >= 120


def test_a_job_that_stays_unknown_while_its_runner_is_busy_is_waited_for():
    """An outage answered 404 for live jobs: the runner's word counts, too."""
    bench = Bench([UNSEEN], [running(), *[NotFound("404")] * 300, ended("success")], BUSY)
    assert bench.end().conclusion is Conclusion.SUCCESS


@pytest.mark.parametrize("runner", [None, OFFLINE])
def test_an_incident_that_hides_the_job_and_its_runner_does_not_end_what_the_guest_sees_at_work(runner):
    """For half an hour GitHub knows neither: the VM must not go from under a job that runs. A job that is gone for good is."""
    hidden = [running(), *[NotFound("404")] * 30]
    bench = Bench([WORKING], [*hidden, running(), ended("success")], runner, rivals=True)
    assert bench.end().conclusion is Conclusion.SUCCESS
    bench = Bench([WORKING], [*hidden, NotFound("404")], runner, rivals=True)
    with pytest.raises(JobLost, match="vanished"):
        bench.end()
    assert bench.context.now >= 3600


def test_an_outage_on_top_of_a_missing_job_does_not_end_the_watch():
    """404 for the job and no answer about the runner prove nothing: the VM must not go from under a running job."""
    bench = Bench([UNSEEN], [running(), *[NotFound("404")] * 300, ended("success")], BUSY)
    bench.runners.find = _no_answer
    assert bench.end().conclusion is Conclusion.SUCCESS


def _no_answer(_name):
    raise ApiTrouble("502")


# ---- before the job begins ----


def test_a_job_cancelled_before_its_runner_had_it_is_given_up():
    """The registration goes first, so that no other job lands."""
    bench = Bench([WAITING], [QUEUED, ended("cancelled", runner_name=None)])
    with pytest.raises(JobLost):
        bench.end()
    assert bench.runners.removed == 1
    assert bench.context.started == []
    assert bench.context.now <= 15


def test_a_job_cancelled_while_it_runs_is_an_outcome_though_it_names_no_runner_any_more():
    """It had started here."""
    bench = Bench([WORKING, ENDED], [ended("cancelled", runner_name=None)], BUSY)
    assert bench.end().conclusion is Conclusion.CANCELLED


def test_a_job_that_was_cancelled_before_any_runner_had_it_does_not_end_the_one_that_ours_got():
    """It is over and names no runner, and ours works: on another job, which is followed."""
    bench = Bench(
        [WORKING], [ended("cancelled", runner_name=None)], BUSY, found=(running(2), Run(8), REPO), rivals=True
    )
    bench.discovery.job = lambda job_id: ended("success", 2) if job_id == 2 else ended("cancelled", runner_name=None)
    outcome = bench.end()
    assert (outcome.job_id, outcome.conclusion) == ("2", Conclusion.SUCCESS)


def test_a_busy_runner_whose_job_cannot_be_found_keeps_its_vm():
    """GitHub shows late which job it dealt; until then nothing is concluded from the one that was cancelled."""
    bench = Bench([WORKING], [ended("cancelled", runner_name=None)], BUSY, rivals=True)
    questions = []

    def found(*_, **__):
        questions.append(bench.context.now)
        return (running(2), Run(8), REPO) if len(questions) > 3 else None

    bench.discovery.find_by_runner = found
    bench.discovery.job = lambda job_id: ended("success", 2) if job_id == 2 else ended("cancelled", runner_name=None)
    assert bench.end().job_id == "2"
    assert len(questions) == 4


def test_a_job_that_another_runner_got_is_given_up():
    """Our idle runner is withdrawn."""
    bench = Bench([WAITING], [workflow_job(1, status="in_progress", runner_name="other")])
    with pytest.raises(JobLost, match="other"):
        bench.end()
    assert bench.runners.removed == 1


@pytest.mark.parametrize(
    ("runner", "word", "seconds"), [(OFFLINE, "online within 120", 120), (ONLINE, "no job within 120", 240)]
)
@pytest.mark.parametrize("sighting", [WAITING, UNSEEN])
def test_a_runner_that_does_not_come_to_work_is_withdrawn_in_time(sighting, runner, word, seconds):
    """Each stage has its deadline; the job is tried anew on another VM."""
    bench = Bench([sighting], [QUEUED], runner)
    with pytest.raises(RetryHere, match=word):
        bench.end()
    assert seconds <= bench.context.now <= seconds + 5
    assert bench.runners.removed == 1


def test_a_runner_that_lost_its_registration_and_listens_for_ever_is_replaced():
    """It lives in the guest and GitHub does not know it: nothing can come of it."""
    bench = Bench([WAITING], [QUEUED], None)
    with pytest.raises(RetryHere, match="gone"):
        bench.end()
    assert bench.context.now <= 125


@pytest.mark.parametrize("sighting", [sight("ended", "1"), sight("gone"), VMNotFound("no such VM")])
def test_a_runner_that_ends_without_a_job_is_tried_anew_within_seconds(sighting):
    """Its VM is worth nothing any more."""
    bench = Bench([sighting], [QUEUED])
    with pytest.raises(RetryHere, match="ran nothing"):
        bench.end()
    assert bench.runners.removed == 1
    assert bench.context.now <= 15


def test_a_runner_too_old_for_github_goes_elsewhere_and_says_why():
    """Exit status 7: this image will not do here, another host's may."""
    with pytest.raises(RetryElsewhere, match="newer one into the image"):
        Bench([sight("ended", "7")], [QUEUED]).end()


# ---- another job ----


def test_another_job_on_our_runner_is_followed():
    """GitHub gave our runner job 2 instead: its outcome is ours to report, and job 1 goes back at once."""
    other = (running(2), Run(8), REPO)
    answers = [QUEUED, running(2), ended("failure", 2)]
    bench = Bench([WORKING, WORKING, WORKING, ENDED], answers, BUSY, other, rivals=True)
    outcome = bench.end()
    assert (outcome.job_id, outcome.conclusion) == ("2", Conclusion.FAILURE)
    assert bench.context.started == ["1", "2"]
    assert bench.runners.removed == 0


def test_a_short_job_costs_no_question_although_it_has_rivals():
    """Whether it was the right one is seen at its end."""
    bench = Bench([WORKING, ENDED], [ended("success")], rivals=True)
    bench.end()
    assert bench.discovery.asked == 1


def test_a_long_job_with_rivals_is_asked_about_early():
    """The one that it was made for must not wait for its end."""
    bench = Bench([*[WORKING] * 5, ENDED], [running(), ended("success")], BUSY, rivals=True)
    bench.end()
    assert bench.scripts.limits[1] <= 10


def test_a_runner_that_names_another_job_is_doubted_at_once():
    """The runner itself says which job it took up."""
    named = sight("working", words="2026-11-24 10:00:00Z: Running job: job 2")
    other = (ended("success", 2), Run(8), REPO)
    bench = Bench([named, ENDED], [QUEUED], BUSY, other)
    assert bench.end().job_id == "2"
    assert bench.discovery.asked >= 2


@pytest.mark.parametrize("word", [workflow_job(1), ended("cancelled", runner_name=None)])
@pytest.mark.parametrize("glimpse", [None, ONLINE, OFFLINE])
def test_one_look_at_a_list_that_is_wrong_does_not_end_what_the_guest_sees_at_work(word, glimpse):
    """GitHub shows our runner as gone or idle, once, and late which job it got: the VM must not go from under that job."""
    bench = Bench([WORKING], [word], BUSY, rivals=True)
    looks = []

    def find(_):
        looks.append(bench.context.now)
        return glimpse if len(looks) in (1, 3) else BUSY

    bench.runners.find = find
    bench.discovery.find_by_runner = lambda *_, **__: (running(2), Run(8), REPO) if len(looks) > 6 else None
    bench.discovery.job = lambda job_id: ended("success", 2) if job_id == 2 else word
    assert bench.end().job_id == "2"


def test_a_runner_that_hangs_after_a_job_that_cannot_be_found_is_not_kept_for_ever():
    """GitHub has no such runner any more, and for an hour the guest does not say that it is over."""
    bench = Bench([WORKING], [workflow_job(1)], None, rivals=True)
    with pytest.raises(RetryHere, match="gone from GitHub"):
        bench.end()
    assert 3600 <= bench.context.now <= 4500


def test_a_runner_that_hangs_after_its_job_was_cancelled_is_not_waited_for():
    """The guest has its two minutes to notice the cancellation, too."""
    bench = Bench([WORKING], [ended("cancelled", runner_name=None)], None, rivals=True)
    assert bench.end().conclusion is Conclusion.CANCELLED
    assert 120 <= bench.context.now <= 300


@pytest.mark.parametrize("sighting", [WORKING, UNSEEN])
def test_a_job_that_cannot_be_found_does_not_use_up_the_limit(sighting):
    """An organization's runner may get a job of a repository that we do not look through; it may run for hours."""
    bench = Bench([sighting], [workflow_job(1)], BUSY, rivals=True)
    searched = []

    def search(*_, **__):
        searched.append(bench.context.now)
        return (running(2), Run(8), REPO) if bench.context.now > 4 * 3600 else None

    bench.discovery.find_by_runner = search
    bench.discovery.job = lambda job_id: ended("success", 2) if job_id == 2 else workflow_job(1)
    assert bench.end().job_id == "2"
    assert len(searched) <= 60
    assert len([at for at in searched if at < searched[0] + 60]) >= 5


def test_a_job_that_others_see_waiting_still_is_asked_about():
    """Another service's look shows that our runner works on something else; ours goes back to the queue."""
    other = (running(2), Run(8), REPO)
    bench = Bench([*[WORKING] * 3, ENDED], [QUEUED, running(2), ended("success", 2)], BUSY, other)
    bench.discovery.seen = True
    assert bench.end().job_id == "2"
    assert bench.context.started == ["1", "2"]


def test_another_job_that_our_runner_has_run_already_counts():
    """Our runner is gone from GitHub because it ran its one job."""
    other = (ended("success", 2), Run(8), REPO)
    assert Bench([WAITING], [QUEUED], None, other).end().job_id == "2"


# ---- GitHub away at the end ----


@pytest.mark.parametrize(
    ("words", "conclusion"),
    [
        ("Job build completed with result: Succeeded", Conclusion.SUCCESS),
        ("Job build completed with result: Failed", Conclusion.FAILURE),
        ("", Conclusion.OTHER),
    ],
)
def test_an_outage_at_the_end_does_not_hold_the_vm(words, conclusion):
    """After two minutes the runner's own word counts, with a WARN."""
    bench = Bench([WORKING, sight("ended", "0", words)], [ApiTrouble("502")])
    assert bench.end().conclusion is conclusion
    assert 120 <= bench.context.now <= 140
    assert "going by the runner's own word" in " ".join(bench.context.logged("WARNING"))


def test_a_job_that_github_counts_as_running_for_long_after_its_runner_died_is_over():
    """The VM crashed: GitHub will notice in its own time, the slot need not wait."""
    bench = Bench([WORKING, sight("gone")], [running()], BUSY)
    assert bench.end().conclusion is Conclusion.OTHER
    assert bench.context.now <= 140
