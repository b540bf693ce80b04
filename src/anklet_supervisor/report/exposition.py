"""The metric families that the endpoint exposes, made from the counts of `tally`. Pure; owns every metric name.

The original's names are kept. Four of them break Prometheus' rules for their type, and are exposed as untyped:

- total_successful_runs_since_start, total_failed_runs_since_start: counters, but a counter's name must end in `_total`;
- host_cpu_count, host_cpu_used_count: gauges, but `_count` is the ending of a part of a histogram.

Its values that were not numbers are now: the status is a label, times are Unix seconds.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    UntypedMetricFamily,
)

from anklet_supervisor.config.metric_names import FAMILIES
from anklet_supervisor.machine.model import Model
from anklet_supervisor.machine.state import ServiceState
from anklet_supervisor.machine.step import slots_in_use
from anklet_supervisor.report.host_figures import HostFigures
from anklet_supervisor.report.tally import Distribution, ServiceTally, Tally
from anklet_worker import __version__
from anklet_worker.contract.figures import Figure, FigureKind
from anklet_worker.contract.job import Conclusion
from anklet_worker.link.messages import Status
from anklet_worker.link.slots import SlotState

_SERVICE = ("service_name", "plugin", "owner", "repo")
#: Parts of the host's memory and disk, in the order of `HostFigures`.
SIZES = ("total", "used", "available")


def families(tally: Tally) -> Iterator[Metric]:
    """Every family but the host's."""
    services = list(tally.services.values())
    yield from _totals(tally)
    yield from _services(services)
    yield from _jobs(tally)
    yield from _origins(tally)
    yield from _declared(services)
    yield from _supervisor(tally)


def running_vms(tally: Tally) -> int:
    """Slots that hold a VM."""
    return 0 if tally.model is None else slots_in_use(tally.model)


def _totals(tally: Tally) -> Iterator[Metric]:
    yield GaugeMetricFamily("total_running_vms", "VMs of ours that run, or are about to.", running_vms(tally))
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
        "anklet_jobs_given_back",
        "Claimed jobs that did not run here, through no fault of their own.",
        labels=("service_name",),
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
    """Counts of trouble, and the queue."""
    label = ("service_name",)
    retries = CounterMetricFamily(
        "anklet_job_retries", "Claims of jobs that had been tried before, here or elsewhere.", labels=label
    )
    reaped = CounterMetricFamily(
        "anklet_orphans_reaped", "VMs removed that an earlier process had left behind.", labels=label
    )
    lost = CounterMetricFamily("anklet_leases_lost", "Claims lost to another host.", labels=label)
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


def _origins(tally: Tally) -> Iterator[Metric]:
    """Calls of the APIs that the jobs come from, and their limits."""
    calls = CounterMetricFamily(
        "anklet_api_requests",
        "Calls of the API of the jobs' origin; a 304 does not count against GitHub's limit.",
        labels=("service_name", "route", "status"),
    )
    label = ("service_name",)
    left = GaugeMetricFamily(
        "anklet_api_calls_left",
        "Calls of the API that the credentials have left until the limit is reset.",
        labels=label,
    )
    limit = GaugeMetricFamily(
        "anklet_api_calls_limit",
        "Calls of the API that the credentials have in all between two resets.",
        labels=label,
    )
    resets_at = GaugeMetricFamily(
        "anklet_api_limit_resets_at_timestamp_seconds", "When the API's limit is reset, Unix seconds.", labels=label
    )
    for service in tally.services.values():
        for (route, outcome), number in sorted(service.api_calls.items()):
            calls.add_metric((service.name, route, outcome), number)
        if service.budget is not None:
            left.add_metric((service.name,), service.budget.left)
            limit.add_metric((service.name,), service.budget.limit)
            resets_at.add_metric((service.name,), service.budget.resets_at)
    took = HistogramMetricFamily(
        "anklet_api_request_seconds",
        "Time that a call of the API of the jobs' origin took, including calls without an answer.",
        labels=("route",),
    )
    for route, distribution in sorted(tally.api.items()):
        _add_distribution(took, (route,), distribution)
    yield from (calls, took, left, limit, resets_at)


def _declared(services: list[ServiceTally]) -> Iterator[Metric]:
    """The figures that plugins declare. One of a core metric's name is left out, and so is one that another plugin declares
    differently: the configuration's check refuses both."""
    families: dict[str, tuple[Figure, GaugeMetricFamily | CounterMetricFamily]] = {}
    for service in services:
        for figure in service.declared.values():
            if figure.family not in FAMILIES and figure.family not in families:
                make = GaugeMetricFamily if figure.kind is FigureKind.GAUGE else CounterMetricFamily
                families[figure.family] = (figure, make(figure.family, figure.help, labels=("service_name",)))
        for figure, value in service.reported():
            declared, family = families.get(figure.family, (None, None))
            if declared == figure and family is not None:
                family.add_metric((service.name,), value)
    yield from (family for _, family in families.values())


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
        "When the service took its current job, Unix seconds; 0 when it has none.",
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


def host_families(host: HostFigures) -> Iterator[Metric]:
    """Figures that the system does not give are left out."""
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
        for word, size in zip(SIZES, sizes, strict=True):
            yield GaugeMetricFamily(f"host_{kind}_{word}_bytes", f"{kind.capitalize()} of the host, {word}.", size)
        yield GaugeMetricFamily(f"host_{kind}_usage_percentage", f"{kind.capitalize()} in use, percent.", percent)
