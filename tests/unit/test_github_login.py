"""Logging in to GitHub: tokens as they are, Apps by JWT and installation token."""

from datetime import UTC, datetime

import jwt
import pytest
from anklet_github.api import Api
from anklet_github.http import Reply
from anklet_github.login import AppLogin, InstallationLogin, TokenLogin
from anklet_github.payloads import Installation, InstallationToken, Runs
from anklet_github.plugin import _AppRoutes
from anklet_github.scope import Scope
from anklet_github.trouble import LimitPause, Refused
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from github_fakes import FakeContext, github_service

from anklet_worker.contract.errors import RightsRefused, ServiceFatal
from anklet_worker.contract.settings import Secret

NEEDED = {"actions": "read", "administration": "write"}
LONG = "ghs_123_" + "x" * 512


def pem(key):
    """The text of a private key."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    ).decode()


@pytest.fixture(scope="module")
def key():
    """An App's key."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


class Clock:
    """Unix seconds that tests move."""

    def __init__(self):
        self.now = 1_800_000_000.0

    def __call__(self):
        return self.now


class FakeMaker:
    """GitHub, as far as the App's own routes go."""

    def __init__(self, clock, permissions=None, life=3600.0):
        self.clock, self.permissions, self.life = clock, permissions, life
        self.made = self.looked_up = 0

    def installation(self):
        self.looked_up += 1
        return Installation(42)

    def token(self, installation_id):
        assert installation_id in (42, 43)
        self.made += 1
        ends = self.clock.now + self.life
        stamp = datetime.fromtimestamp(ends, UTC).isoformat()
        return InstallationToken(f"{LONG}{self.made}", stamp.replace("+00:00", "Z"), self.permissions)


def installation(maker, clock, **service):
    """The login of a service."""
    config = github_service(owner="acme", app_id="7", **service)
    return InstallationLogin(config, maker, NEEDED, clock)


def test_a_token_is_used_as_it_is():
    """However long it is; what tells logins apart does not betray it."""
    login = TokenLogin(Secret(LONG))
    assert login.authorization() == f"Bearer {LONG}"
    assert LONG not in login.identity
    assert login.identity != TokenLogin(Secret("other")).identity
    assert not login.refused(0.0)


@pytest.mark.parametrize("app_id", ["12345", "Iv23liAbCdEfGhIjKlMn"])
def test_an_apps_jwt_is_what_github_asks_for(key, app_id):
    """RS256, dated back a minute, good for less than ten, issued by the App's id or client id."""
    clock = Clock()
    token = AppLogin(app_id, Secret(pem(key)), clock).authorization().removeprefix("Bearer ")
    claims = jwt.decode(
        token, key.public_key(), algorithms=["RS256"], options={"verify_exp": False, "verify_iat": False}
    )
    assert claims["iss"] == app_id
    assert claims["iat"] == clock.now - 60
    assert clock.now < claims["exp"] <= clock.now + 600 - 60


def test_githubs_clock_is_taken_over(key):
    """A refused JWT is tried once more by GitHub's time, when that differs from ours."""
    clock = Clock()
    login = AppLogin("1", Secret(pem(key)), clock)
    assert not login.refused(clock.now + 1)
    assert login.refused(clock.now - 900)
    assert not login.refused(clock.now - 900)
    claims = jwt.decode(login.authorization()[7:], options={"verify_signature": False})
    assert claims["iat"] == clock.now - 960
    assert not login.refused(None)


@pytest.mark.parametrize(
    "text", ["", "no key", "-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\n", "elliptic"]
)
def test_a_key_that_is_none_is_fatal(text):
    """In one line that does not show it."""
    if text == "elliptic":
        text = pem(ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(ServiceFatal, match="private_key is not") as caught:
        AppLogin("1", Secret(text))
    assert "AAAA" not in str(caught.value)


def test_a_token_is_made_when_needed_and_renewed_ahead():
    """Once for an hour, less five minutes."""
    clock = Clock()
    maker = FakeMaker(clock)
    login = installation(maker, clock, installation_id=43)
    assert maker.made == 0
    first = login.authorization()
    clock.now += 3600 - 301
    assert login.authorization() == first
    clock.now += 2
    assert login.authorization() != first
    assert (maker.made, maker.looked_up) == (2, 0)


def test_an_installation_is_looked_up_once():
    """When the configuration does not name it."""
    clock = Clock()
    maker = FakeMaker(clock)
    login = installation(maker, clock)
    login.authorization()
    clock.now += 4000
    login.authorization()
    assert maker.looked_up == 1


def test_a_clock_that_is_set_back_or_a_server_ahead_is_survived():
    """A token whose end has passed by our clock is used for a minute; one made in the future is not trusted."""
    clock = Clock()
    maker = FakeMaker(clock, life=-7200.0)
    login = installation(maker, clock)
    login.authorization()
    clock.now += 30
    login.authorization()
    assert maker.made == 1
    clock.now -= 86_400
    login.authorization()
    assert maker.made == 2


def test_a_revoked_token_is_replaced_once():
    """A new one may do; when a new one is refused, the refusal is meant."""
    clock = Clock()
    maker = FakeMaker(clock)
    login = installation(maker, clock)
    login.authorization()
    clock.now += 100
    assert login.refused(None)
    login.authorization()
    assert not login.refused(None)
    assert maker.made == 2


@pytest.mark.parametrize(
    ("permissions", "missing"),
    [
        (None, None),
        ({"actions": "read", "administration": "write"}, None),
        ({"actions": "write", "administration": "admin"}, None),
        ({"actions": "read"}, "administration: write"),
        ({"actions": "read", "administration": "read"}, "administration: write"),
        ({"metadata": "read"}, "actions: read, administration: write"),
    ],
)
def test_a_permission_that_is_missing_is_named(permissions, missing):
    """Before anything is tried that needs it."""
    clock = Clock()
    login = installation(FakeMaker(clock, permissions), clock)
    if missing is None:
        assert login.authorization().startswith("Bearer ghs_")
        return
    with pytest.raises(RightsRefused, match=missing):
        login.authorization()


def test_what_an_organization_needs():
    """Its runners are another permission."""
    assert Scope(owner="acme", repo="").permissions == {"actions": "read", "organization_self_hosted_runners": "write"}
    assert Scope(owner="acme", repo="app").permissions == NEEDED


class Server:
    """GitHub: a token that has ended by our clock already, unless tokens are refused; and no runs."""

    refusal = None

    def exchange(self, method, path, headers, body=None):
        if method == "POST":
            return self.refusal or Reply(201, {}, b'{"token": "ghs_x", "expires_at": "2020-01-01T00:00:00Z"}')
        return Reply(200, {}, b'{"total_count": 0, "workflow_runs": []}')


@pytest.fixture
def app(key):
    """An App's client that has asked before, its server, clock and context."""
    context = FakeContext(token=None, private_key=Secret(pem(key)), app_id="7", installation_id=42)
    server, clock = Server(), Clock()
    routes = _AppRoutes(Api(server, AppLogin("7", Secret(pem(key))), context), Scope(owner="acme", repo="app"))
    api = Api(server, InstallationLogin(context.service, routes, {}, clock), context)
    api.get("/repos/acme/app/actions/runs", Runs, configured=True)
    clock.now += 3600
    return api, server, context


@pytest.mark.parametrize("status", [401, 403, 404])
def test_an_incident_of_the_tokens_ends_no_service(app, status):
    """An installation that is suspended, or whose tokens GitHub refuses for a while, was granted to us before."""
    api, server, _ = app
    server.refusal = Reply(status, {}, b'{"message": "This installation has been suspended"}')
    with pytest.raises(Refused, match="suspended"):
        api.get("/repos/acme/app/actions/runs", Runs, configured=True)


def test_a_limit_of_the_tokens_does_not_keep_a_watch_from_its_guest(app):
    """The App's own routes have a limit of their own; a VM does not wait for that either."""
    api, server, context = app
    server.refusal = Reply(429, {"retry-after": "3000"}, b"{}")
    with api.bounded(5.0), pytest.raises(LimitPause):
        api.get("/repos/acme/app/actions/runs", Runs, configured=True)
    assert sum(context.waits) < 10
