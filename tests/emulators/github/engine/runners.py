"""The life cycle of runners (registered, online, busy, lost, removed) and the requests of their listeners.

Owns every change of a Runner and the clock that detects silent ones. Knows no HTTP: a refusal is a `Refused` with the status
and the type that the service answers. Call with `world.changed` held.
"""

from __future__ import annotations

import base64
import json
import secrets
import time

from emulators.github.engine import jobs
from emulators.github.engine.world import Runner

BAD_IN_NAMES = set('":<>|*?/\\')
LONGEST_NAME = 64
MOST_LABELS = 100


class Refused(Exception):
    """The service refuses: HTTP status, the service's name for the exception type, and a text."""

    def __init__(self, status, kind, message, **more):
        super().__init__(message)
        self.status = status
        self.body = {"typeName": kind, "message": message, **more}


def faults_of_name(name):
    """Return the problems of a runner's name as a list of texts."""
    if not isinstance(name, str) or not name.strip():
        return ["name must not be blank"]
    wrong = []
    if len(name) > LONGEST_NAME:
        wrong.append(f"name is too long (maximum is {LONGEST_NAME} characters)")
    if BAD_IN_NAMES & set(name):
        wrong.append('name must not contain any of ":<>|*?/\\')
    return wrong


def in_scope(world, scope):
    """The runners of a repository or an organisation, oldest first."""
    key = _key(scope)
    return [runner for runner in world.runners.values() if _key(runner.scope) == key]


def _key(scope):
    return tuple(part and part.lower() for part in scope)


def by_name(world, scope, name):
    """The runner of this name in a scope, or None; ignores case."""
    return next((runner for runner in in_scope(world, scope) if runner.name.lower() == name.lower()), None)


def register(world, scope, name, labels, *, group, ephemeral, jit=False, work_folder="_work"):  # noqa: PLR0913  what a runner is
    """Register a new runner, which is offline until its listener opens a session."""
    runner = Runner(
        id=world.new_id("runner"),
        name=name,
        scope=scope,
        labels=list(dict.fromkeys(labels)),
        group=group,
        secret=secrets.token_urlsafe(48),
        ephemeral=ephemeral,
        jit=jit,
        work_folder=work_folder,
        contact=time.monotonic(),
    )
    world.runners[runner.id] = runner
    world.event("runner-registered", **facts(runner), labels=runner.labels, jit=jit, ephemeral=ephemeral)
    return runner


def facts(runner):
    """The fields in every event of a runner."""
    return {"runner_id": runner.id, "runner_name": runner.name}


def remove(world, runner, reason):
    """Delete the registration; a listener that still polls learns it at once."""
    if world.runners.pop(runner.id, None):
        runner.status, runner.session = "offline", None
        world.event("runner-deleted", **facts(runner), reason=reason)


def settings_files(world, runner, root):
    """The files that bind a runner's folder to its registration: name -> text."""
    service = f"{root}/_services/runner/"
    owner, repo = runner.scope
    dot_runner = {
        "AgentId": str(runner.id),
        "AgentName": runner.name,
        "DisableUpdate": "True",
        "Ephemeral": str(runner.ephemeral),
        "PoolId": str(runner.group.id),
        "PoolName": runner.group.name,
        "ServerUrl": service,
        "GitHubUrl": f"{root}/{owner}/{repo}" if repo else f"{root}/{owner}",
        "WorkFolder": runner.work_folder,
        "UseV2Flow": "True",
        "ServerUrlV2": service,
    }
    credentials = {
        "Scheme": "OAuth",
        "Data": {
            "ClientId": f"emulated-{runner.id}",
            "AuthorizationUrl": f"{service}oauth2/token",
            "RequireFipsCryptography": "True",
        },
    }
    return {
        ".runner": json.dumps(dot_runner),
        ".credentials": json.dumps(credentials),
        ".credentials_rsaparams": json.dumps({"d": runner.secret, "exponent": "AQAB"}),
    }


def jit_config(world, runner, root):
    """The `encoded_jit_config` of a runner: base64 of JSON, file name -> base64 of its content."""
    files = settings_files(world, runner, root)
    return _encode(json.dumps({name: _encode(text) for name, text in files.items()}))


def _encode(text):
    return base64.b64encode(text.encode()).decode()


def authenticate(world, runner_id, secret):
    """Return the runner whose credential the listener presents; Refused if it is no longer registered."""
    runner = world.runners.get(runner_id)
    if runner is None or not secrets.compare_digest(runner.secret.encode(), secret.encode()):
        raise Refused(404, "AgentNotFoundException", "The runner registration has been deleted from the server.")
    return runner


def open_session(world, runner, nonce, *, version, os):
    """Open the runner's only session and return its id. The same `nonce` again is a retry after a lost reply."""
    if runner.session and runner.session_nonce == nonce:
        return runner.session
    switches = world.switches
    lowest = switches["minimum_runner_version"]
    if lowest and _numbers(version) < _numbers(lowest):
        text = f"Runner version v{version} is deprecated and cannot receive messages."
        raise Refused(403, "RunnerVersionDeprecatedException", text)
    if runner.session and runner.status == "online":
        world.anomaly("second-session", **facts(runner))
        retry = {"retryAfter": switches["session_retry"], "giveUpAfter": switches["session_give_up"]}
        raise Refused(409, "TaskAgentSessionConflictException", "A session for this runner already exists.", **retry)
    if runner.jit and runner.sessions_opened:
        world.anomaly("jit-config-used-twice", **facts(runner))
        raise Refused(404, "AgentNotFoundException", "The runner registration has been deleted from the server.")
    runner.session, runner.session_nonce = secrets.token_hex(16), nonce
    runner.sessions_opened += 1
    runner.version, runner.os = version, os
    touch(world, runner)
    return runner.session


def _numbers(version):
    return tuple(int(part) for part in version.split("."))


def touch(world, runner):
    """Record contact from the listener."""
    runner.contact = time.monotonic()
    if runner.status != "online":
        runner.status = "online"
        world.event("runner-online", **facts(runner))


def close_session(world, runner, session):
    """Close the listener's session."""
    if runner.session == session:
        runner.session = None
        _offline(world, runner)


def _offline(world, runner):
    if runner.status == "online":
        runner.status = "offline"
        world.event("runner-offline", **facts(runner))


def next_message(world, runner, session):
    """Return the listener's next message (a dict) or None. Assigns a job to an idle runner."""
    if world.runners.get(runner.id) is not runner:
        raise Refused(404, "AgentNotFoundException", "The runner no longer exists on the server.")
    if runner.session != session:
        raise Refused(400, "TaskAgentSessionExpiredException", "The session is not open any more.")
    job = runner.job
    if job is not None and job.cancel_asked is not None and not job.cancel_told and job.status == "in_progress":
        job.cancel_told = True
        return {"messageType": "JobCancellation", "jobId": job.id}
    if job is None and runner.remove_at is None:
        job = jobs.queued_for(world, runner)
        if job is not None:
            jobs.assign(world, job, runner)
            return {"messageType": "RunnerJobRequest", "jobId": job.id, "jobName": job.name}
    return None


def undelivered(world, runner, message):
    """Undo `message`, because its reply did not reach the listener."""
    job = runner.job
    if job is None or job.id != message["jobId"]:
        return
    if message["messageType"] == "JobCancellation":
        job.cancel_told = False
    elif job.status == "queued":
        jobs.take_back(world, job, runner, "the reply was not delivered")
        world.changed.notify_all()


def acquire(world, runner, job_id, nonce):
    """Start the runner's job and return the Job. Refused if the job is not (or no longer) its own."""
    job = world.jobs.get(job_id)
    if job is None or runner.job is not job:
        world.anomaly("stranger-acquires", **facts(runner), job_id=job_id)
        raise Refused(404, "JobNotFoundException", f"Job {job_id} is not assigned to runner {runner.name}.")
    if job.status == "in_progress":
        if nonce == job.start_nonce:
            return job
        world.anomaly("job-started-twice", **jobs.facts(job), by=runner.name)
        raise Refused(409, "JobAlreadyAcquiredException", f"Job {job_id} is running already.")
    if job.cancel_asked is not None:
        _free(world, runner)
        jobs.complete(world, job, "cancelled", "cancelled before it started")
        raise Refused(422, "JobCanceledException", f"Job {job_id} was cancelled.")
    touch(world, runner)
    job.start_nonce = nonce
    jobs.start(world, job, runner)
    return job


def report(world, runner, job_id, *, steps=None, log=None):
    """Record the progress of a job: its steps, its log so far."""
    job = _own(world, runner, job_id, "stale-report")
    touch(world, runner)
    if steps is not None:
        job.steps = steps
    if log is not None:
        job.log = log
    job.run.updated = time.time()


def finish(world, runner, job_id, ending):
    """End the job as its runner reports (conclusion, steps, log, nonce); this also ends an ephemeral runner."""
    job = world.jobs.get(job_id)
    if job is not None and ending["nonce"] == job.finish_nonce:
        return
    job = _own(world, runner, job_id, "stale-completion")
    job.steps, job.log, job.finish_nonce = ending.get("steps", job.steps), ending.get("log", job.log), ending["nonce"]
    _free(world, runner)
    jobs.complete(world, job, ending["conclusion"], "reported by its runner")


def _own(world, runner, job_id, anomaly):
    job = world.jobs.get(job_id)
    if job is None or runner.job is not job or job.status != "in_progress":
        world.anomaly(anomaly, **facts(runner), job_id=job_id)
        raise Refused(404, "JobNotFoundException", f"Job {job_id} is not running on {runner.name}.")
    return job


def _free(world, runner):
    runner.job = None
    if runner.ephemeral:
        delay = world.switches["removal_delay"]
        if delay <= 0:
            remove(world, runner, "ephemeral, its job is over")
        else:
            runner.remove_at = time.monotonic() + delay


def force_cancel(world, run):
    """Complete every job of the run at once, regardless of the runners. False: the run is over."""
    if not jobs.cancel_run(world, run):
        return False
    for job in [job for job in run.jobs if job.status != "completed"]:
        _free(world, world.runners[job.holder])
        jobs.complete(world, job, "cancelled", "force-cancelled")
    return True


def sweep(world):
    """Act on runners that were silent too long. Returns the seconds until the next deadline."""
    now, dues = time.monotonic(), []
    for runner in list(world.runners.values()):
        for due, act in _deadlines(world, runner):
            if due <= now:
                act()
            else:
                dues.append(due - now)
    return min(dues, default=3600.0)


def _deadlines(world, runner):
    """Pairs of a moment (monotonic) and the action that is due then unless the runner makes contact before."""
    switches, job = world.switches, runner.job
    if runner.remove_at is not None:
        yield runner.remove_at, lambda: remove(world, runner, "ephemeral, its job is over")
        return
    if runner.polling == 0 and runner.status == "online":
        yield runner.contact + switches["offline_after"], lambda: _offline(world, runner)
    if job is None:
        return
    if job.status == "queued":
        yield job.assigned_at + switches["pickup_after"], lambda: jobs.take_back(world, job, runner, "not picked up")
        return
    if job.cancel_asked is not None:
        yield (
            job.cancel_asked + switches["cancel_timeout"],
            lambda: _give_up(world, runner, "cancelled", "cancel timed out"),
        )
    if runner.polling == 0:
        yield runner.contact + switches["lost_after"], lambda: _give_up(world, runner, "failure", "lost communication")


def _give_up(world, runner, conclusion, reason):
    job = runner.job
    if job is not None:
        _free(world, runner)
        jobs.complete(world, job, conclusion, reason)
