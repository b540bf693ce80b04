"""Figures: names, types and labels as documented, valid for Prometheus, right after every fact."""

import itertools
import json
import logging
import re
import shutil
import subprocess
import threading

import msgspec
import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from anklet_supervisor.config.metric_names import FAMILIES
from anklet_supervisor.machine import allocator
from anklet_supervisor.machine.host_limit import HostLimit
from anklet_supervisor.machine.model import JobView
from anklet_supervisor.machine.state import ServiceState
from anklet_supervisor.machine.step import initial
from anklet_supervisor.report.history import JobHistory
from anklet_supervisor.report.host_figures import HostFigures
from anklet_supervisor.report.metrics import Metrics
from anklet_supervisor.report.status import ApiBudget
from anklet_worker import __version__
from anklet_worker.contract.figures import Figure, FigureKind
from anklet_worker.contract.job import Conclusion
from anklet_worker.contract.service import ServiceConfig
from anklet_worker.link import messages as m
from anklet_worker.link.messages import Status
from anklet_worker.link.slots import SlotState
from anklet_worker.log.service_log import ServiceLog

DEPTH = Figure("depth", "How deep the well is, in metres.")
BUCKETS = Figure("buckets", "Buckets drawn from the well.", FigureKind.COUNTER)
DECLARED = {"plugin": "github", "figures": (DEPTH, BUCKETS)}
A = ServiceConfig(name="RUNNER1", owner="acme", repo="app", **DECLARED)
B = ServiceConfig(name="RUNNER2", owner="acme", repo="tools", **DECLARED)
LABELS = {"service_name": "RUNNER1", "plugin": "github", "owner": "acme", "repo": "app"}
HOST = HostFigures(cpu_count=8, cpu_percent=30.0, memory=(100, 60, 40, 60.0), disk=(1000, 300, 700, 30.0))
START = 1_700_000_000.0
DOCUMENTED = {
    "total_running_vms": "gauge",
    "total_successful_runs_since_start": "unknown",
    "total_failed_runs_since_start": "unknown",
    "service_status": "gauge",
    "service_last_successful_run": "gauge",
    "service_last_failed_run": "gauge",
    "service_status_running_since": "gauge",
    "host_cpu_count": "unknown",
    "host_cpu_used_count": "unknown",
    "host_cpu_usage_percentage": "gauge",
    "host_memory_total_bytes": "gauge",
    "host_memory_used_bytes": "gauge",
    "host_memory_available_bytes": "gauge",
    "host_memory_usage_percentage": "gauge",
    "host_disk_total_bytes": "gauge",
    "host_disk_used_bytes": "gauge",
    "host_disk_available_bytes": "gauge",
    "host_disk_usage_percentage": "gauge",
}


def model_of(*services, limit=2):
    """A supervisor's state with these services."""
    allocation = allocator.build(limit, 1, [], START)
    return initial([service.name for service in services], allocation, once=False, drain_timeout=None)


def with_service(model, name, **changes):
    """The model with one service changed."""
    service = msgspec.structs.replace(model.services[name], **changes)
    return msgspec.structs.replace(model, services={**model.services, name: service})


def with_slots(model, *states, foreign=0):
    """The model with slots in these states."""
    table = model.allocation.table
    slots = tuple(msgspec.structs.replace(slot, state=state) for slot, state in zip(table.slots, states, strict=True))
    table = msgspec.structs.replace(table, slots=slots, foreign=foreign)
    return msgspec.structs.replace(model, allocation=msgspec.structs.replace(model.allocation, table=table))


@pytest.fixture
def metrics():
    """Figures of two services that have just started."""
    one = Metrics((A, B), START, read_host=lambda: HOST)
    one.update(model_of(A, B), 0, START)
    return one


def families(metrics):
    """The exposition, as Prometheus' own parser reads it."""
    return {family.name: family for family in text_string_to_metric_families(metrics.prometheus().decode())}


def samples(metrics, name):
    """Labels and value of each sample of a name."""
    family = families(metrics)[name.removesuffix("_total")]
    return [(sample.labels, sample.value) for sample in family.samples if sample.name == name]


def value(metrics, name, **labels):
    """The value of the one sample of that name with these labels."""
    (found,) = [number for has, number in samples(metrics, name) if labels.items() <= has.items()]
    return found


_VMS = itertools.count()


def finished(conclusion=Conclusion.SUCCESS, url="https://github.com/acme/app/actions/runs/1/job/2"):
    """A job ended."""
    return m.JobFinished(vm=f"vm-{next(_VMS)}", job_id="2", job_name="build", job_url=url, conclusion=conclusion)


def command(verb="clone", outcome="done", seconds=1.0):
    """A VM command ended."""
    return m.DriverCommandEnded(command=verb, outcome=outcome, seconds=seconds)


def called(route="GET /repos/{owner}/{repo}/actions/runs", outcome="200", seconds=0.3):
    """A call of the API has been answered."""
    return m.ApiCalled(route=route, outcome=outcome, seconds=seconds)


def reported(figure, value):
    """A plugin reported a figure."""
    return m.FigureReported(figure=figure.name, value=value)


def budget(**changed):
    """A worker saw its API's limit."""
    return m.ApiBudgetSeen(**{"left": 4321.0, "limit": 5000.0, "resets_at": START, **changed})


# ---- form ----


def test_every_documented_name_is_there_with_its_type(metrics):
    """The original's names; those that offend Prometheus' rules are untyped."""
    found = families(metrics)
    assert {name: found[name].type for name in DOCUMENTED} == DOCUMENTED


def test_every_other_name_begins_with_anklet(metrics):
    """Nothing of the library's own, nothing of strangers."""
    assert all(name.startswith("anklet_") for name in set(families(metrics)) - set(DOCUMENTED))


def test_every_name_has_a_line_of_help(metrics):
    """A text for people of more than one word."""
    assert all(" " in family.documentation for family in families(metrics).values())


def test_no_name_is_in_the_librarys_global_registry(metrics):
    """Two supervisors in one process (as in tests) do not meet."""
    assert {family.name for family in REGISTRY.collect()}.isdisjoint(families(metrics))


def full(metrics):
    """Figures with something of everything."""
    for service in (A, B):
        for conclusion in Conclusion:
            metrics.fact(service.name, finished(conclusion, 'https://x/"quoted"\\back\nbreak'), START)
    for stage in m.STAGES:
        metrics.fact("RUNNER1", m.StageTook(stage=stage, seconds=1.5), START)
    metrics.fact("RUNNER1", m.JobGivenBack(vm="vm-x", job_id="1", reason="stop"), START)
    metrics.fact("RUNNER1", command(), START)
    metrics.fact("RUNNER1", called(), START)
    for figure in A.figures:
        metrics.fact("RUNNER1", reported(figure, 7.0), START)
    metrics.fact("RUNNER1", budget(), START)
    return metrics


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool (Debian: apt-get install prometheus) is not here"
)
@pytest.mark.parametrize("state", ["fresh", "full"])
def test_promtool_has_no_complaint(metrics, state):
    """`promtool check metrics` accepts the exposition without a word."""
    text = (full(metrics) if state == "full" else metrics).prometheus()
    run = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, timeout=60, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, b"", b"")


def test_the_rules_that_make_names_untyped_hold(metrics):
    """What promtool checks of names, for where it is not installed: counters end in _total, others neither so nor like a
    histogram's part."""
    for name, family in families(metrics).items():
        if family.type == "counter":
            assert all(sample.name == f"{name}_total" for sample in family.samples)
        elif family.type == "gauge":
            assert not re.search(r"_(total|count|sum|bucket)$", name)


def test_a_strange_job_url_is_quoted(metrics):
    """Quotes, backslashes and line breaks in the one label from outside arrive as they were."""
    url = 'https://x/"quoted"\\back\nbreak'
    metrics.fact("RUNNER1", finished(url=url), START)
    assert [has["job_url"] for has, _ in samples(metrics, "service_last_successful_run")] == [url, ""]


# ---- services ----


def test_a_service_has_one_status_at_a_time(metrics):
    """1 for the current one of the closed list, 0 for each other."""
    metrics.update(with_service(model_of(A, B), "RUNNER1", status=Status.PULLING), 0, START)
    mine = {
        has["status"]: number for has, number in samples(metrics, "service_status") if has["service_name"] == "RUNNER1"
    }
    assert mine == {
        "idle": 0, "running": 0, "pulling": 1, "limit_paused": 0, "paused": 0, "stopped": 0, "failed": 0,
    }  # fmt: skip
    assert all(set(has) == {*LABELS, "status"} for has, _ in samples(metrics, "service_status"))


def test_the_time_of_a_status_changes_with_the_status_only(metrics):
    """Another fact, another turn of the loop: not another time."""
    running = with_service(model_of(A, B), "RUNNER1", status=Status.RUNNING)
    for now in (START + 5, START + 6, START + 7):
        metrics.update(running, 0, now)
    assert value(metrics, "service_status_running_since", **LABELS) == START + 5
    assert value(metrics, "service_status_running_since", service_name="RUNNER2") == START


def test_runs_are_counted_by_success_and_failure(metrics):
    """Cancelled and other jobs count as neither."""
    for conclusion in (
        Conclusion.SUCCESS,
        Conclusion.SUCCESS,
        Conclusion.FAILURE,
        Conclusion.CANCELLED,
        Conclusion.OTHER,
    ):
        metrics.fact("RUNNER1", finished(conclusion), START + 1)
    assert value(metrics, "total_successful_runs_since_start") == 2
    assert value(metrics, "total_failed_runs_since_start") == 1
    jobs = {
        has["conclusion"]: n for has, n in samples(metrics, "anklet_jobs_total") if has["service_name"] == "RUNNER1"
    }
    assert jobs == {"success": 2, "failure": 1, "cancelled": 1, "other": 1}


@pytest.mark.parametrize(
    ("conclusion", "name"),
    [(Conclusion.SUCCESS, "service_last_successful_run"), (Conclusion.FAILURE, "service_last_failed_run")],
)
def test_a_service_has_one_series_for_its_last_run(metrics, conclusion, name):
    """After a thousand jobs the job_url label still has one live series for each service."""
    for number in range(1000):
        metrics.fact("RUNNER1", finished(conclusion, f"https://github.com/job/{number}"), START + number)
    assert samples(metrics, name) == [
        ({**LABELS, "job_url": "https://github.com/job/999"}, START + 999),
        ({**LABELS, "service_name": "RUNNER2", "repo": "tools", "job_url": ""}, 0),
    ]


def test_only_the_two_last_runs_bear_a_url(metrics):
    """No other metric has a label from outside."""
    for family in families(full(metrics)).values():
        labels = {label for sample in family.samples for label in sample.labels}
        assert ("job_url" in labels) == (family.name in ("service_last_successful_run", "service_last_failed_run"))


def test_counters_survive_the_restart_of_a_worker(metrics):
    """The process is another one; the figures go on."""
    metrics.fact("RUNNER1", finished(), START)
    metrics.update(with_service(model_of(A, B), "RUNNER1", restarts=1, pid=2, state=ServiceState.STARTING), 0, START)
    metrics.fact("RUNNER1", m.Ready(driver="anka", driver_version="3.9"), START)
    metrics.fact("RUNNER1", finished(), START)
    assert value(metrics, "total_successful_runs_since_start") == 2
    assert value(metrics, "anklet_worker_restarts_total", service_name="RUNNER1") == 1


# ---- the supervisor ----


@pytest.mark.parametrize(
    ("states", "running"),
    [
        ((SlotState.FREE, SlotState.FREE), 0),
        ((SlotState.RESERVED, SlotState.FREE), 0),
        ((SlotState.OCCUPIED, SlotState.FREE), 1),
        ((SlotState.OCCUPIED, SlotState.ORPHANED), 2),
    ],
)
def test_running_vms_are_the_slots_that_hold_one(metrics, states, running):
    """Also one whose worker has just died; a slot that is only reserved holds none."""
    metrics.update(with_slots(model_of(A, B), *states, foreign=1), 0, START)
    assert value(metrics, "total_running_vms") == running
    assert value(metrics, "anklet_foreign_vms") == 1
    for state in set(SlotState) - {SlotState.RETIRED}:
        assert value(metrics, "anklet_slots", state=state.name.lower()) == states.count(state)
    assert "retired" not in {has["state"] for has, _ in samples(metrics, "anklet_slots")}


def test_services_are_counted_by_state(metrics):
    """All six states are there, whether or not a service is in them."""
    metrics.update(with_service(model_of(A, B), "RUNNER1", state=ServiceState.FATAL), 0, START)
    assert {has["state"]: n for has, n in samples(metrics, "anklet_services")} == {
        "starting": 1, "ready": 0, "backoff": 0, "stopping": 0, "stopped": 0, "fatal": 1,
    }  # fmt: skip
    assert value(metrics, "anklet_service_state", service_name="RUNNER1", state="fatal") == 1
    assert value(metrics, "anklet_service_state", service_name="RUNNER2", state="fatal") == 0


def test_version_drops_and_jobs_given_back(metrics):
    """Build, lost log lines, and claimed jobs that went back."""
    metrics.update(model_of(A, B), 7, START)
    metrics.fact("RUNNER2", m.JobGivenBack(vm="vm-x", job_id="1", reason="stop"), START)
    assert value(metrics, "anklet_build_info", version=__version__) == 1
    assert value(metrics, "anklet_log_lines_dropped_total") == 7
    assert value(metrics, "anklet_jobs_given_back_total", service_name="RUNNER2") == 1
    assert value(metrics, "anklet_jobs_given_back_total", service_name="RUNNER1") == 0


def test_stages_are_measured(metrics):
    """Each of the closed list; one that nobody knows is not a label."""
    for seconds in (0.1, 3.0, 10**6):
        metrics.fact("RUNNER1", m.StageTook(stage="clone", seconds=seconds), START)
    metrics.fact("RUNNER1", m.StageTook(stage="of a stranger", seconds=1), START)
    metrics.fact("RUNNER1", m.StageTook(stage="clone", seconds=-1.0), START)
    family = families(metrics)["anklet_job_stage_seconds"]
    clone = {(s.name, s.labels.get("le")): s.value for s in family.samples if s.labels["stage"] == "clone"}
    assert clone["anklet_job_stage_seconds_count", None] == 3
    assert clone["anklet_job_stage_seconds_sum", None] == pytest.approx(10**6 + 3.1)
    assert clone["anklet_job_stage_seconds_bucket", "0.1"] == 1
    assert clone["anklet_job_stage_seconds_bucket", "5.0"] == 2
    assert clone["anklet_job_stage_seconds_bucket", "+Inf"] == 3
    assert {s.labels["stage"] for s in family.samples} == set(m.STAGES)


def test_commands_are_measured_by_verb_and_outcome(metrics):
    """What is on neither list is counted as `other`, so that nobody can invent labels."""
    for fact in (command(), command(), command("clone", "transient"), *(command(f"x{n}", f"y{n}") for n in range(99))):
        metrics.fact("RUNNER1", fact, START)
    family = families(metrics)["anklet_vm_command_seconds"]
    counts = {(s.labels["command"], s.labels["outcome"]): s.value for s in family.samples if s.name.endswith("_count")}
    assert counts == {("clone", "done"): 2, ("clone", "transient"): 1, ("other", "other"): 99}


def test_calls_of_the_api_are_counted_and_measured(metrics):
    """Counted by service, route and status; measured by route, whatever the answer was."""
    for service, outcome, seconds in (("RUNNER1", "200", 0.3), ("RUNNER1", "304", 0.07), ("RUNNER2", "none", 12.0)):
        metrics.fact(service, called(outcome=outcome, seconds=seconds), START)
    route = called().route
    assert value(metrics, "anklet_api_requests_total", service_name="RUNNER1", route=route, status="304") == 1
    measured = families(metrics)["anklet_api_request_seconds"].samples
    buckets = {sample.labels["le"]: sample.value for sample in measured if sample.name.endswith("_bucket")}
    assert [buckets[le] for le in ("0.05", "0.1", "0.5", "10.0", "30.0", "+Inf")] == [0, 1, 2, 2, 3, 3]


def test_a_plugin_that_invents_routes_cannot_flood_the_endpoint(metrics):
    """What is too many is `other`; nothing is lost of the sums."""
    for number in range(1000):
        metrics.fact("RUNNER1", called(route=f"GET /{number}"), START)
    counted = samples(metrics, "anklet_api_requests_total")
    assert len(counted) == 201
    assert sum(number for _, number in counted) == 1000
    measured = [s for s in families(metrics)["anklet_api_request_seconds"].samples if s.name.endswith("_count")]
    assert len(measured) == 51
    assert sum(sample.value for sample in measured) == 1000


def test_the_budget_of_an_api_is_for_the_status_too(metrics):
    """Once it is known, and only of services that have one."""
    assert metrics.budgets() == {}
    metrics.fact("RUNNER1", budget(), START)
    assert metrics.budgets() == {"RUNNER1": ApiBudget(remaining=4321, limit=5000, reset="2023-11-14T22:13:20.000Z")}
    assert samples(metrics, "anklet_api_calls_left") == [({"service_name": "RUNNER1"}, 4321)]
    assert samples(metrics, "anklet_api_calls_limit") == [({"service_name": "RUNNER1"}, 5000)]
    assert samples(metrics, "anklet_api_limit_resets_at_timestamp_seconds") == [({"service_name": "RUNNER1"}, START)]


@pytest.mark.parametrize("figure", ["left", "limit", "resets_at"])
@pytest.mark.parametrize("nonsense", [-1.0, START * 1000, 1e300])
def test_a_budget_that_cannot_be_is_none(metrics, figure, nonsense):
    """An API, or a proxy before it, may give the time in milliseconds; no reader of the status may see what it cannot read."""
    metrics.fact("RUNNER1", budget(**{figure: nonsense}), START)
    assert metrics.budgets() == {}
    assert nonsense in [number for family in families(metrics).values() for _, _, number, *_ in family.samples]


# ---- figures of plugins ----


def test_a_gauge_shows_the_last_value_and_a_counter_the_sum(metrics):
    """By service; a counter is there from the start, a gauge once it is known."""
    assert samples(metrics, "anklet_depth") == []
    for value in (3.0, 5.0):
        metrics.fact("RUNNER1", reported(DEPTH, value), START)
        metrics.fact("RUNNER1", reported(BUCKETS, value), START)
    metrics.fact("RUNNER1", reported(BUCKETS, -1.0), START)
    assert samples(metrics, "anklet_depth") == [({"service_name": "RUNNER1"}, 5)]
    assert samples(metrics, "anklet_buckets_total") == [
        ({"service_name": "RUNNER1"}, 8),
        ({"service_name": "RUNNER2"}, 0),
    ]
    found = families(metrics)
    assert (found["anklet_depth"].type, found["anklet_buckets"].type) == ("gauge", "counter")
    assert found["anklet_depth"].documentation == DEPTH.help


def test_only_declared_figures_are_published(metrics):
    """Not one that the plugin invents, nor a service's that is gone."""
    metrics.fact("RUNNER1", reported(Figure("width", "How wide it is."), 1.0), START)
    metrics.fact("GONE", reported(DEPTH, 1.0), START)
    assert "anklet_width" not in families(metrics)
    assert samples(metrics, "anklet_depth") == []


def test_a_reload_brings_new_figures_and_keeps_the_counts(metrics):
    """What a service's new rules declare is published from then on."""
    width = Figure("width", "How wide it is.")
    metrics.fact("RUNNER1", reported(BUCKETS, 2.0), START)
    metrics.add_service(msgspec.structs.replace(A, figures=(width, BUCKETS)), START)
    metrics.fact("RUNNER1", reported(width, 1.0), START)
    assert samples(metrics, "anklet_width") == [({"service_name": "RUNNER1"}, 1)]
    assert value(metrics, "anklet_buckets_total", service_name="RUNNER1") == 2


def test_a_figure_never_takes_the_name_of_another_metric(metrics):
    """Neither one of ours, nor one that another plugin declares differently; the exposition stays valid."""
    jobs = Figure("jobs", "Fish in the well.")
    other = Figure("depth", "How deep the thoughts are.")
    metrics.add_service(ServiceConfig(name="X", plugin="other", figures=(jobs, other)), START)
    metrics.fact("X", reported(jobs, 9.0), START)
    metrics.fact("X", reported(other, 9.0), START)
    metrics.fact("RUNNER1", reported(DEPTH, 3.0), START)
    found = families(metrics)
    assert (found["anklet_jobs"].type, found["anklet_depth"].documentation) == ("counter", DEPTH.help)
    assert samples(metrics, "anklet_depth") == [({"service_name": "RUNNER1"}, 3)]


def test_the_list_of_our_names_is_complete(metrics):
    """A figure can only be kept from a name that is listed."""
    ours = {name for name in families(full(metrics)) if name.startswith("anklet_")}
    assert ours - {figure.family for figure in A.figures} == FAMILIES


@pytest.mark.parametrize("name", ["", "Depth", "depth-x", "1st", "depth_total", "depth_bucket", "x" * 101])
def test_names_that_a_figure_cannot_have(name):
    """Prometheus' rules, and no ending that means something else."""
    with pytest.raises(ValueError, match="figure"):
        Figure(name, "How deep it is.")


def test_a_figure_needs_a_line_of_help():
    """An exposition without help is of no use to people."""
    with pytest.raises(ValueError, match="help"):
        Figure("depth", " ")


def test_a_degraded_host_is_told(metrics):
    """As long as the supervisor takes it for one."""
    for host, told in ((HostLimit(), 0), (HostLimit(ceiling=0, refusals=1), 0), (HostLimit(ceiling=0, refusals=2), 1)):
        model = model_of(A, B)
        allocation = msgspec.structs.replace(model.allocation, host=host)
        metrics.update(msgspec.structs.replace(model, allocation=allocation), 0, START)
        assert value(metrics, "anklet_host_degraded") == told


# ---- host ----


def test_host_figures_have_the_originals_names(metrics):
    """Bytes, percent, whole cores."""
    found = {name: value(metrics, name) for name in DOCUMENTED if name.startswith("host_")}
    assert found == {
        "host_cpu_count": 8, "host_cpu_used_count": 2, "host_cpu_usage_percentage": 30,
        "host_memory_total_bytes": 100, "host_memory_used_bytes": 60, "host_memory_available_bytes": 40,
        "host_memory_usage_percentage": 60,
        "host_disk_total_bytes": 1000, "host_disk_used_bytes": 300, "host_disk_available_bytes": 700,
        "host_disk_usage_percentage": 30,
    }  # fmt: skip


def test_what_the_system_refuses_is_left_out():
    """No figure is better than a wrong one; in JSON, whose keys are fixed, it is null."""
    metrics = Metrics((A,), START, read_host=HostFigures)
    assert not [name for name in families(metrics) if name.startswith("host_")]
    document = json.loads(metrics.json())
    assert all(found is None for key, found in document.items() if key.startswith("Host"))


# ---- JSON ----


def test_the_json_document_has_the_originals_keys_in_its_order(metrics):
    """To the letter, with the second spelling of sizes right behind the first."""
    assert list(json.loads(metrics.json())) == [
        "TotalRunningVMs", "TotalSuccessfulRunsSinceStart", "TotalFailedRunsSinceStart",
        "HostCPUCount", "HostCPUUsedCount", "HostCPUUsagePercentage",
        "HostMemoryTotalBytes", "HostMemoryTotal", "HostMemoryUsedBytes", "HostMemoryUsed",
        "HostMemoryAvailableBytes", "HostMemoryAvailable", "HostMemoryUsagePercentage",
        "HostDiskTotalBytes", "HostDiskTotal", "HostDiskUsedBytes", "HostDiskUsed",
        "HostDiskAvailableBytes", "HostDiskAvailable", "HostDiskUsagePercentage",
        "Services",
    ]  # fmt: skip


def test_the_json_document_of_a_service(metrics):
    """Key by key; what never happened is Go's zero time."""
    metrics.fact("RUNNER1", finished(), START + 1.25)
    metrics.update(with_service(model_of(A, B), "RUNNER1", status=Status.RUNNING), 0, START + 2)
    document = json.loads(metrics.json())
    assert document["TotalSuccessfulRunsSinceStart"] == 1
    assert document["HostMemoryUsed"] == document["HostMemoryUsedBytes"] == 60
    assert document["HostDiskAvailable"] == document["HostDiskAvailableBytes"] == 700
    assert list(document["Services"][0].items()) == [
        ("Name", "RUNNER1"),
        ("PluginName", "github"),
        ("RepoName", "app"),
        ("OwnerName", "acme"),
        ("Status", "running"),
        ("LastSuccessfulRunJobUrl", "https://github.com/acme/app/actions/runs/1/job/2"),
        ("LastFailedRunJobUrl", ""),
        ("LastSuccessfulRun", "2023-11-14T22:13:21.250000Z"),
        ("LastFailedRun", "0001-01-01T00:00:00Z"),
        ("StatusRunningSince", "2023-11-14T22:13:22Z"),
    ]
    assert [service["Name"] for service in document["Services"]] == ["RUNNER1", "RUNNER2"]


# ---- threads ----


def test_scrapes_see_whole_states_while_the_loop_writes(metrics):
    """In each exposition exactly one status of a service is the current one, and its time belongs to it."""
    states = [
        (START + number, with_service(model_of(A, B), "RUNNER1", status=status))
        for number, status in enumerate((Status.RUNNING, Status.PULLING, Status.IDLE))
    ]
    times = {Status.RUNNING.value: START, Status.PULLING.value: START + 1, Status.IDLE.value: START + 2}
    metrics.update(states[0][1], 0, START)
    over = threading.Event()

    def write():
        while not over.is_set():
            for now, model in states:
                metrics.update(model, 0, now)
                metrics.fact("RUNNER1", finished(), now)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(40):
            document = json.loads(metrics.json())["Services"][0]
            text = metrics.prometheus().decode()
            current = re.findall(r'service_status\{.*service_name="RUNNER1",status="(\w+)"\} 1\.0', text)
            (since,) = re.findall(r'service_status_running_since\{.*service_name="RUNNER1"\} (\S+)', text)
            assert len(current) == 1
            assert float(since) == times[current[0]]
            assert document["Status"] in times
    finally:
        over.set()
        writer.join()


# ---- what tells of trouble ----


def test_an_attempt_is_counted_once_however_often_it_is_told(metrics):
    """By a later worker, and by one that has not seen the end on record; another attempt counts anew."""
    end, back = finished(), m.JobGivenBack(vm="vm-x", job_id="1", reason="r")
    late = m.JobGivenBack(vm=end.vm, job_id="2", reason="r")
    for fact in (end, end, late, back, back, finished()):
        metrics.fact("RUNNER1", fact, START)
    assert value(metrics, "total_successful_runs_since_start") == 2
    assert value(metrics, "anklet_jobs_given_back_total", service_name="RUNNER1") == 1


def test_what_an_earlier_supervisor_has_counted_is_not_counted_again(metrics, tmp_path):
    """It is in the history on file; a job that it knew, but not to its end, counts here."""
    log = ServiceLog(logging.getLogger("test"), {})
    earlier, end, open_end = JobHistory(tmp_path, log), finished(), finished()
    for fact in (claim_of(end), end, claim_of(open_end)):
        earlier.fact("RUNNER1", fact, START)
    earlier.save()
    metrics.know(JobHistory(tmp_path, log).counted())
    for fact in (claim_of(end), end, claim_of(open_end), open_end):
        metrics.fact("RUNNER1", fact, START)
    assert value(metrics, "total_successful_runs_since_start") == 1
    assert value(metrics, "anklet_job_retries_total", service_name="RUNNER1") == 0


def test_a_vms_name_that_is_used_again_is_counted_again(metrics):
    """The counter of attempts was lost with the claim store: the moment of the claim tells the attempts apart."""
    end = finished()
    for moment in (1.0, 2.0):
        metrics.fact("RUNNER1", claim_of(end, moment), START)
        metrics.fact("RUNNER1", end, START)
    assert value(metrics, "total_successful_runs_since_start") == 2


def claim_of(end, claimed_at=5.0):
    """The claim of the attempt that ended so, its second."""
    return m.JobClaimed(job_id="2", job_name="build", job_url="u", vm=end.vm, claimed_at=claimed_at, attempt=2)


def test_retries_losses_and_orphans_are_counted(metrics):
    """Each by its service; a first try is none."""
    claimed = m.JobClaimed(job_id="1", job_name="j", job_url="u", vm="v")
    for fact in (
        claimed,
        msgspec.structs.replace(claimed, vm="v2", attempt=2),
        msgspec.structs.replace(claimed, vm="v3", attempt=3),
        # A later process follows it.
        msgspec.structs.replace(claimed, vm="v3", attempt=3),
        m.LeaseLost(),
        m.OrphanReaped(),
        m.OrphanReaped(),
    ):
        metrics.fact("RUNNER2", fact, START)
    for name, count in (("anklet_job_retries", 2), ("anklet_leases_lost", 1), ("anklet_orphans_reaped", 2)):
        assert value(metrics, f"{name}_total", service_name="RUNNER2") == count
        assert value(metrics, f"{name}_total", service_name="RUNNER1") == 0


def test_what_waits_is_shown_as_last_seen(metrics):
    """How many, and since when the oldest."""
    metrics.fact("RUNNER1", m.QueueSeen(waiting=3, oldest=START - 60), START)
    assert value(metrics, "anklet_queue_jobs", service_name="RUNNER1") == 3
    assert value(metrics, "anklet_queue_oldest_timestamp_seconds", service_name="RUNNER1") == START - 60
    metrics.fact("RUNNER1", m.QueueSeen(waiting=0, oldest=0.0), START)
    assert value(metrics, "anklet_queue_jobs", service_name="RUNNER1") == 0
    assert value(metrics, "anklet_queue_oldest_timestamp_seconds", service_name="RUNNER1") == 0


def test_a_job_in_hand_shows_since_when(metrics):
    """0 without one."""
    job = JobView(id="1", url="u", name="j", vm="v", since=START)
    metrics.update(with_service(model_of(A, B), "RUNNER1", job=job), 0, START)
    assert value(metrics, "anklet_job_in_hand_timestamp_seconds", service_name="RUNNER1") == START
    assert value(metrics, "anklet_job_in_hand_timestamp_seconds", service_name="RUNNER2") == 0


def test_facts_of_an_unknown_service_count_nowhere(metrics):
    """One that a reload has removed."""
    for fact in (m.LeaseLost(), m.QueueSeen(waiting=1, oldest=1.0), m.JobGivenBack(vm="vm-x", job_id="1", reason="r")):
        metrics.fact("gone", fact, START)
    assert b"gone" not in metrics.prometheus()


def whole_job(metrics, number):
    """Everything that a worker reports of one job."""
    for fact in (
        m.QueueSeen(waiting=number, oldest=float(number)),
        m.JobClaimed(job_id=str(number), job_name=f"job {number}", job_url=f"https://g/{number}", vm=f"vm-{number}"),
        *(m.StageTook(stage=stage, seconds=number % 100) for stage in m.STAGES),
        *(m.DriverCommandEnded(command=verb, outcome="done", seconds=0.1) for verb in ("clone", "start", "delete")),
        *(called(outcome=outcome, seconds=number % 9) for outcome in ("200", "304")),
        m.JobFinished(
            vm=f"vm-{number}",
            job_id=str(number),
            job_name=f"job {number}",
            job_url=f"https://g/{number:05d}",
            conclusion=list(Conclusion)[number % 4],
        ),
        m.AttemptOver(),
    ):
        metrics.fact("RUNNER1", fact, START + number)


def series(metrics):
    """Names and labels of every sample, in order."""
    return [line.rpartition(" ")[0] for line in metrics.prometheus().decode().splitlines() if not line.startswith("#")]


def test_a_scrape_costs_the_same_however_many_jobs_there_were(metrics):
    """After 8 jobs as after 10,000: the same series, and no memory of any job but the last."""
    for number in range(8):
        whole_job(metrics, number)
    first = series(metrics)
    for number in range(8, 10_000):
        whole_job(metrics, number)
    last = series(metrics)
    assert [re.sub('job_url="[^"]*"', "", one) for one in first] == [re.sub('job_url="[^"]*"', "", one) for one in last]
    assert sum("https://g/" in line for line in last) == 2


# ---- a reload ----


def test_a_removed_services_series_vanish_and_a_changed_ones_counters_go_on(metrics):
    """Labels follow the configuration; sums over all services keep what it added."""
    metrics.fact("RUNNER1", finished(), START)
    metrics.fact("RUNNER2", finished(), START)
    metrics.add_service(msgspec.structs.replace(A, repo="renamed"), START)
    metrics.remove_service("RUNNER2")
    metrics.update(model_of(A), 0, START)
    text = metrics.prometheus().decode()
    assert "RUNNER2" not in text
    assert 'repo="app"' not in text
    assert value(metrics, "anklet_jobs_total", service_name="RUNNER1", conclusion="success") == 1
    assert value(metrics, "total_successful_runs_since_start") == 2
    metrics.fact("RUNNER2", finished(), START)
    assert value(metrics, "total_successful_runs_since_start") == 3
