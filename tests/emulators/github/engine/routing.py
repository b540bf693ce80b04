"""The table of the REST API: method and path to handler and required permission.

Owns the order of steps in an answer: credentials, permission, rate limit, handler, ETag. Knows no socket.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re

from emulators.github.engine import gate, routes_accounts, routes_actions, routes_runners
from emulators.github.engine.exchange import Refusal, Reply, not_found

_REPO = "/repos/{owner}/{name}"
_ORG = "/orgs/{org}"
_ACTIONS = routes_actions
_RUNNERS = routes_runners
_ACCOUNTS = routes_accounts

# Method, path below the repository, handler, level of the permission `actions`.
_OF_ACTIONS = (
    ("GET", "/actions/runs", _ACTIONS.list_runs, "read"),
    ("GET", "/actions/runs/{run_id}", _ACTIONS.get_run, "read"),
    ("GET", "/actions/runs/{run_id}/attempts/{number}", _ACTIONS.get_attempt, "read"),
    ("GET", "/actions/runs/{run_id}/attempts/{number}/jobs", _ACTIONS.list_attempt_jobs, "read"),
    ("GET", "/actions/runs/{run_id}/jobs", _ACTIONS.list_jobs, "read"),
    ("POST", "/actions/runs/{run_id}/cancel", _ACTIONS.cancel, "write"),
    ("POST", "/actions/runs/{run_id}/force-cancel", _ACTIONS.force_cancel, "write"),
    ("POST", "/actions/runs/{run_id}/rerun", _ACTIONS.rerun, "write"),
    ("POST", "/actions/runs/{run_id}/rerun-failed-jobs", _ACTIONS.rerun_failed, "write"),
    ("GET", "/actions/jobs/{job_id}", _ACTIONS.get_job, "read"),
    ("POST", "/actions/jobs/{job_id}/rerun", _ACTIONS.rerun_job, "write"),
    ("GET", "/actions/workflows", _ACTIONS.list_workflows, "read"),
    ("GET", "/actions/workflows/{workflow}", _ACTIONS.get_workflow, "read"),
    ("GET", "/actions/workflows/{workflow}/runs", _ACTIONS.list_workflow_runs, "read"),
)
# Method, path below the repository or the organisation, handler, level of the permission for self-hosted runners.
_OF_RUNNERS = (
    ("GET", "/actions/runners", _RUNNERS.list_runners, "read"),
    ("POST", "/actions/runners/registration-token", _RUNNERS.registration_token, "write"),
    ("POST", "/actions/runners/remove-token", _RUNNERS.remove_token, "write"),
    ("POST", "/actions/runners/generate-jitconfig", _RUNNERS.generate_jitconfig, "write"),
    ("GET", "/actions/runners/{runner_id}", _RUNNERS.get_runner, "read"),
    ("DELETE", "/actions/runners/{runner_id}", _RUNNERS.delete_runner, "write"),
    ("GET", "/actions/runners/{runner_id}/labels", _RUNNERS.get_labels, "read"),
    ("POST", "/actions/runners/{runner_id}/labels", _RUNNERS.add_labels, "write"),
    ("PUT", "/actions/runners/{runner_id}/labels", _RUNNERS.set_labels, "write"),
    ("DELETE", "/actions/runners/{runner_id}/labels", _RUNNERS.clear_labels, "write"),
)
_OF_GROUPS = (
    ("GET", "/actions/runner-groups", _RUNNERS.list_groups, "read"),
    ("GET", "/actions/runner-groups/{group_id}", _RUNNERS.get_group, "read"),
)
# Method, path, handler; these check the caller themselves.
_PLAIN = (
    ("GET", "/rate_limit", _ACCOUNTS.rate_limit),
    ("GET", "/user", _ACCOUNTS.user),
    ("GET", "/app", _ACCOUNTS.get_app),
    ("GET", "/app/installations", _ACCOUNTS.list_installations),
    ("POST", "/app/installations/{installation_id}/access_tokens", _ACCOUNTS.access_token),
    ("GET", "/installation/repositories", _ACCOUNTS.installation_repositories),
    ("GET", f"{_REPO}/installation", _ACCOUNTS.repo_installation),
    ("GET", f"{_ORG}/installation", _ACCOUNTS.org_installation),
)


@dataclasses.dataclass(frozen=True)
class Route:
    """One line of the table. `bind` names the handler's arguments: the repository, a scope, or the path's parts."""

    method: str
    template: str
    handler: object
    bind: str
    permission: str | None = None
    level: str | None = None

    @property
    def pattern(self):
        """The template as a regular expression."""
        return _pattern(self.template)


def _pattern(template):
    def part(match):
        digits = match[1].endswith("_id") or match[1] == "number"
        return f"(?P<{match[1]}>{'[0-9]+' if digits else '[^/]+'})"

    return re.compile(re.sub(r"\{(\w+)\}", part, template) + r"\Z")


def _table():
    yield from (Route(method, path, handler, "plain") for method, path, handler in _PLAIN)
    yield Route("GET", _REPO, _ACCOUNTS.get_repo, "repo", "metadata", "read")
    yield Route("GET", f"{_ORG}/repos", _ACCOUNTS.list_org_repos, "org", "metadata", "read")
    for method, path, handler, level in _OF_ACTIONS:
        yield Route(method, _REPO + path, handler, "repo", "actions", level)
    for method, path, handler, level in _OF_RUNNERS:
        yield Route(method, _REPO + path, handler, "repo-scope", "administration", level)
    for method, path, handler, level in _OF_RUNNERS + _OF_GROUPS:
        yield Route(method, _ORG + path, handler, "org", "organization_self_hosted_runners", level)


ROUTES = tuple(_table())
_COMPILED = [(route, route.pattern) for route in ROUTES]


def find(method, path):
    """Return (route, parts of the path), or (None, {})."""
    for route, pattern in _COMPILED:
        match = pattern.match(path)
        if match and route.method == method:
            return route, match.groupdict()
    return None, {}


def answer(world, request):
    """Return (reply, whether it counted against the primary rate limit). Takes the world's lock."""
    with world.changed:
        route, parts = find(request.method, request.path)
        counted = False
        try:
            gate.check_headers(request)
            request.caller = gate.identify(world, request)
            free = route is not None and route.handler is _ACCOUNTS.rate_limit
            if not free:
                gate.charge(world, request.caller)
                counted = True
            reply = _handled(world, request, route, parts)
        except Refusal as refusal:
            reply = refusal.reply
        if _not_modified(request, reply):
            gate.refund(world, request.caller)
            reply, counted = Reply(304, None, reply.headers), False
        _dress(world, request, route, reply)
        return reply, counted


def _handled(world, request, route, parts):
    if route is None:
        world.anomaly("unknown-route", method=request.method, path=request.path)
        raise not_found()
    if route.bind == "plain":
        return route.handler(world, request, **parts)
    token = gate.need_token(request.caller)
    if route.bind == "org":
        account = world.org(parts.pop("org"))
        if account is None:
            raise not_found()
        gate.need(token, route.permission, route.level)
        return route.handler(world, request, (account.login, None), **parts)
    repo = world.repo(parts.pop("owner"), parts.pop("name"))
    if repo is None:
        raise not_found()
    gate.sees(token, repo)
    gate.need(token, route.permission, route.level)
    target = (repo.owner.login, repo.name) if route.bind == "repo-scope" else repo
    return route.handler(world, request, target, **parts)


def _not_modified(request, reply):
    """Give a successful GET its ETag, which differs by caller; True if the caller already has that state."""
    if request.method != "GET" or reply.status != 200 or request.path == "/rate_limit":
        return False
    digest = hashlib.sha256(request.caller.value.encode() + b"\0" + reply.payload()).hexdigest()
    reply.headers["ETag"] = f'W/"{digest}"'
    reply.headers["Cache-Control"] = "private, max-age=60, s-maxage=60"
    reply.headers["Vary"] = "Accept, Authorization, Cookie, X-GitHub-OTP,Accept-Encoding, Accept, X-Requested-With"
    known = [tag.strip().removeprefix("W/") for tag in (request.headers.get("If-None-Match") or "").split(",")]
    return f'"{digest}"' in known


def _dress(world, request, route, reply):
    version = request.headers.get("X-GitHub-Api-Version") or gate.API_VERSIONS[0]
    reply.headers["X-GitHub-Media-Type"] = "github.v3; format=json"
    if version in gate.API_VERSIONS:
        reply.headers["X-GitHub-Api-Version-Selected"] = version
    if request.caller is not None:
        reply.headers.update(gate.rate_headers(world, request.caller.principal))
    if route is not None and route.permission:
        reply.headers["X-Accepted-GitHub-Permissions"] = f"{route.permission}={route.level}"
