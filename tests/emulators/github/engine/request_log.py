"""A log of API requests and downloads, for tests and independent checkers. Owns the list and its file; contains no secret."""

from __future__ import annotations

import hashlib
import json
import threading
import time

_WRITES = 5  # points of a write in GitHub's secondary limits; a read is one


class RequestLog:
    """Lines as dicts: seq, time, method, path, query, headers, body, status, seconds, counted, fault."""

    def __init__(self, path=None):
        self._lock = threading.Lock()
        self._lines = []
        self._path = path
        self._now = 0
        self._most = 0

    def begin(self):
        """Note a new request; returns its start (monotonic)."""
        with self._lock:
            self._now += 1
            self._most = max(self._most, self._now)
        return time.monotonic()

    def end(self, started, request, *, status, counted, fault):
        """Log the request as answered with `status`, or with None as not answered."""
        line = {
            "time": time.time(),
            "method": request.method,
            "path": request.path,
            "query": request.query,
            "headers": {name: _shown(name, value) for name, value in request.headers.items()},
            "body": _body(request.body),
            "status": status,
            "seconds": round(time.monotonic() - started, 6),
            "counted": counted,
            "fault": fault,
        }
        with self._lock:
            self._now -= 1
            line["seq"] = len(self._lines) + 1
            self._lines.append(line)
            if self._path:
                with open(self._path, "a", encoding="utf-8") as file:  # noqa: PTH123  a line per request: no Path each time
                    file.write(json.dumps(line) + "\n")

    def lines(self, since=0):
        """The lines with a seq above `since`."""
        with self._lock:
            return self._lines[since:]

    def counts(self):
        """Sums: requests, counted ones, 304s, GitHub's points, most at once, and a number per method and path."""
        with self._lock:
            lines, most = list(self._lines), self._most
        routes = {}
        for line in lines:
            key = f"{line['method']} {line['path']}"
            routes[key] = routes.get(key, 0) + 1
        return {
            "requests": len(lines),
            "counted": sum(line["counted"] for line in lines),
            "not_modified": sum(line["status"] == 304 for line in lines),
            "points": sum(1 if line["method"] in ("GET", "HEAD", "OPTIONS") else _WRITES for line in lines),
            "most_at_once": most,
            "routes": routes,
        }


def _shown(name, value):
    """A header's value; for Authorization its scheme and a hash, which still distinguishes tokens."""
    if name.lower() != "authorization":
        return value
    scheme, _, secret = value.partition(" ")
    return f"{scheme} sha256:{hashlib.sha256(secret.encode()).hexdigest()[:16]}"


def _body(raw):
    if not raw:
        return None
    try:
        return json.loads(raw)
    except ValueError:
        return raw.decode("utf-8", "replace")
