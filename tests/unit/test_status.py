"""The status document, its file, and how it is drawn for people."""

import io
import itertools
import json
import os
import resource
import signal
import stat

import msgspec
import pytest
from rich.console import Console

from anklet_supervisor.console import status_view
from anklet_supervisor.console.status_view import StatusView
from anklet_supervisor.machine import allocator
from anklet_supervisor.machine.model import JobView, Reload
from anklet_supervisor.machine.state import Mode, ServiceState
from anklet_supervisor.machine.step import initial
from anklet_supervisor.report import status
from anklet_supervisor.report.status import ApiBudget, StatusFile, document, read, written_at
from anklet_supervisor.report.timelines import Timeline
from anklet_worker import __version__
from anklet_worker.link.messages import Status
from anklet_worker.link.slots import Slot, SlotState

START = 1_700_000_000.0
PLUGINS = {"RUNNER1": "github", "RUNNER2": "github"}
JOB = JobView(id="42", url="https://github.com/acme/app/job/42", name="build", vm="anklet-vm-1", since=START + 60)


def model_of(job=JOB, reason="ended with exit code 70"):
    """A supervisor with a service at work and one in trouble."""
    model = initial(list(PLUGINS), allocator.build(2, 1, [], START), once=False, drain_timeout=None)
    first = msgspec.structs.replace(
        model.services["RUNNER1"], state=ServiceState.READY, status=Status.RUNNING, pid=11, restarts=2, job=job
    )
    second = msgspec.structs.replace(
        model.services["RUNNER2"], state=ServiceState.BACKOFF, status=Status.FAILED, reason=reason
    )
    slots = (
        Slot(index=0, state=SlotState.OCCUPIED, service="RUNNER1", vm="anklet-vm-1", since=START + 61.5),
        Slot(index=1, generation=3),
    )
    table = msgspec.structs.replace(model.allocation.table, slots=slots)
    return msgspec.structs.replace(
        model,
        services={"RUNNER1": first, "RUNNER2": second},
        allocation=msgspec.structs.replace(model.allocation, table=table),
    )


def drawn(view, width):
    """The view as a terminal of that width shows it, without colours."""
    console = Console(width=width, file=io.StringIO(), highlight=False)
    console.print(view)
    return console.file.getvalue()


def view_of(model, *, now=START + 3700, age=0.0):
    """A view of a model."""
    return StatusView(document(model, PLUGINS, START), now=now, age=age)


def test_the_document_has_the_documented_form():
    """Key by key, in order; `reason` is ours on top."""
    assert json.loads(msgspec.json.encode(document(model_of(), PLUGINS, START))) == {
        "mode": "running",
        "pid": os.getpid(),
        "version": __version__,
        "started_at": "2023-11-14T22:13:20.000Z",
        "services": [
            {
                "name": "RUNNER1",
                "plugin": "github",
                "state": "ready",
                "status": "running",
                "pid": 11,
                "restarts": 2,
                "job": {
                    "id": "42",
                    "url": "https://github.com/acme/app/job/42",
                    "name": "build",
                    "vm": "anklet-vm-1",
                    "since": "2023-11-14T22:14:20.000Z",
                },
                "reason": "",
                "paused": False,
                "api": None,
            },
            {
                "name": "RUNNER2",
                "plugin": "github",
                "state": "backoff",
                "status": "failed",
                "pid": None,
                "restarts": 0,
                "job": None,
                "reason": "ended with exit code 70",
                "paused": False,
                "api": None,
            },
        ],
        "slots": [
            {
                "index": 0,
                "state": "occupied",
                "service": "RUNNER1",
                "vm": "anklet-vm-1",
                "since": "2023-11-14T22:14:21.500Z",
            },
            {"index": 1, "state": "free", "service": None, "vm": None, "since": None},
        ],
        "failures": [],
        "reload": None,
    }


def test_the_keys_are_in_the_documented_order():
    """For people who read the file, and for scripts that cut it."""
    found = json.loads(msgspec.json.encode(document(model_of(), PLUGINS, START)))
    assert list(found) == ["mode", "pid", "version", "started_at", "services", "slots", "failures", "reload"]
    assert list(found["services"][0]) == [
        "name",
        "plugin",
        "state",
        "status",
        "pid",
        "restarts",
        "job",
        "reason",
        "paused",
        "api",
    ]
    assert list(found["services"][0]["job"]) == ["id", "url", "name", "vm", "since"]
    assert list(found["slots"][0]) == ["index", "state", "service", "vm", "since"]


def test_every_word_is_of_its_list():
    """Modes, states and statuses are spelled as documented."""
    modes, states, doings = set(), set(), set()
    for mode, state, doing in itertools.product(Mode, ServiceState, Status):
        model = msgspec.structs.replace(model_of(), mode=mode)
        service = msgspec.structs.replace(model.services["RUNNER1"], state=state, status=doing)
        found = document(msgspec.structs.replace(model, services={"RUNNER1": service}), PLUGINS, START)
        modes.add(found.mode)
        states.add(found.services[0].state)
        doings.add(found.services[0].status)
    assert modes == {"running", "draining", "stopping"}
    assert states == {"starting", "ready", "backoff", "stopping", "stopped", "fatal"}
    assert doings == {"idle", "running", "pulling", "limit_paused", "paused", "stopped", "failed"}


def test_what_is_written_is_read_back(tmp_path):
    """Private, whole, and the same."""
    written = document(model_of(), PLUGINS, START)
    StatusFile(tmp_path).write(written)
    assert read(tmp_path) == written
    assert stat.S_IMODE((tmp_path / "status.json").stat().st_mode) == 0o600
    assert written_at(tmp_path, 0.0) == (tmp_path / "status.json").stat().st_mtime


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b'{"mode": 1}', b"\xff"])
def test_what_is_no_document_is_none(tmp_path, content):
    """Missing, torn, or somebody else's."""
    if content is not None:
        (tmp_path / "status.json").write_bytes(content)
    assert read(tmp_path) is None
    assert written_at(tmp_path / "missing", 5.0) == 5.0


def test_a_document_of_a_later_version_can_be_read(tmp_path):
    """Keys that this version does not know are no hindrance."""
    StatusFile(tmp_path).write(document(model_of(), PLUGINS, START))
    path = tmp_path / "status.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "more": 1}))
    assert read(tmp_path).services[0].name == "RUNNER1"


def test_a_full_disk_stops_nothing_and_leaves_the_last_document(tmp_path):
    """Its age tells that it is old."""
    file = StatusFile(tmp_path)
    first = document(model_of(), PLUGINS, START)
    file.write(first)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        file.write(document(model_of(job=None), PLUGINS, START))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert read(tmp_path) == first
    assert [entry.name for entry in tmp_path.iterdir()] == ["status.json"]


# ---- for people ----


def test_a_wide_terminal_shows_tables():
    """One line for each service and slot, ages instead of times."""
    lines = [line.split() for line in drawn(view_of(model_of()), 160).splitlines()]
    assert lines[0] == ["running,", "pid", f"{os.getpid()},", "version", f"{__version__},", "up", "1h01m"]
    assert ["RUNNER1", "ready", "running", "11", "2", "build", "anklet-vm-1", "1h00m"] in lines
    assert ["RUNNER2", "backoff", "failed", "-", "0", "-", "-", "-"] in lines
    assert ["0", "occupied", "RUNNER1", "anklet-vm-1", "1h00m"] in lines
    assert ["1", "free", "-", "-", "-"] in lines
    assert ["RUNNER2:", "ended", "with", "exit", "code", "70"] in lines
    assert ["RUNNER1", "runs", JOB.url] in lines


@pytest.mark.parametrize("width", [20, 40, 80])
def test_a_narrow_terminal_loses_nothing(width):
    """The same facts, one after the other, however often the lines break."""
    text = drawn(view_of(model_of()), width)
    assert all(len(line) <= width for line in text.splitlines())
    assert JOB.url in text.replace("\n", "")
    words = text.replace("\n", " ").split()
    for word in ("RUNNER1:", "ready,", "build,", "anklet-vm-1", "RUNNER2:", "backoff,", "free", "occupied,", "70"):
        assert word in words


def test_a_job_cannot_give_the_terminal_orders():
    """Escape sequences in a job's name are shown, not obeyed; markup is text."""
    job = msgspec.structs.replace(JOB, name="\x1b]0;owned\x07[red]x[/red]\nnext")
    text = drawn(view_of(model_of(job=job)), 200)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[red]x[/red]\N{REPLACEMENT CHARACTER}next" in text


@pytest.mark.parametrize(("age", "told"), [(0.0, False), (14.0, False), (16.0, True), (200.0, True)])
def test_an_old_document_is_called_old(age, told):
    """The file is written every few seconds; one that is not tells that something hangs."""
    assert ("the supervisor hangs" in drawn(view_of(model_of(), age=age), 160)) is told


@pytest.mark.parametrize(
    ("seconds", "text"), [(-5, "0s"), (0, "0s"), (59, "59s"), (61, "1m01s"), (3600, "1h00m"), (90_000, "1d01h")]
)
def test_ages_are_short(seconds, text):
    """The two largest units that count."""
    assert drawn(view_of(model_of(), now=START + seconds), 160).splitlines()[0].endswith(f"up {text}")


def test_output_that_is_piped_has_whole_lines_and_no_colours(capsys):
    """`status | grep` sees each service on one line, however long its job's name is."""
    status_view.show(view_of(model_of(job=msgspec.structs.replace(JOB, name="x" * 200))))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "RUNNER1" in line and "ready" in line]
    assert "x" * 200 in line
    assert "anklet-vm-1" in line
    assert "\x1b" not in line


def test_watching_ends_with_the_supervisor(capsys):
    """Without a terminal each change is drawn below the one before; what only grows older is none."""
    views = [view_of(model_of()), view_of(model_of(), now=START + 3800), view_of(model_of(job=None)), None]
    pauses = []
    status_view.watch(lambda: views.pop(0), lambda: pauses.append(1))
    assert len(pauses) == 3
    assert capsys.readouterr().out.count("SERVICE  STATE") == 2


def test_watching_ends_by_ctrl_c():
    """Without a traceback."""

    def interrupted():
        raise KeyboardInterrupt

    seen = []
    status_view.watch(lambda: seen.append(1) or view_of(model_of()), interrupted)
    assert seen == [1]


def test_the_file_is_where_the_documentation_says(tmp_path):
    """state_dir/status.json."""
    StatusFile(tmp_path).write(document(model_of(), PLUGINS, START))
    assert json.loads((tmp_path / "status.json").read_text())["mode"] == "running"
    assert status.read(tmp_path).mode == "running"


FAILURE = Timeline(
    job_id="7", job_name="ui tests", job_url="https://g/7", service="RUNNER1", vm="v",
    steps={"finished": START + 100}, ended="failure",
)  # fmt: skip


@pytest.mark.parametrize("width", [40, 200])
def test_the_last_failures_and_the_rate_are_shown(width):
    """Under the services, with age and link; nothing where there is nothing."""
    budgets = {"RUNNER1": ApiBudget(remaining=4321, limit=5000, reset="2023-11-14T23:13:20.000Z")}
    found = document(model_of(), PLUGINS, START, [FAILURE], budgets)
    text = " ".join(drawn(StatusView(found, now=START + 160, age=0.0), width).split())
    assert "last failures 1m00s ago, RUNNER1, ui tests, failure https://g/7" in text
    assert "RUNNER1: 4321 of 5000 API requests left, renewed in 57m20s" in text
    later = " ".join(drawn(StatusView(found, now=START + 4000, age=0.0), width).split())
    assert "RUNNER1: up to 5000 API requests left" in later
    assert "failures" not in drawn(view_of(model_of()), width)
    (one,) = json.loads(msgspec.json.encode(found))["failures"]
    assert list(one) == ["id", "name", "url", "service", "ended", "reason", "at"]


@pytest.mark.parametrize("width", [40, 200])
def test_a_pause_and_a_reload_that_changed_nothing_are_shown(width):
    """What an operator ordered, and what became of it."""
    reload = Reload(asked=2, answered=2, problems=("config.yml:3:5: unknown key",), at=START)
    model = msgspec.structs.replace(model_of(), reload=reload)
    said = document(model, PLUGINS, START, paused={"RUNNER1"})
    text = drawn(StatusView(said, now=START + 1, age=0.0), width)
    assert "running, paused" in " ".join(text.split())
    assert "not reloaded: config.yml:3:5: unknown key" in " ".join(text.split())
    assert json.loads(msgspec.json.encode(said))["reload"] == {
        "asked": 2,
        "answered": 2,
        "problems": ["config.yml:3:5: unknown key"],
        "refused": False,
        "at": "2023-11-14T22:13:20.000Z",
    }


def test_a_slot_that_was_withdrawn_is_not_shown():
    """A smaller limit has fewer slots."""
    model = model_of()
    allocation = allocator.resize(model.allocation, 1)
    said = document(msgspec.structs.replace(model, allocation=allocation), PLUGINS, START)
    assert [slot.index for slot in said.slots] == [0]
