"""The github plugin's client: limits and who waits for them, refusals and who must act, replies that may be confirmed."""

import time
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from anklet_github import api as api_module
from anklet_github import known as known_module
from anklet_github.api import Api, route_of
from anklet_github.http import NoAnswer, Reply
from anklet_github.known import KnownReplies
from anklet_github.limits import MOST_POINTS, MOST_POINTS_TO_LOOK, Budget, limit_pause, points
from anklet_github.login import TokenLogin
from anklet_github.payloads import Run, Runs, WorkflowJob
from anklet_github.pool import _proxy_for, _reason
from anklet_github.trouble import ApiTrouble, Conflict, LimitPause, NotFound, Refused, Unprocessable
from github_fakes import FakeContext, new_board

from anklet_worker.contract.errors import RightsRefused
from anklet_worker.contract.settings import Secret


def reply(status, body=b"{}", **headers):
    """A reply of GitHub's."""
    return Reply(status, {key.replace("_", "-"): value for key, value in headers.items()}, body)


NO_RUNS = b'{"total_count": 0, "workflow_runs": []}'
NONE_OF_NINE = b'{"total_count": 9, "workflow_runs": []}'
ONE_RUN = b'{"total_count": 1, "workflow_runs": [{"id": 7}]}'


class FakeTransport:
    """Answers one request after the other; the last answer lasts; an exception is raised."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    def exchange(self, method, path, headers, body=None):
        self.asked.append((method, path, dict(headers)))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def client(*answers, board=None):
    """A client, its transport and context."""
    context = FakeContext(board=board)
    transport = FakeTransport(*answers)
    return Api(transport, TokenLogin(Secret("hunter2")), context), transport, context


# ---- limits ----


@pytest.mark.parametrize(
    ("answer", "pause"),
    [
        (reply(200), None),
        (reply(200, x_ratelimit_remaining="0", x_ratelimit_reset="2000"), None),
        (reply(403, b'{"message": "Resource not accessible"}'), None),
        (
            reply(
                403, b'{"message": "Resource not accessible"}', x_ratelimit_remaining="4000", x_ratelimit_reset="2000"
            ),
            None,
        ),
        (reply(403, x_ratelimit_remaining="0", x_ratelimit_reset="1030"), 31.0),
        (reply(403, x_ratelimit_remaining="0", x_ratelimit_reset="900"), 1.0),
        (reply(403, b'{"message": "You have exceeded a secondary rate limit."}'), 60.0),
        (reply(429), 60.0),
        (reply(429, retry_after="7"), 7.0),
        (reply(403, retry_after="7"), 7.0),
        (reply(429, retry_after="999999"), 3900.0),
        (reply(429, retry_after="Thu, 01 Jan 1970 00:17:00 GMT"), 20.0),
        (reply(403, b'{"message": "You have triggered an abuse detection mechanism."}'), 60.0),
        (reply(500), None),
        (reply(404), None),
    ],
)
def test_what_is_a_limit_and_how_long(answer, pause):
    """A reply without rate headers is none (the original waited for ever); a right that is missing is none either."""
    assert limit_pause(answer, 60.0, 1000.0) == pause


def test_a_reset_is_judged_by_githubs_clock():
    """Ours may be wrong by hours."""
    noon = datetime(2026, 11, 24, 12, tzinfo=UTC)
    reset = str(int(noon.timestamp()) + 30)
    answer = reply(403, x_ratelimit_remaining="0", x_ratelimit_reset=reset, date=format_datetime(noon, usegmt=True))
    assert limit_pause(answer, 60.0, now=0.0) == 31


class Clock:
    """A budget on a clock that waiting moves."""

    def __init__(self, board=None):
        self.context = FakeContext(board=board)
        self.context.now = 600.0
        self.budget = Budget("anklet:{t/api}", self.context, lambda: self.context.now)

    def spend(self, method="GET", *, urgent=True):
        """Seconds that it made us wait."""
        before = self.context.now
        self.budget.spend(method, urgent=urgent)
        return self.context.now - before


def test_a_limit_that_one_meets_all_wait_for():
    """Services with one login and one store share what they learn."""
    board = new_board()
    one, other = Clock(board), Clock(board)
    assert one.budget.account(reply(429, retry_after="40"))
    assert 40 <= one.spend() <= 42.5
    assert 40 <= other.spend() <= 42.5
    assert one.context.paused == 1
    assert one.context.logged("WARNING") == ["GitHub's rate limit is reached; waiting"]


def test_a_secondary_limit_that_comes_again_is_waited_for_longer():
    """GitHub asks for growing pauses; a reply that is none ends that."""
    clock = Clock()
    waits = []
    for _ in range(3):
        clock.budget.account(reply(429))
        waits.append(clock.spend())
    clock.budget.account(reply(200))
    clock.budget.account(reply(429))
    waits.append(clock.spend())
    assert [round(wait, -1) for wait in waits] == [60, 120, 240, 60]


def test_a_minutes_points_are_shared_and_looking_comes_last():
    """Looks stop first; what a job needs goes on; and nobody exceeds GitHub's 900 points."""
    board = new_board()
    one, other = Clock(board), Clock(board)
    for _ in range(MOST_POINTS_TO_LOOK // 2):
        assert one.spend(urgent=False) == 0
        assert other.spend(urgent=False) == 0
    assert one.spend() == 0
    assert one.spend(urgent=False) > 0
    while other.spend("DELETE") == 0:
        assert max(entry.value for entry in board.shelf.counters.values()) <= MOST_POINTS
    assert MOST_POINTS <= 900


def test_the_last_part_of_an_hours_calls_is_kept_for_jobs():
    """With a tenth of the limit left, looks wait for its reset; registering and cleaning up do not."""
    clock = Clock()
    clock.budget.account(reply(200, x_ratelimit_limit="1000", x_ratelimit_remaining="99", x_ratelimit_reset="1000"))
    assert clock.spend() == 0
    assert 400 <= clock.spend(urgent=False) <= 402.5
    assert clock.context.budget[0] == 99


def test_a_reply_without_rate_headers_leaves_the_budget_alone():
    """As an Enterprise Server without limits sends it."""
    clock = Clock()
    assert not clock.budget.account(reply(200))
    assert clock.spend(urgent=False) == 0
    assert clock.context.budget is None


@pytest.mark.parametrize("urgent", [True, False])
def test_a_drain_ends_a_pause_of_looking_and_of_nothing_else(urgent):
    """No job will be taken any more; one that runs is followed on."""
    clock = Clock()
    clock.budget.account(reply(429, retry_after="600"))
    clock.context.draining = True
    if urgent:
        assert clock.spend() >= 600
    else:
        with pytest.raises(LimitPause):
            clock.spend(urgent=False)
        assert clock.context.waits == []


def test_a_wait_for_a_limit_ends_though_the_clock_was_set_back():
    """What another host noted by a clock that is a day ahead does not stop us for a day."""
    board = new_board()
    board.post("anklet:{t/api}:refused-until", str(600 + 86_400), 60.0)
    assert Clock(board).spend() == 0


@pytest.mark.parametrize(("method", "cost"), [("GET", 1), ("POST", 5), ("DELETE", 5)])
def test_what_a_call_costs(method, cost):
    """By GitHub's own count."""
    assert points(method) == cost


# ---- errors ----


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (reply(401, b'{"message": "Bad credentials"}'), Refused, "Bad credentials"),
        (
            reply(403, b'{"message": "no"}', x_accepted_github_permissions="administration=write"),
            Refused,
            "administration: write",
        ),
        (reply(404, b'{"message": "Not Found"}'), NotFound, "404"),
        (reply(409, b'{"message": "Already exists"}'), Conflict, "exists"),
        (reply(422, b'{"message": "Runner is busy"}'), Unprocessable, "busy"),
        (reply(502, b"<html>"), ApiTrouble, "502"),
        (reply(301), ApiTrouble, "301"),
    ],
)
def test_who_is_to_act_on_an_error(answer, kind, words):
    """The class says who should try again; the words are GitHub's."""
    with pytest.raises(kind, match=words) as caught:
        api_module._raise_for(answer, "GET", "/x?token=secret")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 304])
def test_success_is_no_error(status):
    """Nothing is raised."""
    assert api_module._raise_for(reply(status), "GET", "/x") is None


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"id": 1', b"[]", b'{"id": "x"}', b"null", b'{"id": "\xff"}'])
def test_a_reply_that_is_not_as_documented_is_trouble(body):
    """Never an exception of a parser."""
    with pytest.raises(ApiTrouble, match="documented"):
        api_module._decode(body, WorkflowJob, "/x")


@pytest.mark.parametrize("fault", [reply(502), NoAnswer("reset"), reply(200, b"<html>"), reply(200, b"")])
def test_a_passing_fault_is_tried_again(fault):
    """Within seconds, and not for ever."""
    api, transport, _ = client(fault, fault, reply(200, NO_RUNS))
    assert api.get_all("/repos/a/b/actions/runs", Runs) == []
    assert len(transport.asked) == 3
    api, transport, _ = client(fault)
    with pytest.raises(ApiTrouble):
        api.get_all("/repos/a/b/actions/runs", Runs)
    assert len(transport.asked) == 4


@pytest.mark.parametrize("fault", [reply(502), NoAnswer("reset")])
def test_what_may_have_had_an_effect_is_not_done_twice(fault):
    """A registration whose reply was lost is resolved by its name, not by asking again."""
    api, transport, _ = client(fault)
    with pytest.raises(ApiTrouble):
        api.post("/repos/a/b/actions/runners/generate-jitconfig", Runs, {}, repeatable=False)
    assert len(transport.asked) == 1


# ---- refusals ----


@pytest.mark.parametrize("status", [401, 403])
def test_what_was_never_granted_is_refused_for_good_after_some_tries(status):
    """A wrong token or a missing permission: the service ends, with GitHub's words."""
    api, transport, _ = client(reply(status, b'{"message": "no"}'))
    with pytest.raises(RightsRefused, match="no"):
        api.get("/repos/a/b/actions/runs", Runs)
    assert len(transport.asked) == 4


def test_a_repository_that_never_was_there_is_refused_for_good():
    """A 404 for what an operator named; a 404 for anything else is an answer."""
    api, _, _ = client(reply(404))
    with pytest.raises(RightsRefused, match="does not exist, or the token may not see it"):
        api.get("/repos/a/b/actions/runs", Runs, configured=True)
    with pytest.raises(NotFound):
        api.get("/repos/a/b/actions/runs", Runs)


@pytest.mark.parametrize("refusal", [reply(401), reply(403), reply(404)])
def test_a_refusal_of_a_moment_is_survived(refusal):
    """GitHub's incidents look like this."""
    api, _, context = client(refusal, reply(200, NO_RUNS))
    assert api.get("/repos/a/b/actions/runs", Runs, configured=True).items == []
    assert context.logged("ERROR") == []


@pytest.mark.parametrize("refusal", [reply(401), reply(403), reply(404)])
def test_what_was_granted_before_is_waited_for_and_told_once(refusal, monkeypatch):
    """Never the end of the service, never a storm of requests, one ERROR; and it recovers by itself."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    api, transport, context = client(reply(200, NO_RUNS), refusal)
    api.get("/repos/a/b/actions/runs", Runs, configured=True)
    for _ in range(3600):
        now[0] += 1
        with pytest.raises(Refused):
            api.get("/repos/a/b/actions/runs", Runs, configured=True)
    assert len(transport.asked) < 100
    assert context.logged("ERROR") == ["GitHub refuses what it granted before; asking now and then"]
    transport.answers = [reply(200, NO_RUNS)]
    now[0] += 301
    api.get("/repos/a/b/actions/runs", Runs, configured=True)
    assert context.logged("INFO") == ["GitHub grants again what it refused"]


def test_a_refusal_after_a_restart_is_waited_for_where_an_earlier_process_was_granted_it():
    """A worker that starts anew in the midst of GitHub's incident must not end for good."""
    board = new_board()
    client(reply(200, NO_RUNS), board=board)[0].get_all("/r", Runs)
    api, _, _ = client(reply(401), board=board)
    with pytest.raises(Refused):
        api.get_all("/r", Runs)
    stranger = Api(FakeTransport(reply(401)), TokenLogin(Secret("another")), FakeContext(board=board))
    with pytest.raises(RightsRefused):
        stranger.get_all("/r", Runs)


def test_what_is_granted_is_told_anew_before_it_is_forgotten(monkeypatch):
    """The note on the board ends; a service that has run for a month must survive a restart in an incident, too."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    api, _, context = client(reply(200, NO_RUNS))
    posted = []
    context.board.post = lambda key, _text, seconds: posted.append((key, now[0] + seconds))
    for _ in range(30):
        api.get("/repos/a/b/actions/runs", Runs, configured=True)
        api.get("/repos/a/b/actions/runs", Runs, configured=True)
        now[0] += 86_400
    keys = {key for key, _ in posted}
    assert len(keys) == 3
    assert all(max(until for key, until in posted if key == one) > now[0] for one in keys)
    assert len(posted) == 30 * 3


@pytest.mark.parametrize("refusal", [reply(401), reply(403)])
def test_in_an_incident_nothing_is_refused_for_good(refusal, monkeypatch):
    """While GitHub refuses what it granted, its refusal of what was never asked for says nothing; afterwards it does."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    api, transport, _ = client(reply(200, NO_RUNS), refusal)
    api.get("/repos/a/b/actions/runs", Runs)
    for path in ("/repos/a/b/actions/runs", "/repos/a/b/actions/runners"):
        with pytest.raises(Refused):
            api.get(path, Runs)
    now[0] += 60
    transport.answers = [reply(200, NO_RUNS)]
    for path in ("/repos/a/b/actions/runs", "/repos/a/b/actions/runners"):
        api.get(path, Runs)
    transport.answers = [reply(403)]
    with pytest.raises(RightsRefused):
        api.get("/repos/a/b/actions/caches", Runs)


def test_a_right_that_is_missing_stops_only_what_needs_it(monkeypatch):
    """Without administration nothing can be registered; looking goes on."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    api, transport, _ = client(reply(201, ONE_RUN), reply(403))
    path = "/repos/a/b/actions/runners/registration-token"
    api.post(path, Runs, {}, repeatable=True)
    with pytest.raises(Refused):
        api.post(path, Runs, {}, repeatable=True)
    transport.answers = [reply(200, NO_RUNS)]
    assert api.get("/repos/a/b/actions/runs", Runs).items == []
    with pytest.raises(Refused):
        api.post(path, Runs, {}, repeatable=True)


def test_a_repository_that_is_shut_spares_the_others(monkeypatch):
    """GitHub blocks one (403): the same question about another is asked, and a right that this one never had is known as such."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    api, transport, _ = client(reply(200, NO_RUNS))
    for repo in ("open", "blocked"):
        api.get(f"/repos/a/{repo}/actions/runs", Runs)
    transport.answers = [reply(403)]
    with pytest.raises(Refused):
        api.get("/repos/a/blocked/actions/runs", Runs)
    transport.answers = [reply(200, NO_RUNS)]
    assert api.get("/repos/a/open/actions/runs", Runs).items == []
    with pytest.raises(Refused):
        api.get("/repos/a/blocked/actions/runs", Runs)
    stranger, _, _ = client(reply(200, NO_RUNS), reply(403))
    stranger.get("/repos/a/open/actions/runs", Runs)
    with pytest.raises(RightsRefused):
        stranger.get("/repos/a/never/actions/runs", Runs)


def test_a_refusal_of_a_renamed_repository_is_waited_for():
    """What was granted is known by the name that is configured, not by the place to which GitHub sends us."""
    moved = reply(301, location="/repositories/7/actions/runs")
    api, transport, _ = client(moved, reply(200, NO_RUNS))
    api.get("/repos/a/b/actions/runs", Runs)
    transport.answers = [moved, reply(403)] * 4
    with pytest.raises(Refused):
        api.get("/repos/a/b/actions/runs", Runs)


# ---- conditional requests ----


def test_what_has_not_changed_is_not_sent_again():
    """The second question names the ETag; 304 gives the first answer."""
    api, transport, _ = client(reply(200, ONE_RUN, etag='"a"'), reply(304, b""))
    first = api.get_all("/repos/a/b/actions/runs", Runs)
    assert api.get_all("/repos/a/b/actions/runs", Runs) == first
    assert "If-None-Match" not in transport.asked[0][2]
    assert transport.asked[1][2]["If-None-Match"] == '"a"'


def test_what_one_knows_its_successor_knows():
    """A service with the same login and store, or the next process, asks conditionally from the first time on."""
    board = new_board()
    client(reply(200, ONE_RUN, etag='"a"'), board=board)[0].get_all("/repos/a/b/actions/runs", Runs)
    api, transport, _ = client(reply(304, b""), board=board)
    assert [run.id for run in api.get_all("/repos/a/b/actions/runs", Runs)] == [7]
    assert transport.asked[0][2]["If-None-Match"] == '"a"'
    assert "hunter2" not in str(board.shelf.notes)


def test_a_garbled_reply_is_not_kept():
    """It would be confirmed for ever after."""
    api, transport, _ = client(reply(200, b"<html>", etag='"bad"'), reply(200, ONE_RUN, etag='"good"'))
    assert [run.id for run in api.get_all("/repos/a/b/actions/runs", Runs)] == [7]
    assert all(headers.get("If-None-Match") != '"bad"' for _, _, headers in transport.asked)


def test_a_garbled_note_is_no_trouble():
    """What cannot be read on the board is asked for."""
    board = new_board()
    client(reply(200, ONE_RUN, etag='"a"'), board=board)[0].get_all("/repos/a/b/actions/runs", Runs)
    for key in list(board.shelf.notes):
        board.post(key, "?", 60.0)
    api, transport, _ = client(reply(200, NO_RUNS), board=board)
    assert api.get_all("/repos/a/b/actions/runs", Runs) == []
    assert "If-None-Match" not in transport.asked[0][2]


def test_a_304_that_nobody_asked_for_is_trouble():
    """There is nothing that it could confirm."""
    with pytest.raises(ApiTrouble, match="304"):
        client(reply(304, b""))[0].get("/x", Runs)


def test_what_is_kept_has_a_limit(monkeypatch):
    """Pages of large matrices must not fill the memory; the latest are kept, and a reply of any size."""
    known, page = KnownReplies("me", FakeContext()), 64 * 1024
    monkeypatch.setattr(known_module, "_MOST_BYTES", 16 * page)
    for number in range(40):
        known.learn(f"/{number}", reply(200, bytes(page), etag=f'"{number}"'))
        known.learn("/again", reply(200, bytes(page), etag=f'"{number}"'))
    kept = [number for number in range(40) if f"/{number}" in known._last]
    assert kept == list(range(25, 40))
    known.learn("/again", reply(200, bytes(page)))
    assert known._bytes == 15 * page
    known.learn("/large", reply(200, bytes(30 * page), etag='"large"'))
    assert list(known._last) == ["/large"]


def test_a_list_that_should_be_empty_again_is_asked_so():
    """After the last job the queue is as it was before the first: its old ETag fits, and the answer costs nothing."""
    answers = [reply(200, NO_RUNS, etag='"none"'), reply(200, ONE_RUN, etag='"one"'), reply(304, b"")]
    api, transport, _ = client(*answers)
    for emptied in (False, False, True):
        runs = api.get_all("/repos/a/b/actions/runs", Runs, emptied=emptied)
    assert runs == []
    assert [headers.get("If-None-Match") for _, _, headers in transport.asked] == [None, '"none"', '"none"']


def test_a_server_with_pages_of_its_own_size_is_read_to_the_end():
    """It ignores per_page: a short page is not the last one."""
    pages = [
        reply(200, b'{"total_count": 3, "workflow_runs": [{"id": %d}, {"id": %d}]}' % (1, 2)),
        reply(200, b'{"total_count": 3, "workflow_runs": [{"id": 3}]}'),
    ]
    api, transport, _ = client(*pages)
    assert [run.id for run in api.get_all("/r", Runs)] == [1, 2, 3]
    assert len(transport.asked) == 2


def test_a_count_that_is_too_large_does_not_go_on_for_ever():
    """An empty page is the last one."""
    api, transport, _ = client(
        reply(200, b'{"total_count": 9, "workflow_runs": [{"id": 1}]}'),
        reply(200, NONE_OF_NINE),
    )
    assert [run.id for run in api.get_all("/r", Runs)] == [1]
    assert len(transport.asked) == 2


# ---- what was moved ----


@pytest.mark.parametrize(
    ("method", "status", "followed"),
    [
        ("GET", 301, True),
        ("GET", 302, True),
        ("GET", 307, True),
        ("POST", 301, False),
        ("POST", 307, True),
        ("DELETE", 308, True),
    ],
)
def test_a_renamed_repository_is_found(method, status, followed):
    """As GitHub's rules for redirects have it; told once, as a WARN."""
    moved = reply(status, location="https://api.github.com/repositories/5/x")
    api, transport, context = client(moved, reply(200, b'{"id": 5}'))
    call = {
        "GET": lambda: api.get("/repos/o/r/x", Run),
        "POST": lambda: api.post("/repos/o/r/x", Run, {}, repeatable=False),
        "DELETE": lambda: api.delete("/repos/o/r/x"),
    }[method]
    if followed:
        call()
        assert [path for _, path, _ in transport.asked] == ["/repos/o/r/x", "/repositories/5/x"]
        assert len(context.logged("WARNING")) == 1
    else:
        with pytest.raises(ApiTrouble, match=str(status)):
            call()


@pytest.mark.parametrize(
    "place", ["https://evil.example/x", "https://api.github.com.evil.example/x", "//evil.example/x", ""]
)
def test_our_login_goes_to_no_other_server(place):
    """Wherever a reply points."""
    api, transport, _ = client(reply(301, location=place))
    with pytest.raises(ApiTrouble, match="301"):
        api.get("/x", Run)
    assert {path for _, path, _ in transport.asked} <= {"/x", "/"}


def test_a_circle_of_redirects_ends():
    """It is trouble like any other."""
    api, transport, _ = client(reply(301, location="/x"))
    with pytest.raises(ApiTrouble, match="301"):
        api.get("/x", Run)
    assert len(transport.asked) <= 16


def test_all_pages_are_read():
    """A hundred a page, until all are there."""
    many = b'{"total_count": 150, "workflow_runs": [%s]}'
    pages = [many % b",".join(b'{"id": %d}' % number for number in span) for span in (range(100), range(100, 150))]
    api, transport, _ = client(*[reply(200, page) for page in pages])
    assert len(api.get_all("/repos/a/b/actions/runs", Runs, status="queued")) == 150
    assert [path.partition("?")[2] for _, path, _ in transport.asked] == [
        "status=queued&per_page=100&page=1",
        "status=queued&per_page=100&page=2",
    ]


# ---- counting ----


@pytest.mark.parametrize(
    ("method", "url", "route"),
    [
        ("GET", "/repos/a/b/actions/runs?status=queued", "GET /repos/{owner}/{repo}/actions/runs"),
        ("GET", "/repos/a/b/actions/runs/12/jobs", "GET /repos/{owner}/{repo}/actions/runs/{id}/jobs"),
        ("DELETE", "/orgs/a/actions/runners/12", "DELETE /orgs/{org}/actions/runners/{id}"),
        ("POST", "/app/installations/5/access_tokens", "POST /app/installations/{id}/access_tokens"),
    ],
)
def test_routes_are_few(method, url, route):
    """No id and no name becomes a label."""
    assert route_of(method, url) == route


def test_every_call_is_counted():
    """By route and status, those without an answer too."""
    api, _, context = client(NoAnswer("reset"), reply(200, NO_RUNS))
    api.get_all("/repos/a/b/actions/runs", Runs)
    route = "GET /repos/{owner}/{repo}/actions/runs"
    assert context.calls == [(route, "none"), (route, "200")]


# ---- proxies ----


@pytest.mark.parametrize(
    ("environment", "url", "proxy"),
    [
        ({}, "https://api.github.com", None),
        ({"HTTPS_PROXY": "http://p:3128"}, "https://api.github.com", "http://p:3128"),
        ({"https_proxy": "p:3128"}, "https://api.github.com", "http://p:3128"),
        ({"HTTPS_PROXY": "http://p:3128"}, "http://ghes.local/api/v3", None),
        ({"HTTPS_PROXY": "http://p:3128", "NO_PROXY": ".github.com"}, "https://api.github.com", None),
        ({"HTTPS_PROXY": "http://p:3128", "no_proxy": "ghes.local"}, "https://ghes.local/api/v3", None),
        ({"ALL_PROXY": "http://p:3128"}, "https://api.github.com", "http://p:3128"),
    ],
)
def test_the_environment_names_the_proxy(monkeypatch, environment, url, proxy):
    """As curl reads it."""
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert _proxy_for(url) == proxy


def test_reasons_tell_no_address():
    """An error of a connection names its kind, and what to do about the usual ones."""
    assert "ca_file" in _reason(OSError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: x"))
    assert "407" in _reason(OSError("Tunnel connection failed: 407 Proxy Authentication Required"))
    assert _reason(ConnectionResetError("http://user:hunter2@proxy")) == "ConnectionResetError"
    assert _reason(ConnectionRefusedError(111, "Connection refused")) == "Connection refused"
