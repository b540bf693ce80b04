"""The github plugin's decisions: which jobs are for us, in which order, and what is concluded from what GitHub says."""

import contextlib
import json
import logging
import subprocess
from pathlib import Path

import msgspec
import pytest
from anklet_github import api as api_module
from anklet_github.api import ApiTrouble, NotFound, Reply, Unprocessable
from anklet_github.discovery import Discovery, describe
from anklet_github.guest import INSTALL, GuestScripts, install_settings
from anklet_github.payloads import Run, Runner, WorkflowJob
from anklet_github.runners import RunnerBusy
from anklet_github.scope import Scope
from anklet_github.watch import Watch, Watching
from stage import eventually

from anklet_worker.attempt import exports
from anklet_worker.config import Runner as RunnerSettings
from anklet_worker.config import Secret, ServiceConfig
from anklet_worker.errors import JobLost, RetryElsewhere, RetryHere, RightsRefused
from anklet_worker.job import Conclusion
from anklet_worker.logs import ServiceLog
from anklet_worker.vm import GuestResult, VMSpec

SCOPE = Scope("acme", "app")
DATA = Path(__file__).resolve().parents[1] / "data"
MINE = "anklet-vm-00000001-aaaaaa-1-1"


class FakeContext:
    """The core, as far as the plugin sees it; waiting moves a clock."""

    def __init__(self, folder=Path("/nonexistent"), **service):
        self.service = ServiceConfig(
            **{
                "name": "S",
                "plugin": "github",
                "owner": "acme",
                "repo": "app",
                "token": Secret("t"),
                "sleep_interval": 1.0,
                **service,
            }
        )
        self.plugins_path = folder
        self.log = ServiceLog(logging.getLogger("test-github"), {})
        self.now = 0.0
        self.started = []
        self.paused = 0

    def check(self):
        """No orders."""

    def wait(self, seconds):
        self.now += seconds

    @contextlib.contextmanager
    def limit_paused(self):
        self.paused += 1
        yield

    def spec_from_labels(self, labels):
        return next((VMSpec(template=label[14:]) for label in labels if label.startswith("anka-template:")), None)

    def runner_online(self):
        self.online = True

    def job_started(self, job):
        self.started.append(job.id)


def workflow_job(number, **more):
    """A queued job for us."""
    labels = ["self-hosted", "anka", "anka-template:t"]
    return WorkflowJob(
        **{"id": number, "run_id": 7, "name": f"job {number}", "status": "queued", "labels": labels, **more}
    )


# ---- discovery ----


class FakeApi:
    """Lists by path."""

    def __init__(self, runs=(), jobs=None):
        self.runs, self.jobs = list(runs), jobs or {}

    def get_all(self, path, kind, **query):
        if path.endswith("/runs"):
            return [run for run in self.runs if run.status == query["status"]]
        return self.jobs[int(path.split("/")[-2])]


def look(runs, jobs, **service):
    """What a look finds; ids in order."""
    return [job.id for job in Discovery(FakeApi(runs, jobs), SCOPE, FakeContext(**service)).look()]


def test_queued_jobs_of_runs_in_progress_are_found():
    """A run that is in progress can still hold queued jobs; a run in both lists counts once."""
    runs = [Run(1, "queued", "CI"), Run(2, "in_progress", "CI")]
    assert look(runs, {1: [workflow_job(10)], 2: [workflow_job(20), workflow_job(21, status="in_progress")]}) == [
        "10",
        "20",
    ]


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


def test_a_jobs_log_fields_are_the_documented_ones():
    """What an operator finds in each line about the job."""
    labels = ["self-hosted", "anka", "anka-template:t", "unique-id:3"]
    job = describe(
        workflow_job(5, labels=labels, html_url="https://x/5"),
        Run(7, "queued", "CI", "Fix it"),
        VMSpec(template="t", tag="v"),
        SCOPE,
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


# ---- the watch ----


class FakeDiscovery:
    """Answers one look after the other; an exception is raised. The last answer lasts."""

    def __init__(self, answers, found=None):
        self.answers = list(answers)
        self.found = found

    def job(self, job_id):
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def find_by_runner(self, name, *, ended_too):
        return self.found


class FakeRunners:
    """Our runner, as GitHub lists it; `busy` refuses its removal."""

    def __init__(self, runner=None):
        self.runner = runner
        self.removed = 0

    def find(self, name):
        return self.runner

    def remove(self, runner):
        if runner is not None and runner.busy:
            raise RunnerBusy("busy")
        self.removed += 1
        self.runner = None


ONLINE = Runner(9, MINE, "online", busy=False)
BUSY = Runner(9, MINE, "online", busy=True)
OFFLINE = Runner(9, MINE, "offline", busy=False)


def watch(answers, runner=ONLINE, found=None):
    """Watch job 1 with these answers; the watch, its context, and the runners."""
    context = FakeContext()
    discovery, runners = FakeDiscovery(answers, found), FakeRunners(runner)
    watching = Watching(context=context, discovery=discovery, runners=runners, scope=SCOPE, clock=lambda: context.now)
    job = describe(workflow_job(1), Run(7, "queued", "CI"), VMSpec(template="t"), SCOPE)
    return Watch(watching, job, MINE), context, runners


def running(number=1):
    """The job runs on our runner."""
    return workflow_job(number, status="in_progress", runner_name=MINE)


def ended(conclusion, number=1, runner_name=MINE):
    """The job is over."""
    return workflow_job(number, status="completed", conclusion=conclusion, runner_name=runner_name)


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
    """Queued, in progress, completed; its start is told once."""
    following, context, _ = watch([workflow_job(1), running(), running(), ended(conclusion)])
    assert following.to_the_end().conclusion is expected
    assert context.started == ["1"]


def test_a_job_too_quick_to_be_seen_running_counts():
    """It is over at the first look, on our runner."""
    following, context, _ = watch([ended("success")])
    assert following.to_the_end().conclusion is Conclusion.SUCCESS
    assert context.started == ["1"]


@pytest.mark.parametrize("error", [ApiTrouble("502"), ApiTrouble("no answer"), NotFound("404 once")])
def test_an_error_of_github_never_ends_the_watch(error):
    """The job goes on, and so does the watch (the original deleted the VM under a running job)."""
    following, _, runners = watch([running(), error, error, error, running(), ended("success")], BUSY)
    assert following.to_the_end().conclusion is Conclusion.SUCCESS
    assert runners.removed == 0


def test_a_job_that_stays_unknown_while_its_runner_is_idle_has_vanished():
    """404 for two minutes, and a runner without a job: nothing is to be waited for."""
    following, context, _ = watch([running(), NotFound("404")], ONLINE)
    with pytest.raises(JobLost, match="vanished"):
        following.to_the_end()
    assert context.now >= 120


def test_a_job_that_stays_unknown_while_its_runner_is_busy_is_waited_for():
    """An outage answered 404 for live jobs: the runner's word counts, too."""
    following, _, _ = watch([running(), *[NotFound("404")] * 300, ended("success")], BUSY)
    assert following.to_the_end().conclusion is Conclusion.SUCCESS


def test_an_outage_on_top_of_a_missing_job_does_not_end_the_watch():
    """404 for the job and no answer about the runner prove nothing: the VM must not go from under a running job."""
    following, _, runners = watch([running(), *[NotFound("404")] * 300, ended("success")], BUSY)
    runners.find = _no_answer
    assert following.to_the_end().conclusion is Conclusion.SUCCESS


def _no_answer(_name):
    raise ApiTrouble("502")


def test_a_job_cancelled_before_its_runner_had_it_is_given_up():
    """The registration goes first, so that no other job lands."""
    following, context, runners = watch([workflow_job(1), ended("cancelled", runner_name=None)])
    with pytest.raises(JobLost):
        following.to_the_end()
    assert runners.removed == 1
    assert context.started == []


def test_a_job_cancelled_while_it_runs_is_an_outcome_though_it_names_no_runner_any_more():
    """It had started here."""
    following, _, _ = watch([running(), ended("cancelled", runner_name=None)], BUSY)
    assert following.to_the_end().conclusion is Conclusion.CANCELLED


def test_a_job_that_another_runner_got_is_given_up():
    """Our idle runner is withdrawn."""
    following, _, runners = watch([workflow_job(1, status="in_progress", runner_name="other")])
    with pytest.raises(JobLost, match="other"):
        following.to_the_end()
    assert runners.removed == 1


def test_another_job_on_our_runner_is_followed():
    """GitHub gave our runner job 2 instead: its outcome is ours to report."""
    other = (running(2), Run(8, "in_progress", "CI"))
    following, context, runners = watch([workflow_job(1), running(2), ended("failure", 2)], BUSY, other)
    outcome = following.to_the_end()
    assert (outcome.job_id, outcome.conclusion) == ("2", Conclusion.FAILURE)
    assert context.started == ["2"]
    assert runners.removed == 0


def test_another_job_that_our_runner_has_run_already_counts():
    """Our runner is gone from GitHub because it ran its one job."""
    other = (ended("success", 2), Run(8, "completed", "CI"))
    following, _, _ = watch([workflow_job(1)], None, other)
    assert following.to_the_end().job_id == "2"


def test_a_runner_that_is_gone_and_ran_nothing_is_tried_anew():
    """Somebody removed its registration."""
    following, _, _ = watch([workflow_job(1)], None, None)
    with pytest.raises(RetryHere, match="gone"):
        following.to_the_end()


@pytest.mark.parametrize(
    ("runner", "word", "seconds"), [(OFFLINE, "online within 120", 120), (ONLINE, "no job within 120", 240)]
)
def test_a_runner_that_does_not_come_to_work_is_withdrawn_in_time(runner, word, seconds):
    """Each stage has its deadline; the job is tried anew on another VM."""
    following, context, runners = watch([workflow_job(1)], runner)
    with pytest.raises(RetryHere, match=word):
        following.to_the_end()
    assert seconds <= context.now <= seconds + 5
    assert runners.removed == 1


def test_there_is_no_ceiling_for_a_job_that_runs():
    """Self-hosted jobs may run for five days."""
    following, context, _ = watch([*[running()] * 40_000, ended("success")], BUSY)
    assert following.to_the_end().conclusion is Conclusion.SUCCESS
    assert context.now > 10 * 3600


# ---- limits and refusals ----


def reply(status, body=b"{}", **headers):
    """A reply of GitHub's."""
    return Reply(status, {key.replace("_", "-"): value for key, value in headers.items()}, body)


@pytest.mark.parametrize(
    ("answer", "pause"),
    [
        (reply(200), None),
        (reply(200, x_ratelimit_remaining="0", x_ratelimit_reset="2000"), None),
        (reply(403, b'{"message": "Resource not accessible"}'), None),
        (
            reply(
                403, b'{"message": "Resource not accessible"}', x_ratelimit_remaining="4000", x_ratelimit_reset="2000"
            ),
            None,
        ),
        (reply(403, x_ratelimit_remaining="0", x_ratelimit_reset="1030"), 31.0),
        (reply(403, x_ratelimit_remaining="0", x_ratelimit_reset="900"), 1.0),
        (reply(403, b'{"message": "You have exceeded a secondary rate limit."}'), 60.0),
        (reply(429), 60.0),
        (reply(429, retry_after="7"), 7.0),
        (reply(403, retry_after="7"), 7.0),
        (reply(429, retry_after="999999"), 3900.0),
        (reply(500), None),
        (reply(404), None),
    ],
)
def test_what_is_a_limit_and_how_long(answer, pause):
    """A reply without rate headers is none (the original waited for ever); a right that is missing is none either."""
    assert api_module._limit_pause(answer, 60.0, 1000.0) == pause


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (reply(401, b'{"message": "Bad credentials"}'), RightsRefused, "Bad credentials"),
        (
            reply(403, b'{"message": "no"}', x_accepted_github_permissions="administration=write"),
            RightsRefused,
            "administration: write",
        ),
        (reply(404, b'{"message": "Not Found"}'), NotFound, "404"),
        (reply(422, b'{"message": "Runner is busy"}'), Unprocessable, "busy"),
        (reply(502, b"<html>"), ApiTrouble, "502"),
        (reply(301), ApiTrouble, "301"),
    ],
)
def test_who_is_to_act_on_an_error(answer, kind, words):
    """The class says who should try again; the words are GitHub's."""
    with pytest.raises(kind, match=words):
        api_module._raise_for(answer, "GET", "/x?token=secret")


@pytest.mark.parametrize("status", [200, 201, 202, 204, 304])
def test_success_is_no_error(status):
    """Nothing is raised."""
    assert api_module._raise_for(reply(status), "GET", "/x") is None


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"id": 1', b"[]", b'{"id": "x"}', b"null"])
def test_a_reply_that_is_not_as_documented_is_trouble(body):
    """Never an exception of a parser."""
    with pytest.raises(ApiTrouble, match="documented"):
        api_module._decode(body, WorkflowJob, "/x")


# ---- guest scripts ----


class LocalGuest:
    """Runs scripts as bash processes of this machine, in a home of its own with an empty environment."""

    name = MINE

    def __init__(self, home):
        self.home = home
        self.scripts = []

    def run(self, script, *, env, timeout):
        self.scripts.append(script)
        done = subprocess.run(
            ["bash", "-s"],
            input=exports(env) + script,
            cwd=self.home,
            env={"HOME": str(self.home), "PATH": "/usr/local/bin:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return GuestResult(status=done.returncode, output=done.stdout + done.stderr)

    def copy_in(self, source):
        target = self.home / source.name
        target.write_bytes(source.read_bytes())
        target.chmod(0o755)


def put_runner(home):
    """An image's runner that writes down how it was started."""
    folder = home / "actions-runner"
    folder.mkdir()
    (folder / "run.sh").write_text('#!/bin/sh\nprintf "%s" "$ACTIONS_RUNNER_INPUT_JITCONFIG" >"$HOME/started"\n')
    (folder / "config.sh").write_text(
        '#!/bin/sh\nenv | grep ACTIONS_RUNNER_INPUT_ | sort >"$HOME/configured"\necho "$@" >>"$HOME/configured"\n'
    )
    for script in folder.iterdir():
        script.chmod(0o755)


def test_a_runner_in_the_image_is_used(tmp_path):
    """Nothing is downloaded; the JIT configuration reaches run.sh by its environment."""
    put_runner(tmp_path)
    guest, scripts = LocalGuest(tmp_path), GuestScripts(FakeContext())
    scripts.install(guest)
    scripts.start(guest, "blob'with\"quotes$(x)")
    eventually((tmp_path / "started").exists, "the runner starts", 10)
    eventually(lambda: (tmp_path / "started").read_text() == "blob'with\"quotes$(x)", "it has its configuration", 10)
    assert not any("blob" in script for script in guest.scripts)


def test_no_runner_and_no_checksum_is_refused(tmp_path):
    """Nothing is downloaded that cannot be verified; the line says what to set."""
    with pytest.raises(RetryHere, match=r"runner\.sha256"):
        GuestScripts(FakeContext()).install(LocalGuest(tmp_path))


def test_an_operators_script_replaces_ours(tmp_path):
    """A file of that name in plugins_path/github/ is used instead."""
    home, theirs = tmp_path / "home", tmp_path / "plugins" / "github"
    home.mkdir()
    theirs.mkdir(parents=True)
    (theirs / INSTALL).write_text("echo theirs >installed-by\n")
    GuestScripts(FakeContext(tmp_path / "plugins")).install(LocalGuest(home))
    assert (home / "installed-by").read_text() == "theirs\n"


def test_token_mode_hands_everything_over_in_the_environment(tmp_path):
    """url, token, name and labels reach config.sh as ACTIONS_RUNNER_INPUT_*; no argument holds any of them."""
    put_runner(tmp_path)
    guest = LocalGuest(tmp_path)
    scripts = GuestScripts(FakeContext(runner_mode="token"))
    scripts.install(guest)
    scripts.register(guest, "https://github.com/acme/app", "AABBCC", ["a b", "c'd"])
    *environment, arguments = (tmp_path / "configured").read_text().splitlines()
    assert environment == [
        "ACTIONS_RUNNER_INPUT_LABELS=a b,c'd",
        f"ACTIONS_RUNNER_INPUT_NAME={MINE}",
        "ACTIONS_RUNNER_INPUT_TOKEN=AABBCC",
        "ACTIONS_RUNNER_INPUT_URL=https://github.com/acme/app",
    ]
    assert "AABBCC" not in arguments
    assert "--ephemeral" in arguments


def test_a_label_with_a_comma_cannot_be_registered_by_token(tmp_path):
    """It would become two labels."""
    with pytest.raises(RetryElsewhere, match="comma"):
        GuestScripts(FakeContext(runner_mode="token")).register(LocalGuest(tmp_path), "u", "t", ["a,b"])


def test_scripts_of_the_original_get_their_positions(tmp_path):
    """name, token, url, labels as arguments, each whole, whatever is in it."""
    home, theirs = tmp_path / "home", tmp_path / "plugins" / "github"
    home.mkdir()
    theirs.mkdir(parents=True)
    for name in ("install-runner.bash", "register-runner.bash", "start-runner.bash"):
        (theirs / name).write_text('printf "%s\\n" "$@" >got\n')
    scripts = GuestScripts(FakeContext(tmp_path / "plugins", runner_mode="token", script_arguments="original"))
    guest = LocalGuest(home)
    scripts.install(guest)
    scripts.register(guest, "https://github.com/acme/app", "AABBCC", ["a b", "$(touch hacked)"])
    assert (home / "got").read_text().splitlines() == [
        MINE,
        "AABBCC",
        "https://github.com/acme/app",
        "a b,$(touch hacked)",
    ]
    assert not (home / "hacked").exists()


def test_a_script_that_fails_tells_how(tmp_path):
    """Its status and the end of its output are in the one line."""
    home, theirs = tmp_path / "home", tmp_path / "plugins" / "github"
    home.mkdir()
    theirs.mkdir(parents=True)
    (theirs / INSTALL).write_text("echo no room on the disk >&2\nexit 9\n")
    with pytest.raises(RetryHere, match="status 9: no room on the disk"):
        GuestScripts(FakeContext(tmp_path / "plugins")).install(LocalGuest(home))


def test_a_start_script_that_blocks_does_not_hold_us_up(tmp_path):
    """An operator's script may run for as long as the runner."""
    home, theirs = tmp_path / "home", tmp_path / "plugins" / "github"
    home.mkdir()
    theirs.mkdir(parents=True)
    (theirs / "start-runner.bash").write_text("echo $$ >pid\nexec sleep 60\n")
    guest = LocalGuest(home)
    guest.copy_in(theirs / "start-runner.bash")
    GuestScripts(FakeContext(tmp_path / "plugins")).start(guest, None)
    subprocess.run(["kill", (home / "pid").read_text().strip()], check=True)


def test_the_downloads_settings():
    """Version and address are settings; the default address is that of the server's releases."""
    settings = install_settings(
        ServiceConfig(name="S", plugin="github", runner=RunnerSettings(version="2.400.0", sha256="ab" * 32))
    )
    assert settings["RUNNER_DOWNLOAD_URL"] == (
        "https://github.com/actions/runner/releases/download/v2.400.0/actions-runner-osx-${arch}-2.400.0.tar.gz"
    )
    assert settings["RUNNER_SHA256"] == "ab" * 32
