"""The HTTP endpoint of the metrics: /metrics, /healthz, /readyz. Owns the socket; the figures are `metrics.py`'s."""

from __future__ import annotations

import contextlib
import socketserver
import threading
import urllib.parse
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any

import msgspec
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from anklet_supervisor.metrics import Metrics
from anklet_worker.errors import TemporaryError

#: The loop turns every 4 seconds at least.
_DEAD_AFTER = 15.0
_SOCKET_TIMEOUT = 10.0
_MOST_AT_ONCE = 16
_JSON = "application/json"
_TEXT = "text/plain; charset=utf-8"


class MetricsServer:
    """Listens from construction on. Raises `TemporaryError` when the address cannot be had."""

    def __init__(self, host: str, port: int, metrics: Metrics) -> None:
        handler = type("Handler", (_Handler,), {"metrics": metrics})
        try:
            self._server = _Server((host, port), handler)
        except OSError as error:
            raise TemporaryError(
                f"cannot listen on {host}:{port} for metrics: {error.strerror}; another program (`lsof -i :{port}`)? "
                "metrics.port in the configuration chooses another"
            ) from None

    def start(self) -> None:
        """Answer requests, in threads that end with the process."""
        threading.Thread(target=self._server.serve_forever, args=(3600.0,), name="metrics", daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.server_close()


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """A bounded number of threads; a client too many is turned away, a slow one times out."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 32

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._room = threading.BoundedSemaphore(_MOST_AT_ONCE)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, if there is one left."""
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and make room again."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no event."""


class _Handler(BaseHTTPRequestHandler):
    metrics: Metrics
    protocol_version = "HTTP/1.1"
    server_version = "anklet"
    sys_version = ""
    timeout = _SOCKET_TIMEOUT

    def do_GET(self) -> None:
        """Answer a request."""
        url = urllib.parse.urlsplit(self.path)
        match url.path:
            case "/metrics":
                self._metrics(urllib.parse.parse_qs(url.query, keep_blank_values=True))
            case "/healthz":
                self._health()
            case "/readyz":
                self._readiness()
            case _:
                self._answer(HTTPStatus.NOT_FOUND, _TEXT, b"here are /metrics, /healthz and /readyz\n")

    def do_HEAD(self) -> None:
        """The same without the body."""
        self.do_GET()

    def _metrics(self, query: dict[str, list[str]]) -> None:
        match query.get("format", ["prometheus"])[-1]:
            case "prometheus":
                self._answer(HTTPStatus.OK, CONTENT_TYPE_PLAIN_0_0_4, self.metrics.prometheus())
            case "json":
                self._answer(HTTPStatus.OK, _JSON, self.metrics.json())
            case _:
                self._answer(HTTPStatus.BAD_REQUEST, _TEXT, b"format is prometheus or json\n")

    def _health(self) -> None:
        since = self.metrics.seconds_since_beat()
        if since < _DEAD_AFTER:
            self._answer(HTTPStatus.OK, _TEXT, b"ok\n")
        else:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, _TEXT, f"the loop has not turned for {since:.0f} s\n".encode())

    def _readiness(self) -> None:
        not_ready = self.metrics.not_ready()
        status = HTTPStatus.SERVICE_UNAVAILABLE if not_ready else HTTPStatus.OK
        self._answer(status, _JSON, msgspec.json.encode({"ready": not not_ready, "not_ready": not_ready}))

    def _answer(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        with contextlib.suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    def send_error(self, code: int, *_: Any, **__: Any) -> None:
        """Plain text instead of a page; a method that nobody offers is 405."""
        status = HTTPStatus.METHOD_NOT_ALLOWED if code == HTTPStatus.NOT_IMPLEMENTED else HTTPStatus(code)
        self.close_connection = True
        self._answer(status, _TEXT, f"{status.phrase.lower()}\n".encode())

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class names it so
        """Requests are not logged."""
