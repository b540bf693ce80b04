"""The evidence of a run that an independent observer has: journals and states of the emulators, and what the test did itself.

Owns its form and how it is gathered. Reads nothing that the program under test wrote: no record, log, status or metric. All times
are Unix seconds of this machine's clock.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

import psutil

#: An interval of time: begin, end.
Span = tuple[float, float]


@dataclass(kw_only=True)
class HostEvidence:
    """One emulated Mac. `calls`, `events`, `vms` and `slots` come from the emulated Anka; see its README."""

    name: str
    calls: list[dict]
    events: list[dict]
    vms: list[dict]
    #: The owners of the kernel's slots at the end.
    slots: list[str]
    guest_processes: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    #: Processes of the supervisor's session that still ran at the end.
    processes: list[str] = field(default_factory=list)
    #: VMs and templates that the test put there and that nothing may touch.
    foreign: list[str] = field(default_factory=list)
    limit: int = 2
    #: How many jobs it can run at once: each needs a slot and a service.
    capacity: int = 2
    #: True if it died for good: then nothing left on it is a violation.
    dead: bool = False
    #: When the test made the emulated kernel refuse starts that it should allow.
    refused: list[Span] = field(default_factory=list)
    #: Times and names of our VMs that the test let die.
    deaths: list[tuple[float, str]] = field(default_factory=list)
    #: When the test kept the host from working.
    outages: list[Span] = field(default_factory=list)


@dataclass(kw_only=True)
class Evidence:
    """One run. `jobs`, `events`, `runners`, `requests` and `anomalies` come from the emulated GitHub; see its README."""

    hosts: list[HostEvidence]
    jobs: list[dict]
    events: list[dict]
    runners: list[dict]
    requests: list[dict]
    anomalies: list[dict]
    #: The keys in Redis at the end.
    redis_keys: list[str] = field(default_factory=list)
    #: Values that no command line may contain.
    secrets: list[str] = field(default_factory=list)
    #: Runners that the test registered itself and that must stay.
    foreign_runners: list[str] = field(default_factory=list)
    #: Job id -> how the job ends if nothing interferes.
    expected: dict[int, str] = field(default_factory=dict)
    #: When the test kept every host from working.
    outages: list[Span] = field(default_factory=list)
    #: The number of jobs in the roll call, which must all run at once.
    roll_call: int = 0

    def save(self, path: Path) -> None:
        """Save the evidence to a file, for a later look."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1))

    @classmethod
    def load(cls, path: Path) -> Evidence:
        """Load what `save` wrote."""
        read = json.loads(path.read_text())
        hosts = [HostEvidence(**host) for host in read.pop("hosts")]
        read["expected"] = {int(job): conclusion for job, conclusion in read.pop("expected").items()}
        return cls(hosts=hosts, **read)


def of_host(anka, **more) -> HostEvidence:
    """Gather the evidence of an `AnkaHost`. `more`: what only the test knows."""
    commands = [_line(pid) for pid in anka.command_pids()]
    return HostEvidence(
        calls=anka.calls(),
        events=anka.events(),
        vms=[{key: vm[key] for key in ("name", "status", "tag", "uuid", "corrupt")} for vm in anka.vms()],
        slots=anka.slots(),
        guest_processes=[" ".join(process.argv) for process in anka.guest_processes()],
        commands=[line for line in commands if line],
        **more,
    )


def of_run(github, hosts, scopes, redis=None, **more) -> Evidence:
    """Gather the evidence of a whole run. `scopes`: (owner, repo) pairs; `redis`: a client, if the run uses Redis."""
    return Evidence(
        hosts=list(hosts),
        jobs=github.jobs(),
        events=github.events(),
        runners=[runner for scope in scopes for runner in github.runners(*scope)],
        requests=github.requests(),
        anomalies=github.anomalies(),
        redis_keys=sorted(redis.scan_iter("*", count=1000)) if redis is not None else [],
        **more,
    )


def _line(pid):
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return ""
