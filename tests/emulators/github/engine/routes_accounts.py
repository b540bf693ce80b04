"""REST routes of the App and its installations, of repositories, the user, and the rate limit."""

from __future__ import annotations

import base64
import json
import secrets
import time

from emulators.github.engine import gate, render
from emulators.github.engine.exchange import Refusal, Reply, invalid, not_found, page
from emulators.github.engine.world import Token

_IDLE = (
    "search",
    "graphql",
    "integration_manifest",
    "source_import",
    "code_scanning_autofix",
    "actions_runner_registration",
    "scim",
    "dependency_snapshots",
    "dependency_sbom",
    "code_search",
)
_RANK = {"read": 1, "write": 2, "admin": 3}


def rate_limit(world, request):
    """GET /rate_limit: free of charge; without `rate` since version 2026-03-10; 404 without a limit."""
    if not world.switches["rate_headers"]:
        raise Refusal(404, "Rate limiting is not enabled.")
    bucket = world.rate(request.caller.principal)
    core = {
        "limit": bucket.limit,
        "used": bucket.used,
        "remaining": max(bucket.limit - bucket.used, 0),
        "reset": int(bucket.reset),
    }
    idle = {"limit": 60, "used": 0, "remaining": 60, "reset": int(bucket.reset)}
    body = {"resources": {"core": core, **dict.fromkeys(_IDLE, idle)}}
    if request.headers.get("X-GitHub-Api-Version") != gate.API_VERSIONS[-1]:
        body["rate"] = core
    return Reply(200, body)


def user(world, request):
    """GET /user."""
    token = gate.need_token(request.caller)
    if token.kind != "user":
        raise Refusal(403, "Resource not accessible by integration")
    account = world.add_account(token.principal)
    return Reply(200, render.public_user(request.urls, account))


def get_repo(world, request, repo):
    """GET /repos/{owner}/{repo}."""
    return Reply(200, render.full_repository(request.urls, repo))


def list_org_repos(world, request, scope):
    """GET /orgs/{org}/repos: the newest first."""
    token, account = gate.need_token(request.caller), world.org(scope[0])
    found = [repo for repo in world.repos.values() if repo.owner is account]
    found = [repo for repo in found if token.repos is None or repo.full_name.lower() in token.repos]
    found.sort(key=lambda repo: repo.id, reverse=True)
    body, headers = page(request, found, None)
    return Reply(200, [render.repository(request.urls, repo) for repo in body], headers)


def get_app(world, request):
    """GET /app."""
    app = gate.need_app(request.caller)
    return Reply(200, render.app(request.urls, world.add_account(app["owner"]), app))


def _shown_installation(world, request, login, repo=None):
    app = gate.need_app(request.caller)
    for found in world.installations.values():
        selected = repo is None or found["repos"] is None or repo.name in found["repos"]
        if found["app_id"] == app["id"] and found["account"].lower() == login.lower() and selected:
            account = world.accounts[login.lower()]
            return Reply(200, render.installation(request.urls, account, app, found))
    raise not_found()


def repo_installation(world, request, owner, name):
    """GET /repos/{owner}/{repo}/installation."""
    repo = world.repo(owner, name)
    if repo is None:
        raise not_found()
    return _shown_installation(world, request, owner, repo)


def org_installation(world, request, org):
    """GET /orgs/{org}/installation."""
    if world.org(org) is None:
        raise not_found()
    return _shown_installation(world, request, org)


def list_installations(world, request):
    """GET /app/installations."""
    app = gate.need_app(request.caller)
    found = [one for one in world.installations.values() if one["app_id"] == app["id"]]
    body, headers = page(request, found, None)
    shown = [render.installation(request.urls, world.accounts[one["account"].lower()], app, one) for one in body]
    for one in shown:
        del one["client_id"]  # GitHub describes it only for the single installation
    return Reply(200, shown, headers)


def access_token(world, request, installation_id):
    """POST /app/installations/{id}/access_tokens: a token of the installation, narrowed on request."""
    app, installation = gate.need_app(request.caller), world.installations.get(int(installation_id))
    if installation is None or installation["app_id"] != app["id"]:
        raise not_found()
    asked = request.json()
    permissions = _narrowed(installation["permissions"], asked.get("permissions"))
    repos = _chosen(world, installation, asked)
    expires = time.time() + world.switches["installation_token_ttl"]
    value = _stateless_token(app["id"], expires)
    world.tokens[value] = Token(
        value, "installation", f"installation-{installation_id}", permissions, repos, expires, int(installation_id)
    )
    body = {
        "token": value,
        "expires_at": render.stamp(expires),
        "permissions": permissions,
        "repository_selection": "all" if repos is None else "selected",
    }
    if asked.get("repositories") or asked.get("repository_ids"):
        body["repositories"] = [render.repository(request.urls, world.repos[name]) for name in repos]
    return Reply(201, body)


def _narrowed(own, asked):
    if not asked:
        return dict(own)
    beyond = [name for name, level in asked.items() if _RANK.get(level, 9) > _RANK.get(own.get(name), 0)]
    if beyond:
        raise invalid([f"The permissions requested are not granted to this installation: {', '.join(beyond)}"])
    return dict(asked)


def _chosen(world, installation, asked):
    """Lower-case full names of the token's repositories, or None for all."""
    own = installation["repos"]
    mine = [
        repo
        for repo in world.repos.values()
        if repo.owner.login.lower() == installation["account"].lower() and (own is None or repo.name in own)
    ]
    names, numbers = asked.get("repositories"), asked.get("repository_ids")
    if not names and not numbers:
        return None if own is None else [repo.full_name.lower() for repo in mine]
    chosen = [repo for repo in mine if repo.name in (names or ()) or repo.id in (numbers or ())]
    if len(chosen) < len(names or numbers):
        raise invalid(
            ["There is at least one repository that does not exist or is not accessible to the parent installation."]
        )
    return [repo.full_name.lower() for repo in chosen]


def _stateless_token(app_id, expires):
    """A token of the newer form, ghs_<app id>_<JWT>, about 520 characters long."""
    parts = [
        json.dumps({"alg": "RS256", "typ": "JWT"}),
        json.dumps({"exp": int(expires), "jti": secrets.token_hex(24)}),
    ]
    encoded = [base64.urlsafe_b64encode(part.encode()).rstrip(b"=").decode() for part in parts]
    return f"ghs_{app_id}_{'.'.join(encoded)}.{secrets.token_urlsafe(256)}"


def installation_repositories(world, request):
    """GET /installation/repositories."""
    token = gate.need_token(request.caller)
    if token.kind != "installation":
        raise Refusal(403, "Resource not accessible by personal access token")
    account = world.installations[token.installation]["account"].lower()
    mine = [repo for repo in world.repos.values() if repo.owner.login.lower() == account]
    mine = [repo for repo in mine if token.repos is None or repo.full_name.lower() in token.repos]
    selection = "all" if token.repos is None else "selected"
    body, headers = page(request, mine, "repositories", extra={"repository_selection": selection})
    body["repositories"] = [render.repository(request.urls, repo) for repo in body["repositories"]]
    return Reply(200, body, headers)
