"""HTTP with urllib3: connections, proxies, certificates, time-outs. Knows nothing about GitHub.

Proxies come from the environment (HTTPS_PROXY, HTTP_PROXY, NO_PROXY, as for curl). No error text holds a header, a query or a
proxy's password.
"""

from __future__ import annotations

import ssl
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import urllib3

from anklet_github.http import BadCertificates, NoAnswer, Reply

_TIMEOUT = urllib3.Timeout(connect=5.0, read=30.0)
#: Seconds within which a whole reply must arrive, even when it keeps dripping.
_WHOLE_REPLY = 60.0
_LARGEST_REPLY = 32 * 1024 * 1024
_CHUNK = 256 * 1024


class Pool:
    """Connections to one server; see `Transport`."""

    def __init__(self, url: str, ca_file: Path | None = None) -> None:
        """Raises `BadCertificates`."""
        self._url = url
        self._connections = _manager(url, _trust(ca_file))

    def exchange(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None) -> Reply:
        """Send one request. Raises `NoAnswer`."""
        try:
            response = self._connections.request(
                method, self._url + path, body=body, headers=dict(headers), preload_content=False, redirect=False
            )
            try:
                content = _read(response)
            finally:
                response.release_conn()
        except urllib3.exceptions.ProxyError as error:
            raise NoAnswer(f"the proxy refuses the connection: {_reason(error)}") from None
        except urllib3.exceptions.NewConnectionError as error:
            # A kind of time-out for urllib3, but nothing was sent.
            raise NoAnswer(f"no connection: {_reason(error)}") from None
        except urllib3.exceptions.TimeoutError as error:
            raise NoAnswer(f"no answer in time: {_reason(error)}", in_time=False) from None
        except urllib3.exceptions.HTTPError as error:
            raise NoAnswer(f"no answer: {_reason(error)}") from None
        except OSError as error:
            raise NoAnswer(f"no answer: {error.strerror or type(error).__name__}") from None
        return Reply(response.status, {key.lower(): value for key, value in response.headers.items()}, content)

    def close(self) -> None:
        """Close all connections."""
        self._connections.clear()


def _reason(error: BaseException) -> str:
    """The cause in a few words, without an address or a header, which the libraries' own texts may hold."""
    cause: BaseException | None = error
    while cause is not None:
        text = str(cause)
        if "CERTIFICATE_VERIFY_FAILED" in text:
            return "the server's certificate is not trusted (for a CA of your own, set ca_file)"
        if "407" in text:
            return "it requires a user and a password (407)"
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        inner = getattr(cause, "original_error", None) or getattr(cause, "reason", None)
        cause = inner if isinstance(inner, BaseException) else cause.__cause__
    return type(error).__name__


def _read(response: urllib3.BaseHTTPResponse) -> bytes:
    deadline = time.monotonic() + _WHOLE_REPLY
    content = bytearray()
    while chunk := response.read1(_CHUNK):
        content += chunk
        if len(content) > _LARGEST_REPLY or time.monotonic() > deadline:
            response.close()
            raise urllib3.exceptions.HTTPError("the reply is too long or too slow")
    return bytes(content)


def _trust(ca_file: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except (OSError, ssl.SSLError) as error:
            reason = getattr(error, "strerror", None) or "it holds no certificate"
            raise BadCertificates(f"ca_file {ca_file} cannot be used: {reason}") from None
    return context


def _manager(url: str, trust: ssl.SSLContext) -> urllib3.PoolManager:
    proxy = _proxy_for(url)
    if proxy is None:
        return urllib3.PoolManager(num_pools=2, maxsize=1, timeout=_TIMEOUT, retries=False, ssl_context=trust)
    parts = urllib.parse.urlsplit(proxy)
    headers = None
    if parts.username is not None:
        login = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        headers = urllib3.make_headers(proxy_basic_auth=login)
    address = urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], "", "", ""))
    return urllib3.ProxyManager(
        address, proxy_headers=headers, num_pools=2, maxsize=1, timeout=_TIMEOUT, retries=False, ssl_context=trust
    )


def _proxy_for(url: str) -> str | None:
    """The proxy that the environment names for this server, if any."""
    parts = urllib.parse.urlsplit(url)
    proxies = urllib.request.getproxies_environment()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass(parts.netloc):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"
