"""REST routes of runs, jobs and workflows."""

from __future__ import annotations

import datetime as dt

from emulators.github.engine import jobs, render, runners
from emulators.github.engine.exchange import Refusal, Reply, not_found, page

_STATUSES = ("queued", "in_progress", "completed", "waiting", "requested", "pending")
_MOST_FILTERED = 1000
_FILTERS = ("actor", "branch", "check_suite_id", "created", "event", "head_sha", "status")


def list_runs(world, request, repo, workflow=None):
    """GET .../actions/runs and .../workflows/{id}/runs: newest first; at most 1,000 when filtered."""
    query = request.query
    found = [run for run in world.runs.values() if run.repo is repo and (workflow is None or run.workflow == workflow)]
    found = [run for run in found if _matches(run, query)]
    found.sort(key=lambda run: (run.created, run.id), reverse=True)
    if any(query.get(name) for name in _FILTERS):
        found = found[:_MOST_FILTERED]
    body, headers = page(request, found, "workflow_runs")
    body["workflow_runs"] = [render.workflow_run(request.urls, run) for run in body["workflow_runs"]]
    return Reply(200, body, headers)


def _matches(run, query):
    status = query.get("status")
    if status and status != (run.status if status in _STATUSES else run.conclusion):
        return False
    if query.get("branch") not in (None, "", run.branch) or query.get("event") not in (None, "", "push"):
        return False
    if query.get("actor") and query["actor"].lower() != run.repo.owner.login.lower():
        return False
    return _within(run.created, query.get("created"))


def _within(moment, span):
    """GitHub's search syntax for dates: D, >D, >=D, <D, <=D, D..D, D..*, *..D."""
    if not span:
        return True
    moment = int(moment)
    for sign in (">=", "<=", ">", "<"):
        if span.startswith(sign):
            first, last = _span(span[len(sign) :])
            return {">=": moment >= first, "<=": moment <= last, ">": moment > last, "<": moment < first}[sign]
    low, dots, high = span.partition("..")
    if not dots:
        high = low
    return (low == "*" or moment >= _span(low)[0]) and (high == "*" or moment <= _span(high)[1])


def _span(text):
    """The first and last second of a date or a time."""
    try:
        start = dt.datetime.fromisoformat(text.replace(" ", "+"))  # a plus sign in the query arrives as a blank
    except ValueError:
        raise Refusal(422, "Validation Failed", errors=[f"not a date: {text}"]) from None
    if start.tzinfo is None:
        start = start.replace(tzinfo=dt.UTC)
    first = int(start.timestamp())
    return first, first + 86399 if "T" not in text else first


def _run(world, repo, run_id):
    run = world.runs.get(int(run_id))
    if run is None or run.repo is not repo:
        raise not_found()
    return run


def _job(world, repo, job_id):
    job = world.jobs.get(int(job_id))
    if job is None or job.run.repo is not repo or not job.released:
        raise not_found()
    return job


def get_run(world, request, repo, run_id):
    """GET .../runs/{id}."""
    return Reply(200, render.workflow_run(request.urls, _run(world, repo, run_id)))


def get_attempt(world, request, repo, run_id, number):
    """GET .../runs/{id}/attempts/{n}."""
    run = _run(world, repo, run_id)
    if int(number) not in run.attempts:
        raise not_found()
    return Reply(200, render.workflow_run(request.urls, run, int(number)))


def list_jobs(world, request, repo, run_id):
    """GET .../runs/{id}/jobs: of the latest attempt, or of all."""
    run = _run(world, repo, run_id)
    attempts = run.attempts.values() if request.query.get("filter") == "all" else [run.jobs]
    return _jobs(request, [job for jobs_of in attempts for job in jobs_of])


def list_attempt_jobs(world, request, repo, run_id, number):
    """GET .../runs/{id}/attempts/{n}/jobs."""
    run = _run(world, repo, run_id)
    if int(number) not in run.attempts:
        raise not_found()
    return _jobs(request, run.attempts[int(number)])


def _jobs(request, found):
    body, headers = page(request, [job for job in found if job.released], "jobs")
    body["jobs"] = [render.job(request.urls, job) for job in body["jobs"]]
    return Reply(200, body, headers)


def get_job(world, request, repo, job_id):
    """GET .../jobs/{id}."""
    return Reply(200, render.job(request.urls, _job(world, repo, job_id)))


def cancel(world, request, repo, run_id):
    """POST .../runs/{id}/cancel."""
    if not jobs.cancel_run(world, _run(world, repo, run_id)):
        raise Refusal(409, "Cannot cancel a workflow run that is completed.")
    return Reply(202, {})


def force_cancel(world, request, repo, run_id):
    """POST .../runs/{id}/force-cancel."""
    if not runners.force_cancel(world, _run(world, repo, run_id)):
        raise Refusal(409, "Cannot cancel a workflow run that is completed.")
    return Reply(202, {})


def rerun(world, request, repo, run_id):
    """POST .../runs/{id}/rerun: every job."""
    return _again(world, request, _run(world, repo, run_id), lambda _job: True)


def rerun_failed(world, request, repo, run_id):
    """POST .../runs/{id}/rerun-failed-jobs."""
    return _again(world, request, _run(world, repo, run_id), lambda job: job.conclusion in jobs.FAILED)


def rerun_job(world, request, repo, job_id):
    """POST .../jobs/{id}/rerun: this job and its dependants."""
    job = _job(world, repo, job_id)
    return _again(world, request, job.run, lambda other: other.name == job.name)


def _again(world, request, run, chosen):
    request.json()
    if run.status != "completed":
        raise Refusal(403, "This workflow is already running")
    if not jobs.run_again(world, run, chosen):
        raise Refusal(403, "The workflow run containing this job cannot be retried: there are no failed jobs to re-run")
    return Reply(201, {})


def list_workflows(world, request, repo):
    """GET .../actions/workflows."""
    body, headers = page(request, list(repo.workflows.items()), "workflows")
    body["workflows"] = [render.workflow(request.urls, repo, name, number) for name, number in body["workflows"]]
    return Reply(200, body, headers)


def _workflow(request, repo, workflow):
    for name, number in repo.workflows.items():
        body = render.workflow(request.urls, repo, name, number)
        if workflow in (str(number), body["path"].rsplit("/", 1)[1]):
            return name, body
    raise not_found()


def get_workflow(world, request, repo, workflow):
    """GET .../actions/workflows/{id or file name}."""
    return Reply(200, _workflow(request, repo, workflow)[1])


def list_workflow_runs(world, request, repo, workflow):
    """GET .../actions/workflows/{id or file name}/runs."""
    return list_runs(world, request, repo, _workflow(request, repo, workflow)[0])
