"""The stub runner's connection to the emulated service: JSON over HTTP, and the folder's settings files. Python 3.9 or newer.

The service's address comes from the settings, never from the environment.
"""

import base64
import http.client
import json
import os
import time
import urllib.parse

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SETTINGS = (".credentials", ".credentials_rsaparams", ".runner")


class Unreachable(Exception):
    """No reply, or a reply that asks to try later."""


def version():
    """The version of this runner."""
    with open(os.path.join(ROOT, "bin", "version"), encoding="utf-8") as file:
        return file.read().strip()


def path(name):
    """The path of a file in the runner's folder."""
    return os.path.join(ROOT, name)


def log_file(kind):
    """Open a new diagnostic log for writing: Runner or Worker."""
    os.makedirs(path("_diag"), exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    return open(path(f"_diag/{kind}_{stamp}-utc.log"), "a", buffering=1, encoding="utf-8")


def trace(log, kind, text):
    """Write a line to a diagnostic log."""
    log.write(f"[{time.strftime('%Y-%m-%d %H:%M:%SZ', time.gmtime())} INFO {kind}] {text}\n")


def call(method, url, secret=None, body=None, *, scheme="Bearer", timeout=30.0):
    """Send one request; returns (status, parsed body). Raises Unreachable without a valid reply."""
    parts = urllib.parse.urlsplit(url)
    secure = parts.scheme == "https"
    connection = (http.client.HTTPSConnection if secure else http.client.HTTPConnection)(parts.netloc, timeout=timeout)
    headers = {"User-Agent": f"GitHubActionsRunner-emulated/{version()}", "Content-Type": "application/json"}
    if secret:
        headers["Authorization"] = f"{scheme} {secret}"
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request(method, target, None if body is None else json.dumps(body), headers)
        reply = connection.getresponse()
        data = reply.read()
        if reply.status >= 500 or reply.status == 429:
            raise Unreachable(f"{method} {parts.path}: {reply.status}")
        return reply.status, json.loads(data) if data.strip() else {}
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Unreachable(f"{method} {parts.path}: {error}") from error
    finally:
        connection.close()


class Line:
    """The runner's own paths of the service, with its own credential."""

    def __init__(self, settings, secret):
        self._base = f"{settings['ServerUrl'].rstrip('/')}/{settings['AgentId']}"
        self._secret = secret

    def call(self, method, tail, body=None, *, timeout=30.0):
        """Send one request below the runner's path."""
        return call(method, f"{self._base}/{tail}", self._secret, body, timeout=timeout)

    def insist(self, method, tail, body=None, *, seconds=120.0):
        """Like call(), but retries while the service is unreachable; finally raises Unreachable."""
        deadline, pause = time.monotonic() + seconds, 0.1
        while True:
            try:
                return self.call(method, tail, body)
            except Unreachable:
                if time.monotonic() + pause > deadline:
                    raise
                time.sleep(pause)
                pause = min(pause * 2, 5.0)


def unpack(jit_config):
    """Write the files of a JIT configuration; raises ValueError if it is invalid."""
    files = json.loads(base64.b64decode(jit_config, validate=True))
    save({name: base64.b64decode(content).decode() for name, content in files.items()})


def save(files):
    """Write settings files that only their owner can read."""
    for name, text in files.items():
        if name not in SETTINGS:
            raise ValueError(f"unexpected file {name}")
        descriptor = os.open(path(name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)


def load():
    """Return (settings, secret) of this folder; raises FileNotFoundError if it is not configured."""
    with open(path(".runner"), encoding="utf-8") as file:
        settings = json.load(file)
    with open(path(".credentials_rsaparams"), encoding="utf-8") as file:
        return settings, json.load(file)["d"]


def forget():
    """Remove the settings files and report each."""
    for name in SETTINGS:
        if os.path.exists(path(name)):
            os.unlink(path(name))
            if name != ".credentials_rsaparams":
                print(f"√ Removed {name}", flush=True)
