"""The documentation matches the code: tables of keys and metrics, exit codes, links and the launchd agent.

`python tests/unit/test_readme.py` writes the tables anew.
"""

import plistlib
import re
import sys
from pathlib import Path

from anklet_github.figures import FIGURES
from anklet_github.rules import RULES

from anklet_supervisor.config.host_keys import HOST
from anklet_supervisor.config.tables import markdown
from anklet_supervisor.machine import allocator
from anklet_supervisor.machine.step import initial
from anklet_supervisor.report.metrics import Metrics
from anklet_worker.contract.errors import ExitCode
from anklet_worker.contract.job import Conclusion
from anklet_worker.contract.service import ServiceConfig
from anklet_worker.link import messages as m

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
SERVICE = ServiceConfig(name="RUNNER1", plugin="github", owner="o", repo="r", figures=FIGURES)


def metrics_table():
    """A table of every metric: name, type, labels and meaning."""
    rows = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for family in sorted(
        filled().registry.collect(), key=lambda family: not family.name.startswith(("total", "service", "host"))
    ):
        name = family.name + ("_total" if family.type == "counter" else "")
        kind = "untyped" if family.type == "unknown" else family.type
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
        rows.append(f"| `{name}` | {kind} | {', '.join(labels)} | {family.documentation} |")
    return "\n".join(rows)


def _complete(metrics):
    """The families, or None while the CPU percentage is missing: the system needs two calls to know it."""
    families = list(metrics.registry.collect())
    return families if "host_cpu_usage_percentage" in {family.name for family in families} else None


def filled():
    """Metrics in which every family has a sample."""
    metrics = Metrics((SERVICE,), 1.0)
    for fact in (
        m.JobFinished(vm="vm-1", job_id="1", job_name="j", job_url="u", conclusion=Conclusion.SUCCESS),
        m.JobGivenBack(vm="vm-2", job_id="1", reason="r"),
        m.StageTook(stage="clone", seconds=1.0),
        m.DriverCommandEnded(command="clone", outcome="done", seconds=1.0),
        m.ApiCalled(route="GET /", outcome="200", seconds=1.0),
        *(m.FigureReported(figure=figure.name, value=1.0) for figure in FIGURES),
        m.ApiBudgetSeen(left=1.0, limit=1.0, resets_at=1.0),
    ):
        metrics.fact("RUNNER1", fact, 1.0)
    model = initial(["RUNNER1"], allocator.build(2, 1, (), 1.0), once=False, drain_timeout=None)
    metrics.update(model, 0, 1.0)
    return metrics


def put(text, marker, table):
    """Replace the table after the marker; return the new text."""
    return re.sub(rf"<!-- {marker} -->\n\n(?:\|.*\n)*\n?", lambda _: f"<!-- {marker} -->\n\n{table.strip()}\n\n", text)


def generated():
    """The pages with generated tables, and their expected text."""
    for name, marker, table in (
        ("configuration.md", "keys", markdown(HOST)),
        ("configuration.md", "github keys", markdown(RULES.settings, "services[].")),
        ("metrics.md", "metrics", metrics_table()),
    ):
        page = ROOT / "docs" / name
        yield page, put(page.read_text(), marker, table)


def test_the_generated_tables_are_up_to_date():
    """Keys and metrics in the documentation are those of the code."""
    for page, text in generated():
        assert page.read_text() == text, "run: python tests/unit/test_readme.py"


def test_every_exit_code_is_explained():
    """The README explains every exit code except the worker's own, which no user sees."""
    text = README.read_text()
    for code in ExitCode:
        assert f"| {int(code)} |" in text or code is ExitCode.NOPERM


def test_links_lead_to_files():
    """Relative links in the README and in docs/ lead to existing files."""
    for page in (README, *(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_launchd_agent_keeps_launchds_rules():
    """The agent runs in the foreground, restarts only after a failure, is not throttled, has time to drain, and holds no secret."""
    plist = plistlib.loads((ROOT / "etc" / "com.anklet.supervisor.plist").read_bytes())
    assert plist["ProgramArguments"][1:] == ["-m", "anklet_supervisor", "start", "--agent"]
    assert plist["KeepAlive"] == {"SuccessfulExit": False}
    assert plist["ProcessType"] == "Interactive"
    assert plist["ExitTimeOut"] >= 6 * 3600
    assert not any("token" in key.lower() for key in plist["EnvironmentVariables"])


if __name__ == "__main__":
    for file, content in generated():  # lazily: two tables may be on one page
        file.write_text(content)
    sys.exit(0)
