"""The emulated REST API: every route's reply conforms to GitHub's own description (bench.Api checks each one)."""

from __future__ import annotations

import contextlib
import json
import re
import time
from pathlib import Path

import jwt
import pytest
import urllib3
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from emulators.github import openapi
from emulators.github.bench import LABELS, REPO, Api
from emulators.github.control import GitHubServer
from emulators.github.engine.routing import ROUTES

ORG = "/orgs/octo-org"
WEBHOOKS = Path(__file__).resolve().parents[2] / "data" / "webhooks-workflow_job.json"


@pytest.fixture
def finished(github, queue):
    """A completed run with a failed job and a skipped one that needed it."""
    github.add_runner("octo-org", "hello", "helper", LABELS)
    run = queue("build", {"name": "deploy", "needs": ["build"]})
    github.cancel_run(run["id"])
    return github.run(run["id"])


def test_every_route_of_the_table_is_a_route_of_github():
    """Every route of the emulator is in GitHub's description."""
    for route in ROUTES:
        path = re.sub(r"\{\w+\}", "1", route.template)
        openapi._operation(route.method, path)


def test_runs_and_jobs_have_the_described_shape(api, queue, finished):
    """Runs, attempts, jobs and workflows have exactly the keys that GitHub describes."""
    queued = queue("test")
    runs = api.get(f"{REPO}/actions/runs")
    assert [run["id"] for run in runs["workflow_runs"]] == [queued["id"], finished["id"]]
    run_path = f"{REPO}/actions/runs/{finished['id']}"
    assert api.get(run_path)["conclusion"] == "cancelled"
    assert api.get(f"{run_path}/attempts/1")["run_attempt"] == 1
    assert [job["name"] for job in api.get(f"{run_path}/attempts/1/jobs")["jobs"]] == ["build", "deploy"]
    jobs = api.get(f"{run_path}/jobs")["jobs"]
    assert [job["conclusion"] for job in jobs] == ["cancelled", "skipped"]
    job = api.get(f"{REPO}/actions/jobs/{queued['jobs'][0]['id']}")
    assert (job["status"], job["runner_id"], job["labels"]) == ("queued", None, LABELS)
    workflow = api.get(f"{REPO}/actions/workflows")["workflows"][0]
    assert api.get(f"{REPO}/actions/workflows/{workflow['id']}")["path"] == ".github/workflows/ci.yml"
    assert api.get(f"{REPO}/actions/workflows/ci.yml/runs")["total_count"] == 2


@pytest.mark.parametrize("scope", [REPO, ORG])
def test_runners_have_the_described_shape(api, scope):
    """Runners, their labels and tokens work alike for a repository and for an organisation."""
    made = api.jit("one", ["self-hosted", "Anka"], scope=scope)["runner"]
    assert (made["status"], made["busy"], made["os"], made["ephemeral"]) == ("offline", False, "unknown", True)
    assert [label["name"] for label in made["labels"]] == ["self-hosted", "Anka"]
    base = f"{scope}/actions/runners"
    assert api.get(base)["runners"] == [made]
    assert api.get(base, name="ONE")["total_count"] == 1
    assert api.get(base, name="on")["total_count"] == 0
    assert api.get(f"{base}/{made['id']}") == made
    labels = f"{base}/{made['id']}/labels"
    assert api.get(labels)["total_count"] == 2
    assert api.call("POST", labels, {"labels": ["more"]}).json()["total_count"] == 3
    assert api.call("PUT", labels, {"labels": ["other"]}).json()["total_count"] == 1
    assert api.call("DELETE", labels).json()["labels"] == []
    for kind in ("registration-token", "remove-token"):
        reply = api.call("POST", f"{base}/{kind}")
        assert reply.status == 201
        assert re.fullmatch("A[A-Z0-9]{28}", reply.json()["token"])
    assert api.call("DELETE", f"{base}/{made['id']}").status == 204
    assert api.call("DELETE", f"{base}/{made['id']}").status == 404
    assert api.call("GET", f"{base}/{made['id']}").status == 404


def test_a_repository_does_not_see_its_organisations_runners(api):
    """Runners of a repository and of its organisation are separate, and may have the same name."""
    api.jit("same", scope=REPO)
    other = api.jit("same", scope=ORG)["runner"]
    assert api.get(f"{REPO}/actions/runners")["total_count"] == 1
    assert api.call("GET", f"{REPO}/actions/runners/{other['id']}").status == 404


def test_groups_of_an_organisation(api, github):
    """An organisation has the group Default, and others that may exclude a repository."""
    number = github.add_group("octo-org", "macs", repos=["other"])["id"]
    groups = api.get(f"{ORG}/actions/runner-groups")["runner_groups"]
    assert [(group["id"], group["name"], group["default"]) for group in groups] == [
        (1, "Default", True),
        (number, "macs", False),
    ]
    assert api.get(f"{ORG}/actions/runner-groups", visible_to_repository="hello")["total_count"] == 1
    assert api.get(f"{ORG}/actions/runner-groups/{number}")["visibility"] == "selected"
    assert api.jit("one", scope=ORG, group=number)["runner"]["runner_group_id"] == number


def test_accounts_and_limits_have_the_described_shape(api):
    """The user, the repository, an organisation's repositories and the rate limit are as described."""
    assert api.get("/user")["login"] == "octocat"
    assert api.get(REPO)["full_name"] == "octo-org/hello"
    assert api.get("/repos/OCTO-ORG/Hello")["full_name"] == "octo-org/hello"
    assert [repo["name"] for repo in api.get(f"{ORG}/repos")] == ["hello"]
    assert api.get("/rate_limit")["rate"]["limit"] == 5000


@pytest.fixture
def app(github, closing):
    """A function that takes claims and returns the API for the JWT of an App installed on octo-org."""
    github.add_app(77, client_id="Iv23liTEST", owner="octo-org")
    permissions = {"actions": "read", "administration": "write", "metadata": "read"}
    github.add_installation(4242, app_id=77, account="octo-org", permissions=permissions)
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())

    def made(**claims):
        now = int(time.time())
        token = jwt.encode({"iat": now - 60, "exp": now + 540, "iss": "77", **claims}, pem, algorithm="RS256")
        return closing.enter_context(contextlib.closing(Api(github.url, token)))

    return made


def test_an_app_finds_its_installation_and_gets_a_token(app, github, closing):
    """An App's JWT leads to its installation, which issues a token of the new form that works like any other."""
    caller = app(iss="Iv23liTEST")
    assert caller.get("/app")["slug"] == "emulated-app"
    assert [one["id"] for one in caller.get("/app/installations")] == [4242]
    assert caller.get(f"{REPO}/installation")["id"] == caller.get(f"{ORG}/installation")["id"] == 4242
    reply = caller.call("POST", "/app/installations/4242/access_tokens", {})
    assert reply.status == 201
    token = reply.json()["token"]
    assert token.startswith("ghs_77_")
    assert len(token) > 400
    mine = closing.enter_context(contextlib.closing(Api(github.url, token)))
    assert mine.get("/installation/repositories")["repositories"][0]["name"] == "hello"
    assert mine.get(f"{REPO}/actions/runs")["total_count"] == 0
    assert mine.call("GET", "/user").status == 403


def test_an_installation_token_can_be_narrowed_but_not_widened(app, github, closing):
    """A token narrowed to a repository and a permission is refused the rest; more than the installation has is invalid."""
    github.add_repo("octo-org", "second")
    caller, path = app(), "/app/installations/4242/access_tokens"
    narrowed = caller.call("POST", path, {"repositories": ["second"], "permissions": {"actions": "read"}}).json()
    assert [repo["name"] for repo in narrowed["repositories"]] == ["second"]
    mine = closing.enter_context(contextlib.closing(Api(github.url, narrowed["token"])))
    assert mine.call("GET", f"{REPO}/actions/runs").status == 404
    assert mine.call("GET", "/repos/octo-org/second/actions/runs").status == 200
    assert mine.call("GET", "/repos/octo-org/second/actions/runners").status == 403
    caller.measured = False  # the texts of these errors are not described in this form
    assert caller.call("POST", path, {"permissions": {"actions": "write"}}).status == 422
    assert caller.call("POST", path, {"repositories": ["none"]}).status == 422


@pytest.mark.parametrize(
    ("claims", "status"),
    [
        ({"exp": 1}, 401),
        ({"exp": int(time.time()) + 3600}, 401),
        ({"iat": int(time.time()) + 600}, 401),
        ({"iss": "99"}, 404),
    ],
)
def test_an_app_token_out_of_its_time_is_refused(app, claims, status):
    """A JWT that has expired, lives too long, is from the future or from an unknown App is refused."""
    assert app(**claims).call("GET", "/app").status == status


def test_an_app_route_refuses_a_user_token(api, app):
    """Routes for Apps accept only a JWT, and a JWT works only there."""
    assert api.call("GET", "/app").status == 401
    assert app().call("GET", f"{REPO}/actions/runs").status == 403


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"name": "x" * 64}, 201),
        ({"name": "x" * 65}, 422),
        ({"name": ""}, 422),
        ({"labels": []}, 422),
        ({"labels": ["l"] * 101}, 422),
        ({"labels": "anka"}, 422),
        ({"runner_group_id": "1"}, 422),
        ({"runner_group_id": 99}, 404),
        *[({"name": f"a{bad}b"}, 422) for bad in '":<>|*?/\\'],
    ],
)
def test_a_jit_configuration_is_checked(api, change, status):
    """Name, labels and group of a JIT configuration are checked as on GitHub."""
    asked = {"name": "fine", "runner_group_id": 1, "labels": LABELS} | change
    assert api.call("POST", f"{REPO}/actions/runners/generate-jitconfig", asked).status == status


def test_a_runners_name_is_taken_once(api):
    """A second runner of the same name is a conflict, whatever its case."""
    api.jit("mac-1")
    asked = {"name": "MAC-1", "runner_group_id": 1, "labels": LABELS}
    reply = api.call("POST", f"{REPO}/actions/runners/generate-jitconfig", asked)
    assert (reply.status, reply.json()["message"].split(" - ")[0]) == (409, "Already exists")


def test_pages_and_their_links(api, queue):
    """Lists come in pages with a Link header that leads through all of them."""
    ids = [queue(f"job {number}")["id"] for number in range(5)][::-1]
    seen, path, query = [], f"{REPO}/actions/runs", {"per_page": "2", "status": "queued"}
    while True:
        reply = api.call("GET", path, **query)
        assert reply.json()["total_count"] == 5
        seen += [run["id"] for run in reply.json()["workflow_runs"]]
        following = re.search(r'<([^>]*)>; rel="next"', reply.headers.get("Link", ""))
        if not following:
            break
        query = dict(urllib3.util.parse_url(following[1]).query and _pairs(following[1]))
    assert seen == ids
    assert 'rel="first"' in reply.headers["Link"]
    assert query["page"] == "3"


def _pairs(url):
    return [pair.split("=") for pair in url.split("?")[1].split("&")]


def test_the_default_page_has_thirty(api, github):
    """Without per_page a page has thirty entries; the most is a hundred."""
    for number in range(31):
        github.add_runner("octo-org", "hello", f"mac-{number}", LABELS)
    page = api.get(f"{REPO}/actions/runners")
    assert (len(page["runners"]), page["total_count"]) == (30, 31)
    assert len(api.get(f"{REPO}/actions/runners", page="2")["runners"]) == 1


def test_runs_are_filtered(api, queue, finished):
    """Runs can be filtered by status or conclusion, branch and time of creation."""
    old = queue("old", created_at="2024-02-03T04:05:06Z", branch="side")

    def found(**query):
        return [run["id"] for run in api.get(f"{REPO}/actions/runs", **query)["workflow_runs"]]

    assert found(status="queued") == [old["id"]]
    assert found(status="completed") == found(status="cancelled") == [finished["id"]]
    assert found(status="in_progress") == []
    assert found(branch="side") == [old["id"]]
    assert found(created="2024-02-03") == found(created="<2024-02-04") == found(created="*..2024-12-31") == [old["id"]]
    assert found(created=">=2024-02-04") == [finished["id"]]


def test_the_enterprise_form_of_the_address(github, closing):
    """The same API is under /api/v3, and its links stay there."""
    api = closing.enter_context(contextlib.closing(Api(github.enterprise_api_url, measured=True)))
    body = api.get(REPO)
    assert body["url"] == f"{github.enterprise_api_url}{REPO}"
    assert body["html_url"] == f"{github.url}/octo-org/hello"


def test_what_is_not_there(api, github):
    """An unknown route is a JSON 404 and is recorded as an anomaly; an unknown repository is a 404 but no anomaly."""
    assert api.call("GET", "/repos/octo-org/none/actions/runs").status == 404
    assert github.anomalies() == []
    api.measured = False
    reply = api.call("GET", "/octo-org/hello/nothing")
    assert (reply.status, reply.json()["message"]) == (404, "Not Found")
    assert github.anomalies()[0]["anomaly"] == "unknown-route"


def test_a_body_that_is_no_json_object(api, github):
    """A body that does not parse is 400, with GitHub's text."""
    url = f"{github.url}{REPO}/actions/runners/generate-jitconfig"
    headers = {"Authorization": f"Bearer {api.token}", "User-Agent": "tests"}
    for text, message in ((b"{", "Problems parsing JSON"), (b"[1]", "Body should be a JSON object")):
        reply = urllib3.request("POST", url, body=text, headers=headers)
        assert (reply.status, reply.json()["message"]) == (400, message)


def test_jobs_have_the_keys_of_the_webhook_examples(api, queue):
    """A job has every key that the published examples of workflow_job events have in common."""
    examples = [example["workflow_job"] for example in json.loads(WEBHOOKS.read_text())]
    common = set.intersection(*(set(example) for example in examples))
    run = queue("build")
    assert common <= set(api.get(f"{REPO}/actions/jobs/{run['jobs'][0]['id']}"))


def test_the_description_finds_what_is_wrong():
    """The checker itself refuses a wrong body, an undeclared parameter, an unknown status, a missing or a surplus key."""
    label = {"id": 1, "name": "x", "type": "custom"}
    labels = f"{REPO}/actions/runners/1/labels"
    openapi.check_reply("GET", labels, 200, {"total_count": 1, "labels": [label]}, closed=True)
    jit = f"{REPO}/actions/runners/generate-jitconfig"
    broken = (
        lambda: openapi.check_reply("GET", labels, 200, {"labels": [label]}),
        lambda: openapi.check_reply("GET", labels, 200, {"total_count": 1, "labels": [label | {"type": "own"}]}),
        lambda: openapi.check_reply("GET", labels, 200, {"total_count": 1, "labels": [label | {"x": 1}]}, closed=True),
        lambda: openapi.check_reply("GET", labels, 201, {}),
        lambda: openapi.check_reply("GET", labels, 200, None),
        lambda: openapi.check_reply("DELETE", f"{REPO}/actions/runners/1", 204, {}),
        lambda: openapi.check_request("GET", f"{REPO}/actions/runs", {"state": "queued"}),
        lambda: openapi.check_request("GET", f"{REPO}/actions/runs", {"status": "busy"}),
        lambda: openapi.check_request("GET", f"{REPO}/actions/runs", {"per_page": "101"}),
        lambda: openapi.check_request("GET", f"{REPO}/actions/runs/first"),
        lambda: openapi.check_request("POST", jit),
        lambda: openapi.check_request("POST", jit, body={"name": "x", "labels": ["l"]}),
        lambda: openapi.check_request(
            "POST", jit, body={"name": "x", "labels": ["l"], "runner_group_id": 1, "group": 1}
        ),
        lambda: openapi.check_request("GET", "/nowhere"),
    )
    for check in broken:
        with pytest.raises(openapi.ContractBroken):
            check()
    openapi.check_request("POST", jit, body={"name": "x", "labels": ["l"], "runner_group_id": 1})
    moment = {"token": "x", "expires_at": "tomorrow"}
    with pytest.raises(openapi.ContractBroken, match="expires_at"):
        openapi.check_reply("POST", f"{REPO}/actions/runners/remove-token", 201, moment)


def test_a_taken_port_is_an_error():
    """A server that cannot listen reports an error instead of hanging."""
    with GitHubServer() as first, pytest.raises(RuntimeError, match="did not start"):
        GitHubServer(port=int(first.url.rsplit(":", 1)[1])).start()
