"""A real Prometheus scrapes a running supervisor, with the shipped alerts, alert tests and dashboard."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_server import NEEDS_PROMETHEUS, Prometheus
from stage import eventually, job
from test_job_life import finish, queue

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "etc" / "prometheus" / "rules.yml"
RUNBOOKS = ROOT / "docs" / "runbooks.md"
ALERTS = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((ROOT / "etc" / "grafana" / "dashboard.json").read_text())
QUERIES = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]]


# ---- without Prometheus ----


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_every_alert_says_what_to_do(alert):
    """Each alert has a severity, a summary, a description and a section in the runbooks."""
    assert alert["labels"]["severity"] in ("warning", "critical")
    assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
    assert alert["annotations"]["runbook_url"].endswith(f"/docs/runbooks.md#{alert['alert'].lower()}")
    assert f"\n## {alert['alert']}\n" in RUNBOOKS.read_text()


def test_every_alert_is_tested_both_ways():
    """For each alert, at least one unit test lets it fire and at least one keeps it quiet."""
    tests = yaml.safe_load((RULES.parent / "rules.test.yml").read_text())["tests"]
    checks = [check for test in tests for check in test["alert_rule_test"]]
    for alert in ALERTS:
        mine = [bool(check.get("exp_alerts")) for check in checks if check["alertname"] == alert["alert"]]
        assert set(mine) == {True, False}, alert["alert"]


def metrics_in(expression):
    """The names of metrics in an expression: words before a brace, or words with our prefix."""
    return set(re.findall(r"\b((?:anklet|total|service|host)_[a-z_0-9]+)\b(?![\"=])", expression)) - {"service_name"}


def test_alerts_and_dashboard_name_metrics_that_exist():
    """Alerts and dashboard use only metrics of the documentation's table, with the parts of histograms."""
    known = set(
        re.findall(
            r"^\| `([a-z_0-9]+)` \| (?:gauge|counter|untyped|histogram)",
            (ROOT / "docs" / "metrics.md").read_text(),
            re.MULTILINE,
        )
    )
    known |= {f"{name}_{part}" for name in known for part in ("bucket", "sum", "count")}
    for title, expression in [*QUERIES, *((alert["alert"], alert["expr"]) for alert in ALERTS)]:
        assert metrics_in(expression) <= known, title


def test_the_dashboard_has_no_two_panels_of_one_id_and_none_that_overlap():
    """Each panel also has a title, a query, and a place within the 24 columns."""
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert panel["title"]
        assert panel["targets"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


# ---- with Prometheus ----


@NEEDS_PROMETHEUS
@pytest.mark.parametrize(
    "command",
    [
        ["check", "rules", "--lint-fatal", "rules.yml"],
        ["test", "rules", "rules.test.yml"],
        ["check", "config", "prometheus.yml"],
    ],
    ids=" ".join,
)
def test_promtool_accepts_rules_and_configuration(command):
    """`promtool` accepts the syntax, finds no lint, and runs the unit tests of every alert."""
    done = subprocess.run(
        ["promtool", *command], cwd=RULES.parent, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout + done.stderr


@NEEDS_PROMETHEUS
def test_a_real_prometheus_scrapes_while_jobs_pass(new_mac, github, tmp_path):
    """PromQL returns jobs by conclusion, stages and slots, and every query of the dashboard has an answer.

    No alert fires except the one for a FATAL service.
    """
    mac = new_mac(services=2)
    mac.config["services"].append(mac.service("BROKEN", token="refused_bait"))
    mac.start(wait=False)
    eventually(lambda: mac.get("/healthz")[0] == 200, "the endpoint answers", 30)
    eventually(lambda: mac.service_status("BROKEN")["state"] == "fatal", "one service is fatal", 30)
    with Prometheus(tmp_path / "prometheus", [f"127.0.0.1:{mac.port}"], rules=RULES) as prometheus:
        eventually(lambda: prometheus.value('up{job="anklet"}') == 1, "the first scrape", 30)
        ids = queue(github, job("good"), job("fine"), job("bad", steps=["exit 1"]))
        assert sorted(finish(mac, github, ids, 60)) == ["failure", "success", "success"]
        eventually(lambda: prometheus.value('sum(anklet_jobs_total{conclusion="success"})') == 2, "successes", 20)
        assert prometheus.value('sum(anklet_jobs_total{conclusion="failure"})') == 1
        for stage in ("queue", "claim", "template", "clone", "start", "register", "wait", "run", "cleanup"):
            count = f'anklet_job_stage_seconds_count{{stage="{stage}"}}'
            eventually(lambda count=count: prometheus.value(count) == 3, count, 10)
        assert prometheus.value('histogram_quantile(0.9, anklet_job_stage_seconds_bucket{stage="run"})') > 0
        assert prometheus.value('sum(anklet_slots{state="free"})') == 2
        assert prometheus.value('anklet_service_state{service_name="BROKEN", state="fatal"}') == 1
        eventually(lambda: answers_all(prometheus), "every query of the dashboard answers", 20)
        alerts = {alert["labels"]["alertname"]: alert["state"] for alert in prometheus.api("alerts")["alerts"]}
        # The emulated Mac's disk is the test machine's, which may be full.
        alerts.pop("AnkletDiskFilling", None)
        assert alerts == {"AnkletServiceFatal": "pending"}
        complaints = [line for line in prometheus.output.read_text().splitlines() if "level=error" in line]
        assert complaints == []
    assert mac.drain() == 0


def answers_all(prometheus):
    """True when each query of the dashboard has an answer that is not empty."""
    for title, expression in QUERIES:
        filled = expression.replace("$__rate_interval", "1m").replace("$host", ".*")
        if not prometheus.query(filled):
            print(f"no answer yet: {title}: {filled}")  # noqa: T201  shows which query fails
            return False
    return True
