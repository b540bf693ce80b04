"""Access to the emulated API: who may call, how often, and the cost of a repeated request."""

from __future__ import annotations

import contextlib
import re
import statistics
import time

import pytest
import urllib3
from emulators.github.bench import REPO, Api

RUNS = f"{REPO}/actions/runs"


@pytest.fixture
def caller(github, closing):
    """A function that returns the API for a token's value and rights; it registers the token unless `known` is false."""

    def made(value, *, known=True, **rights):
        if known:
            github.add_token(value, **rights)
        return closing.enter_context(contextlib.closing(Api(github.url, value)))

    return made


def test_an_unknown_token_is_refused(caller):
    """An unknown token is 401 `Bad credentials`; a missing one is 401 too."""
    nobody = caller("github_pat_unknown", known=False)
    reply = nobody.call("GET", RUNS)
    assert (reply.status, reply.json()["message"]) == (401, "Bad credentials")
    reply = nobody.call("GET", RUNS, headers={"Authorization": None})
    assert (reply.status, reply.json()["message"]) == (401, "Requires authentication")


def test_an_expired_token_is_refused(caller):
    """A token is valid only until it expires."""
    assert caller("github_pat_short", expires_in=-1).call("GET", RUNS).status == 401
    assert caller("github_pat_long", expires_in=60).call("GET", RUNS).status == 200


@pytest.mark.parametrize(
    ("permissions", "call", "status", "accepted"),
    [
        ({"actions": "read"}, ("GET", RUNS), 200, "actions=read"),
        ({"administration": "write"}, ("GET", RUNS), 403, "actions=read"),
        ({"actions": "read"}, ("POST", f"{RUNS}/9100000001/cancel"), 403, "actions=write"),
        ({"actions": "write"}, ("POST", f"{RUNS}/9100000001/cancel"), 202, "actions=write"),
        ({"administration": "read"}, ("GET", f"{REPO}/actions/runners"), 200, "administration=read"),
        (
            {"administration": "read"},
            ("POST", f"{REPO}/actions/runners/registration-token"),
            403,
            "administration=write",
        ),
        (
            {"administration": "write"},
            ("POST", f"{REPO}/actions/runners/registration-token"),
            201,
            "administration=write",
        ),
        (
            {"administration": "write"},
            ("GET", "/orgs/octo-org/actions/runners"),
            403,
            "organization_self_hosted_runners=read",
        ),
        ({}, ("GET", REPO), 200, "metadata=read"),
    ],
)
def test_permissions(caller, queue, permissions, call, status, accepted):
    """A token without the permission of a route is 403; the header names the permission that would suffice."""
    queue("build")
    reply = caller("github_pat_some", permissions=permissions).call(*call)
    assert (reply.status, reply.headers["X-Accepted-GitHub-Permissions"]) == (status, accepted)
    if status == 403:
        assert reply.json()["message"] == "Resource not accessible by personal access token"


def test_a_token_sees_its_repositories_only(github, caller):
    """A repository outside of a token's selection does not exist for it."""
    github.add_repo("octo-org", "second")
    mine = caller("github_pat_one", repos=["octo-org/second"])
    assert mine.call("GET", RUNS).status == 404
    assert [repo["name"] for repo in mine.get("/orgs/octo-org/repos")] == ["second"]


def test_a_repeated_question_is_free(api, github, queue):
    """A GET with the ETag of the current state gets a free 304 without a body; after a change it costs again."""
    queue("build")
    first = api.call("GET", RUNS)
    assert first.headers["X-RateLimit-Remaining"] == "4999"
    tag = {"If-None-Match": first.headers["ETag"]}
    for _ in range(3):
        again = api.call("GET", RUNS, headers=tag)
        assert (again.status, again.data, again.headers["X-RateLimit-Used"]) == (304, b"", "1")
    queue("another")
    changed = api.call("GET", RUNS, headers=tag)
    assert (changed.status, changed.headers["X-RateLimit-Used"]) == (200, "2")
    counts = github.counts()
    assert (counts["requests"], counts["counted"], counts["not_modified"]) == (5, 2, 3)
    assert counts["routes"] == {f"GET {RUNS}": 5}


def test_an_etag_is_one_tokens_own(api, caller, queue):
    """Another token's ETag does not save a request."""
    queue("build")
    tag = api.call("GET", RUNS).headers["ETag"]
    assert caller("github_pat_other", user="hubot").call("GET", RUNS, headers={"If-None-Match": tag}).status == 200


def test_the_rate_limit_ends_and_begins_anew(api, github, caller):
    """With nothing left, every route but /rate_limit is 403, for this user only, until the hour is over."""
    other = caller("github_pat_other", user="hubot")
    github.set(rate_limit=100, rate_remaining=2)
    assert [api.call("GET", REPO).status for _ in range(3)] == [200, 200, 403]
    refused = api.call("GET", REPO)
    assert refused.headers["X-RateLimit-Remaining"] == "0"
    assert "rate limit exceeded" in refused.json()["message"]
    assert int(refused.headers["X-RateLimit-Reset"]) > time.time() + 3000
    assert api.get("/rate_limit")["rate"]["remaining"] == 0
    github.set(rate_remaining=None, rate_reset_in=0)
    assert api.call("GET", REPO).status == 200
    assert other.call("GET", REPO).status == 200


def test_headers_without_a_limit(api, github):
    """An Enterprise Server has no limit unless it is set up: no headers, no /rate_limit."""
    github.set(rate_headers=False)
    reply = api.call("GET", REPO)
    assert not [name for name in reply.headers if name.lower().startswith("x-ratelimit")]
    assert api.call("GET", "/rate_limit").status == 404


def test_api_versions(api):
    """The reply confirms the requested version; an unknown one is 400; the newer one has no `rate` at /rate_limit."""
    reply = api.call("GET", REPO, headers={"X-GitHub-Api-Version": "2022-11-28"})
    assert reply.headers["X-GitHub-Api-Version-Selected"] == "2022-11-28"
    assert api.call("GET", REPO, headers={"X-GitHub-Api-Version": "2020-01-01"}).status == 400
    api.measured = False  # the description is that of the older version
    assert "rate" not in api.get("/rate_limit", headers={"X-GitHub-Api-Version": "2026-03-10"})


def test_a_request_without_a_user_agent(api, github):
    """GitHub refuses a request without a User-Agent."""
    headers = {"Authorization": f"Bearer {api.token}", "User-Agent": urllib3.util.SKIP_HEADER}
    assert urllib3.request("GET", github.url + REPO, headers=headers).status == 403


def test_every_reply_has_an_id_of_its_own(api):
    """Every reply has a unique request id of GitHub's form."""
    ids = {api.call("GET", REPO).headers["X-GitHub-Request-Id"] for _ in range(3)}
    assert len(ids) == 3
    assert all(re.fullmatch("[0-9A-F:]{20,}", one) for one in ids)


def test_the_log_of_requests_hides_tokens(api, github, caller):
    """The log lists requests with a hash in place of the token, which still distinguishes tokens."""
    api.call("POST", f"{REPO}/actions/runners/registration-token")
    caller("github_pat_other").get(RUNS, status="queued")
    first, second = github.requests()
    assert (first["method"], first["path"], first["status"], first["counted"]) == (
        "POST",
        f"{REPO}/actions/runners/registration-token",
        201,
        True,
    )
    assert second["query"] == {"status": "queued"}
    assert first["headers"]["Authorization"].startswith("Bearer sha256:")
    assert first["headers"]["Authorization"] != second["headers"]["Authorization"]
    assert api.token not in str(github.requests())
    assert github.requests(since=1) == [second]
    assert github.counts()["points"] == 6


def test_a_request_is_fast(api, github, queue):
    """The server takes less than two milliseconds for a request (median of fifty)."""
    queue("build")
    for _ in range(50):
        api.get(RUNS)
    assert statistics.median(line["seconds"] for line in github.requests()) < 0.002
