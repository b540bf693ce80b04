"""Timelines of jobs: how facts become steps, also after a worker's death, and how timelines are saved and shown."""

import io

import msgspec
import pytest
from rich.console import Console

from anklet_supervisor.console import job_view
from anklet_supervisor.report import history
from anklet_supervisor.report.history import JobHistory
from anklet_supervisor.report.timelines import KEPT, STEPS, Timeline, Timelines, durations, failures, find
from anklet_worker.contract.job import Conclusion
from anklet_worker.link import messages as m
from anklet_worker.link.messages import SlotRef
from anklet_worker.log.service_log import open_log

SLOT = SlotRef(index=0, generation=1, nonce=1)


def claimed(number=1, **more):
    """A job is claimed."""
    return m.JobClaimed(job_id=str(number), job_name="build", job_url="u", vm=f"vm-{number}", queued_at=90.0, **more)


def finished(number=1, conclusion=Conclusion.SUCCESS, vm="vm-1"):
    """The job ends."""
    return m.JobFinished(vm=vm, job_id=str(number), job_name="build", job_url="u", conclusion=conclusion)


WHOLE = [
    claimed(),
    m.StageTook(stage="queue", seconds=1.0),
    m.StageTook(stage="template", seconds=1.0),
    m.SlotOccupied(slot=SLOT, vm="vm-1"),
    m.StageTook(stage="clone", seconds=1.0),
    m.StageTook(stage="start", seconds=1.0),
    m.StageTook(stage="register", seconds=1.0),
    m.StageTook(stage="wait", seconds=1.0),
    m.JobStarted(job_id="1", job_name="build", job_url="u"),
    m.StageTook(stage="run", seconds=1.0),
    finished(),
    m.StageTook(stage="cleanup", seconds=1.0),
    m.AttemptOver(),
]


def folded(facts, lines=None):
    """The timelines after these facts of one service, one per second, and those that ended."""
    lines = lines or Timelines()
    ended = [lines.fold("A", fact, 100.0 + number)[1] for number, fact in enumerate(facts)]
    return lines, [one for one in ended if one is not None]


def test_a_whole_job_reaches_every_step_in_order():
    """The steps go from queued to cleaned, and the end is reported once."""
    lines, ended = folded(WHOLE)
    (line,) = lines.all()
    assert ended == [line]
    assert list(line.steps) == list(STEPS)
    assert line.steps == {
        "queued": 90.0, "claimed": 100.0, "slot": 103.0, "clone": 104.0, "start": 105.0, "online": 106.0,
        "started": 108.0, "finished": 110.0, "cleaned": 112.0,
    }  # fmt: skip
    assert (line.ended, line.over, line.attempt) == ("success", True, 1)
    assert durations(line) == {
        "claimed": 10.0, "slot": 3.0, "clone": 1.0, "start": 1.0, "online": 1.0, "started": 2.0, "finished": 2.0,
        "cleaned": 2.0,
    }  # fmt: skip


def test_a_job_that_is_given_back_says_why():
    """A job that is given back has a reason, and no step that it did not reach."""
    lines, _ = folded(
        [claimed(attempt=3), m.JobGivenBack(vm="vm-1", job_id="1", reason="no template"), m.AttemptOver()]
    )
    (line,) = lines.all()
    assert (line.ended, line.reason, line.attempt) == ("given back", "no template", 3)
    assert list(line.steps) == ["queued", "claimed", "finished", "cleaned"]


def test_another_job_than_the_one_claimed_takes_its_place():
    """If the origin gives our VM another job, the timeline names that one."""
    facts = [claimed(), m.JobStarted(job_id="2", job_name="other", job_url="v"), finished(2), m.AttemptOver()]
    lines, _ = folded(facts)
    (line,) = lines.all()
    assert (line.job_id, line.ended) == ("2", "success")


def test_a_later_worker_goes_on_with_the_timeline():
    """The next worker claims the same job in the same VM again, and no earlier step changes."""
    lines, _ = folded(WHOLE[:9])
    before = lines.all()
    after, ended = folded([claimed(), finished(), m.AttemptOver()], Timelines(before))
    (line,) = after.all()
    assert ended == [line]
    assert all(line.steps[step] == when for step, when in before[0].steps.items())


def test_a_job_given_back_after_a_death_ends_the_timeline():
    """The next worker reports the job given back and the VM gone, although it has no attempt in hand."""
    lines, _ = folded(WHOLE[:6])
    lines, ended = folded(
        [m.JobGivenBack(vm="vm-1", job_id="1", reason="died"), m.VMGone(vm="vm-1"), m.VMGone(vm="vm-1")],
        Timelines(lines.all()),
    )
    (line,) = lines.all()
    assert ended == [line]
    assert (line.ended, line.over) == ("given back", True)


@pytest.mark.parametrize(
    "fact",
    [
        m.StageTook(stage="clone", seconds=1.0), m.AttemptOver(), m.JobGivenBack(vm="vm-9", job_id="9", reason=""),
        m.VMGone(vm="stranger"), m.SlotOccupied(slot=SLOT, vm="x"), m.JobStarted(job_id="1", job_name="", job_url=""),
        m.RunningVMs(vms=[], processes=0),
    ],
)  # fmt: skip
def test_facts_without_a_job_change_nothing(fact):
    """Facts about a foreign VM or an unknown attempt change nothing."""
    lines = Timelines()
    assert lines.fold("A", fact, 1.0) == (False, None)
    assert lines.all() == []


def test_a_repeated_end_changes_nothing():
    """The first end counts. An ended job is not given back, even if a process without its record says so."""
    lines, _ = folded(WHOLE)
    before = lines.all()
    folded([finished(conclusion=Conclusion.FAILURE), m.JobGivenBack(vm="vm-1", job_id="1", reason="x")], lines)
    assert lines.all() == before


def test_a_job_that_had_landed_after_all_is_not_given_back():
    """The job was reported as given back, but then ran to its end."""
    lines, _ = folded([claimed(), m.JobGivenBack(vm="vm-1", job_id="1", reason="x"), finished(), m.AttemptOver()])
    (line,) = lines.all()
    assert (line.ended, line.reason) == ("success", "")


def test_an_end_without_a_beginning_is_kept():
    """If the file was lost, an end without a start still counts, once."""
    lines, _ = folded([finished()])
    assert [(line.vm, line.ended) for line in lines.all()] == [("vm-1", "success")]


def test_a_name_that_is_used_again_is_another_attempt():
    """The store lost its count of attempts, so the time of the claim distinguishes them."""
    lines, _ = folded([claimed(claimed_at=1.0), finished(), m.AttemptOver(), claimed(claimed_at=2.0)])
    (line,) = lines.all()
    assert (line.ended, line.claimed_at) == ("", 2.0)


def test_only_the_latest_are_kept():
    """Old timelines are dropped, however many jobs ran."""
    lines = Timelines()
    for number in range(KEPT + 50):
        lines.fold("A", claimed(number), 1.0)
        lines.fold("A", m.AttemptOver(), 2.0)
    assert len(lines.all()) == KEPT
    assert lines.all()[-1].job_id == str(KEPT + 49)


def line_of(number, ended, finished_at=0.0):
    """A timeline built by hand."""
    return Timeline(
        job_id=str(number), job_name=f"job {number}", job_url="u", service="A", vm=f"vm-{number}",
        steps={"claimed": 1.0, "finished": finished_at}, ended=ended,
    )  # fmt: skip


def test_failures_are_the_latest_first():
    """Successful and running jobs are not in the list."""
    lines = [line_of(1, "failure", 5.0), line_of(2, "success", 6.0), line_of(3, ""), line_of(4, "given back", 9.0)]
    assert [line.job_id for line in failures(lines, 5)] == ["4", "1"]
    assert [line.job_id for line in failures(lines, 1)] == ["4"]


def test_a_job_is_found_by_its_id_or_its_vm():
    """A search returns every attempt."""
    again = msgspec.structs.replace(line_of(1, "success"), vm="vm-1-2", attempt=2)
    lines = [line_of(1, "given back"), line_of(2, ""), again]
    assert find(lines, "1") == [lines[0], again]
    assert find(lines, "vm-2") == [lines[1]]
    assert find(lines, "3") == []


# ---- the file ----


def test_the_file_is_written_when_something_has_changed_and_read_back(tmp_path):
    """Another supervisor reads the file and continues the timelines."""
    written = []
    log = open_log(written.append, "INFO", ("secret",), {}, name="anklet.history-test")
    kept = JobHistory(tmp_path, log)
    kept.save()
    assert not (tmp_path / "jobs.json").exists()
    for number, fact in enumerate(WHOLE[:5]):
        kept.fact("A", fact, 100.0 + number)
    kept.save()
    assert [line.job_id for line in history.read(tmp_path)] == ["1"]
    later = JobHistory(tmp_path, log)
    for number, fact in enumerate([claimed(), finished(1, Conclusion.FAILURE), m.AttemptOver()]):
        later.fact("A", fact, 200.0 + number)
    later.save()
    assert [line.ended for line in history.read(tmp_path)] == ["failure"]
    assert [line.job_id for line in later.failures()] == ["1"]
    (line,) = [msgspec.json.decode(line) for line in written]
    assert (line["msg"], line["jobId"], line["ended"]) == ("timeline of a job", "1", "failure")


@pytest.mark.parametrize(
    "content", [None, b"", b"{}", b'[{"job_id": 1}]', b"\xff", b'[{"job_id": "\xff"}]', b'[{"x":' + b"[" * 5000]
)
def test_a_damaged_file_is_replaced(tmp_path, content):
    """The file is only history: no decision depends on it."""
    if content is not None:
        (tmp_path / "jobs.json").write_bytes(content)
    assert history.read(tmp_path) == []
    written = []
    kept = JobHistory(tmp_path, open_log(written.append, "INFO", (), {}, name="anklet.history-test"))
    assert kept.failures() == []
    if content is None:
        assert written == []
    else:
        (line,) = [msgspec.json.decode(line) for line in written]
        assert line["level"] == "WARN"
        assert (tmp_path / "jobs.json.corrupt").read_bytes() == content


def test_a_disk_that_refuses_stops_nothing(tmp_path):
    """After a failed save, the next one writes everything, even without a new fact."""
    kept = JobHistory(tmp_path / "missing", open_log(lambda _: None, "INFO", (), {}, name="anklet.history-test"))
    kept.fact("A", claimed(), 1.0)
    kept.save()
    assert kept.failures() == []
    (tmp_path / "missing").mkdir()
    kept.save()
    assert [line.job_id for line in history.read(tmp_path / "missing")] == ["1"]


# ---- output for people ----


@pytest.mark.parametrize("width", [40, 200])
def test_a_timeline_is_drawn(width):
    """Each step has its time at any width, and a job's name cannot inject escape sequences."""
    lines, _ = folded(WHOLE)
    line = msgspec.structs.replace(lines.all()[0], job_name="\x1b[31mred", reason="")
    console = Console(width=width, file=io.StringIO(), highlight=False)
    job_view.show([line, line_of(2, "given back")], console)
    text = console.file.getvalue()
    assert "\x1b" not in text
    assert [row.split()[0] for row in text.splitlines() if row.split() and row.split()[0] in STEPS][:9] == list(STEPS)
    assert "+10.0 s" in text
    assert "given back" in text


def test_the_list_has_a_line_for_each(capsys):
    """A job in progress has no end yet."""
    lines, _ = folded(WHOLE)
    job_view.show_list([*lines.all(), line_of(2, "")])
    rows = [row.split() for row in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["JOB", "NAME", "SERVICE", "CLAIMED", "TOOK", "ENDED"]
    assert rows[1][-3:] == ["12", "s", "success"]
    assert rows[2][-2:] == ["in", "progress"]
