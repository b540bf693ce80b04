"""What the github plugin asks of its services' settings, and the keys of its own. Quick to import: `check` and every start read it.

`repos`: with registration: org, the names or patterns of the repositories to look through (default: all). `ca_file`: certificates
to trust beside the system's, for a server with a CA of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from anklet_worker.contract.rules import Complaint, ServiceRules
from anklet_worker.contract.service import ServiceConfig


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
    yield from _check_options(service)


def _check_options(service: ServiceConfig) -> Iterator[Complaint]:
    repos = service.options.get("repos")
    if repos is not None:
        if service.registration != "org":
            yield Complaint("repos", "is for registration: org; a repository is named with repo")
        patterns = repos if isinstance(repos, list) else [repos]
        if not patterns or not all(isinstance(pattern, str) and pattern for pattern in patterns):
            yield Complaint("repos", "must be a name, a pattern (build-*), or a list of these")
    ca_file = service.options.get("ca_file")
    if ca_file is not None and not (isinstance(ca_file, str) and Path(ca_file).expanduser().is_file()):
        yield Complaint("ca_file", "must be the path of a file with certificates (PEM)")


RULES = ServiceRules(
    check=check,
    options=frozenset({"repos", "ca_file"}),
    retired={
        "github_receiver": "is the receiver of a later Anklet; there is none here, since this program asks GitHub itself: "
        "remove this service, and the webhook at GitHub"
    },
)
