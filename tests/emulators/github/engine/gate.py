"""Access control: tokens, App JWTs, permissions, the primary rate limit.

Owns authentication and accounting of the REST API. Knows no route: a route names the permission that it needs. Checks the
structure and times of App JWTs, but not their signature.
"""

from __future__ import annotations

import base64
import json
import time

from emulators.github.engine.exchange import Refusal, not_found
from emulators.github.engine.world import Token

_LONGEST_JWT = 600
_CLOCK_TOLERANCE = 60
_RANK = {None: 0, "read": 1, "write": 2, "admin": 3}
API_VERSIONS = ("2022-11-28", "2026-03-10")


class AppCaller:
    """An App that presented its JWT."""

    def __init__(self, app):
        self.app = app
        self.principal = f"app-{app['id']}"
        self.value = self.principal


def check_headers(request):
    """Refuse the headers that GitHub refuses before any other check."""
    if not request.headers.get("User-Agent"):
        text = "Request forbidden by administrative rules. Please make sure your request has a User-Agent header."
        raise Refusal(403, text)
    version = request.headers.get("X-GitHub-Api-Version")
    if version and version not in API_VERSIONS:
        raise Refusal(400, f"The version {version} is not a supported version of the GitHub REST API.")


def identify(world, request):
    """Return the Token or AppCaller of the Authorization header; 401 if it is missing or unknown."""
    scheme, _, value = (request.headers.get("Authorization") or "").partition(" ")
    value = value.strip()
    if not value:
        raise Refusal(401, "Requires authentication")
    if scheme.lower() not in ("bearer", "token"):
        raise Refusal(401, "Bad credentials")
    token = world.tokens.get(value)
    if token is not None:
        if token.expires is not None and time.time() >= token.expires:
            raise Refusal(401, "Bad credentials")
        return token
    if value.count(".") == 2 and not value.startswith("ghs_"):
        return AppCaller(_app_of(world, value))
    raise Refusal(401, "Bad credentials")


def _app_of(world, jwt):
    header, claims, signature = (_decoded(part) for part in jwt.split("."))
    try:
        header, claims = json.loads(header), json.loads(claims)
    except ValueError:
        raise Refusal(401, "A JSON web token could not be decoded") from None
    if not isinstance(header, dict) or not isinstance(claims, dict) or header.get("alg") != "RS256" or not signature:
        raise Refusal(401, "A JSON web token could not be decoded")
    issued, expires, now = claims.get("iat"), claims.get("exp"), time.time()
    if not isinstance(issued, int) or issued > now + _CLOCK_TOLERANCE:
        text = "'Issued at' claim ('iat') must be an Integer representing the time that the assertion was issued"
        raise Refusal(401, text)
    if not isinstance(expires, int) or expires <= now:
        text = "'Expiration time' claim ('exp') must be a numeric value representing the future time at which the assertion expires"
        raise Refusal(401, text)
    if expires > now + _LONGEST_JWT + _CLOCK_TOLERANCE:
        raise Refusal(401, "'Expiration time' claim ('exp') is too far in the future")
    app = world.apps.get(str(claims.get("iss")))
    if app is None:
        raise Refusal(404, "Integration not found")
    return app


def _decoded(part):
    try:
        return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except ValueError:
        raise Refusal(401, "A JSON web token could not be decoded") from None


def need_app(caller):
    """Accept only an App's JWT."""
    if not isinstance(caller, AppCaller):
        raise Refusal(401, "A JSON web token could not be decoded")
    return caller.app


def need_token(caller):
    """Accept only a token."""
    if not isinstance(caller, Token):
        raise Refusal(403, "Resource not accessible by integration")
    return caller


def need(caller, permission, level):
    """403 unless the caller's token has this permission at this level; every token may read metadata."""
    token = need_token(caller)
    if token.permissions is None or (permission, level) == ("metadata", "read"):
        return
    if _RANK[token.permissions.get(permission)] < _RANK[level]:
        who = "integration" if token.kind == "installation" else "personal access token"
        raise Refusal(403, f"Resource not accessible by {who}")


def sees(token, repo):
    """404 for a repository outside of the token's selection."""
    if token.repos is not None and repo.full_name.lower() not in token.repos:
        raise not_found()


def charge(world, caller):
    """403 if the caller has used up its hour; otherwise count one request."""
    if not world.switches["rate_headers"]:
        return
    bucket = world.rate(caller.principal)
    if bucket.used >= bucket.limit:
        text = f"API rate limit exceeded for {caller.principal}."
        raise Refusal(403, text, docs="https://docs.github.com/rest/overview/rate-limits-for-the-rest-api")
    bucket.used += 1


def refund(world, caller):
    """Return the charge: a 304 is free."""
    if world.switches["rate_headers"]:
        world.rate(caller.principal).used -= 1


def rate_headers(world, principal):
    """The headers that describe a rate bucket."""
    if not world.switches["rate_headers"]:
        return {}
    bucket = world.rate(principal)
    return {
        "X-RateLimit-Limit": str(bucket.limit),
        "X-RateLimit-Remaining": str(max(bucket.limit - bucket.used, 0)),
        "X-RateLimit-Used": str(bucket.used),
        "X-RateLimit-Reset": str(int(bucket.reset)),
        "X-RateLimit-Resource": "core",
    }
