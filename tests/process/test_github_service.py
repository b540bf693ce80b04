"""The github plugin in the real program: logins, organizations, Enterprise Servers, runners that vanish, and kept logs."""

import json
from itertools import pairwise

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from stage import OWNER, PERMISSIONS, REPO, TOKEN, eventually, job


def queue(github, *jobs, repo=REPO):
    """Queue a run; the ids of its jobs."""
    return [item["id"] for item in github.queue_run(OWNER, repo, jobs=list(jobs))["jobs"]]


def finish(mac, github, ids, deadline=40):
    """Wait until the jobs are done and cleaned up, and return their conclusions."""
    eventually(lambda: all(github.job(one)["status"] == "completed" for one in ids), "the jobs are done", deadline)
    eventually(lambda: not mac.leftovers(), "everything is cleaned up", 20)
    return [github.job(one)["conclusion"] for one in ids]


def answered(github, path):
    """True once GitHub has answered a request for this path with success."""
    return any(path in request["path"] and request["status"] == 200 for request in github.requests())


def counted(mac, metric, **labels):
    """The sum of a metric's values with these labels."""
    lines = [line for line in mac.get("/metrics")[1].splitlines() if line.startswith(metric)]
    wanted = [f'{name}="{value}"' for name, value in labels.items()]
    return sum(float(line.rpartition(" ")[2]) for line in lines if all(one in line for one in wanted))


# ---- logins ----


@pytest.fixture(scope="module")
def key():
    """A GitHub App's private key in PEM."""
    made = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return made.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    ).decode()


def as_app(mac, github, key, **more):
    """Let the services log in as an App with an installation at the owner."""
    github.add_app(77, client_id="Iv23liTESTTESTTEST")
    github.add_installation(4242, app_id=77, account=OWNER, **{"permissions": PERMISSIONS, **more})
    for service in mac.config["services"]:
        del service["token"]
        service |= {"private_key": key, "app_id": 77}


def _public(key):
    private = serialization.load_pem_private_key(key.encode(), None)
    return (
        private.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )


@pytest.mark.parametrize("form", ["text", "file", "client id"])
def test_a_github_app_runs_jobs(mac, github, key, form):
    """The program finds the installation; neither key nor tokens appear in logs or calls."""
    as_app(mac, github, key)
    (service,) = mac.config["services"]
    if form == "file":
        (mac.folder / "app.pem").write_text(key)
        (mac.folder / "app.pem").chmod(0o600)
        service["private_key"] = str(mac.folder / "app.pem")
    if form == "client id":
        service["app_id"] = "Iv23liTESTTESTTEST"
    ids = queue(github, job("build"))
    mac.start()
    assert finish(mac, github, ids) == ["success"]
    assert mac.log_lines(level="ERROR") == []
    seen = mac.log_text() + "".join(str(call) for call in mac.anka.calls())
    assert "PRIVATE KEY" not in seen
    assert "ghs_" not in seen


def test_a_permission_that_the_app_lacks_is_named(mac, github, key):
    """A missing permission gives one ERROR and a fatal service, without a storm of requests."""
    as_app(mac, github, key, permissions={"actions": "read", "metadata": "read"})
    mac.start(wait=False)
    eventually(lambda: mac.log_lines(level="ERROR"), "it is told", 30)
    (line,) = mac.log_lines(level="ERROR")
    assert "administration: write" in json.dumps(line)
    eventually(lambda: mac.service_status()["state"] == "fatal", "the service is fatal")
    assert len(github.requests()) < 10


def test_a_token_that_may_not_register_is_told_by_its_permission(mac, github):
    """If registering is refused, the job goes back, nothing is left, and one ERROR names the permission."""
    github.add_token("github_pat_reader", permissions={"actions": "read"})
    mac.config["services"][0]["token"] = "github_pat_reader"
    (job_id,) = queue(github, job("build"))
    mac.start()
    eventually(lambda: mac.service_status()["state"] == "fatal", "the service gives up", 40)
    eventually(lambda: mac.log_lines(level="ERROR"), "it is told")
    (line,) = mac.log_lines(level="ERROR")
    assert "administration: write" in json.dumps(line)
    assert github.job(job_id)["status"] == "queued"
    eventually(lambda: not mac.leftovers(), "nothing is left")


def test_a_token_that_is_refused_for_a_while_costs_nothing(mac, github):
    """An incident at GitHub looks like a revoked token: the service waits, and recovers without a restart."""
    mac.start()
    # Ready comes before the first look, and only a token that worked once gets patience.
    eventually(lambda: answered(github, "/actions/runs"), "the first look is answered")
    github.fault("GET", "/actions/runs", times=6, status=401, body={"message": "Bad credentials"})
    ids = queue(github, job("build"))
    assert finish(mac, github, ids, 60) == ["success"]
    assert mac.service_status()["restarts"] == 0
    assert mac.log_lines(level="ERROR") == []


def test_a_repository_that_does_not_exist_is_told(mac, github):
    """An unknown repository gives one ERROR that names it, and a fatal service."""
    mac.config["services"][0]["repo"] = "no-such-repo"
    mac.start(wait=False)
    eventually(lambda: mac.log_lines(level="ERROR"), "it is told", 30)
    (line,) = mac.log_lines(level="ERROR")
    assert "no-such-repo" in json.dumps(line)
    assert "does not exist, or the token may not see it" in json.dumps(line)


def test_an_enterprise_server_is_another_address(mac, github):
    """An Enterprise Server works: its API has a path prefix, and it sends no rate headers."""
    github.set(rate_headers=False)
    mac.config["services"][0]["api_url"] = github.enterprise_api_url
    ids = queue(github, job("build"))
    mac.start()
    assert finish(mac, github, ids) == ["success"]


# ---- organizations ----


def as_org(mac, github, **more):
    """Let the service serve the organization, with a token for it."""
    github.add_token(
        "github_pat_org",
        permissions={"actions": "read", "organization_self_hosted_runners": "write", "metadata": "read"},
    )
    (service,) = mac.config["services"]
    del service["repo"]
    service |= {"registration": "org", "token": "github_pat_org", **more}


@pytest.fixture
def org(github):
    """GitHub with the owner as an organization of three repositories."""
    github.add_org(OWNER)
    for name in ("ios-app", "ios-lib", "web"):
        github.add_repo(OWNER, name)
    return github


def test_an_organizations_jobs_are_run(mac, org):
    """Jobs of all matching repositories run, on runners of the configured group."""
    group = org.add_group(OWNER, "Macs", repos=["ios-app", "ios-lib"])
    as_org(mac, org, repos=["ios-*"], runner={"group": "macs"})
    ids = queue(org, job("app"), repo="ios-app") + queue(org, job("lib"), repo="ios-lib")
    elsewhere = queue(org, job("web"), repo="web")
    mac.start()
    eventually(lambda: all(org.job(one)["status"] == "completed" for one in ids), "the jobs are done", 40)
    eventually(lambda: not mac.vms() and not org.runners(OWNER), "everything is cleaned up", 20)
    assert org.job(elsewhere[0])["status"] == "queued"
    registered = [r["body"] for r in org.requests() if r["path"] == f"/orgs/{OWNER}/actions/runners/generate-jitconfig"]
    assert {_json(body)["runner_group_id"] for body in registered} == {group["id"]}
    assert {line["repo"] for line in mac.log_lines(msg="job claimed")} == {"ios-app", "ios-lib"}


def _json(body):
    return json.loads(body) if isinstance(body, str) else body


def test_a_runner_group_that_does_not_exist_is_told(mac, org):
    """An unknown runner group gives an ERROR that lists the groups."""
    as_org(mac, org, runner={"group": "no-such-group"})
    queue(org, job("app"), repo="ios-app")
    mac.start()
    eventually(lambda: mac.log_lines(level="ERROR"), "it is told", 30)
    line = json.dumps(mac.log_lines(level="ERROR"))
    assert "no-such-group" in line
    assert "Default" in line
    eventually(lambda: not mac.vms(), "nothing is left")


# ---- many hosts ----


def test_hosts_with_one_redis_share_their_looks(new_mac, github, redis_server):
    """Four services on two hosts make no more calls than one service."""
    macs = [new_mac(f"mac{number}", services=2) for number in (1, 2)]
    for mac in macs:
        for service in mac.config["services"]:
            service |= {
                "sleep_interval": 1,
                "database": {"enabled": True, "url": f"127.0.0.1:{redis_server.port}"},
            }
        mac.start()
    since = github.requests()[-1]["seq"]
    eventually(lambda: [r["seq"] for r in github.requests(since)][12:], "some looks", 30)
    looks = [r["time"] for r in github.requests(since) if "queued" in str(r["query"])]
    assert min(later - earlier for earlier, later in pairwise(looks)) > 0.5
    ids = queue(github, *(job(f"job {number}") for number in range(4)))
    eventually(lambda: all(github.job(one)["status"] == "completed" for one in ids), "the jobs are done", 60)
    assert [github.job(one)["starts"] for one in ids] == [1] * 4
    eventually(lambda: not any(mac.vms() for mac in macs), "everything is cleaned up")


# ---- ghosts ----


def ghost(mac, script):
    """Replace the script that starts the runner."""
    folder = mac.folder / "plugins" / "github"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "start-runner.bash").write_text(script)


def test_a_runner_that_never_comes_online_is_replaced_and_then_left(mac, github):
    """After the allowed number of VMs the host gives up with one ERROR, and the job stays queued."""
    ghost(mac, "true\n")
    (service,) = mac.config["services"]
    service |= {"deadlines": {"runner_online": 1, "job_start": 1}, "job_retry_attempts": 1}
    (job_id,) = queue(github, job("build"))
    mac.start()
    eventually(lambda: mac.log_lines(level="ERROR"), "it is given up", 90)
    (line,) = mac.log_lines(level="ERROR")
    assert "stays queued" in line["msg"]
    assert github.job(job_id)["status"] == "queued"
    eventually(lambda: not mac.leftovers(), "nothing is left")
    assert len(mac.log_lines(msg="job claimed")) == 2


def test_a_runner_that_lost_its_registration_is_replaced(mac, github):
    """A runner without registration gets no job; the next VM runs it."""
    mac.config["services"][0]["deadlines"] = {"runner_online": 2, "job_start": 2}
    github.set(refuse_assign=True)
    ids = queue(github, job("build"))
    mac.start()
    runner = eventually(lambda: github.runners(OWNER, REPO), "a runner is registered")[0]
    eventually(lambda: github.events("runner-online"), "it is online")
    github.delete_runner(runner["id"])
    github.set(refuse_assign=False)
    assert finish(mac, github, ids, 60) == ["success"]
    assert len(mac.log_lines(msg="job claimed")) == 2


def test_a_job_is_watched_though_the_guest_does_not_tell(mac, github):
    """With a custom start script that leaves no marks, the program asks GitHub for the job's state."""
    ghost(mac, 'cd "$HOME/actions-runner"\nnohup ./run.sh >/dev/null 2>&1 </dev/null &\n')
    ids = queue(github, job("good"), job("bad", steps=["exit 3"]))
    mac.start()
    assert finish(mac, github, ids, 60) == ["success", "failure"]


# ---- what is kept, and told ----


def test_the_guests_logs_are_kept(mac, github):
    """Logs are kept under the job's id, private, after the VM is gone."""
    (job_id,) = queue(github, job("build", steps=["exit 1"]))
    mac.start()
    finish(mac, github, [job_id])
    folder = mac.state_dir / "jobs" / str(job_id) / "1"
    assert "build" in (folder / "runner.log").read_text()
    assert list((folder / "_diag").glob("*.log"))
    assert {path.stat().st_mode & 0o077 for path in (mac.state_dir / "jobs").rglob("*")} == {0}


def test_calls_are_few_and_counted(mac, github):
    """One job costs four calls of GitHub's limit; the metrics count calls by route and status."""
    mac.start()
    eventually(lambda: github.counts()["requests"] > 10, "the first looks are over")
    before = github.counts()["counted"]
    ids = queue(github, job("build"))
    finish(mac, github, ids)
    seen = github.counts()["requests"]
    eventually(lambda: github.counts()["requests"] > seen + 8, "some more looks")
    runners_own = [r for r in github.requests() if r["path"].startswith("/actions/runner") and r["counted"]]
    assert github.counts()["counted"] - before - len(runners_own) <= 4
    assert counted(mac, "anklet_api_requests_total", status="304") > 10
    assert (
        counted(mac, "anklet_api_requests_total", route="POST /repos/{owner}/{repo}/actions/runners/generate-jitconfig")
        == 1
    )
    assert 0 < counted(mac, "anklet_api_calls_left") <= 5000
    assert TOKEN not in mac.get("/metrics")[1]


def test_a_restarted_worker_asks_conditionally_from_the_start(mac, github):
    """The store keeps known replies, so a restart costs nothing of GitHub's limit."""
    mac.start()
    eventually(lambda: github.counts()["requests"] > 10, "the first looks are over")
    assert mac.drain() == 0
    before = github.counts()
    mac.start()
    eventually(lambda: github.counts()["requests"] > before["requests"] + 5, "it looks again")
    assert github.counts()["counted"] == before["counted"]
