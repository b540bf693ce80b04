"""The github plugin's verdict: what follows from each kind of evidence, and what never follows from any."""

from itertools import pairwise

import pytest
from anklet_github import evidence as fold
from anklet_github.decisions import (
    AskJob,
    AskRunner,
    Conclude,
    Decision,
    GiveUp,
    LookIntoGuest,
    Pause,
    Search,
    SwitchTo,
    Withdraw,
)
from anklet_github.evidence import Evidence, Found, Round, Silence
from anklet_github.guest import Sighting
from anklet_github.pace import Pace
from anklet_github.payloads import Run, Runner
from anklet_github.scope import Repo
from anklet_github.verdict import decide
from github_fakes import MINE, workflow_job
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from anklet_worker.contract.errors import JobLost, RetryElsewhere, RetryHere
from anklet_worker.contract.job import Conclusion, Job, VMSpec

PACE = Pace(runner_online=120.0, job_start=120.0)
JOB = Job(id="1", name="job 1", url="", keyspace="k", vm=VMSpec(template="t"))
NOW = 10_000.0
NOT_ASKED, UNANSWERED, ABSENT = Silence.NOT_ASKED, Silence.UNANSWERED, Silence.ABSENT


def sight(state, status="?", words="", *, left=False):
    """A look into the guest."""
    return Sighting(state=state, status=status, removed=False, words=words, left=left)


WAITING, WORKING, UNSEEN = sight("waiting"), sight("working"), sight("unseen")
WELL, FAILED, OLD, GONE = sight("ended", "0"), sight("ended", "1"), sight("ended", "7"), sight("gone")
LEFT = sight("ended", "0", left=True)
SAID = sight("ended", "0", "Job build completed with result: Failed")

QUEUED = workflow_job(1)
RUNNING = workflow_job(1, status="in_progress", runner_name=MINE)
ELSEWHERE = workflow_job(1, status="in_progress", runner_name="other")
ENDED = workflow_job(1, status="completed", conclusion="success", runner_name=MINE)
UNNAMED = workflow_job(1, status="completed", conclusion="cancelled")

IDLE, OFFLINE = Runner(9, MINE, "online", busy=False), Runner(9, MINE, "offline", busy=False)
BUSY, LOST_BUSY = Runner(9, MINE, "online", busy=True), Runner(9, MINE, "offline", busy=True)
FOUND = Found(workflow_job(2, status="in_progress", runner_name=MINE), Run(8), Repo("acme", "app"))


def evidence(sighting=None, *, age=10.0, answers=None, **facts):
    """The evidence of a watch that began `age` seconds ago. `answers` are those of the round."""
    begun = NOW - age
    facts = {"sighting": sighting, "round": Round(**(answers or {})), **facts}
    if sighting in (WORKING, WAITING) and facts.get("working_since") is not None:
        facts.setdefault("witnessed", True)
    return replace(fold.begin(JOB, MINE, begun, PACE), **facts)


def at_work(*, since=5.0, **facts):
    """The guest shows the runner at work."""
    answers = facts.pop("answers", None)
    return evidence(WORKING, answers=answers, working_since=NOW - since, **facts)


LATE = {"job_asked_at": NOW - 600, "runner_asked_at": NOW - 60}
ASKED = {"runner_asked_at": NOW - 60}

TABLE = {
    # ---- whom to ask, and when
    "nothing is known yet": (evidence(), LookIntoGuest(5.0)),
    "the runner waits": (evidence(WAITING), AskJob(in_list=True)),
    "the runner took a job a moment ago": (at_work(), LookIntoGuest(30.0)),
    "and GitHub has confirmed it": (at_work(confirmed=True), LookIntoGuest(50.0)),
    "GitHub was not asked about the runner for a minute": (at_work(**ASKED), AskRunner()),
    "GitHub sees it at work": (at_work(answers={"runner": BUSY}), LookIntoGuest(30.0)),
    "GitHub cannot tell": (at_work(answers={"runner": UNANSWERED}), LookIntoGuest(30.0)),
    "GitHub sees it idle": (at_work(answers={"runner": IDLE}), AskJob(in_list=False)),
    "GitHub does not list it": (at_work(answers={"runner": ABSENT}), AskJob(in_list=False)),
    "GitHub was not asked about the job for ten minutes": (at_work(**LATE), AskJob(in_list=False)),
    "there are rivals, and the job is young": (at_work(rivals=True), LookIntoGuest(5.0)),
    "there are rivals": (at_work(since=10.0, rivals=True), AskJob(in_list=False)),
    "there were rivals, and GitHub has confirmed ours": (
        at_work(since=10.0, rivals=True, confirmed=True),
        LookIntoGuest(50.0),
    ),
    "the runner named another job": (at_work(doubtful=True), AskJob(in_list=False)),
    "it did, and a search was in vain": (at_work(doubtful=True, search_at=NOW + 16), LookIntoGuest(16.0)),
    "the guest cannot tell": (evidence(UNSEEN), Pause(0.25)),
    "it cannot, after a pause": (evidence(UNSEEN, answers={"paused": True}), AskJob(in_list=True)),
    "it cannot, and the job was at work": (
        evidence(UNSEEN, answers={"paused": True}, working_since=NOW - 5),
        AskJob(in_list=False),
    ),
    "it cannot, and GitHub was asked": (
        evidence(UNSEEN, answers={"paused": True, "job": RUNNING}, confirmed=True, blind_until=NOW + 9),
        Pause(0.25),
    ),
    "it may be able to tell again": (
        evidence(UNSEEN, answers={"paused": True, "job": RUNNING}, confirmed=True, blind_until=NOW),
        LookIntoGuest(5.0),
    ),
    # ---- GitHub's word about the job
    "the job waits, and so does the runner": (evidence(WAITING, answers={"job": QUEUED}), LookIntoGuest(5.0)),
    "GitHub does not answer": (evidence(WAITING, answers={"job": UNANSWERED}), LookIntoGuest(5.0)),
    "404, for a moment": (
        evidence(WAITING, answers={"job": ABSENT}, missing_since=NOW - 119),
        LookIntoGuest(5.0),
    ),
    "404, for long": (evidence(WAITING, answers={"job": ABSENT}, missing_since=NOW - 120), AskRunner()),
    "404, for long, while the guest shows work": (
        at_work(answers={"job": ABSENT}, missing_since=NOW - 3599),
        LookIntoGuest(30.0),
    ),
    "404, for an hour": (at_work(answers={"job": ABSENT}, missing_since=NOW - 3600), AskRunner()),
    "404, for long, and the runner is busy": (
        evidence(WAITING, answers={"job": ABSENT, "runner": BUSY}, missing_since=NOW - 120),
        LookIntoGuest(5.0),
    ),
    "404, for long, and nothing is heard of the runner": (
        evidence(WAITING, answers={"job": ABSENT, "runner": UNANSWERED}, missing_since=NOW - 120),
        LookIntoGuest(5.0),
    ),
    "404, for long, and the runner is idle": (
        evidence(WAITING, answers={"job": ABSENT, "runner": IDLE}, missing_since=NOW - 120),
        (GiveUp, JobLost, "vanished"),
    ),
    "ours, and over": (at_work(confirmed=True, answers={"job": ENDED}), (Conclude, Conclusion.SUCCESS)),
    "ours, and running": (at_work(confirmed=True, answers={"job": RUNNING}), LookIntoGuest(50.0)),
    # ---- ours is over and names no runner, and the runner works
    "over without a runner": (at_work(answers={"job": UNNAMED}), AskRunner()),
    "and nothing is heard of the runner": (
        at_work(answers={"job": UNNAMED, "runner": UNANSWERED}),
        LookIntoGuest(30.0),
    ),
    "and it is busy": (at_work(answers={"job": UNNAMED, "runner": BUSY}), Search(ended_too=False)),
    "and it is busy, and its job is not found": (
        at_work(answers={"job": UNNAMED, "runner": BUSY, "search": ABSENT}),
        LookIntoGuest(5.0),
    ),
    "and it is busy, and its job is found": (
        at_work(answers={"job": UNNAMED, "runner": BUSY, "search": FOUND}),
        SwitchTo(FOUND),
    ),
    "and it is idle": (at_work(answers={"job": UNNAMED, "runner": IDLE}), Search(ended_too=True)),
    "and it is idle, for a moment": (
        at_work(answers={"job": UNNAMED, "runner": IDLE, "search": ABSENT}, idle_since=NOW - 119),
        LookIntoGuest(5.0),
    ),
    "and it is idle, for long": (
        at_work(answers={"job": UNNAMED, "runner": IDLE, "search": ABSENT}, idle_since=NOW - 120),
        (Conclude, Conclusion.CANCELLED),
    ),
    "and it is idle, and the guest cannot tell": (
        evidence(
            UNSEEN,
            working_since=NOW - 5,
            answers={"paused": True, "job": UNNAMED, "runner": IDLE, "search": ABSENT},
        ),
        (Conclude, Conclusion.CANCELLED),
    ),
    # ---- the runner does not have our job
    "another runner got it": (evidence(WAITING, answers={"job": ELSEWHERE}), AskRunner()),
    "and ours is idle": (
        evidence(WAITING, answers={"job": ELSEWHERE, "runner": IDLE}),
        (Withdraw, JobLost, "GitHub gave it to other"),
    ),
    "and GitHub keeps ours": (
        evidence(WAITING, answers={"job": ELSEWHERE, "runner": IDLE, "kept": True}),
        LookIntoGuest(5.0),
    ),
    "and ours is busy": (evidence(WAITING, answers={"job": ELSEWHERE, "runner": BUSY}), Search(ended_too=False)),
    "and ours is busy, and a search was in vain": (
        evidence(WAITING, answers={"job": ELSEWHERE, "runner": BUSY}, search_at=NOW + 1),
        LookIntoGuest(5.0),
    ),
    "and ours is gone": (evidence(WAITING, answers={"job": ELSEWHERE, "runner": ABSENT}), Search(ended_too=True)),
    "and ours is gone, and ran nothing": (
        evidence(WAITING, answers={"job": ELSEWHERE, "runner": ABSENT, "search": ABSENT}),
        (GiveUp, RetryHere, "gone from GitHub"),
    ),
    "and ours is gone, but the guest shows work": (
        at_work(answers={"job": ELSEWHERE, "runner": ABSENT, "search": ABSENT}, gone_since=NOW - 3599),
        LookIntoGuest(30.0),
    ),
    "it was cancelled before ours had it": (
        evidence(WAITING, answers={"job": UNNAMED, "runner": IDLE}),
        (Withdraw, JobLost, "before our runner had it"),
    ),
    # ---- the deadlines of a runner without a job
    "it is time to be online": (evidence(WAITING, age=120, answers={"job": QUEUED}), AskRunner()),
    "it is not online": (
        evidence(WAITING, age=120, answers={"job": QUEUED, "runner": OFFLINE}),
        (Withdraw, RetryHere, "online within 120 s"),
    ),
    "it is online": (evidence(WAITING, age=239, answers={"job": QUEUED, "runner": IDLE}), LookIntoGuest(5.0)),
    "it gets no job": (
        evidence(WAITING, age=240, answers={"job": QUEUED, "runner": IDLE}),
        (Withdraw, RetryHere, "no job within 120 s"),
    ),
    # ---- the runner is over
    "GitHub refuses its version": (evidence(OLD), (Withdraw, RetryElsewhere, "newer one into the image")),
    "it is over": (evidence(WELL), AskJob(in_list=True)),
    "it is over, and ours with it": (evidence(WELL, answers={"job": ENDED}), (Conclude, Conclusion.SUCCESS)),
    "it is over, and ours is not": (evidence(WELL, answers={"job": RUNNING}), Search(ended_too=True)),
    "it is over, and the run is gone": (evidence(WELL, answers={"job": ABSENT}), Search(ended_too=True)),
    "it had another job": (evidence(WELL, answers={"job": QUEUED, "search": FOUND}), SwitchTo(FOUND)),
    "ours was cancelled in it": (
        evidence(WELL, answers={"job": UNNAMED, "search": ABSENT}, working_since=NOW - 9),
        (Conclude, Conclusion.CANCELLED),
    ),
    "GitHub needs a moment": (evidence(WELL, answers={"job": QUEUED, "search": ABSENT}), Pause(0.25)),
    "GitHub cannot be asked": (evidence(WELL, answers={"job": UNANSWERED}), Pause(0.25)),
    "the moment is over": (
        evidence(FAILED, answers={"job": QUEUED, "search": ABSENT}, over_since=NOW - 5),
        AskRunner(),
    ),
    "it failed and ran nothing": (
        evidence(FAILED, answers={"job": QUEUED, "search": ABSENT, "runner": IDLE}, over_since=NOW - 5),
        (Withdraw, RetryHere, "ran nothing"),
    ),
    "it says that all is well": (
        evidence(WELL, answers={"job": QUEUED, "search": ABSENT, "runner": IDLE}, over_since=NOW - 19),
        Pause(0.25),
    ),
    "it has had its chance": (
        evidence(WELL, answers={"job": QUEUED, "search": ABSENT, "runner": IDLE}, over_since=NOW - 20),
        (Withdraw, RetryHere, "ran nothing"),
    ),
    "it runs in the background": (
        evidence(
            LEFT,
            answers={"job": QUEUED, "search": ABSENT, "runner": IDLE},
            over_since=NOW - 200,
            silent_since=NOW - 200,
        ),
        Pause(0.25),
    ),
    "it runs in the background for too long": (
        evidence(LEFT, age=240, answers={"job": QUEUED, "search": ABSENT, "runner": IDLE}, over_since=NOW - 200),
        (Withdraw, RetryHere, "no job within 120 s"),
    ),
    "GitHub does not notice the end": (
        evidence(
            SAID,
            answers={"job": RUNNING, "search": ABSENT, "runner": LOST_BUSY},
            over_since=NOW - 120,
            silent_since=NOW - 120,
            working_since=NOW - 900,
        ),
        (Conclude, Conclusion.FAILURE),
    ),
    "GitHub never said that it began": (
        evidence(
            WELL,
            answers={"job": UNANSWERED, "runner": UNANSWERED},
            over_since=NOW - 120,
            silent_since=NOW - 120,
        ),
        (GiveUp, RetryHere, "GitHub does not say"),
    ),
    "after a pause the guest is looked into again": (evidence(WELL, answers={"paused": True}), LookIntoGuest(5.0)),
}


@pytest.mark.parametrize("case", TABLE)
def test_each_situation_has_its_decision(case):
    """One row for each rule."""
    given_evidence, expected = TABLE[case]
    decision = decide(given_evidence, NOW, PACE)
    match expected:
        case (kind, Conclusion() as conclusion):
            assert isinstance(decision, kind)
            assert decision.outcome.conclusion is conclusion
        case (kind, error, word):
            assert isinstance(decision, kind)
            reason = decision.reason if isinstance(decision, Withdraw) else decision.error
            assert type(reason) is error
            assert word in str(reason)
        case _:
            assert decision == expected


# ---- what holds for all evidence ----

SIGHTINGS = [WAITING, WORKING, UNSEEN, WELL, FAILED, OLD, GONE, LEFT, SAID]
JOBS = [QUEUED, RUNNING, ELSEWHERE, ENDED, UNNAMED, ABSENT, UNANSWERED]
RUNNERS = [IDLE, OFFLINE, BUSY, LOST_BUSY, ABSENT, UNANSWERED]
SEARCHES = [FOUND, ABSENT, UNANSWERED]
MOMENTS = st.sampled_from([0.0, 1.0, 5.0, 10.0, 20.0, 59.0, 60.0, 120.0, 240.0, 600.0, 3600.0]).map(
    lambda ago: NOW - ago
)
SINCE = st.none() | MOMENTS

ROUNDS = st.builds(
    Round,
    paused=st.booleans(),
    job=st.sampled_from([*JOBS, NOT_ASKED]),
    runner=st.sampled_from([*RUNNERS, NOT_ASKED]),
    search=st.sampled_from([*SEARCHES, NOT_ASKED]),
    kept=st.booleans(),
)
EVIDENCE = st.builds(
    Evidence,
    job=st.just(JOB),
    runner_name=st.just(MINE),
    begun=MOMENTS,
    sighting=st.sampled_from([None, *SIGHTINGS]),
    blind_until=st.sampled_from([0.0, NOW + 9]),
    witnessed=st.booleans(),
    working_since=SINCE,
    confirmed=st.booleans(),
    doubtful=st.booleans(),
    rivals=st.booleans(),
    job_asked_at=MOMENTS,
    runner_asked_at=MOMENTS,
    search_at=st.sampled_from([NOW - 1, NOW, NOW + 300]),
    search=st.just(PACE.search),
    poll=st.just(PACE.poll),
    missing_since=SINCE,
    gone_since=SINCE,
    idle_since=SINCE,
    over_since=SINCE,
    silent_since=SINCE,
    round=ROUNDS,
)


@given(EVIDENCE)
@settings(max_examples=400, deadline=None)
def test_any_evidence_has_a_decision(e):
    """Also evidence that cannot come about. No question is repeated in a round."""
    decision = decide(e, NOW, PACE)
    assert isinstance(decision, Decision)
    if isinstance(decision, LookIntoGuest | Pause):
        assert 0 < decision.seconds <= PACE.ask_runner
    if isinstance(decision, AskJob):
        assert e.round.job is NOT_ASKED
    if isinstance(decision, AskRunner):
        assert e.round.runner is NOT_ASKED
    if isinstance(decision, Search):
        assert e.round.search is NOT_ASKED
    if isinstance(decision, Withdraw):
        assert not e.round.kept


@given(EVIDENCE)
@settings(max_examples=400, deadline=None)
def test_a_runner_at_work_by_both_witnesses_keeps_its_vm(e):
    """Only GitHub's word that its own job is over ends it."""
    e = replace(e, sighting=WORKING, witnessed=True, round=replace(e.round, runner=BUSY))
    decision = decide(e, NOW, PACE)
    over = e.confirmed and e.round.job in (ENDED, UNNAMED)
    assert isinstance(decision, Conclude) == over
    assert not isinstance(decision, Withdraw | GiveUp)


# ---- histories ----


def history(draw, steps, sightings):
    """Plays a watch against witnesses that say anything; gives the decisions with their times, and the evidence at each."""
    e, now, played = fold.begin(JOB, MINE, 0.0, PACE), 0.0, []
    for _ in range(steps):
        step = decide(e, now, PACE)
        played.append((now, step, e))
        match step:
            case LookIntoGuest(seconds):
                e = fold.round_ended(e, now)
                now += seconds
                e = fold.saw(e, draw(st.sampled_from(sightings)), now, PACE)
            case Pause(seconds):
                e = fold.round_ended(e, now)
                now += seconds
                e = fold.waited(e)
            case AskJob():
                e = fold.asked_job(e, draw(st.sampled_from(JOBS)), now)
            case AskRunner():
                e = fold.asked_runner(e, draw(st.sampled_from(RUNNERS)), now)
            case Search():
                e = fold.searched(e, draw(st.sampled_from(SEARCHES)), now)
            case SwitchTo(found):
                e = fold.switched(e, found, replace(JOB, id=str(found.job.id)), now)
            case Withdraw():
                e = fold.kept(e)
            case _:
                break
    return played


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_github_is_asked_no_more_often_than_the_intervals_allow(data):
    """While the guest shows work and the job is known to be ours: about the runner once a minute at most; about the job only after
    ten minutes, or when GitHub does not see the runner at work."""
    played = history(data.draw, 200, [WAITING, WORKING])
    settled = [(now, step, e) for now, step, e in played if e.confirmed and e.at_work]
    for kind, interval in ((AskRunner, 60.0), (AskJob, 60.0)):
        asked = [now for now, step, e in settled if isinstance(step, kind) and e.round.job is NOT_ASKED]
        assert all(later - earlier >= interval for earlier, later in pairwise(asked))
    for now, step, e in settled:
        if isinstance(step, AskJob) and now - e.job_asked_at < PACE.ask_working:
            assert e.round.runner is ABSENT or not e.round.runner.busy


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_every_round_ends(data):
    """No witness can make a watch spin: in any eight steps in a row, time passes."""
    played = history(data.draw, 200, SIGHTINGS)
    times = [now for now, _, _ in played]
    assert all(later > earlier for earlier, later in zip(times, times[8:], strict=False))
