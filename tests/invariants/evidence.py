"""What an independent observer can know of a run: the journals and states of the emulators, and what the test did itself.

Owns the form of the evidence and how it is gathered. Reads nothing that the program under test has written: no record, no log,
no status, no metric of it. All times are seconds of this machine's clock since 1970.
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
    """One emulated Mac. `calls`, `events`, `vms`, `slots` are the emulated Anka's own; see its README."""

    name: str
    calls: list[dict]
    events: list[dict]
    vms: list[dict]
    #: Owners of the kernel's slots at the end.
    slots: list[str]
    guest_processes: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    #: Processes of the supervisor's session that lived at the end, when none should.
    processes: list[str] = field(default_factory=list)
    #: VMs and templates that the test put there: nobody may touch them.
    foreign: list[str] = field(default_factory=list)
    limit: int = 2
    #: How many jobs it can have in hand at once: a slot each, and a service each.
    capacity: int = 2
    #: It died and was never to come back: what lies on it is nobody's fault.
    dead: bool = False
    #: When the emulated kernel refused starts that it should grant, at the test's word.
    refused: list[Span] = field(default_factory=list)
    #: Times and names of VMs of ours that the test let die.
    deaths: list[tuple[float, str]] = field(default_factory=list)
    #: When the test kept it from working.
    outages: list[Span] = field(default_factory=list)


@dataclass(kw_only=True)
class Evidence:
    """One run. `jobs`, `events`, `runners`, `requests`, `anomalies` are the emulated GitHub's own; see its README."""

    hosts: list[HostEvidence]
    jobs: list[dict]
    events: list[dict]
    runners: list[dict]
    requests: list[dict]
    anomalies: list[dict]
    #: Keys that Redis held at the end.
    redis_keys: list[str] = field(default_factory=list)
    #: Values that may be seen in no argument list.
    secrets: list[str] = field(default_factory=list)
    #: Runners that the test registered for nobody: they stay.
    foreign_runners: list[str] = field(default_factory=list)
    #: Job id -> how the job ends when nothing comes in between.
    expected: dict[int, str] = field(default_factory=dict)
    #: When the test kept every host from working.
    outages: list[Span] = field(default_factory=list)
    #: Jobs that were to run all at once, one in each slot of the fleet; how many there were.
    roll_call: int = 0

    def save(self, path: Path) -> None:
        """Write it down, for a look afterwards."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1))

    @classmethod
    def load(cls, path: Path) -> Evidence:
        """What `save` wrote."""
        read = json.loads(path.read_text())
        hosts = [HostEvidence(**host) for host in read.pop("hosts")]
        read["expected"] = {int(job): conclusion for job, conclusion in read.pop("expected").items()}
        return cls(hosts=hosts, **read)


def of_host(anka, **more) -> HostEvidence:
    """The evidence of an `AnkaHost` as it is now. `more`: what only the test knows."""
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
    """The evidence of a whole run as it is now. `scopes`: (owner, repo) pairs; `redis`: a client, where one is in use."""
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
