"""The service behind the runners: registration by token, sessions, the long poll for messages, job reports.

Owns the paths under /_services and POST /actions/runner-registration, which replace GitHub's own undocumented service; only
this emulator's stub runner uses it.
"""

from __future__ import annotations

import re
import time
import urllib.parse

from emulators.github.engine import runners
from emulators.github.engine.exchange import Reply
from emulators.github.engine.runners import Refused

_LOOK_FOR_CLIENT = 0.2  # seconds between two checks of the poller's connection


class Gone(Exception):
    """The poller hung up."""


def answer(world, request, gone):
    """Return the reply to a runner; `gone()` says whether its connection has ended. Raises Gone."""
    try:
        for method, pattern, handler in _ROUTES:
            match = re.fullmatch(pattern, request.path)
            if match and method == request.method:
                return handler(world, request, gone, *match.groups())
    except Refused as refused:
        return Reply(refused.status, refused.body)
    return Reply(404, {"typeName": "NotFound", "message": f"{request.method} {request.path}"})


def _secret(request, scheme="Bearer"):
    given, _, value = (request.headers.get("Authorization") or "").partition(" ")
    if given.lower() != scheme.lower() or not value:
        raise Refused(401, "VssUnauthorizedException", "Not authorized.")
    return value


# -- registration by token ---------------------------------------------------------------------------


def _scope_of(world, value, kind):
    scope, given_for, expires = world.registration_tokens.get(value, (None, None, 0))
    if scope is None or given_for != kind or time.time() >= expires:
        raise Refused(404, "NotFound", "Http response code: NotFound from 'POST /actions/runner-registration'")
    return scope


def _connect(world, request, gone):
    """Exchange config.sh's token for the address and token of the service."""
    body = request.json()
    token = _secret(request, "RemoteAuth")
    with world.changed:
        scope = _scope_of(world, token, body.get("runner_event"))
        path = urllib.parse.urlsplit(str(body.get("url"))).path.strip("/")
        if path.lower() != "/".join(part for part in scope if part).lower():
            raise Refused(404, "NotFound", "Http response code: NotFound from 'POST /actions/runner-registration'")
    return Reply(
        200, {"url": f"{request.urls.web}/_services/pool/", "token": token, "token_schema": "OAuthAccessToken"}
    )


def _add_agent(world, request, gone):
    body = request.json()
    with world.changed:
        scope = _scope_of(world, _secret(request), "register")
        wrong = runners.faults_of_name(body.get("name"))
        if wrong:
            raise Refused(400, "InvalidAgentNameException", "; ".join(wrong))
        group = _group(world, scope, body.get("group"))
        old = runners.by_name(world, scope, body["name"])
        if old is not None:
            _replace(world, old, body)
        runner = runners.register(
            world,
            scope,
            body["name"],
            body["labels"],
            group=group,
            ephemeral=bool(body.get("ephemeral")),
            work_folder=body.get("workFolder") or "_work",
        )
        return Reply(200, {"id": runner.id, "files": runners.settings_files(world, runner, request.urls.web)})


def _group(world, scope, name):
    owner, repo = scope
    groups = world.accounts[owner.lower()].groups
    if repo is None and name:
        for group in groups.values():
            if group.name.lower() == name.lower():
                return group
        raise Refused(
            404, "TaskAgentPoolNotFoundException", f'Could not find any self-hosted runner group named "{name}".'
        )
    return groups[1]


def _replace(world, old, body):
    if not body.get("replace"):
        raise Refused(409, "TaskAgentExistsException", f"A runner exists with the same name {old.name}.")
    if old.busy:
        raise Refused(400, "JobStillRunningException", f'Runner "{old.name}" is still running a job.')
    runners.remove(world, old, "replaced")


def _remove_agent(world, request, gone, runner_id):
    with world.changed:
        scope = _scope_of(world, _secret(request), "remove")
        runner = world.runners.get(int(runner_id))
        if runner is None or runner not in runners.in_scope(world, scope):
            raise Refused(404, "TaskAgentNotFoundException", "The runner does not exist.")
        if runner.busy:
            raise Refused(400, "JobStillRunningException", f'Runner "{runner.name}" is still running a job.')
        runners.remove(world, runner, "removed by config.sh")
    return Reply(204)


# -- sessions and messages ---------------------------------------------------------------------------


def _open(world, request, gone, runner_id):
    body = request.json()
    with world.changed:
        runner = runners.authenticate(world, int(runner_id), _secret(request))
        session = runners.open_session(world, runner, body["nonce"], version=body["version"], os=body["os"])
    return Reply(200, {"sessionId": session, "ownerName": body.get("ownerName", "")})


def _close(world, request, gone, runner_id):
    with world.changed:
        runner = runners.authenticate(world, int(runner_id), _secret(request))
        runners.close_session(world, runner, request.query.get("sessionId"))
    return Reply(204)


def _message(world, request, gone, runner_id):
    """Wait for a message: 200 with it, or 202 without one after `poll_seconds`."""
    session = request.query.get("sessionId")
    deadline = time.monotonic() + world.switches["poll_seconds"]
    with world.changed:
        runner = runners.authenticate(world, int(runner_id), _secret(request))
        runner.polling += 1
        try:
            while True:
                if gone() or world.switches["down"]:
                    raise Gone
                message = runners.next_message(world, runner, session)
                if message is not None:
                    return Reply(200, message)
                runners.touch(world, runner)
                left = deadline - time.monotonic()
                if left <= 0:
                    return Reply(202)
                world.changed.wait(min(left, _LOOK_FOR_CLIENT))
        finally:
            runner.polling -= 1
            runner.contact = time.monotonic()
            world.changed.notify_all()


def undelivered(world, request, reply):
    """Take back the message of a reply that could not be sent."""
    match = re.fullmatch(_MESSAGE, request.path)
    if match and reply.status == 200:
        with world.changed:
            runner = world.runners.get(int(match[1]))
            if runner is not None:
                runners.undelivered(world, runner, reply.body)


# -- jobs --------------------------------------------------------------------------------------------


def _acquire(world, request, gone, runner_id, job_id):
    nonce = request.json().get("nonce")
    with world.changed:
        runner = runners.authenticate(world, int(runner_id), _secret(request))
        job = runners.acquire(world, runner, int(job_id), nonce)
        message = {
            "jobId": job.id,
            "jobName": job.name,
            "runId": job.run.id,
            "runNumber": job.run.number,
            "runAttempt": job.attempt,
            "workflow": job.run.workflow,
            "repository": job.run.repo.full_name,
            "ref": f"refs/heads/{job.run.branch}",
            "steps": job.spec["steps"],
            "duration": job.spec["duration"],
            "conclusion": job.spec["conclusion"],
        }
    return Reply(200, message)


def _report(world, request, gone, runner_id, job_id):
    body = request.json()
    with world.changed:
        runner = runners.authenticate(world, int(runner_id), _secret(request))
        runners.report(world, runner, int(job_id), steps=body.get("steps"), log=body.get("log"))
    return Reply(204)


def _finish(world, request, gone, runner_id, job_id):
    body = request.json()
    with world.changed:
        runner = runners.authenticate(world, int(runner_id), _secret(request))
        runners.finish(world, runner, int(job_id), body)
    return Reply(204)


_RUNNER = "/_services/runner/([0-9]+)"
_MESSAGE = f"{_RUNNER}/message"
_ROUTES = (
    ("POST", "/actions/runner-registration", _connect),
    ("POST", "/_services/pool/agents", _add_agent),
    ("DELETE", "/_services/pool/agents/([0-9]+)", _remove_agent),
    ("POST", f"{_RUNNER}/session", _open),
    ("DELETE", f"{_RUNNER}/session", _close),
    ("GET", _MESSAGE, _message),
    ("POST", f"{_RUNNER}/jobs/([0-9]+)/acquire", _acquire),
    ("POST", f"{_RUNNER}/jobs/([0-9]+)/report", _report),
    ("POST", f"{_RUNNER}/jobs/([0-9]+)/finish", _finish),
)
