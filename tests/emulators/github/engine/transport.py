"""Sockets: read a request, let a fault strike, dispatch it, send the reply.

Owns HTTP and the effects of faults. `Hub` bundles the objects that a connection's thread needs; other modules decide.
"""

from __future__ import annotations

import dataclasses
import http
import http.server
import secrets
import select
import socket
import socketserver
import struct
import sys
import time
import urllib.parse

from emulators.github.engine import downloads, routing, service
from emulators.github.engine.exchange import Refusal, Reply, Request
from emulators.github.engine.render import Urls

_API = "/api/v3"
_DRIPS = 20
_SERVICES = ("/_services/", "/actions/runner-registration")


@dataclasses.dataclass
class Hub:
    """The objects that the server serves."""

    world: object
    faults: object
    log: object
    control: object
    root: str


class Server(http.server.ThreadingHTTPServer):
    """One thread per connection; a connection serves many requests."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 256
    hub: Hub

    def server_bind(self):
        """Bind without asking the resolver for this host's name, which can take seconds."""
        socketserver.TCPServer.server_bind(self)

    def handle_error(self, request, client_address):
        """Ignore a client that hangs up: it is not our error."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server_version = "github.com"
    sys_version = ""

    def log_message(self, *_):
        """Do nothing: request_log.py keeps the log."""

    def version_string(self):
        """GitHub's server name."""
        return "github.com"

    def _serve(self):
        request = self._read()
        if request is None:
            return
        hub = self.server.hub
        if request.path.startswith("/_emulator/"):
            self._send(request, hub.control.answer(request))
        elif hub.world.switches["down"]:
            self._reset()
        elif request.path.startswith(_SERVICES):
            self._serve_runner(request)
        else:
            self._serve_public(request)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _serve  # noqa: N815  names that http.server looks for

    def _read(self):
        """Return the request, or None for a malformed one, which is then already answered."""
        if self.headers.get("Transfer-Encoding"):
            self.close_connection = True
            self.send_error(http.HTTPStatus.LENGTH_REQUIRED)
            return None
        parts = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(parts.path)
        prefix = _API if path.startswith(_API + "/") else ""
        root = self.server.hub.root
        return Request(
            method=self.command,
            path=path[len(prefix) :],
            query=dict(urllib.parse.parse_qsl(parts.query)),
            headers=self.headers,
            body=self.rfile.read(int(self.headers.get("Content-Length") or 0)),
            urls=Urls(root + prefix, root),
            prefix=prefix,
        )

    # -- the two audiences ---------------------------------------------------------------------------

    def _serve_public(self, request):
        """The REST API and downloads, which are logged."""
        hub = self.server.hub
        started = hub.log.begin()
        fault, sent = hub.faults.take(request.method, request.path), [None, False]
        try:
            reply = self._struck_before(fault)
            if reply is None:
                reply, sent[1] = self._answer(request)
            if fault is not None and fault.status is None and fault.headers:
                reply.headers.update(fault.headers)
            sent[0] = None if fault and (fault.reset or fault.drop_after_effect) else reply.status
        finally:
            # Before the reply is sent, so that a client with a reply finds its request in the log.
            hub.log.end(started, request, status=sent[0], counted=sent[1], fault=fault is not None)
        self._send_struck(request, reply, fault)

    def _answer(self, request):
        world = self.server.hub.world
        try:
            reply = downloads.answer(world, request)
        except Refusal as refusal:
            reply = refusal.reply
        return (reply, False) if reply is not None else routing.answer(world, request)

    def _serve_runner(self, request):
        """The runners' service: not logged, and its replies carry jobs that must not get lost."""
        hub = self.server.hub
        fault = hub.faults.take(request.method, request.path)
        try:
            reply = self._struck_before(fault)
            if reply is None:
                reply = service.answer(hub.world, request, self._hung_up)
        except Refusal as refusal:
            reply = refusal.reply
        except service.Gone:
            self._reset()
            return
        try:
            if self._hung_up():
                raise ConnectionResetError("the runner hung up")
            self._send_struck(request, reply, fault)
        except ConnectionError:
            service.undelivered(hub.world, request, reply)
            self.close_connection = True

    def _hung_up(self):
        """True if the peer closed or broke its end."""
        try:
            readable, _, _ = select.select([self.connection], [], [], 0)
            return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    # -- faults --------------------------------------------------------------------------------------

    def _struck_before(self, fault):
        """Apply the fault before the effect; return the reply that replaces the real one, or None for the real one."""
        if fault is None:
            return None
        if fault.delay:
            time.sleep(fault.delay)
        if fault.reset and not fault.truncate:
            return Reply(0)
        if fault.status is not None:
            body = fault.body.encode() if isinstance(fault.body, str) else fault.body
            return Reply(fault.status, body, dict(fault.headers or {}))
        return None

    def _send_struck(self, request, reply, fault):
        if fault is None:
            self._send(request, reply)
        elif fault.truncate:
            self._send(request, reply, share=0.5)
            self._reset(hard=fault.reset)
        elif fault.reset or fault.drop_after_effect:
            self._reset()
        else:
            self._send(request, reply, drip=fault.slow_drip)

    def _reset(self, *, hard=True):
        """End the connection: `hard` shows the peer a reset, otherwise it is an orderly end in mid-reply."""
        self.close_connection = True
        if hard:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            # The buffered writer would flush to a closed socket.
            self.wfile = _Nowhere()
        else:
            self.connection.shutdown(socket.SHUT_WR)

    # -- replies -------------------------------------------------------------------------------------

    def _send(self, request, reply, *, share=1.0, drip=None):
        payload = reply.payload()
        self.send_response(reply.status)
        headers = {"X-GitHub-Request-Id": _request_id(), **reply.headers}
        if reply.status not in (204, 304):
            headers.setdefault("Content-Type", "application/json; charset=utf-8")
            headers["Content-Length"] = str(len(payload))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if drip:
            self._drip(payload, drip)
        else:
            self.wfile.write(payload[: int(len(payload) * share)])
        self.wfile.flush()

    def _drip(self, payload, seconds):
        """Send the body in pieces over `seconds`."""
        size = max(1, -(-len(payload) // _DRIPS))
        for start in range(0, len(payload), size):
            self.wfile.flush()
            time.sleep(seconds / _DRIPS)
            self.wfile.write(payload[start : start + size])


class _Nowhere:
    """Replaces a stream that is closed."""

    closed = True

    def flush(self):
        """Do nothing: there is nothing to flush."""

    def close(self):
        """Do nothing: there is nothing to close."""


def _request_id():
    words = secrets.token_hex(12).upper()
    return f"{words[:4]}:{words[4:10]}:{words[10:17]}:{words[17:24]}:{int(time.time()):X}"
