"""From a service's settings to its connection with GitHub. Owns the headers of every request; knows no route."""

from __future__ import annotations

from anklet_github.http import BadCertificates, Transport
from anklet_github.settings import settings_of
from anklet_worker.contract import VERSION
from anklet_worker.contract.errors import ServiceFatal
from anklet_worker.contract.service import ServiceConfig

_API_VERSION = "2022-11-28"


def transport_of(service: ServiceConfig) -> Transport:
    """A connection to the service's server. Raises `ServiceFatal` for a `ca_file` without usable certificates."""
    settings = settings_of(service)
    try:
        return Transport(settings.api_url, settings.ca_file)
    except BadCertificates as error:
        raise ServiceFatal(f"service {service.name}: {error}") from None


def headers(authorization: str) -> dict[str, str]:
    """The headers of every request (GitHub REST docs, getting started)."""
    return {
        "Accept": "application/vnd.github+json",
        "Authorization": authorization,
        "User-Agent": f"anklet-supervisor/{VERSION}",
        "X-GitHub-Api-Version": _API_VERSION,
    }
