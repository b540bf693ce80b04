"""One HTTP exchange with one server: the reply, or the reason for none. Knows nothing about GitHub.

`pool.py` does the work. It is imported with the first exchange: its libraries take a quarter of an idle worker's memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from anklet_worker.contract.installation import INSTALLATION

if TYPE_CHECKING:
    from anklet_github.pool import Pool


class NoAnswer(Exception):
    """No complete reply arrived; the request may have had its effect or not. The text is one line for people.

    `in_time` is False after a time-out: the effect may still come.
    """

    def __init__(self, text: str, *, in_time: bool = True) -> None:
        super().__init__(text)
        self.in_time = in_time


class BadCertificates(ValueError):
    """The certificate file cannot be used."""


class Reply(msgspec.Struct, frozen=True):
    """A complete reply. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def date(self) -> float | None:
        """The server's clock in Unix seconds, or None when the reply has no valid date."""
        from email.utils import parsedate_to_datetime  # noqa: PLC0415  comes with `pool.py`

        try:
            return parsedate_to_datetime(self.headers.get("date", "")).timestamp()
        except ValueError:
            return None


class Transport:
    """Connections to one server. `ca_file`: certificates to trust in addition to the system's, for a private CA."""

    def __init__(self, url: str, ca_file: Path | None = None) -> None:
        """Raises `BadCertificates`."""
        self._url = url
        self._pool: Pool | None = None if ca_file is None else _open(url, ca_file)

    def exchange(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None) -> Reply:
        """Send one request. Raises `NoAnswer`."""
        if self._pool is None:
            self._pool = _open(self._url, None)
        return self._pool.exchange(method, path, headers, body)

    def close(self) -> None:
        """Close all connections."""
        if self._pool is not None:
            self._pool.close()


def _open(url: str, ca_file: Path | None) -> Pool:
    """The connections themselves. Raises `BadCertificates`."""
    with INSTALLATION.late_import("anklet_github.pool"):
        from anklet_github.pool import Pool  # noqa: PLC0415

    return Pool(url, ca_file)
