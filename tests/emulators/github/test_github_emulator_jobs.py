"""How the emulated GitHub assigns jobs: labels, order, cancellation, silence, re-runs. Listeners here have no process."""

from __future__ import annotations

import http.client
import threading

import pytest
import urllib3
from emulators.github.bench import LABELS, REPO, Listener


def job_ids(run):
    """The ids of a run's jobs."""
    return [job["id"] for job in run["jobs"]]


@pytest.fixture
def online(api, listen):
    """A function that registers a runner by name and returns (runner id, online Listener)."""

    def made(name="mac-1", labels=None, **more):
        config = api.jit(name, labels, **more)
        return config["runner"]["id"], listen(config["encoded_jit_config"])

    return made


@pytest.fixture
def running(online, queue):
    """A function that starts a job by name and returns (run, runner id, Listener that runs the job)."""

    def made(name="build", runner="mac-1"):
        run = queue(name)
        number, listener = online(runner)
        status, message = listener.poll()
        assert (status, message["messageType"], message["jobId"]) == (200, "RunnerJobRequest", run["jobs"][0]["id"])
        assert listener.acquire(message["jobId"]) == 200
        return run, number, listener

    return made


def test_a_run_in_progress_can_hold_queued_jobs(api, github, online, queue):
    """A run is in progress from its first job's start, whatever its other jobs' states, and completed with its last job."""
    run = queue("one", "two")
    first, second = job_ids(run)
    path = f"{REPO}/actions/runs/{run['id']}"
    _, listener = online()
    listener.poll()
    assert api.get(path)["status"] == "queued"
    listener.acquire(first)
    assert api.get(path)["status"] == "in_progress"
    assert [job["status"] for job in api.get(f"{path}/jobs")["jobs"]] == ["in_progress", "queued"]
    assert api.get(f"{REPO}/actions/runs", status="queued")["total_count"] == 0
    listener.finish(first, "failure")
    assert api.get(path)["status"] == "in_progress"
    _, listener = online("mac-2")
    listener.poll()
    listener.acquire(second)
    listener.finish(second)
    assert (github.run(run["id"])["status"], github.run(run["id"])["conclusion"]) == ("completed", "failure")
    assert github.anomalies() == []


def test_a_started_job_names_its_runner(api, running):
    """A job in progress has id, name and group of its runner, which is online and busy."""
    run, number, _ = running()
    job = api.get(f"{REPO}/actions/jobs/{job_ids(run)[0]}")
    assert (job["status"], job["runner_id"], job["runner_name"]) == ("in_progress", number, "mac-1")
    assert (job["runner_group_id"], job["runner_group_name"]) == (1, "Default")
    runner = api.get(f"{REPO}/actions/runners/{number}")
    assert (runner["status"], runner["busy"], runner["os"], runner["version"]) == ("online", True, "macOS", "2.336.0")


def test_labels_decide_not_the_purpose(github, online, queue):
    """A runner made for one job gets the oldest job that its labels fit, without regard to case."""
    newer = queue("newer")
    older = queue("older", labels=["ANKA"], created_at="2024-01-01T00:00:00Z")
    unfit = queue("unfit", labels=["anka", "gpu"], created_at="2023-01-01T00:00:00Z")
    _, listener = online("made-for-newer")
    _, message = listener.poll()
    assert message["jobId"] == job_ids(older)[0]
    _, other = online("made-for-older")
    assert other.poll()[1]["jobId"] == job_ids(newer)[0]
    assert github.job(job_ids(unfit)[0])["status"] == "queued"


def test_scopes_bound_assignment(github, api, online, queue):
    """A repository's runner serves that repository; an organisation's serves the repositories that its group admits."""
    github.add_repo("octo-org", "second")
    github.add_repo("stranger", "hello")
    group = github.add_group("octo-org", "few", repos=["second"])["id"]
    github.set(poll_seconds=0.05)
    github.queue_run("stranger", "hello", [{"name": "theirs", "labels": ["anka"]}])
    run = queue("ours")
    _, few = online("few", scope="/orgs/octo-org", group=group)
    assert few.poll() == (202, None)
    _, every = online("every", scope="/orgs/octo-org")
    assert every.poll()[1]["jobId"] == job_ids(run)[0]
    second = github.queue_run("octo-org", "second", [{"name": "second", "labels": ["anka"]}])
    assert few.poll()[1]["jobId"] == job_ids(second)[0]


def test_a_waiting_poll_gets_a_new_job_at_once(github, online, queue, closing):
    """A new job wakes a waiting listener; no timer is involved."""
    _, listener = online()
    got = []
    thread = threading.Thread(target=lambda: got.append(listener.poll()))
    thread.start()
    closing.callback(thread.join)
    run = queue("build")
    github.wait_for(lambda: got, 5)
    assert got[0][1]["jobId"] == job_ids(run)[0]
    kinds = [event["event"] for event in github.events()]
    assert kinds == ["runner-registered", "runner-online", "job-queued", "job-assigned"]


def test_an_ephemeral_runner_goes_with_its_job(api, github, running):
    """After its one job the registration is gone; its listener learns that at its next poll."""
    run, number, listener = running()
    assert listener.finish(job_ids(run)[0]) == 204
    assert api.get(f"{REPO}/actions/runners")["runners"] == []
    assert listener.poll()[0] == 404
    job = github.job(job_ids(run)[0])
    assert (job["status"], job["conclusion"], job["runner_id"], job["starts"]) == ("completed", "success", number, 1)
    deleted = github.events("runner-deleted")
    assert [(event["runner_id"], event["reason"]) for event in deleted] == [(number, "ephemeral, its job is over")]


def test_removal_may_lag(api, github, running):
    """With `removal_delay`, the finished runner stays on the list for a while and gets no further job."""
    github.set(removal_delay=0.3, poll_seconds=0.05)
    run, number, listener = running()
    listener.finish(job_ids(run)[0])
    runner = api.get(f"{REPO}/actions/runners/{number}")
    assert (runner["status"], runner["busy"]) == ("online", False)
    github.wait_for(lambda: github.runners("octo-org", "hello") == [], 5)
    assert listener.poll()[0] == 404


def test_a_busy_runner_cannot_be_deleted(api, github, online, queue):
    """From the assignment on, before the job starts, DELETE is 422; a free runner is deleted, and its poll reports that."""
    queue("build")
    number, listener = online()
    listener.poll()
    reply = api.call("DELETE", f"{REPO}/actions/runners/{number}")
    assert (reply.status, "still running a job" in reply.json()["message"]) == (422, True)
    idle, other = online("idle")
    got = []
    thread = threading.Thread(target=lambda: got.append(other.poll()))
    thread.start()
    assert api.call("DELETE", f"{REPO}/actions/runners/{idle}").status == 204
    github.wait_for(lambda: got, 5)
    thread.join()
    assert got[0][0] == 404


def test_a_queued_job_is_cancelled_at_once(api, queue, github):
    """Cancelling a queued run completes its jobs without a runner and skips their dependants; a second cancel is a conflict."""
    run = queue("build", {"name": "deploy", "needs": ["build"]})
    path = f"{REPO}/actions/runs/{run['id']}"
    assert api.call("POST", f"{path}/cancel").status == 202
    jobs = api.get(f"{path}/jobs")["jobs"]
    assert [(job["conclusion"], job["runner_id"]) for job in jobs] == [("cancelled", None), ("skipped", None)]
    assert api.get(path)["conclusion"] == "cancelled"
    assert api.call("POST", f"{path}/cancel").status == api.call("POST", f"{path}/force-cancel").status == 409
    assert [event["job"] for event in github.events("job-queued")] == ["build"]


def test_a_running_job_is_told_once_to_stop(api, github, running):
    """A cancel reaches the runner of a running job at its next poll; the job ends when the runner reports it."""
    github.set(poll_seconds=0.05)
    run, _, listener = running()
    number = job_ids(run)[0]
    assert api.call("POST", f"{REPO}/actions/runs/{run['id']}/cancel").status == 202
    assert github.job(number)["status"] == "in_progress"
    assert listener.poll() == (200, {"messageType": "JobCancellation", "jobId": number})
    assert listener.poll() == (202, None)
    listener.finish(number, "cancelled")
    assert github.run(run["id"])["conclusion"] == "cancelled"


def test_a_runner_that_does_not_stop_is_overruled(api, github, running):
    """A cancelled job ends after `cancel_timeout`, or at once with a forced cancel; late reports are anomalies."""
    github.set(cancel_timeout=0.1)
    run, _, _ = running()
    github.cancel_run(run["id"])
    github.wait_for(lambda: github.run(run["id"])["status"] == "completed", 5)
    other, _, listener = running("other", "mac-2")
    assert api.call("POST", f"{REPO}/actions/runs/{other['id']}/force-cancel").status == 202
    assert github.job(job_ids(other)[0])["conclusion"] == "cancelled"
    assert github.runners("octo-org", "hello") == []
    assert listener.finish(job_ids(other)[0]) == 404


def test_a_job_cancelled_between_assignment_and_start(github, online, queue):
    """A job that is cancelled before its runner starts it never starts, and uses up its runner's registration."""
    run = queue("build")
    number, listener = online()
    listener.poll()
    assert github.cancel_job(job_ids(run)[0])
    assert listener.acquire(job_ids(run)[0]) == 422
    job = github.job(job_ids(run)[0])
    assert (job["conclusion"], job["starts"]) == ("cancelled", 0)
    assert github.runners("octo-org", "hello") == []
    assert not github.events("job-started")
    assert number == github.events("job-assigned")[0]["runner_id"]


def test_a_job_not_picked_up_is_queued_again(github, api, online, queue):
    """An assigned job returns to the queue after `pickup_after`; a runner that comes too late is refused."""
    github.set(pickup_after=0.1)
    run = queue("build")
    _, sleepy = online("sleepy")
    sleepy.poll()
    github.wait_for(lambda: github.events("job-requeued"), 5)
    github.set(pickup_after=60)
    _, listener = online("awake")
    assert listener.poll()[1]["jobId"] == job_ids(run)[0]
    assert sleepy.acquire(job_ids(run)[0]) == 404
    assert [one["anomaly"] for one in github.anomalies()] == ["stranger-acquires"]


def test_a_silent_runner_goes_offline(github, online):
    """A runner that does not poll is offline after `offline_after`, and online again once it polls."""
    github.set(offline_after=0.1, poll_seconds=0.01)
    number, listener = online()
    github.wait_for(lambda: github.runners("octo-org", "hello")[0]["status"] == "offline", 5)
    assert listener.poll() == (202, None)
    events = [event["event"] for event in github.events() if event.get("runner_id") == number]
    assert events[:4] == ["runner-registered", "runner-online", "runner-offline", "runner-online"]


def test_a_lost_runner_keeps_its_job_until_github_gives_up(api, github, running):
    """A runner lost in mid-job is offline but busy (422); after `lost_after` the job fails and the runner is gone."""
    github.set(offline_after=0.05, lost_after=60)
    run, number, _ = running()
    github.wait_for(lambda: github.runners("octo-org", "hello")[0]["status"] == "offline", 5)
    assert api.get(f"{REPO}/actions/runners/{number}")["busy"] is True
    assert api.call("DELETE", f"{REPO}/actions/runners/{number}").status == 422
    assert github.job(job_ids(run)[0])["status"] == "in_progress"
    github.set(lost_after=0.05)
    github.wait_for(lambda: github.job(job_ids(run)[0])["status"] == "completed", 5)
    assert github.job(job_ids(run)[0])["conclusion"] == "failure"
    assert github.events("job-completed")[0]["reason"] == "lost communication"
    assert api.call("GET", f"{REPO}/actions/runners/{number}").status == 404


def test_a_poll_that_hangs_up_loses_no_job(github, online, queue):
    """A listener whose connection ended while it waited gets no job."""
    github.set(offline_after=0.05)
    _, gone = online("gone")
    thread = threading.Thread(target=_poll_and_vanish, args=(gone,))
    thread.start()
    thread.join()
    github.wait_for(lambda: github.runners("octo-org", "hello")[0]["status"] == "offline", 5)
    run = queue("build")
    _, listener = online("mac-2")
    assert listener.poll()[1]["jobId"] == job_ids(run)[0]


def _poll_and_vanish(listener):
    parts = urllib3.util.parse_url(f"{listener._base}/message?sessionId={listener.session}")
    connection = http.client.HTTPConnection(parts.host, parts.port)
    connection.request("GET", parts.request_uri, headers=listener._headers)
    connection.close()


def test_a_jit_configuration_works_once(api, github, listen, closing):
    """A second session beside a living one is a conflict; after its end the configuration is used up. Both are recorded."""
    config = api.jit()["encoded_jit_config"]
    first = listen(config)
    second = Listener(config)
    closing.callback(second.close)
    assert second.open() == 409
    assert first.call("DELETE", f"session?sessionId={first.session}").status == 204
    assert github.runners("octo-org", "hello")[0]["status"] == "offline"
    assert second.open() == 404
    assert [one["anomaly"] for one in github.anomalies()] == ["second-session", "jit-config-used-twice"]


def test_a_repeated_request_is_no_double_run(api, github, online, queue):
    """A start or an end repeated after a lost reply counts once; a second start is an anomaly."""
    run = queue("build")
    number = job_ids(run)[0]
    _, listener = online()
    listener.poll()
    assert listener.acquire(number, "a") == listener.acquire(number, "a") == 200
    assert github.job(number)["starts"] == 1
    assert github.anomalies() == []
    assert listener.acquire(number, "b") == 409
    assert [one["anomaly"] for one in github.anomalies()] == ["job-started-twice"]


def test_an_old_runner_version_is_refused(api, github, closing):
    """With `minimum_runner_version` a runner below it gets no session."""
    github.set(minimum_runner_version="2.330.0")
    listener = Listener(api.jit()["encoded_jit_config"])
    closing.callback(listener.close)
    assert listener.open(version="2.316.0") == 403
    assert listener.open(version="2.330.0") == 200


def test_jobs_wait_for_what_they_need(api, github, online, queue):
    """A job with unmet needs is invisible; later it is queued, or skipped if its needs failed."""
    run = queue("build", {"name": "test", "labels": ["anka"], "needs": ["build"]}, {"name": "ship", "needs": ["test"]})
    path = f"{REPO}/actions/runs/{run['id']}/jobs"
    assert [job["name"] for job in api.get(path)["jobs"]] == ["build"]
    assert api.call("GET", f"{REPO}/actions/jobs/{job_ids(run)[1]}").status == 404
    for name, conclusion in (("build", "success"), ("test", "failure")):
        _, listener = online(name)
        number = listener.poll()[1]["jobId"]
        listener.acquire(number)
        listener.finish(number, conclusion)
    assert [job["conclusion"] for job in api.get(path)["jobs"]] == ["success", "failure", "skipped"]
    assert github.run(run["id"])["conclusion"] == "failure"


def test_a_rerun_gives_new_ids(api, github, running):
    """A re-run keeps the run's id, increments run_attempt and gives every job a new id; a running run has no re-run."""
    run, _, listener = running()
    path = f"{REPO}/actions/runs/{run['id']}"
    assert api.call("POST", f"{path}/rerun").status == 403
    listener.finish(job_ids(run)[0])
    assert api.call("POST", f"{path}/rerun-failed-jobs").status == 403
    assert api.call("POST", f"{path}/rerun", {}).status == 201
    again = api.get(path)
    assert (again["run_attempt"], again["status"], again["conclusion"]) == (2, "queued", None)
    jobs = api.get(f"{path}/jobs")["jobs"]
    assert [(job["run_attempt"], job["status"], job["id"] > job_ids(run)[0]) for job in jobs] == [(2, "queued", True)]
    assert api.get(f"{path}/jobs", filter="all")["total_count"] == 2
    assert api.get(f"{path}/attempts/1/jobs")["jobs"][0]["conclusion"] == "success"
    assert api.get(f"{path}/attempts/1")["conclusion"] == "success"
    assert again["previous_attempt_url"].endswith("/attempts/1")


def test_only_the_failed_jobs_run_again(api, github, online, queue):
    """A re-run of the failed jobs, or of one job, carries the others' results over; dependants run again too."""
    run = queue("good", "bad", {"name": "after", "needs": ["bad"]})
    for conclusion in ("success", "failure"):
        _, listener = online(f"for-{conclusion}")
        number = listener.poll()[1]["jobId"]
        listener.acquire(number)
        listener.finish(number, conclusion)
    assert api.call("POST", f"{REPO}/actions/runs/{run['id']}/rerun-failed-jobs").status == 201
    again = github.run(run["id"])["jobs"]
    assert [(job["status"], job["conclusion"], job["released"]) for job in again] == [
        ("completed", "success", True),
        ("queued", None, True),
        ("queued", None, False),
    ]
    github.cancel_run(run["id"])
    first = github.run(run["id"])["jobs"][0]
    assert api.call("POST", f"{REPO}/actions/jobs/{first['id']}/rerun").status == 201
    assert [job["status"] for job in github.run(run["id"])["jobs"]] == ["queued", "completed", "completed"]


def test_assignment_can_be_held_back(github, online, queue):
    """With `refuse_assign`, no job is assigned, or only this job is held back."""
    github.set(poll_seconds=0.05, refuse_assign=["held"])
    queue("held")
    free = queue("free")
    _, listener = online()
    assert listener.poll()[1]["jobId"] == job_ids(free)[0]
    _, other = online("mac-2")
    github.set(refuse_assign=True)
    assert other.poll() == (202, None)
    github.set(refuse_assign=False)
    assert other.poll()[0] == 200


def test_a_foreign_runner_can_take_a_job(github, api, queue):
    """Tests can let a foreign runner run a job; an administrator can delete a registration."""
    run = queue("build")
    runner = github.add_runner("octo-org", "hello", "theirs", LABELS, job_id=job_ids(run)[0])
    assert api.get(f"{REPO}/actions/jobs/{job_ids(run)[0]}")["runner_name"] == "theirs"
    assert api.get(f"{REPO}/actions/runners/{runner['id']}")["busy"] is True
    github.delete_runner(runner["id"])
    assert api.get(f"{REPO}/actions/runners")["total_count"] == 0


def test_a_run_is_checked(github):
    """A run with an unknown key, need or conclusion is refused, as is an unknown switch or repository."""
    for job in ({"name": "x", "label": []}, {"name": "x", "needs": ["y"]}, {"name": "x", "conclusion": "good"}, {}):
        with pytest.raises(ValueError, match=r"job|conclusion"):
            github.queue_run("octo-org", "hello", [job])
    with pytest.raises(ValueError, match="no such repository"):
        github.queue_run("octo-org", "none", [{"name": "x"}])
    with pytest.raises(ValueError, match="no such switch"):
        github.set(offline=1)
    with pytest.raises(TimeoutError):
        github.wait_for(lambda: False, 0.01)
