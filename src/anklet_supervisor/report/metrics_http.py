"""The HTTP endpoint for /metrics, /healthz and /readyz. Owns the sockets; `metrics.py` owns the figures.

Each connection gets one request and one thread, and the number of threads is limited. A slow client is cut off at a deadline, or
earlier if another client needs its thread.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import threading
import time
import urllib.parse
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any

import msgspec

from anklet_supervisor.report.metrics import Metrics
from anklet_worker.contract.errors import ConfigError, TemporaryError

#: Seconds without a turn of the loop (it turns at least every 5 s) after which it counts as dead.
_DEAD_AFTER = 15.0
#: Seconds that a client gets for its request and the answer together.
_DEADLINE = 10.0
_MOST_AT_ONCE = 16
_BACKLOG = 64
_PAUSE = 0.1
_JSON = "application/json"
_TEXT = "text/plain; charset=utf-8"
_EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"

_log = logging.getLogger("anklet.metrics")


class MetricsServer:
    """Listens after construction, answers after `start`.

    Raises `TemporaryError` if the address is not available now, and `ConfigError` if it never can be.
    """

    def __init__(self, host: str, port: int, metrics: Metrics) -> None:
        self._metrics = metrics
        self._socket = _listen(host, port)
        self._closing = threading.Event()
        self._room = threading.Semaphore(_MOST_AT_ONCE)
        self._lock = threading.Lock()
        #: Open connections with the monotonic seconds of their start, oldest first.
        self._connections: dict[socket.socket, float] = {}
        self._thread = threading.Thread(target=self._accept_all, name="metrics", daemon=True)

    @property
    def port(self) -> int:
        """The port; tests pass 0 and let the system choose."""
        return int(self._socket.getsockname()[1])

    def start(self) -> None:
        """Answer requests, in daemon threads."""
        self._thread.start()

    def close(self) -> None:
        """Stop listening, and cut off all open connections."""
        self._closing.set()
        if self._thread.is_alive():
            # A connection wakes `accept` on every system; closing the socket does not.
            with contextlib.suppress(OSError), socket.socket(self._socket.family, socket.SOCK_STREAM) as knock:
                knock.settimeout(1.0)
                knock.connect(self._socket.getsockname())
            self._thread.join(2.0)
        self._socket.close()
        self._cut_off(older_than=0.0)

    def _accept_all(self) -> None:
        while not self._closing.is_set():
            self._socket.settimeout(1.0 if self._connections else None)
            try:
                connection, _ = self._socket.accept()
            except TimeoutError:
                self._cut_off(older_than=_DEADLINE)
            except OSError:
                # The client is gone already, or no file descriptor is left.
                self._closing.wait(_PAUSE)
            else:
                self._answer_in_thread(connection)

    def _answer_in_thread(self, connection: socket.socket) -> None:
        self._cut_off(older_than=_DEADLINE)
        if not self._room.acquire(blocking=False):
            self._cut_off(older_than=0.0, at_most=1)
            if not self._room.acquire(timeout=1.0):
                connection.close()
                return
        connection.settimeout(_DEADLINE)
        with self._lock:
            self._connections[connection] = time.monotonic()
        try:
            threading.Thread(target=self._answer, args=(connection,), name="scrape", daemon=True).start()
        except RuntimeError:
            # The system has no thread left.
            self._forget(connection)

    def _answer(self, connection: socket.socket) -> None:
        try:
            _Handler(connection, self._metrics)
        except OSError:
            # The client went away or was cut off.
            return
        finally:
            self._forget(connection)

    def _forget(self, connection: socket.socket) -> None:
        with self._lock:
            del self._connections[connection]
        with contextlib.suppress(OSError):
            # The client must see the end of its answer rather than a reset, even if it still sends.
            connection.shutdown(socket.SHUT_WR)
        connection.close()
        self._room.release()

    def _cut_off(self, *, older_than: float, at_most: int = _MOST_AT_ONCE) -> None:
        """Shut down connections, oldest first. Their threads treat it as a client that went away."""
        before = time.monotonic() - older_than
        with self._lock:
            for connection in [one for one, began in self._connections.items() if began <= before][:at_most]:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise TemporaryError(f"cannot listen on {host} port {port} for metrics: {error.strerror or error}") from None
    try:
        # Makes the port free as soon as its listener ends, not minutes later.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise _refusal(host, port, error) from None
    return listening


def _refusal(host: str, port: int, error: OSError) -> TemporaryError | ConfigError:
    if error.errno == errno.EADDRINUSE:
        return TemporaryError(
            f"port {port} on {host} is taken by another supervisor or program (`lsof -nP -iTCP:{port} -sTCP:LISTEN` "
            "shows it); set another metrics.port in the configuration"
        )
    if error.errno == errno.EACCES:
        return ConfigError(f"metrics.port {port} needs root; set a port above 1023")
    return TemporaryError(f"cannot listen on {host} port {port} for metrics: {error.strerror}")


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    timeout = _DEADLINE

    def __init__(self, connection: socket.socket, metrics: Metrics) -> None:
        self._metrics = metrics
        # The parts of the base class that we use need neither the client's address nor a server object.
        unused: Any = None
        super().__init__(connection, unused, unused)

    def do_GET(self) -> None:
        """Answer a request."""
        try:
            url = urllib.parse.urlsplit(self.path)
            query = urllib.parse.parse_qs(url.query, keep_blank_values=True)
        except ValueError:
            self.send_error(HTTPStatus.BAD_REQUEST)
            return
        try:
            answer = self._look_up(url.path, query)
        except Exception:  # noqa: BLE001  a bug in a figure must not leave the client without an answer
            _log.exception("a bug kept %s from being answered", url.path)
            answer = (HTTPStatus.INTERNAL_SERVER_ERROR, _TEXT, b"internal error\n")
        self._answer(*answer)

    def do_HEAD(self) -> None:
        """Answer as GET does, without the body."""
        self.do_GET()

    def _look_up(self, path: str, query: dict[str, list[str]]) -> tuple[HTTPStatus, str, bytes]:
        match path:
            case "/metrics":
                return self._figures(query.get("format", ["prometheus"])[-1])
            case "/healthz":
                return self._health()
            case "/readyz":
                not_ready = self._metrics.not_ready()
                status = HTTPStatus.SERVICE_UNAVAILABLE if not_ready else HTTPStatus.OK
                return status, _JSON, msgspec.json.encode({"ready": not not_ready, "not_ready": not_ready})
            case _:
                return HTTPStatus.NOT_FOUND, _TEXT, b"not found; try /metrics, /healthz or /readyz\n"

    def _figures(self, form: str) -> tuple[HTTPStatus, str, bytes]:
        match form:
            case "prometheus":
                return HTTPStatus.OK, _EXPOSITION, self._metrics.prometheus()
            case "json":
                return HTTPStatus.OK, _JSON, self._metrics.json()
            case _:
                return HTTPStatus.BAD_REQUEST, _TEXT, b"unsupported format; use ?format=prometheus or ?format=json\n"

    def _health(self) -> tuple[HTTPStatus, str, bytes]:
        since = self._metrics.seconds_since_beat()
        if since is None:
            return HTTPStatus.SERVICE_UNAVAILABLE, _TEXT, b"the loop has not turned yet\n"
        if since > _DEAD_AFTER:
            return HTTPStatus.SERVICE_UNAVAILABLE, _TEXT, f"the loop has not turned for {since:.0f} s\n".encode()
        return HTTPStatus.OK, _TEXT, b"ok\n"

    def _answer(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        # Not `send_response`: its Server header would show the Python version.
        self.send_response_only(status)
        self.send_header("Date", self.date_time_string())
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, *_: Any, **__: Any) -> None:
        """Answer in plain text instead of HTML, and an unknown method with 405."""
        status = HTTPStatus(code)
        if status is HTTPStatus.NOT_IMPLEMENTED:
            status = HTTPStatus.METHOD_NOT_ALLOWED
        # After a request whose version it did not understand, the base class would omit the status line.
        self.request_version = self.protocol_version
        self._answer(status, _TEXT, f"{status.phrase.lower()}\n".encode())

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the name is the base class's
        """Requests are not logged."""
