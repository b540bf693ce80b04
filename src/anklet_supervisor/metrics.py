"""Every metric name; facts and states go in, an exposition comes out.

Workers report facts, never metrics: so counters survive their restarts, and no label is invented elsewhere. The loop is the only
writer; scrapes read under a lock. The original's names are kept. Where such a name breaks Prometheus' rules for its type it is
exposed as untyped: `total_*_since_start` are counters without the suffix `_total`, `host_cpu_*count` ends like a histogram's part.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec
import psutil
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric, UntypedMetricFamily
from prometheus_client.registry import Collector

from anklet_supervisor.machine import Model, slots_in_use
from anklet_supervisor.state import ServiceState
from anklet_worker import __version__
from anklet_worker import messages as m
from anklet_worker.config import ServiceConfig
from anklet_worker.job import Conclusion
from anklet_worker.plugin import Status
from anklet_worker.slots import SlotState

_SERVICE_LABELS = ("service_name", "plugin", "owner", "repo")
_COMMAND_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 600, 3600)
_STAGE_BUCKETS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600, 4 * 3600)
#: Go's zero time, which the original shows for "never".
_NEVER = "0001-01-01T00:00:00Z"


class HostFigures(msgspec.Struct, frozen=True, kw_only=True):
    """CPU, memory and disk of `/`. Sizes are bytes. A figure that the system refuses is 0."""

    cpu_count: int
    cpu_percent: float
    memory: tuple[int, int, int, float]
    disk: tuple[int, int, int, float]

    @property
    def cpu_used(self) -> int:
        """Cores in use, cut to whole ones, as the original shows it."""
        return int(self.cpu_count * self.cpu_percent / 100)


def read_host() -> HostFigures:
    """Ask the system. The CPU percentage is the mean since the last call (psutil), whoever made it."""
    try:
        memory, disk = psutil.virtual_memory(), psutil.disk_usage("/")
        return HostFigures(
            cpu_count=psutil.cpu_count(logical=False) or psutil.cpu_count() or 0,
            cpu_percent=psutil.cpu_percent(interval=None),
            memory=(memory.total, memory.used, memory.available, memory.percent),
            disk=(disk.total, disk.used, disk.free, disk.percent),
        )
    except (OSError, psutil.Error):
        return HostFigures(cpu_count=0, cpu_percent=0.0, memory=(0, 0, 0, 0.0), disk=(0, 0, 0, 0.0))


class _Run(msgspec.Struct, frozen=True):
    """The last run of a kind: its job's URL and its end, Unix seconds (0: never)."""

    job_url: str = ""
    ended: float = 0.0


class _ServiceFigures:
    """What is shown of one service."""

    def __init__(self, config: ServiceConfig, now: float) -> None:
        self.labels = (config.name, config.plugin, config.owner, config.repo)
        self.status = Status.IDLE
        self.since = now
        self.last_success = _Run()
        self.last_failure = _Run()


class Metrics:
    """All figures of one supervisor, in a registry of its own."""

    def __init__(self, services: tuple[ServiceConfig, ...], now: float) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library's own omission
        psutil.cpu_percent(interval=None)
        self._lock = threading.Lock()
        self._services = {config.name: _ServiceFigures(config, now) for config in services}
        self._model: Model | None = None
        self._beat = time.monotonic()
        self._successes = self._failures = 0
        self._log_lines_dropped = 0
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(_Exposition(self))
        self._jobs = Counter("anklet_jobs", "Jobs that ended.", ("service_name", "conclusion"), registry=self.registry)
        self._given_back = Counter(
            "anklet_jobs_given_back", "Claimed jobs that did not run here.", ("service_name",), registry=self.registry
        )
        self._stages = Histogram(
            "anklet_job_stage_seconds",
            "Time that a stage of a job took.",
            ("stage",),
            buckets=_STAGE_BUCKETS,
            registry=self.registry,
        )
        self._commands = Histogram(
            "anklet_vm_command_seconds",
            "Time that a VM command took, by command and class of outcome.",
            ("command", "outcome"),
            buckets=_COMMAND_BUCKETS,
            registry=self.registry,
        )

    # ---- written by the loop ----

    def fact(self, service: str, fact: m.Fact, now: float) -> None:
        """Fold in what a worker reported; `now` is Unix seconds."""
        match fact:
            case m.JobFinished(conclusion=conclusion, job_url=url):
                self._job_finished(service, conclusion, _Run(url, now))
            case m.JobGivenBack():
                self._given_back.labels(service).inc()
            case m.StageTook(stage=stage, seconds=seconds) if stage in m.STAGES:
                self._stages.labels(stage).observe(seconds)
            case m.DriverCommandEnded(command=command, outcome=outcome, seconds=seconds):
                self._commands.labels(command, outcome).observe(seconds)

    def _job_finished(self, service: str, conclusion: Conclusion, run: _Run) -> None:
        self._jobs.labels(service, conclusion.value).inc()
        with self._lock:
            if conclusion is Conclusion.SUCCESS:
                self._successes += 1
                self._services[service].last_success = run
            elif conclusion is Conclusion.FAILURE:
                self._failures += 1
                self._services[service].last_failure = run

    def update(self, model: Model, log_lines_dropped: int, now: float) -> None:
        """Take over the supervisor's state. `now` is Unix seconds."""
        with self._lock:
            self._model = model
            self._log_lines_dropped = log_lines_dropped
            for name, service in model.services.items():
                figures = self._services[name]
                if figures.status is not service.status:
                    figures.status, figures.since = service.status, now

    def beat(self, mono: float) -> None:
        """The loop has turned."""
        self._beat = mono

    # ---- read by the endpoint ----

    def seconds_since_beat(self) -> float:
        """How long ago the loop turned."""
        return time.monotonic() - self._beat

    def not_ready(self) -> dict[str, str]:
        """The services that are not ready, each with its state and why."""
        with self._lock:
            if self._model is None:
                return dict.fromkeys(self._services, "starting")
            return {
                service.name: f"{service.state.value}: {service.reason}" if service.reason else service.state.value
                for service in self._model.services.values()
                if service.state is not ServiceState.READY
            }

    def prometheus(self) -> bytes:
        """The text exposition (version 0.0.4)."""
        return generate_latest(self.registry)

    def json(self) -> bytes:
        """The original's document: its keys in its order, and of memory and disk both spellings of its README, side by side."""
        host = read_host()
        with self._lock:
            document: dict[str, object] = {
                "TotalRunningVMs": 0 if self._model is None else slots_in_use(self._model),
                "TotalSuccessfulRunsSinceStart": self._successes,
                "TotalFailedRunsSinceStart": self._failures,
                "HostCPUCount": host.cpu_count,
                "HostCPUUsedCount": host.cpu_used,
                "HostCPUUsagePercentage": host.cpu_percent,
            }
            for kind, figures in (("Memory", host.memory), ("Disk", host.disk)):
                for word, value in zip(("Total", "Used", "Available"), figures[:3], strict=True):
                    document[f"Host{kind}{word}Bytes"] = document[f"Host{kind}{word}"] = value
                document[f"Host{kind}UsagePercentage"] = figures[3]
            document["Services"] = [_service_json(service) for service in self._services.values()]
        return msgspec.json.encode(document)

    def families(self) -> Iterator[Metric]:
        """All that is a snapshot rather than a counter of its own."""
        host = read_host()
        with self._lock:
            yield from self._totals()
            yield from _service_families(list(self._services.values()))
            if self._model is not None:
                yield from _model_families(self._model)
            yield _single("anklet_log_lines_dropped", "Log lines lost since the start.", self._log_lines_dropped)
        yield from _host_families(host)

    def _totals(self) -> Iterator[Metric]:
        running = 0 if self._model is None else slots_in_use(self._model)
        yield _single("total_running_vms", "VMs of ours that run, or are about to.", running)
        yield _untyped("total_successful_runs_since_start", "Jobs that succeeded since the start.", self._successes)
        yield _untyped("total_failed_runs_since_start", "Jobs that failed since the start.", self._failures)
        build = GaugeMetricFamily(
            "anklet_build_info", "Always 1; the label says which version runs.", labels=("version",)
        )
        build.add_metric((__version__,), 1)
        yield build


class _Exposition(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """Called at each scrape."""
        return self._metrics.families()


def _single(name: str, doc: str, value: float) -> Metric:
    return GaugeMetricFamily(name, doc, value=value)


def _untyped(name: str, doc: str, value: float) -> Metric:
    return UntypedMetricFamily(name, doc, value=value)


def _service_families(services: list[_ServiceFigures]) -> Iterator[Metric]:
    status = GaugeMetricFamily(
        "service_status", "1 for what the service is doing now, else 0.", labels=(*_SERVICE_LABELS, "status")
    )
    since = GaugeMetricFamily(
        "service_status_running_since", "Since when it is doing that, Unix seconds.", labels=_SERVICE_LABELS
    )
    success = GaugeMetricFamily(
        "service_last_successful_run",
        "End of the last successful job, Unix seconds; 0 for never.",
        labels=(*_SERVICE_LABELS, "job_url"),
    )
    failure = GaugeMetricFamily(
        "service_last_failed_run",
        "End of the last failed job, Unix seconds; 0 for never.",
        labels=(*_SERVICE_LABELS, "job_url"),
    )
    for service in services:
        for word in Status:
            status.add_metric((*service.labels, word.value), float(word is service.status))
        since.add_metric(service.labels, service.since)
        # One live series for each service: a new URL replaces the old one.
        success.add_metric((*service.labels, service.last_success.job_url), service.last_success.ended)
        failure.add_metric((*service.labels, service.last_failure.job_url), service.last_failure.ended)
    yield from (status, since, success, failure)


def _model_families(model: Model) -> Iterator[Metric]:
    states = GaugeMetricFamily("anklet_services", "Services by the state of their worker.", labels=("state",))
    for state in ServiceState:
        states.add_metric((state.value,), sum(service.state is state for service in model.services.values()))
    yield states
    slots = GaugeMetricFamily("anklet_slots", "VM slots by state.", labels=("state",))
    for slot_state in SlotState:
        count = sum(slot.state is slot_state for slot in model.allocation.table.slots)
        slots.add_metric((slot_state.name.lower(),), count)
    yield slots
    yield _single("anklet_foreign_vms", "Running VMs that are not ours, as last seen.", model.allocation.table.foreign)
    restarts = Metric("anklet_worker_restarts", "Restarts of a service's worker.", "counter")
    for service in model.services.values():
        restarts.add_sample("anklet_worker_restarts_total", {"service_name": service.name}, service.restarts)
    yield restarts


def _host_families(host: HostFigures) -> Iterator[Metric]:
    yield _untyped("host_cpu_count", "Physical CPU cores.", host.cpu_count)
    yield _untyped("host_cpu_used_count", "CPU cores in use, cut to whole ones.", host.cpu_used)
    yield _single("host_cpu_usage_percentage", "CPU in use, percent.", host.cpu_percent)
    for kind, figures in (("memory", host.memory), ("disk", host.disk)):
        for word, value in zip(("total", "used", "available"), figures[:3], strict=True):
            yield _single(f"host_{kind}_{word}_bytes", f"{kind.capitalize()}, {word}.", value)
        yield _single(f"host_{kind}_usage_percentage", f"{kind.capitalize()} in use, percent.", figures[3])


def _service_json(service: _ServiceFigures) -> dict[str, object]:
    name, plugin, owner, repo = service.labels
    return {
        "Name": name,
        "PluginName": plugin,
        "RepoName": repo,
        "OwnerName": owner,
        "Status": service.status.value,
        "LastSuccessfulRunJobUrl": service.last_success.job_url,
        "LastFailedRunJobUrl": service.last_failure.job_url,
        "LastSuccessfulRun": _rfc3339(service.last_success.ended),
        "LastFailedRun": _rfc3339(service.last_failure.ended),
        "StatusRunningSince": _rfc3339(service.since),
    }


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z") if seconds else _NEVER
