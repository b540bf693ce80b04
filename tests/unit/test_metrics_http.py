"""The endpoint over real sockets: answers, refusals, slow clients, taken ports."""

import contextlib
import json
import socket
import threading
import time
import urllib.error
import urllib.request

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from anklet_supervisor.machine import allocator
from anklet_supervisor.machine.state import ServiceState
from anklet_supervisor.machine.step import initial
from anklet_supervisor.report import metrics_http
from anklet_supervisor.report.metrics import Metrics
from anklet_supervisor.report.metrics_http import MetricsServer
from anklet_worker.contract.errors import ExitCode, TemporaryError
from anklet_worker.contract.service import ServiceConfig

SERVICES = tuple(ServiceConfig(name=name, plugin="github", owner="acme", repo="app") for name in ("RUNNER1", "RUNNER2"))


class Clock:
    """A monotonic clock that a test sets."""

    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    """The metrics' clock."""
    return Clock()


@pytest.fixture
def metrics(clock):
    """The metrics of two services."""
    return Metrics(SERVICES, 0.0, mono=clock)


@pytest.fixture
def server(metrics):
    """A listening endpoint on a port that the system chose."""
    one = MetricsServer("127.0.0.1", 0, metrics)
    one.start()
    yield one
    one.close()


def get(server, path, method="GET"):
    """Status, headers and body of an answer."""
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:  # noqa: S310  always our own address
            return reply.status, reply.headers, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read().decode()


def raw(server, data):
    """Send bytes, and read until the end."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(data)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := connection.recv(65536):
                received += chunk
        return received


def ready_model(**states):
    """A model with these states; all other services are ready."""
    model = initial(
        [service.name for service in SERVICES], allocator.build(2, 1, [], 0.0), once=False, drain_timeout=None
    )
    services = {
        name: msgspec.structs.replace(
            service, state=states.get(name, ServiceState.READY), reason="x" * (name in states)
        )
        for name, service in model.services.items()
    }
    return msgspec.structs.replace(model, services=services)


@pytest.mark.parametrize("path", ["/metrics", "/metrics?format=prometheus"])
def test_prometheus_is_the_default(server, path):
    """The default is text format 0.0.4, and Prometheus' own parser reads it."""
    status, headers, body = get(server, path)
    assert status == 200
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert len(list(text_string_to_metric_families(body))) > 20


def test_json_on_demand(server):
    """`?format=json` returns the original's document."""
    status, headers, body = get(server, "/metrics?format=json")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert next(iter(json.loads(body))) == "TotalRunningVMs"


@pytest.mark.parametrize("query", ["format=xml", "format=", "format=JSON", "format=json&format=xml"])
def test_another_format_is_refused_by_naming_both(server, query):
    """An unknown format gets 400 with the names of both formats."""
    status, _, body = get(server, f"/metrics?{query}")
    assert status == 400
    assert "format=prometheus" in body
    assert "format=json" in body


@pytest.mark.parametrize("path", ["/", "/metrics/", "/metric", "/healthz/x", "/metrics/v1", "/%2e%2e/etc/passwd"])
def test_an_unknown_path_is_not_found(server, path):
    """An unknown path gets 404 with the paths that exist."""
    status, _, body = get(server, path)
    assert status == 404
    assert "/metrics" in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"])
def test_only_get_and_head(server, method):
    """Any other method gets 405."""
    status, headers, _ = get(server, "/metrics", method)
    assert status == 405
    assert headers["Allow"] == "GET, HEAD"


def test_head_is_get_without_a_body(server):
    """HEAD returns the same headers as GET."""
    status, headers, body = get(server, "/metrics?format=json", "HEAD")
    assert (status, body) == (200, "")
    assert int(headers["Content-Length"]) > 100


def test_nothing_tells_who_listens(server):
    """Neither answers nor refusals name a product or a version."""
    for path in ("/metrics", "/nowhere"):
        assert get(server, path)[1]["Server"] is None
    assert b"Python" not in raw(server, b"NONSENSE\r\n\r\n")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"NONSENSE\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/9.9\r\n\r\n", b"505"),
        (b"GET http://[ HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", b"414"),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", b"431"),
    ],
)
def test_a_malformed_request_has_a_plain_answer(server, data, status):
    """The answer is one line of text, and the endpoint continues."""
    answer = raw(server, data)
    # A client that is still sending may see a reset instead of the answer.
    assert answer.startswith(b"HTTP/1.0 " + status) or (answer == b"" and status == b"414")
    assert b"<html" not in answer.lower()
    assert get(server, "/metrics")[0] == 200


def test_health_is_the_loops(server, metrics, clock):
    """The answer is 503 before the first turn, 200 while the loop turns, and 503 after 15 seconds without a turn."""
    assert get(server, "/healthz")[0] == 503
    metrics.beat(clock.now)
    assert get(server, "/healthz")[0] == 200
    clock.now += 14.9
    assert get(server, "/healthz")[0] == 200
    clock.now += 0.2
    status, _, body = get(server, "/healthz")
    assert (status, body) == (503, "the loop has not turned for 15 s\n")
    metrics.beat(clock.now)
    assert get(server, "/healthz")[0] == 200


def test_readiness_names_the_services_that_are_not(server, metrics):
    """The answer is 503 with JSON until all services are ready."""
    status, headers, body = get(server, "/readyz")
    assert (status, headers["Content-Type"]) == (503, "application/json")
    assert json.loads(body) == {"ready": False, "not_ready": {"RUNNER1": "starting", "RUNNER2": "starting"}}
    metrics.update(ready_model(RUNNER2=ServiceState.FATAL), 0, 0.0)
    status, _, body = get(server, "/readyz")
    assert (status, json.loads(body)["not_ready"]) == (503, {"RUNNER2": "fatal: x"})
    metrics.update(ready_model(), 0, 0.0)
    status, _, body = get(server, "/readyz")
    assert (status, json.loads(body)) == (200, {"ready": True, "not_ready": {}})


def test_the_cpu_percentage_is_seen_by_every_scrape():
    """Each scrape has a new thread, which must not get the 0 of a first call."""
    server = MetricsServer("127.0.0.1", 0, Metrics(SERVICES, 0.0))
    server.start()
    try:
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            sum(range(100_000))
            assert json.loads(get(server, "/metrics?format=json")[2])["HostCPUUsagePercentage"] > 0
    finally:
        server.close()


def test_a_bug_in_a_figure_is_an_internal_error_in_the_log(caplog, clock):
    """The client gets an answer, the log gets the cause, and the endpoint continues."""

    def broken():
        raise ZeroDivisionError("in a figure")

    server = MetricsServer("127.0.0.1", 0, Metrics(SERVICES, 0.0, mono=clock, read_host=broken))
    server.start()
    try:
        assert get(server, "/metrics")[0] == 500
        assert get(server, "/readyz")[0] == 503
    finally:
        server.close()
    (record,) = caplog.records
    assert record.exc_info[0] is ZeroDivisionError
    assert record.msg % record.args == "a bug kept /metrics from being answered"
    assert record.msg.endswith("from being answered")


def test_slow_clients_block_no_others(server):
    """With more silent and slow connections than threads, a normal request is answered at once."""
    with contextlib.ExitStack() as stack:
        for number in range(40):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10))
            with contextlib.suppress(OSError):
                connection.sendall(b"GET /met" * (number % 2))
        began = time.monotonic()
        assert get(server, "/metrics")[0] == 200
        assert time.monotonic() - began < 5
        assert sum(thread.name == "scrape" for thread in threading.enumerate()) <= 16


def test_a_client_that_drips_is_cut_off(metrics, monkeypatch):
    """A client that sends byte by byte is cut off when its whole request takes too long."""
    monkeypatch.setattr(metrics_http, "_DEADLINE", 1.0)
    server = MetricsServer("127.0.0.1", 0, metrics)
    server.start()
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.settimeout(0.1)
            end = time.monotonic() + 15
            cut = False
            while not cut and time.monotonic() < end:
                try:
                    connection.sendall(b"x")
                    cut = connection.recv(1) == b""
                except TimeoutError:
                    continue
                except OSError:
                    cut = True
            assert cut
    finally:
        server.close()


def test_many_scrapes_at_once_are_all_answered(server):
    """Eight clients make five scrapes each, and every one is answered."""
    answers = []

    def scrape():
        answers.extend(get(server, "/metrics")[0] for _ in range(5))

    threads = [threading.Thread(target=scrape) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 40


def test_nothing_is_written_to_standard_error(server, capfd):
    """Standard error stays empty for requests and for clients that disconnect."""
    get(server, "/metrics")
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    get(server, "/nowhere")
    assert capfd.readouterr().err == ""


def test_a_taken_port_is_named(server, metrics):
    """The exit code is 75, and the message has the port and says how to find the process that holds it."""
    with pytest.raises(
        TemporaryError, match=rf"port {server.port} on 127\.0\.0\.1 is taken.*lsof.*metrics\.port"
    ) as refusal:
        MetricsServer("127.0.0.1", server.port, metrics)
    assert refusal.value.exit_code == ExitCode.TEMPFAIL


def test_an_address_of_another_host_is_refused(metrics):
    """An address of another host is refused. No host has an address in TEST-NET-1 (RFC 5737)."""
    with pytest.raises(TemporaryError, match=r"cannot listen on 192\.0\.2\.1 port 8080"):
        MetricsServer("192.0.2.1", 8080, metrics)


def test_a_host_that_is_no_address_is_refused(metrics):
    """The error is one line."""
    with pytest.raises(TemporaryError, match="cannot listen on no such host port 8080"):
        MetricsServer("no such host", 8080, metrics)


def test_the_port_is_free_again_at_once(metrics):
    """A supervisor that restarts right away gets its port, although old connections linger."""
    first = MetricsServer("127.0.0.1", 0, metrics)
    first.start()
    port = first.port
    assert get(first, "/readyz")[0] == 503
    first.close()
    second = MetricsServer("127.0.0.1", port, metrics)
    second.start()
    assert get(second, "/readyz")[0] == 503
    second.close()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_a_server_that_was_never_started_closes(metrics):
    """`close` frees the port, although `start` was never called."""
    server = MetricsServer("127.0.0.1", 0, metrics)
    port = server.port
    server.close()
    MetricsServer("127.0.0.1", port, metrics).close()


def test_the_end_is_quick_and_leaves_nothing(metrics):
    """No thread and no connection stays open, and silent clients delay nothing."""
    before = {thread.ident for thread in threading.enumerate()}
    server = MetricsServer("127.0.0.1", 0, metrics)
    server.start()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as silent:
        began = time.monotonic()
        server.close()
        assert time.monotonic() - began < 3
        with contextlib.suppress(ConnectionResetError):
            assert silent.recv(1) == b""
    end = time.monotonic() + 10
    while {thread.ident for thread in threading.enumerate()} - before:
        assert time.monotonic() < end
        threading.Event().wait(0.01)


def test_ipv6(metrics):
    """metrics.host accepts ::1."""
    try:
        server = MetricsServer("::1", 0, metrics)
    except TemporaryError as error:
        pytest.skip(f"no IPv6 loopback: {error}")
    server.start()
    with urllib.request.urlopen(f"http://[::1]:{server.port}/metrics", timeout=10) as reply:
        assert reply.status == 200
    server.close()
