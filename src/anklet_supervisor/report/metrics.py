"""Every metric name: figures go in, an exposition comes out.

The loop is the only writer; scrapes read under a lock. The original's names are kept. Four of them break Prometheus' rules for
the type that they have, and are exposed as untyped:

- total_successful_runs_since_start, total_failed_runs_since_start: counters, but a counter's name must end in `_total`;
- host_cpu_count, host_cpu_used_count: gauges, but `_count` is the ending of a part of a histogram.

Its values that were no numbers have become some: the status is a label, times are Unix seconds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    UntypedMetricFamily,
)
from prometheus_client.registry import Collector

from anklet_supervisor.machine.model import Model
from anklet_supervisor.machine.state import ServiceState
from anklet_supervisor.machine.step import slots_in_use
from anklet_supervisor.report.host_figures import HostFigures, HostSampler
from anklet_supervisor.report.status import ApiBudget, rfc3339
from anklet_supervisor.report.tally import Counted, Distribution, ServiceTally, Tally
from anklet_worker import __version__
from anklet_worker.contract.figures import Figure
from anklet_worker.contract.job import Conclusion
from anklet_worker.contract.service import ServiceConfig
from anklet_worker.link import messages as m
from anklet_worker.link.messages import Status
from anklet_worker.link.slots import SlotState

_SERVICE = ("service_name", "plugin", "owner", "repo")
#: Go's zero time, which the original shows for "never".
_NEVER = "0001-01-01T00:00:00Z"
_SIZES = ("total", "used", "available")
#: The end of the year 9999, Unix seconds: no later time can be written down, and nobody has so many calls.
_LARGEST = 253_402_300_799
_BUDGET = {Figure.API_CALLS_LEFT, Figure.API_CALLS_LIMIT, Figure.API_LIMIT_RESETS_AT}


class Metrics:
    """All figures of one supervisor, in a registry of its own. `mono` is a monotonic clock, `read_host` asks the host."""

    def __init__(
        self,
        services: tuple[ServiceConfig, ...],
        now: float,
        *,
        mono: Callable[[], float] = time.monotonic,
        read_host: Callable[[], HostFigures] | None = None,
    ) -> None:
        self._mono = mono
        self._read_host = HostSampler().read if read_host is None else read_host
        self._lock = threading.Lock()
        self._tally = Tally()
        for config in services:
            self._tally.add_service(config, now)
        self._beat: float | None = None
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(_Exposition(self))

    # ---- written by the loop; `now` is Unix seconds ----

    def fact(self, service: str, fact: m.Fact, now: float) -> None:
        """Fold in what a worker reported."""
        with self._lock:
            self._tally.fold(service, fact, now)

    def add_service(self, config: ServiceConfig, now: float) -> None:
        """A service that is new, or has new settings: its counters go on."""
        with self._lock:
            self._tally.add_service(config, now)

    def remove_service(self, name: str) -> None:
        """A service that is no more: its series vanish."""
        with self._lock:
            self._tally.remove_service(name)

    def know(self, counted: Iterable[tuple[str, Counted]]) -> None:
        """What an earlier supervisor has counted of attempts, by VM, is not counted again."""
        with self._lock:
            for vm, what in counted:
                self._tally.know(vm, what)

    def update(self, model: Model, log_lines_dropped: int, now: float) -> None:
        """Take over the supervisor's state."""
        with self._lock:
            self._tally.log_lines_dropped = log_lines_dropped
            self._tally.take_over(model, now)

    def beat(self, mono: float) -> None:
        """The loop has turned, at this monotonic time."""
        self._beat = mono

    # ---- read by the loop ----

    def budgets(self) -> dict[str, ApiBudget]:
        """What each service's last answers said of its API's limit, where there is one."""
        with self._lock:
            known = {name: _budget(service.figures) for name, service in self._tally.services.items()}
        return {name: budget for name, budget in known.items() if budget is not None}

    # ---- read by the endpoint, from any thread ----

    def seconds_since_beat(self) -> float | None:
        """How long ago the loop turned; None when it has not yet."""
        beat = self._beat
        return None if beat is None else self._mono() - beat

    def not_ready(self) -> dict[str, str]:
        """The services that are not ready, each with its state and why."""
        with self._lock:
            model = self._tally.model
            if model is None:
                return dict.fromkeys(self._tally.services, ServiceState.STARTING.value)
        return {
            service.name: f"{service.state.value}: {service.reason}" if service.reason else service.state.value
            for service in model.services.values()
            if service.state is not ServiceState.READY
        }

    def prometheus(self) -> bytes:
        """The text exposition (version 0.0.4)."""
        return generate_latest(self.registry)

    def families(self) -> Iterator[Metric]:
        """Everything there is."""
        host = self._read_host()
        with self._lock:
            # A list: nothing may be read from the tally after the lock is gone.
            families = [
                *_totals(self._tally),
                *_services(list(self._tally.services.values())),
                *_jobs(self._tally),
                *_origins(self._tally),
                *_supervisor(self._tally),
            ]
        yield from families
        yield from _host(host)

    def json(self) -> bytes:
        """The original's document: its keys in its order. Of memory and disk it has both spellings of the original's README; the
        one without `Bytes` stands right behind the one that the original sent."""
        host = self._read_host()
        with self._lock:
            document: dict[str, object] = {
                "TotalRunningVMs": _running(self._tally),
                "TotalSuccessfulRunsSinceStart": self._tally.successes,
                "TotalFailedRunsSinceStart": self._tally.failures,
                "HostCPUCount": host.cpu_count,
                "HostCPUUsedCount": host.cpu_used,
                "HostCPUUsagePercentage": host.cpu_percent,
            }
            for kind, figures in (("Memory", host.memory), ("Disk", host.disk)):
                *sizes, percent = figures or (None,) * 4
                for word, size in zip(_SIZES, sizes, strict=True):
                    key = f"Host{kind}{word.capitalize()}"
                    document[f"{key}Bytes"] = document[key] = size
                document[f"Host{kind}UsagePercentage"] = percent
            document["Services"] = [_service_json(service) for service in self._tally.services.values()]
        return msgspec.json.encode(document)


class _Exposition(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """Called at each scrape."""
        return self._metrics.families()

    def describe(self) -> Iterator[Metric]:
        """Called at registration: nothing is to be read then."""
        return iter(())


def _budget(figures: dict[Figure, float]) -> ApiBudget | None:
    """None where something is missing, or is no number of calls or no time: what an API says of itself may be anything."""
    if not figures.keys() >= _BUDGET or not all(0 <= figures[figure] <= _LARGEST for figure in _BUDGET):
        return None
    return ApiBudget(
        remaining=int(figures[Figure.API_CALLS_LEFT]),
        limit=int(figures[Figure.API_CALLS_LIMIT]),
        reset=rfc3339(figures[Figure.API_LIMIT_RESETS_AT]),
    )


def _running(tally: Tally) -> int:
    return 0 if tally.model is None else slots_in_use(tally.model)


def _totals(tally: Tally) -> Iterator[Metric]:
    yield GaugeMetricFamily("total_running_vms", "VMs of ours that run, or are about to.", _running(tally))
    yield UntypedMetricFamily(
        "total_successful_runs_since_start", "Jobs that succeeded since the supervisor's start.", tally.successes
    )
    yield UntypedMetricFamily(
        "total_failed_runs_since_start", "Jobs that failed since the supervisor's start.", tally.failures
    )


def _services(services: list[ServiceTally]) -> Iterator[Metric]:
    status = GaugeMetricFamily(
        "service_status", "1 for what the service is doing now, else 0.", labels=(*_SERVICE, "status")
    )
    since = GaugeMetricFamily(
        "service_status_running_since", "Since when it has been doing that, Unix seconds.", labels=_SERVICE
    )
    success = GaugeMetricFamily(
        "service_last_successful_run",
        "End of the service's last successful job, Unix seconds; 0 for never.",
        labels=(*_SERVICE, "job_url"),
    )
    failure = GaugeMetricFamily(
        "service_last_failed_run",
        "End of the service's last failed job, Unix seconds; 0 for never.",
        labels=(*_SERVICE, "job_url"),
    )
    for service in services:
        labels = (service.name, service.plugin, service.owner, service.repo)
        for word in Status:
            status.add_metric((*labels, word.value), float(word is service.status))
        since.add_metric(labels, service.since)
        # One live series for each service: a new URL replaces the old one.
        success.add_metric((*labels, service.last_success.job_url), service.last_success.ended)
        failure.add_metric((*labels, service.last_failure.job_url), service.last_failure.ended)
    yield from (status, since, success, failure)


def _jobs(tally: Tally) -> Iterator[Metric]:
    jobs = CounterMetricFamily(
        "anklet_jobs", "Jobs that ended in VMs of this host.", labels=("service_name", "conclusion")
    )
    given_back = CounterMetricFamily(
        "anklet_jobs_given_back", "Claimed jobs that did not run here, by no fault of theirs.", labels=("service_name",)
    )
    for service in tally.services.values():
        for conclusion in Conclusion:
            jobs.add_metric((service.name, conclusion.value), service.jobs[conclusion])
        given_back.add_metric((service.name,), service.given_back)
    stages = HistogramMetricFamily("anklet_job_stage_seconds", "Time that a stage of a job took.", labels=("stage",))
    for stage, distribution in tally.stages.items():
        _add_distribution(stages, (stage,), distribution)
    commands = HistogramMetricFamily(
        "anklet_vm_command_seconds",
        "Time that a command of the VM tool took, by verb and class of outcome.",
        labels=("command", "outcome"),
    )
    for labels, distribution in sorted(tally.commands.items()):
        _add_distribution(commands, labels, distribution)
    yield from (jobs, given_back, *_counts(list(tally.services.values())), stages, commands)


def _counts(services: list[ServiceTally]) -> Iterator[Metric]:
    """What is rare, and tells of trouble; and what waits."""
    label = ("service_name",)
    retries = CounterMetricFamily(
        "anklet_job_retries", "Claims of jobs that had been tried before, here or elsewhere.", labels=label
    )
    reaped = CounterMetricFamily(
        "anklet_orphans_reaped", "VMs removed that an earlier process had left behind.", labels=label
    )
    lost = CounterMetricFamily("anklet_leases_lost", "Claims that went to another host while held.", labels=label)
    waiting = GaugeMetricFamily("anklet_queue_jobs", "Jobs that wait for the service, as last seen.", labels=label)
    oldest = GaugeMetricFamily(
        "anklet_queue_oldest_timestamp_seconds",
        "Since when the oldest of them waits, Unix seconds; 0 when none does.",
        labels=label,
    )
    for one in services:
        for family, value in (
            (retries, one.retries),
            (reaped, one.orphans_reaped),
            (lost, one.leases_lost),
            (waiting, one.waiting),
            (oldest, one.oldest),
        ):
            family.add_metric((one.name,), value)
    yield from (retries, reaped, lost, waiting, oldest)


#: What a plugin reports, in the words of people who read a dashboard.
_FIGURES = {
    Figure.API_CALLS_LEFT: "Calls of the API that the credentials have left until the limit is reset.",
    Figure.API_CALLS_LIMIT: "Calls of the API that the credentials have in all between two resets.",
    Figure.API_LIMIT_RESETS_AT: "When the API's limit is reset, Unix seconds.",
    Figure.STALE_JOBS: "Jobs that have waited for long and that nobody has claimed, as last seen.",
    Figure.LEFT_RUNNERS: "Runners of this host that are registered, offline and without a VM, as last seen.",
}


def _origins(tally: Tally) -> Iterator[Metric]:
    """What plugins tell about where the jobs come from."""
    services = list(tally.services.values())
    calls = CounterMetricFamily(
        "anklet_api_requests",
        "Calls of the API of the jobs' origin; status 304 is free of GitHub's limit.",
        labels=("service_name", "route", "status"),
    )
    swept = CounterMetricFamily(
        "anklet_swept_runners", "Registered runners without a VM that were removed.", labels=("service_name",)
    )
    gauges = {
        figure: GaugeMetricFamily(f"anklet_{figure.value}", words, labels=("service_name",))
        for figure, words in _FIGURES.items()
    }
    for service in services:
        for (route, outcome), number in sorted(service.api_calls.items()):
            calls.add_metric((service.name, route, outcome), number)
        swept.add_metric((service.name,), service.figures.get(Figure.SWEPT_RUNNERS, 0.0))
        for figure, gauge in gauges.items():
            if figure in service.figures:
                gauge.add_metric((service.name,), service.figures[figure])
    took = HistogramMetricFamily(
        "anklet_api_request_seconds",
        "Time that a call of the API of the jobs' origin took, one without an answer too.",
        labels=("route",),
    )
    for route, distribution in sorted(tally.api.items()):
        _add_distribution(took, (route,), distribution)
    yield from (calls, took, swept, *gauges.values())


def _add_distribution(family: HistogramMetricFamily, labels: tuple[str, ...], distribution: Distribution) -> None:
    buckets = [("+Inf" if bound == float("inf") else str(float(bound)), n) for bound, n in distribution.cumulative()]
    family.add_metric(labels, buckets=buckets, sum_value=distribution.sum)


def _supervisor(tally: Tally) -> Iterator[Metric]:
    build = GaugeMetricFamily("anklet_build_info", "Always 1; the label says which version runs.", labels=("version",))
    build.add_metric((__version__,), 1)
    yield build
    yield CounterMetricFamily("anklet_log_lines_dropped", "Log lines lost since the start.", tally.log_lines_dropped)
    yield GaugeMetricFamily(
        "anklet_host_degraded",
        "1 while the host refuses VMs although it should have room: only a reboot helps.",
        float(tally.degraded),
    )
    if tally.model is not None:
        yield from _states(tally.model)


def _states(model: Model) -> Iterator[Metric]:
    services = GaugeMetricFamily("anklet_services", "Services by the state of their worker.", labels=("state",))
    for state in ServiceState:
        services.add_metric((state.value,), sum(one.state is state for one in model.services.values()))
    state_of = GaugeMetricFamily(
        "anklet_service_state", "1 for the state of the service's worker, else 0.", labels=("service_name", "state")
    )
    restarts = CounterMetricFamily(
        "anklet_worker_restarts", "Restarts of a service's worker.", labels=("service_name",)
    )
    in_hand = GaugeMetricFamily(
        "anklet_job_in_hand_timestamp_seconds",
        "Since when the service has its job in hand, Unix seconds; 0 when it has none.",
        labels=("service_name",),
    )
    for service in model.services.values():
        in_hand.add_metric((service.name,), 0.0 if service.job is None else service.job.since)
        for state in ServiceState:
            state_of.add_metric((service.name, state.value), float(service.state is state))
        restarts.add_metric((service.name,), service.restarts)
    slots = GaugeMetricFamily("anklet_slots", "VM slots by state.", labels=("state",))
    table = model.allocation.table
    for slot_state in (one for one in SlotState if one is not SlotState.RETIRED):
        slots.add_metric((slot_state.name.lower(),), sum(slot.state is slot_state for slot in table.slots))
    foreign = GaugeMetricFamily("anklet_foreign_vms", "Running VMs that are not ours, as last seen.", table.foreign)
    yield from (services, state_of, restarts, in_hand, slots, foreign)


def _host(host: HostFigures) -> Iterator[Metric]:
    """What the system refuses to tell is left out."""
    if host.cpu_count is not None:
        yield UntypedMetricFamily("host_cpu_count", "Physical CPU cores.", host.cpu_count)
    if host.cpu_used is not None:
        yield UntypedMetricFamily("host_cpu_used_count", "CPU cores in use, cut to whole ones.", host.cpu_used)
    if host.cpu_percent is not None:
        yield GaugeMetricFamily("host_cpu_usage_percentage", "CPU in use, percent.", host.cpu_percent)
    for kind, figures in (("memory", host.memory), ("disk", host.disk)):
        if figures is None:
            continue
        *sizes, percent = figures
        for word, size in zip(_SIZES, sizes, strict=True):
            yield GaugeMetricFamily(f"host_{kind}_{word}_bytes", f"{kind.capitalize()} of the host, {word}.", size)
        yield GaugeMetricFamily(f"host_{kind}_usage_percentage", f"{kind.capitalize()} in use, percent.", percent)


def _service_json(service: ServiceTally) -> dict[str, object]:
    return {
        "Name": service.name,
        "PluginName": service.plugin,
        "RepoName": service.repo,
        "OwnerName": service.owner,
        "Status": service.status.value,
        "LastSuccessfulRunJobUrl": service.last_success.job_url,
        "LastFailedRunJobUrl": service.last_failure.job_url,
        "LastSuccessfulRun": _rfc3339(service.last_success.ended),
        "LastFailedRun": _rfc3339(service.last_failure.ended),
        "StatusRunningSince": _rfc3339(service.since),
    }


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z") if seconds else _NEVER
