"""The metrics of one supervisor: facts go in, an exposition comes out.

The loop is the only writer; scrapes read under a lock. `tally` counts, `exposition` names.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from anklet_supervisor.machine.model import Model
from anklet_supervisor.machine.state import ServiceState
from anklet_supervisor.report.exposition import SIZES, families, host_families, running_vms
from anklet_supervisor.report.host_figures import HostFigures, HostSampler
from anklet_supervisor.report.status import ApiBudget, rfc3339
from anklet_supervisor.report.tally import Counted, ServiceTally, Tally
from anklet_worker.contract.service import ServiceConfig
from anklet_worker.link import messages as m

#: Go's zero time, which the original shows for "never".
_NEVER = "0001-01-01T00:00:00Z"
#: The end of the year 9999, Unix seconds: RFC 3339 has no later time, and no API allows that many calls.
_LARGEST = 253_402_300_799


class Metrics:
    """All metrics of one supervisor, in its own registry. `mono` is a monotonic clock; `read_host` reads the host's figures."""

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
        """Count a fact that a worker reported."""
        with self._lock:
            self._tally.fold(service, fact, now)

    def add_service(self, config: ServiceConfig, now: float) -> None:
        """Add a service, or take over its new settings; its counters go on."""
        with self._lock:
            self._tally.add_service(config, now)

    def remove_service(self, name: str) -> None:
        """Drop a service, with its series."""
        with self._lock:
            self._tally.remove_service(name)

    def know(self, counted: Iterable[tuple[str, Counted]]) -> None:
        """Note the facts that an earlier supervisor has counted, by VM; they are not counted again."""
        with self._lock:
            for vm, what in counted:
                self._tally.know(vm, what)

    def update(self, model: Model, log_lines_dropped: int, now: float) -> None:
        """Take over the supervisor's state."""
        with self._lock:
            self._tally.log_lines_dropped = log_lines_dropped
            self._tally.take_over(model, now)

    def beat(self, mono: float) -> None:
        """Note that the loop has turned, at this monotonic time."""
        self._beat = mono

    # ---- read by the loop ----

    def budgets(self) -> dict[str, ApiBudget]:
        """The API limit that each service saw last; services without one are left out."""
        with self._lock:
            known = {name: _budget(service.budget) for name, service in self._tally.services.items()}
        return {name: budget for name, budget in known.items() if budget is not None}

    # ---- read by the endpoint, from any thread ----

    def seconds_since_beat(self) -> float | None:
        """Seconds since the loop turned; None before its first turn."""
        beat = self._beat
        return None if beat is None else self._mono() - beat

    def not_ready(self) -> dict[str, str]:
        """The services that are not ready, each with its state and reason."""
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
        """All metric families."""
        host = self._read_host()
        with self._lock:
            # A list: nothing may read the tally after the lock is released.
            counted = list(families(self._tally))
        yield from counted
        yield from host_families(host)

    def json(self) -> bytes:
        """The original's document: its keys in its order. For memory and disk, both spellings of the original's README: the one
        without `Bytes` follows the one that the original sent."""
        host = self._read_host()
        with self._lock:
            document: dict[str, object] = {
                "TotalRunningVMs": running_vms(self._tally),
                "TotalSuccessfulRunsSinceStart": self._tally.successes,
                "TotalFailedRunsSinceStart": self._tally.failures,
                "HostCPUCount": host.cpu_count,
                "HostCPUUsedCount": host.cpu_used,
                "HostCPUUsagePercentage": host.cpu_percent,
            }
            for kind, figures in (("Memory", host.memory), ("Disk", host.disk)):
                *sizes, percent = figures or (None,) * 4
                for word, size in zip(SIZES, sizes, strict=True):
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
        """Called at registration, when nothing can be read yet."""
        return iter(())


def _budget(seen: m.ApiBudgetSeen | None) -> ApiBudget | None:
    """None for figures that are not numbers of calls or a time: an API, or a proxy before it, may say anything."""
    if seen is None or not all(0 <= figure <= _LARGEST for figure in (seen.left, seen.limit, seen.resets_at)):
        return None
    return ApiBudget(remaining=int(seen.left), limit=int(seen.limit), reset=rfc3339(seen.resets_at))


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
