"""The github plugin's look: which jobs are for us, in which order, how few calls it takes, and how it is shared."""

import json
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import msgspec
import pytest
from anklet_github import discovery as discovery_module
from anklet_github.discovery import Discovery
from anklet_github.figures import STALE_JOBS
from anklet_github.payloads import Jobs, Repository, Run, Runs, WorkflowJob
from anklet_github.repos import Repos, wanted
from anklet_github.scope import Repo
from anklet_github.settings import WorkflowFilter
from anklet_github.trouble import ApiTrouble, NotFound, Unprocessable
from github_fakes import MINE, FakeContext, github_service, new_board, workflow_job

from anklet_worker.contract.errors import RightsRefused
from anklet_worker.contract.job import VMSpec

DATA = Path(__file__).resolve().parents[1] / "data"


class FakeApi:
    """Lists by path; writes down what was asked. A list may be an exception."""

    identity = "me"

    def __init__(self, runs=(), jobs=None, repos=()):
        self.runs, self.jobs, self.repos = list(runs), jobs or {}, list(repos)
        self.asked = []
        self.trouble = {}
        self.refused_state, self.lists_all = None, False
        #: For so many more lists there is room in the minute.
        self.room = 1_000_000

    def has_room_to_look(self):
        return self.room > 0

    def get_all(self, path, kind, **query):
        self.room -= 1
        self.asked.append((path, query.get("status")))
        if path in self.trouble:
            raise self.trouble[path]
        if kind is Runs:
            if query["status"] == self.refused_state:
                raise Unprocessable("422")
            return [run for run in self.runs if self.lists_all or run.status == query["status"]]
        assert kind is Jobs
        return self.jobs[int(path.split("/")[-2])]

    def get(self, path, kind, **query):
        self.asked.append((path, query.get("page")))
        return self.repos if query["page"] == 1 else []

    def paths(self, ending):
        """How often a path with this ending was asked."""
        return sum(path.endswith(ending) for path, _ in self.asked)


def discovery(runs=(), jobs=None, board=None, api=None, clock=time.monotonic, **service):
    """A service's discovery."""
    context = FakeContext(board=board, **service)
    api = api or FakeApi(runs, jobs)
    return Discovery(Repos(api, context, clock), context), api, context


def look(runs, jobs, **service):
    """What a look finds; ids in order."""
    return [job.id for job in discovery(runs, jobs, **service)[0].look()]


def test_queued_jobs_of_runs_in_progress_are_found():
    """A run that is in progress can still hold queued jobs; a run in both lists counts once."""
    runs = [Run(1, "queued", "CI"), Run(2, "in_progress", "CI"), Run(2, "queued", "CI")]
    jobs = {1: [workflow_job(10)], 2: [workflow_job(20), workflow_job(21, status="in_progress")]}
    assert look(runs, jobs) == ["10", "20"]


@pytest.mark.parametrize("state", ["requested", "waiting", "pending"])
def test_runs_in_rarer_states_are_found_in_turn(state):
    """One of these lists at each look: three looks see them all."""
    looking, _, _ = discovery([Run(1, state, "CI")], {1: [workflow_job(10)]})
    assert [job.id for _ in range(3) for job in looking.look()][:1] == ["10"]


def test_the_order_is_age_then_name():
    """Teams order jobs by naming them."""
    jobs = [
        workflow_job(1, name="b", created_at="2026-01-02T00:00:00Z"),
        workflow_job(2, name="a", created_at="2026-01-02T00:00:00Z"),
        workflow_job(3, name="z", created_at="2026-01-01T00:00:00Z"),
    ]
    assert look([Run(7, "queued", "CI")], {7: jobs}) == ["3", "2", "1"]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, True),
        ({"labels": ["Self-Hosted", "anka", "anka-template:t"]}, True),
        ({"labels": ["anka", "anka-template:t"]}, False),
        ({"labels": ["self-hosted", "macOS"]}, False),
        ({"labels": ["self-hosted", "anka", "anka-template:t", "run-id:7"]}, True),
        ({"labels": ["self-hosted", "anka", "anka-template:t", "run-id:8"]}, False),
        ({"status": "waiting"}, False),
        ({"status": "in_progress"}, False),
        ({"status": "completed"}, False),
    ],
)
def test_which_jobs_are_for_us(change, found):
    """Queued, self-hosted, asking for a VM; a run-id label, where there is one, must be that of the run."""
    assert bool(look([Run(7, "queued", "CI")], {7: [workflow_job(1, **change)]})) is found


def test_workflows_that_are_left_out_are_not_found():
    """The filter goes by the workflow's name."""
    runs = [Run(1, "queued", "CI"), Run(2, "queued", "Nightly")]
    jobs = {1: [workflow_job(10)], 2: [workflow_job(20)]}
    assert look(runs, jobs, workflows=WorkflowFilter(exclude=("Nightly",))) == ["10"]


def test_a_jobs_log_fields_are_the_documented_ones():
    """What an operator finds in each line about the job."""
    labels = ["self-hosted", "anka", "anka-template:t", "unique-id:3"]
    looking, _, _ = discovery()
    job = looking.describe(
        workflow_job(5, labels=labels, html_url="https://x/5"),
        Run(7, "queued", "CI", "Fix it"),
        VMSpec(template="t", tag="v"),
        Repo("acme", "app"),
    )
    assert job.log_fields == {
        "workflowName": "CI",
        "workflowRunName": "Fix it",
        "workflowRunId": 7,
        "workflowJobId": 5,
        "workflowJobName": "job 5",
        "uniqueId": "3",
        "uniqueRunKey": "7:3",
        "ankaTemplate": "t",
        "ankaTemplateTag": "v",
        "jobURL": "https://x/5",
    }
    assert job.key("claim") == "anklet:{acme/app}:claim:5"


def test_every_published_example_of_a_job_is_understood():
    """GitHub's own examples of `workflow_job` decode as a job."""
    examples = json.loads((DATA / "webhooks-workflow_job.json").read_text())
    found = [example["workflow_job"] for example in _walk(examples) if "workflow_job" in example]
    assert found
    for example in found:
        job = msgspec.convert(example, WorkflowJob)
        assert job.id == example["id"]
        assert job.labels == example["labels"]


def _walk(value):
    """Every object within a JSON value."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from _walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner)


# ---- few calls ----


def in_progress(count):
    """So many runs with a queued job each."""
    runs = [Run(number, "in_progress", "CI", updated_at="t") for number in range(count)]
    return runs, {number: [workflow_job(1000 + number, run_id=number)] for number in range(count)}


def test_the_jobs_of_unchanged_runs_are_asked_for_in_turns():
    """Of many runs that seem unchanged, some are asked about at each look, the longest unasked first."""
    looking, api, _ = discovery(*in_progress(40))
    assert len(looking.look()) == 40
    assert api.paths("/jobs") == 40
    for _ in range(5):
        api.asked.clear()
        assert len(looking.look()) == 40
        assert api.paths("/jobs") == 20


def test_the_first_jobs_of_a_deep_queue_do_not_wait_for_the_last():
    """A hundred runs at once: the oldest are asked about first, and the rest by the next looks."""
    looking, api, _ = discovery(*in_progress(100))
    found = [len(looking.look()) for _ in range(3)]
    assert found == [40, 80, 100]
    assert next(path for path, _ in api.asked if path.endswith("/jobs")) == "/repos/acme/app/actions/runs/0/jobs"


def test_a_look_ends_with_the_room_for_it():
    """What was found by then is to be had; nothing is waited for. With no room at all, what was found last serves."""
    looking, api, _ = discovery(*in_progress(30))
    api.room = 3 + 5
    assert len(looking.look()) == 5
    api.asked.clear()
    (job, *others) = looking.look()
    assert (len(others), api.asked) == (4, [])
    looking.queue_of(job)._looked_at = None  # a while later
    assert looking.may_claim(job)
    assert [path for path, _ in api.asked] == ["/repos/acme/app/actions/runs/0/jobs"]


def test_the_turn_lasts_as_long_as_the_look():
    """Else others would begin the same one."""
    board, asked = new_board(), []
    looking, _, context = discovery(*in_progress(10), board=board, sleep_interval=0.0)
    seat = context.board
    turn = seat.turn
    seat.turn = lambda key, seconds: asked.append(key) or turn(key, seconds)
    looking.look()
    assert len(asked) > 5
    assert len(set(asked)) == 1


def test_the_jobs_of_a_changed_run_are_asked_for_at_once():
    """Its `updated_at`, state or attempt tells."""
    runs = [Run(number, "in_progress", "CI", updated_at="t") for number in range(100)]
    jobs = {number: [] for number in range(100)}
    looking, api, _ = discovery(runs, jobs)
    for _ in range(4):
        looking.look()
    jobs[99] = [workflow_job(5, run_id=99)]
    api.runs[99] = Run(99, "in_progress", "CI", updated_at="later")
    assert [job.id for job in looking.look()] == ["5"]


def test_a_run_that_was_deleted_under_our_eyes_spoils_no_look():
    """404 for the jobs of one run says nothing about the others."""
    looking, api, _ = discovery(
        [Run(1, "queued", "CI"), Run(2, "queued", "CI")], {1: [workflow_job(10)], 2: [workflow_job(20)]}
    )
    api.trouble["/repos/acme/app/actions/runs/1/jobs"] = NotFound("gone")
    assert [job.id for job in looking.look()] == ["20"]


def test_one_looks_and_all_see():
    """Services with one store take turns: the second service of two finds the same jobs and asks for nothing."""
    board = new_board()
    first, _, _ = discovery([Run(1, "queued", "CI")], {1: [workflow_job(10)]}, board, name="A")
    second, api, _ = discovery([], {}, board, name="B")
    assert [job.id for job in first.look()] == ["10"]
    assert [job.id for job in second.look()] == ["10"]
    assert api.asked == []


def test_what_any_service_saw_waiting_is_known_to_all():
    """From the board alone: after a moment, and only while it waits."""
    board = new_board()
    first, _, _ = discovery([Run(1, "queued", "CI")], {1: [workflow_job(10)]}, board, name="A")
    second, api, _ = discovery(board=board, name="B")
    (job,) = first.look()
    queue = second.queue_of(job)
    assert queue.was_seen_waiting("10", time.time() - 60)
    assert not queue.was_seen_waiting("10", time.time() + 60)
    assert not queue.was_seen_waiting("11", time.time() - 60)
    assert api.asked == []


def test_another_login_looks_for_itself():
    """It may see other things, or nothing: a token that is refused must show at once."""
    board = new_board()
    discovery([Run(1, "queued", "CI")], {1: [workflow_job(10)]}, board, name="A")[0].look()
    api = FakeApi()
    api.identity = "another"
    assert discovery(board=board, api=api, name="B")[0].look() == []
    assert api.paths("/runs") == 3


def test_a_service_in_trouble_lets_another_look():
    """A host that is cut off from GitHub does not keep the turn."""
    board = new_board()
    sick, api, _ = discovery(board=board, name="A")
    api.trouble["/repos/acme/app/actions/runs"] = ApiTrouble("no answer")
    with pytest.raises(ApiTrouble):
        sick.look()
    well, _, _ = discovery([Run(1, "queued", "CI")], {1: [workflow_job(10)]}, board, name="B")
    assert [job.id for job in well.look()] == ["10"]
    assert [job.id for job in sick.look()] == ["10"]


def test_what_another_found_is_asked_about_before_it_is_taken():
    """It may be old by now."""
    board = new_board()
    discovery([Run(1, "queued", "CI")], {1: [workflow_job(10, run_id=1)]}, board, name="A")[0].look()
    second, api, _ = discovery([], {1: [workflow_job(10, run_id=1, status="completed")]}, board, name="B")
    (job,) = second.look()
    assert not second.may_claim(job)
    assert api.paths("/jobs") == 1


def test_a_service_without_the_turn_waits_for_a_look_under_way():
    """Somebody else looks right now: what it finds is had a moment later, and nothing is asked twice."""
    board = new_board()
    board.claim("anklet:{acme/app}:queue:me:every-1:turn", "B", 60.0)
    waiting, api, context = discovery(board=board, name="A")
    other, _, _ = discovery([Run(1, "queued", "CI")], {1: [workflow_job(10)]}, board, name="B")
    naps = []
    context.wait = lambda _: naps.append(len(naps) == 2 and other.look())
    assert [job.id for job in waiting.look()] == ["10"]
    assert (len(naps), api.asked) == (3, [])


def test_a_service_that_took_a_job_lets_another_look():
    """It will not look again before its job is over; a job that comes meanwhile is picked up within one interval."""
    board = new_board()
    jobs = {1: [workflow_job(10, run_id=1)]}
    first, _, _ = discovery([Run(1, "queued", "CI")], jobs, board, name="A")
    (job,) = first.look()
    assert first.may_claim(job)
    first.leave_to_others(job)
    second, _, _ = discovery([Run(2, "queued", "CI")], {2: [workflow_job(20, run_id=2)]}, board, name="B")
    assert [job.id for job in second.look()] == ["20"]


def test_a_service_that_looks_seldom_does_not_hold_up_one_that_looks_often():
    """Turns are taken among those of one interval; what is found is told to all."""
    board = new_board()
    discovery([], {}, board, name="A", sleep_interval=300.0)[0].look()
    often, _, _ = discovery([Run(1, "queued", "CI")], {1: [workflow_job(10)]}, board, name="B")
    assert [job.id for job in often.look()] == ["10"]


@pytest.mark.parametrize("state", ["requested", "waiting", "pending"])
def test_a_server_that_does_not_know_a_rare_state_is_served(state):
    """An Enterprise Server of some years ago refuses it; what waits in the main states is seen."""
    looking, api, _ = discovery([Run(1, "queued", "CI")], {1: [workflow_job(10)]})
    api.refused_state = state
    for _ in range(3):
        assert [job.id for job in looking.look()] == ["10"]


def test_runs_that_are_over_are_not_asked_about():
    """A server that is late with its lists, or knows no filter."""
    looking, api, _ = discovery([Run(1, "completed", "CI"), Run(2, "queued", "CI")], {2: [workflow_job(10)]})
    api.lists_all = True
    assert [job.id for job in looking.look()] == ["10"]
    assert not any("/runs/1/jobs" in path for path, _ in api.asked)


def test_a_look_that_never_ends_is_not_waited_for():
    """The next interval comes; the turn ends by itself."""
    board = new_board()
    board.claim("anklet:{acme/app}:queue:me:every-1:turn", "other", 60.0)
    looking, api, context = discovery([Run(1, "queued", "CI")], {1: [workflow_job(10)]}, board)
    assert looking.look() == []
    assert api.asked == []
    assert context.now <= 3.1


def test_a_note_of_another_version_is_no_trouble():
    """What cannot be read was left by another version of the program."""
    board = new_board()
    board.claim("anklet:{acme/app}:queue:me:every-1:turn", "other", 60.0)
    board.post("anklet:{acme/app}:queue:me", '{"something": "else"}', 60.0)
    assert discovery(board=board)[0].look() == []


def test_a_claim_gives_nothing_away():
    """It is a question: another service may look only once the job is really taken."""
    board = new_board()
    first, _, _ = discovery([Run(1, "queued", "CI")], {1: [workflow_job(10, run_id=1)]}, board, name="A")
    (job,) = first.look()
    turns = set(board.shelf.leases)
    assert first.may_claim(job)
    assert set(board.shelf.leases) == turns
    first.leave_to_others(job)
    assert board.shelf.leases == {}


def test_after_a_job_the_known_queue_serves():
    """The jobs that are left are the oldest; each is asked about again before it is taken, and none twice."""
    jobs = {1: [workflow_job(10, run_id=1)], 2: [workflow_job(20, run_id=2)]}
    looking, api, _ = discovery([Run(1, "queued", "CI"), Run(2, "queued", "CI")], jobs)
    first = looking.look()[0]
    assert looking.may_claim(first)
    looking.leave_to_others(first)
    api.asked.clear()
    (second,) = looking.look()
    assert (second.id, api.asked) == ("20", [])
    assert looking.may_claim(second)
    looking.leave_to_others(second)
    assert [path for path, _ in api.asked] == ["/repos/acme/app/actions/runs/2/jobs"]
    looking.look()
    assert api.paths("/runs") == 3


@pytest.mark.parametrize(
    "now",
    [
        [],
        [workflow_job(10, status="in_progress")],
        [workflow_job(10, status="completed")],
        [workflow_job(10, labels=["self-hosted"])],
    ],
)
def test_a_job_that_is_not_what_it_was_is_not_taken(now):
    """It vanished, was taken, was cancelled, or asks for something else by now."""
    looking, api, _ = discovery([Run(7, "queued", "CI")], {7: [workflow_job(10)]})
    (job,) = looking.look()
    api.jobs[7] = now
    assert not looking.still_queued(job)
    api.trouble["/repos/acme/app/actions/runs/7/jobs"] = NotFound("run deleted")
    assert not looking.still_queued(job)


def test_rivals_are_jobs_that_our_runner_could_get():
    """Queued, another, and content with our runner's labels."""
    same, more = ["self-hosted", "anka", "ANKA-TEMPLATE:t"], ["self-hosted", "anka", "anka-template:t", "gpu"]
    for labels, rival in ((same, True), (more, False)):
        looking, _, _ = discovery([Run(7, "queued", "CI")], {7: [workflow_job(1), workflow_job(2, labels=labels)]})
        job = next(job for job in looking.look() if job.id == "1")
        assert looking.has_rivals(job) is rival


# ---- figures ----


def test_the_job_of_a_runner_is_found_where_another_service_has_looked():
    """A runner that was made for one repository's job got the one of another repository; this service has only read of both."""
    board = new_board()
    apis = []
    for name in ("A", "B"):
        api = FakeApi(jobs={7: [workflow_job(1)], 8: [workflow_job(2, run_id=8)]})
        api.runs_of = {
            "/repos/acme/a/actions/runs": [Run(7, "queued")],
            "/repos/acme/b/actions/runs": [Run(8, "queued")],
        }
        apis.append((name, api))
    (_, first), (_, second) = apis
    for api in (first, second):
        api.get_all = partial(_by_repository, api)
    options = {"registration": "org", "repo": "", "repos": ("a", "b")}
    discovery(api=first, board=board, name="A", **options)[0].look()
    looking, _, _ = discovery(api=second, board=board, name="B", **options)
    mine = next(job for job in looking.look() if job.id == "1")
    assert second.asked == []
    second.jobs[8] = [workflow_job(2, run_id=8, status="in_progress", runner_name=MINE)]
    found = looking.find_by_runner(MINE, ended_too=False, near=mine)
    assert found is not None
    assert (found[0].id, found[2]) == (2, Repo("acme", "b"))


def test_the_job_of_a_runner_is_found_though_the_run_that_it_was_made_for_was_deleted():
    """Somebody deleted it after it was cancelled; our runner works on."""
    running = workflow_job(2, run_id=8, status="in_progress", runner_name=MINE)
    looking, api, _ = discovery([Run(7, "queued"), Run(8, "in_progress")], {7: [workflow_job(1)], 8: [running]})
    (job,) = looking.look()
    del api.runs[0]
    api.trouble["/repos/acme/app/actions/runs/7/jobs"] = NotFound("404")
    found = looking.find_by_runner(MINE, ended_too=False, near=job)
    assert found is not None
    assert found[0].id == 2


def _by_repository(api, path, kind, **query):
    """Of several repositories, each with runs of its own."""
    api.runs = api.runs_of.get(path, [])
    return FakeApi.get_all(api, path, kind, **query)


def test_jobs_that_nobody_wants_are_reported():
    """Those that have waited for long without a claim: counted, and told once."""
    board = new_board()
    old = datetime.fromtimestamp(time.time() - 1000, UTC).isoformat()
    jobs = [workflow_job(1, created_at=old), workflow_job(2, created_at=old), workflow_job(3)]
    board.claim("anklet:{acme/app}:claim:2", "another host", 60.0)
    looking, _, context = discovery([Run(7, "queued", "CI")], {7: jobs}, board)
    looking.look()
    looking.look()
    assert context.figures[STALE_JOBS] == 1
    assert context.logged("WARNING") == ["a job has waited long and no service has claimed it"]


def test_what_was_told_is_not_remembered_for_ever(monkeypatch):
    """A service runs for months, and jobs that wait for long come every day."""
    monkeypatch.setattr(discovery_module, "_MOST_WARNED", 3)
    old = datetime.fromtimestamp(time.time() - 1000, UTC).isoformat()
    looking, api, context = discovery([Run(7, "queued", "CI")])
    for number in range(10):
        api.jobs[7] = [workflow_job(number, created_at=old), workflow_job(number + 1, created_at=old)]
        looking.look()
    assert len(looking._warned) == 3
    assert len(context.logged("WARNING")) == 11


# ---- organizations ----


@pytest.mark.parametrize(
    ("service", "expected"),
    [
        ({"repo": "app"}, ["app"]),
        ({"registration": "org"}, ["*"]),
        ({"registration": "org", "repo": "app"}, ["app"]),
        ({"registration": "org", "repo": "app", "repos": "ios-*"}, ["ios-*"]),
        ({"registration": "org", "repos": ("ios-*", "web")}, ["ios-*", "web"]),
    ],
)
def test_which_repositories_are_meant(service, expected):
    """The service's own, or those that it names of its organization, or all."""
    assert wanted(github_service(owner="acme", **service)) == expected


def org(found, runs=(), jobs=None, **service):
    """A service of an organization."""
    api = FakeApi(runs, jobs, [Repository(name) if isinstance(name, str) else name for name in found])
    return discovery(api=api, registration="org", repo="", **service)


def test_the_repositories_of_an_organization_are_looked_through():
    """All that match and live; each job belongs to its repository, also in the store."""
    repos = ["ios-app", "IOS-lib", "web", Repository("ios-old", archived=True), Repository("ios-off", disabled=True)]
    looking, api, _ = org(repos, [Run(7, "queued", "CI")], {7: [workflow_job(1)]}, repos="ios-*")
    found = looking.look()
    assert {(job.details["repo"], job.key("claim")) for job in found} == {
        ("ios-app", "anklet:{acme/ios-app}:claim:1"),
        ("IOS-lib", "anklet:{acme/IOS-lib}:claim:1"),
    }
    assert not any("web" in path or "old" in path or "off" in path for path, _ in api.asked)


def test_many_repositories_are_looked_through_in_turns():
    """A look at a hundred repositories would use up the budget: some each time, all in the end."""
    looking, api, _ = org([f"r{number}" for number in range(100)])
    asked = []
    for _ in range(7):
        looking.look()
        asked.append({path.split("/")[3] for path, _ in api.asked if path.startswith("/repos/")})
        api.asked.clear()
    assert max(map(len, asked)) == 15
    assert len(set().union(*asked)) == 100


def test_repositories_with_waiting_jobs_come_first_and_shut_out_no_other():
    """Where there is work, there is more; but jobs that wait for ever in some repositories must not hide those in others."""
    looking, api, _ = org([f"r{number}" for number in range(40)], [Run(7, "queued", "CI")], {7: [workflow_job(1)]})
    asked = []
    for _ in range(8):
        api.asked.clear()
        looking.look()
        asked.append({path.split("/")[3] for path, _ in api.asked if path.endswith("/jobs")})
    assert len(set().union(*asked)) == 40
    assert len(asked[-1] & asked[-2] | asked[-1] & asked[-3]) >= 5


def test_trouble_with_one_repository_spares_the_others():
    """What can be seen is served; only when nothing can be seen is it trouble."""
    looking, api, _ = org(["a", "b"], [Run(7, "queued", "CI")], {7: [workflow_job(1)]})
    api.trouble["/repos/acme/a/actions/runs"] = ApiTrouble("502")
    assert [job.details["repo"] for job in looking.look()] == ["b"]
    api.trouble["/repos/acme/b/actions/runs"] = ApiTrouble("503")
    with pytest.raises(ApiTrouble):
        looking.look()


def test_a_repository_that_may_not_be_seen_is_left_out_and_told_once():
    """An operator is told which; the others are served."""
    looking, api, context = org(["a", "b"], [Run(7, "queued", "CI")], {7: [workflow_job(1)]})
    api.trouble["/repos/acme/a/actions/runs"] = RightsRefused("404")
    for _ in range(3):
        assert [job.details["repo"] for job in looking.look()] == ["b"]
    assert context.logged("ERROR") == ["a repository is left out"]


@pytest.mark.parametrize("repos", ["*", ("a", "b")])
def test_a_repository_that_is_left_out_is_asked_about_again_ever_more_seldom(repos):
    """A new one may be refused for a moment; its jobs must not wait until somebody starts the service anew."""
    now = [0.0]
    looking, api, context = org(["a", "b"], clock=lambda: now[0], repos=repos)
    api.trouble["/repos/acme/a/actions/runs"] = RightsRefused("404")
    for _ in range(7 * 24 * 60):
        looking.look()
        now[0] += 60
    asked = sum(path == "/repos/acme/a/actions/runs" for path, _ in api.asked)
    assert 7 <= asked <= 20
    assert context.logged("ERROR") == ["a repository is left out"]
    del api.trouble["/repos/acme/a/actions/runs"]
    for _ in range(25 * 60):
        looking.look()
        now[0] += 60
    api.asked.clear()
    looking.look()
    assert ("/repos/acme/a/actions/runs", "queued") in api.asked
