"""Counts of services, jobs and commands, folded from the facts that workers report. Pure.

Workers report facts, not totals, so counters survive a worker's restart. Every label comes from a closed list, except those of
the configuration (a service's name, plugin, owner, repository) and the URL of each service's last job. A plugin's figures count
only when its rules declare them.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator, Sequence

import msgspec

from anklet_supervisor.machine.model import Model
from anklet_worker.contract.figures import Figure, FigureKind
from anklet_worker.contract.job import Conclusion
from anklet_worker.contract.service import ServiceConfig
from anklet_worker.link import messages as m
from anklet_worker.link.messages import Status

#: Upper bounds of the histograms, in seconds. A job may take hours, a listing a tenth of a second.
COMMAND_BOUNDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 600, 3600)
STAGE_BOUNDS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600, 4 * 3600)
API_BOUNDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
#: The verbs of all drivers, and the classes of outcome. Anything else counts as `other`.
COMMANDS = frozenset(
    {"probe", "list", "check", "pull", "clone", "set", "start", "run", "ip", "fqn", "exec", "cp", "stop", "delete"}
)
#: Attempts whose counted facts are remembered; far more than a host can have unsettled.
_MOST_COUNTED = 1000
OUTCOMES = frozenset({"done", "not_found", "name_exists", "limit_reached", "busy", "fatal", "transient"})
OTHER = "other"
#: Most pairs of route and outcome per service, and most routes with a histogram: a plugin that invents routes cannot flood the
#: endpoint.
_MOST_CALLS, _MOST_ROUTES = 200, 50


class Distribution:
    """Histogram counts per upper bound, and the total of all durations."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration in seconds; ignores what is not one (negative, not a number)."""
        if math.isfinite(seconds) and seconds >= 0:
            self._counts[bisect.bisect_left(self._bounds, seconds)] += 1
            self.sum += seconds

    def cumulative(self) -> list[tuple[float, int]]:
        """Each bound with the number of durations up to it; the last bound is infinite."""
        return list(zip((*self._bounds, math.inf), itertools.accumulate(self._counts), strict=True))


class LastJob(msgspec.Struct, frozen=True):
    """The last job of a service that succeeded, or failed: its URL and its end, Unix seconds (0: none yet)."""

    job_url: str = ""
    ended: float = 0.0


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """The facts already counted of one attempt. `claimed_at` (Unix seconds) separates attempts with one VM name."""

    claimed_at: float = 0.0
    given_back: bool = False
    finished: bool = False


class ServiceTally:
    """One service. `since` is when its status began, Unix seconds."""

    def __init__(self, config: ServiceConfig, now: float) -> None:
        self.relabel(config)
        self.status = Status.IDLE
        self.since = now
        self.last_success = LastJob()
        self.last_failure = LastJob()
        self.jobs = dict.fromkeys(Conclusion, 0)
        self.given_back = self.retries = self.leases_lost = self.orphans_reaped = 0
        #: Jobs that wait for this service, as last seen, and since when the oldest (Unix seconds, 0: none waits).
        self.waiting = 0
        self.oldest = 0.0
        #: The plugin's figures, by name; and the API's limit, once a worker has seen it.
        self.figures: dict[str, float] = {}
        self.budget: m.ApiBudgetSeen | None = None
        self.api_calls: dict[tuple[str, str], int] = {}

    def relabel(self, config: ServiceConfig) -> None:
        """Take over a configuration's labels, and the figures that its plugin declares."""
        self.name, self.plugin, self.owner, self.repo = config.name, config.plugin, config.owner, config.repo
        self.declared = {figure.name: figure for figure in config.figures}

    def report(self, name: str, value: float) -> None:
        """Set a gauge or add to a counter; ignores figures that are not declared, and negative growth."""
        figure = self.declared.get(name)
        if figure is None:
            return
        if figure.kind is FigureKind.GAUGE:
            self.figures[name] = value
        elif value >= 0:
            self.figures[name] = self.figures.get(name, 0.0) + value

    def reported(self) -> Iterator[tuple[Figure, float]]:
        """The declared figures that have a value; a counter begins at 0."""
        for name, figure in self.declared.items():
            if figure.kind is FigureKind.COUNTER:
                yield figure, self.figures.get(name, 0.0)
            elif name in self.figures:
                yield figure, self.figures[name]


class Tally:
    """The whole supervisor. Not for several threads."""

    def __init__(self) -> None:
        self.services: dict[str, ServiceTally] = {}
        self.successes = self.failures = 0
        self.stages = {stage: Distribution(STAGE_BOUNDS) for stage in m.STAGES}
        self.commands: dict[tuple[str, str], Distribution] = {}
        #: Durations of calls of the origins' APIs, by route.
        self.api: dict[str, Distribution] = {}
        self.model: Model | None = None
        self.log_lines_dropped = 0
        #: The host refuses VMs although it should have room: the kernel has leaked a place, and only a reboot frees it.
        self.degraded = False
        #: The facts counted of the latest attempts, by VM, so that a fact repeated by a later process counts once.
        self._counted: dict[str, Counted] = {}

    def add_service(self, config: ServiceConfig, now: float) -> None:
        """Add a service, or take over its new configuration; its counts stay."""
        known = self.services.get(config.name)
        if known is None:
            self.services[config.name] = ServiceTally(config, now)
        else:
            known.relabel(config)

    def remove_service(self, name: str) -> None:
        """Drop a service; its share in sums over all services stays."""
        self.services.pop(name, None)

    def take_over(self, model: Model, now: float) -> None:
        """Take over the supervisor's current state."""
        self.model = model
        self.degraded = model.allocation.host.degraded
        for name, service in model.services.items():
            tally = self.services.get(name)
            if tally is not None and tally.status is not service.status:
                tally.status, tally.since = service.status, now

    def know(self, vm: str, counted: Counted) -> None:
        """Note the facts already counted of the attempt in this VM, here or by an earlier supervisor."""
        self._counted.pop(vm, None)
        self._counted[vm] = counted
        if len(self._counted) > _MOST_COUNTED:
            del self._counted[next(iter(self._counted))]

    def _is_news(self, fact: m.JobClaimed | m.JobFinished | m.JobGivenBack) -> bool:
        """True, once, for a fact of an attempt that has not been counted. A job that ended is not given back."""
        known = self._counted.get(fact.vm)
        match fact:
            case m.JobClaimed(claimed_at=claimed_at):
                news = known is None or known.claimed_at != claimed_at
                after = Counted(claimed_at=claimed_at)
            case m.JobFinished():
                news = known is None or not known.finished
                after = msgspec.structs.replace(known or Counted(), finished=True)
            case m.JobGivenBack():
                news = known is None or not (known.finished or known.given_back)
                after = msgspec.structs.replace(known or Counted(), given_back=True)
        if news:
            self.know(fact.vm, after)
        return news

    def fold(self, service: str, fact: m.Fact, now: float) -> None:
        """Count a fact that a worker reported."""
        if isinstance(fact, m.JobClaimed | m.JobFinished | m.JobGivenBack) and not self._is_news(fact):
            return
        match fact:
            case m.JobFinished(conclusion=conclusion, job_url=url):
                self._job_finished(service, conclusion, LastJob(url, now))
            case m.StageTook(stage=stage, seconds=seconds) if stage in self.stages:
                self.stages[stage].add(seconds)
            case m.ApiCalled() if service in self.services:
                self._api_called(self.services[service].api_calls, fact)
            case m.DriverCommandEnded(command=command, outcome=outcome, seconds=seconds):
                self._command_ended(command, outcome, seconds)
            case _ if service in self.services:
                self._service_fact(self.services[service], fact)

    def _service_fact(self, tally: ServiceTally, fact: m.Fact) -> None:
        match fact:
            case m.JobGivenBack():
                tally.given_back += 1
            case m.JobClaimed(attempt=attempt):
                tally.retries += attempt > 1
            case m.QueueSeen(waiting=waiting, oldest=oldest):
                tally.waiting, tally.oldest = waiting, oldest
            case m.FigureReported(figure=figure, value=value):
                tally.report(figure, value)
            case m.ApiBudgetSeen():
                tally.budget = fact
            case m.LeaseLost():
                tally.leases_lost += 1
            case m.OrphanReaped():
                tally.orphans_reaped += 1

    def _api_called(self, calls: dict[tuple[str, str], int], fact: m.ApiCalled) -> None:
        labels = (fact.route, fact.outcome)
        if labels not in calls and len(calls) >= _MOST_CALLS:
            labels = (OTHER, OTHER)
        calls[labels] = calls.get(labels, 0) + 1
        route = fact.route if fact.route in self.api or len(self.api) < _MOST_ROUTES else OTHER
        self.api.setdefault(route, Distribution(API_BOUNDS)).add(fact.seconds)

    def _job_finished(self, service: str, conclusion: Conclusion, job: LastJob) -> None:
        """Only success and failure count as runs, as in the original; a cancelled job is neither."""
        self.successes += conclusion is Conclusion.SUCCESS
        self.failures += conclusion is Conclusion.FAILURE
        tally = self.services.get(service)
        if tally is None:
            return
        tally.jobs[conclusion] += 1
        if conclusion is Conclusion.SUCCESS:
            tally.last_success = job
        elif conclusion is Conclusion.FAILURE:
            tally.last_failure = job

    def _command_ended(self, command: str, outcome: str, seconds: float) -> None:
        labels = (command if command in COMMANDS else OTHER, outcome if outcome in OUTCOMES else OTHER)
        self.commands.setdefault(labels, Distribution(COMMAND_BOUNDS)).add(seconds)
