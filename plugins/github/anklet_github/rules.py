"""What the github plugin asks of its services' settings. Pure, and quick to import: `check` and every start read it."""

from __future__ import annotations

from collections.abc import Iterator

from anklet_worker.config import Complaint, ServiceConfig, ServiceRules


def check(service: ServiceConfig) -> Iterator[Complaint]:
    """Tell what is missing or contradictory; the checks of single values are the configuration's."""
    if not service.owner:
        yield Complaint("owner", "is missing: the user or organization on GitHub")
    if not service.repo and service.registration == "repo":
        yield Complaint("repo", "is missing; only services with registration: org need none")
    if service.token is None and service.private_key is None:
        yield Complaint(
            "token", "is missing: give a token, or a GitHub App's private_key with its app_id", ("private_key",)
        )
    if service.private_key is not None and not service.app_id:
        yield Complaint("app_id", "is missing: a private_key needs the id of its GitHub App")
    if service.runner.group and service.registration != "org":
        yield Complaint("runner.group", "is for runners of an organization; this service has registration: repo")


RULES = ServiceRules(check=check)
