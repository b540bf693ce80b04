"""The life cycle of runs and jobs: queued, assigned to a runner, in progress, completed, cancelled, re-run.

Owns every change of a Run or a Job. Knows runners only as the holder of a job; knows no HTTP. Call with `world.changed` held.
"""

from __future__ import annotations

import time

from emulators.github.engine.world import Job, Run

FAILED = ("failure", "timed_out", "cancelled")
_CONCLUSIONS = ("success", "failure", "neutral", "cancelled", "skipped", "timed_out", "action_required")
_JOB_KEYS = {"name", "labels", "steps", "duration", "conclusion", "needs"}


def queue_run(world, repo, jobs, *, workflow="CI", created=None, branch="main"):
    """Add a run with these jobs (see README.md for their keys); jobs without needs are queued at once."""
    specs = [_checked(spec, [other.get("name") for other in jobs]) for spec in jobs]
    if not specs:
        raise ValueError("a run has at least one job")
    now = time.time() if created is None else created
    repo.run_number += 1
    world.workflow_id(repo, workflow)
    run = Run(world.new_id("run"), repo, workflow, repo.run_number, branch, created=now, started=now, updated=now)
    world.runs[run.id] = run
    _new_attempt(world, run, [(spec, None) for spec in specs], now)
    return run


def _checked(spec, names):
    unknown = set(spec) - _JOB_KEYS
    if unknown or "name" not in spec:
        raise ValueError(f"a job has the keys {sorted(_JOB_KEYS)}, name among them; not {sorted(unknown)}")
    if spec.get("conclusion") not in (None, *_CONCLUSIONS):
        raise ValueError(f"no such conclusion: {spec['conclusion']}")
    missing = set(spec.get("needs") or ()) - set(names)
    if missing or names.count(spec["name"]) > 1:
        raise ValueError(f"job {spec['name']}: twice in its run, or it needs jobs that are not: {sorted(missing)}")
    return {
        "name": spec["name"],
        "labels": list(spec.get("labels") or ["self-hosted"]),
        "steps": list(spec.get("steps") or ()),
        "duration": float(spec.get("duration") or 0),
        "conclusion": spec.get("conclusion"),
        "needs": list(spec.get("needs") or ()),
    }


def _new_attempt(world, run, plan, now):
    """Make the jobs of a new attempt from pairs of a specification and the earlier job whose result it keeps, or None."""
    made = run.attempts[run.attempt] = []
    for spec, earlier in plan:
        job = Job(world.new_id("job"), run, run.attempt, spec, created=now)
        if earlier is not None:
            job.released, job.status, job.conclusion = True, "completed", earlier.conclusion
            job.created, job.started, job.completed = earlier.created, earlier.started, earlier.completed
            job.steps, job.runner, job.log = earlier.steps, earlier.runner, earlier.log
        world.jobs[job.id] = job
        made.append(job)
    _release(world, run, now)


def _release(world, run, now=None):
    """Queue the jobs whose needs are met; skip those whose needs failed. Repeats, as a skipped job settles the needs of others."""
    moved = True
    while moved:
        moved = False
        for job in run.jobs:
            if job.released:
                continue
            needs = [other for other in run.jobs if other.name in job.spec["needs"]]
            if any(other.status != "completed" for other in needs):
                continue
            job.created = time.time() if now is None else now
            job.released = moved = True
            if all(other.conclusion == "success" for other in needs):
                world.event("job-queued", **facts(job))
            else:
                _end(world, job, "skipped", "needs")


def facts(job):
    """The fields in every event of a job."""
    said = {"job_id": job.id, "job": job.name, "run_id": job.run.id, "run_attempt": job.attempt}
    said["repo"] = job.run.repo.full_name
    if job.runner:
        said.update(runner_id=job.runner["id"], runner_name=job.runner["name"])
    return said


def queued_for(world, runner):
    """Return the oldest queued job that this runner may take, or None. GitHub binds no job to a runner: labels decide."""
    refused = world.switches["refuse_assign"]
    if refused is True:
        return None
    offered = {label.lower() for label in runner.labels}
    fit = [
        job
        for job in world.jobs.values()
        if job.status == "queued"
        and job.released
        and job.holder is None
        and {label.lower() for label in job.labels} <= offered
        and _in_scope(runner, job.run.repo)
        and not (refused and (job.id in refused or job.name in refused))
    ]
    return min(fit, key=lambda job: (job.created, job.id), default=None)


def _in_scope(runner, repo):
    owner, name = runner.scope
    if owner.lower() != repo.owner.login.lower():
        return False
    if name is not None:
        return name.lower() == repo.name.lower()
    return runner.group.repos is None or repo.name in runner.group.repos


def assign(world, job, runner):
    """Give the job to the runner; it counts as queued until the runner acquires it."""
    job.holder, runner.job = runner.id, job
    job.assigned_at = time.monotonic()
    world.event("job-assigned", **facts(job) | {"runner_id": runner.id, "runner_name": runner.name})


def take_back(world, job, runner, reason):
    """The runner never acquired the job: requeue it, or end it if it was cancelled meanwhile."""
    job.holder = job.assigned_at = runner.job = None
    world.event("job-requeued", **facts(job) | {"runner_id": runner.id, "runner_name": runner.name}, reason=reason)
    if job.cancel_asked is not None:
        _end(world, job, "cancelled", "cancelled while assigned")


def start(world, job, runner):
    """The runner starts the job."""
    now = time.time()
    job.starts += 1
    if job.starts > 1:
        world.anomaly("job-started-twice", **facts(job), by=runner.name)
    job.status, job.started, job.assigned_at = "in_progress", now, None
    job.runner = {
        "id": runner.id,
        "name": runner.name,
        "group_id": runner.group.id,
        "group_name": runner.group.name,
    }
    run = job.run
    if run.status == "queued":
        run.status, run.started = "in_progress", now
    run.updated = now
    world.event("job-started", **facts(job))


def complete(world, job, conclusion, reason=""):
    """End the job, as reported by its runner or decided by GitHub."""
    if job.status == "completed":
        world.anomaly("job-completed-twice", **facts(job), conclusion=conclusion)
        return
    _end(world, job, conclusion, reason)


def _end(world, job, conclusion, reason):
    now = time.time()
    job.status, job.conclusion, job.completed, job.released = "completed", conclusion, now, True
    job.started = job.created if job.started is None else job.started
    job.holder = job.assigned_at = None
    for step in job.steps:
        if step["status"] != "completed":
            ended = conclusion if conclusion in ("success", "failure", "cancelled") else "failure"
            step.update(status="completed", conclusion=ended, completed_at=now)
    job.run.updated = now
    world.event("job-completed", **facts(job), conclusion=conclusion, reason=reason)
    _release(world, job.run)
    _settle(world, job.run)


def _settle(world, run):
    if run.status == "completed" or any(job.status != "completed" for job in run.jobs):
        return
    results = {job.conclusion for job in run.jobs}
    for conclusion in ("failure", "timed_out", "cancelled", "action_required", "success", "neutral", "skipped"):
        if conclusion in results:
            run.status, run.conclusion = "completed", "failure" if conclusion == "timed_out" else conclusion
            break
    run.updated = time.time()
    world.event("run-completed", run_id=run.id, run_attempt=run.attempt, conclusion=run.conclusion)


def cancel_job(world, job):
    """Cancel for a user: a queued job ends at once, a job with a runner when its runner obeys. False: too late."""
    if job.status == "completed":
        return False
    if job.holder is not None:
        if job.cancel_asked is None:
            job.cancel_asked = time.monotonic()
            world.event("job-cancel-asked", **facts(job))
        return True
    _end(world, job, "skipped" if not job.released else "cancelled", "cancelled while queued")
    return True


def cancel_run(world, run):
    """Cancel the rest of a run for a user. False: it is over."""
    if run.status == "completed":
        return False
    for job in sorted(run.jobs, key=lambda job: not job.spec["needs"]):  # dependants first, or they would be queued
        cancel_job(world, job)
    return True


def run_again(world, run, again):
    """Start a new attempt of a completed run: re-run the jobs for which `again(job)` holds, and all their dependants."""
    names = {job.name for job in run.jobs if again(job)}
    while True:
        more = {job.name for job in run.jobs if names & set(job.spec["needs"])} - names
        if not more:
            break
        names |= more
    if not names:
        return False
    now = time.time()
    before = run.jobs
    run.ended[run.attempt] = (run.status, run.conclusion, run.started, run.updated)
    run.attempt += 1
    run.status, run.conclusion, run.started, run.updated = "queued", None, now, now
    _new_attempt(world, run, [(job.spec, None if job.name in names else job) for job in before], now)
    return True
