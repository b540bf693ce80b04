"""From a service's settings to its connection with GitHub. Owns what every request says of itself; knows no route."""

from __future__ import annotations

from pathlib import Path

from anklet_github.http import BadCertificates, Transport
from anklet_worker.contract import VERSION
from anklet_worker.contract.errors import ServiceFatal
from anklet_worker.contract.service import ServiceConfig

_API_VERSION = "2022-11-28"


def transport_of(service: ServiceConfig) -> Transport:
    """A connection to the service's server. Raises `ServiceFatal` for a `ca_file` that is none."""
    ca_file = service.options.get("ca_file")
    try:
        return Transport(service.api_url, Path(str(ca_file)).expanduser() if ca_file else None)
    except BadCertificates as error:
        raise ServiceFatal(f"service {service.name}: {error}") from None


def headers(authorization: str) -> dict[str, str]:
    """What every request bears (GitHub REST docs, getting started)."""
    return {
        "Accept": "application/vnd.github+json",
        "Authorization": authorization,
        "User-Agent": f"anklet-supervisor/{VERSION}",
        "X-GitHub-Api-Version": _API_VERSION,
    }
