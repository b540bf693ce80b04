"""How our VMs are named, and how such a name is taken apart. Pure."""

from __future__ import annotations

import hashlib
import re

import msgspec

from anklet_worker.contract.errors import NotOurVM
from anklet_worker.contract.guest import NAME_PREFIX
from anklet_worker.vm.wording import one_line

_NAME = re.compile(
    r"anklet-vm-(?P<install>[0-9a-f]{8})-(?P<service>[0-9a-f]{6})-(?P<job>[a-z0-9]{1,24})-(?P<attempt>[0-9]{1,6})"
)


_PLAIN_JOB_ID = re.compile(r"[a-z0-9]{1,24}")


def vm_name(install_id: str, service: str, job_id: str, attempt: int) -> str:
    """The name of an attempt's VM (and runner): same inputs, same name; at most 63 characters of [a-z0-9-].

    A job id of other characters (a plugin may use any) is replaced by its hash.
    """
    job = job_id if _PLAIN_JOB_ID.fullmatch(job_id) else hashlib.sha256(job_id.encode()).hexdigest()[:24]
    return f"{NAME_PREFIX}{install_id}-{service_tag(service)}-{job}-{attempt}"


def service_tag(service: str) -> str:
    """Six hex digits that stand for a service's name inside VM names."""
    return hashlib.sha256(service.encode()).hexdigest()[:6]


class ParsedName(msgspec.Struct, frozen=True):
    """The parts of a VM name that follows our scheme."""

    install_id: str
    service_tag: str
    job: str
    attempt: int


def parse_vm_name(name: str) -> ParsedName | None:
    """Take a name apart; None for a name of another scheme, whose VM is never ours to delete."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    return ParsedName(match["install"], match["service"], match["job"], int(match["attempt"]))


def check_deletable(name: str) -> None:
    """Raise `NotOurVM` for a name without our prefix: such a VM is never deleted."""
    if not name.startswith(NAME_PREFIX):
        raise NotOurVM(
            f"refused to delete {one_line(repr(name))}: not one of our VMs; remove it by hand if it should go"
        )
