"""`logs`: which lines it selects, how it follows a file, and how it shows a line."""

import io
import json
from datetime import datetime

import pytest
from rich.console import Console

from anklet_supervisor.console.log_view import LineWriter
from anklet_supervisor.log.reader import LineFilter, Tail, last_lines, parsed

RECORD = {
    "time": "2026-01-02T03:04:05.678901Z",
    "level": "INFO",
    "msg": "job claimed",
    "ankletVersion": "1",
    "serviceName": "RUNNER1",
    "plugin": "github",
    "workflowJobId": 42,
    "jobId": "42",
    "vmName": "anklet-vm-1",
    "ankaTemplate": "macos 15",
    "seconds": {"clone": 1.5},
}


@pytest.mark.parametrize(
    ("wanted", "takes"),
    [
        (LineFilter(), True),
        (LineFilter(service="RUNNER1"), True),
        (LineFilter(service="RUNNER2"), False),
        (LineFilter(job="42"), True),
        (LineFilter(job="anklet-vm-1"), True),
        (LineFilter(job="4"), False),
        (LineFilter(level="INFO"), True),
        (LineFilter(level="WARN"), False),
        (LineFilter(service="RUNNER1", job="42", level="DEBUG"), True),
        (LineFilter(service="RUNNER1", job="43"), False),
    ],
)
def test_lines_are_taken_by_service_job_and_level(wanted, takes):
    """Service, job and level select lines alone and combined."""
    assert wanted.matches(RECORD) is takes


def test_what_is_no_record_is_shown_only_with_everything():
    """Lines of LOG_LEVEL=dev and of crashes belong to no service or job, so any filter hides them."""
    assert LineFilter().matches(None)
    assert not LineFilter(job="1").matches(None)


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[]", b"12", b'{"msg": 1}', b"\xff", b"Traceback (most recent call last):"]
)
def test_what_is_no_record(line):
    """A line is a record only if it is a JSON object with a message."""
    assert parsed(line) is None


def test_a_level_that_nobody_knows_is_shown():
    """A later version may have more levels: it is better to show too much than too little."""
    assert LineFilter(level="ERROR").matches({**RECORD, "level": "PANIC"})


# ---- tailing a file ----


@pytest.fixture
def path(tmp_path):
    """The log file."""
    return tmp_path / "anklet.log"


def append(path, text):
    """Append to the file."""
    with path.open("a") as file:
        file.write(text)


def test_lines_come_whole(path):
    """A partial line is held back until the rest arrives."""
    tail = Tail(path)
    assert tail.read() == []
    append(path, "one\ntw")
    assert tail.read() == [b"one"]
    append(path, "o\nthree\n")
    assert tail.read() == [b"two", b"three"]
    assert tail.read() == []


def test_a_file_that_was_moved_is_read_to_its_end_first(path):
    """Lines written between the last read and the rename are not lost."""
    tail = Tail(path)
    append(path, "one\n")
    assert tail.read() == [b"one"]
    append(path, "two\n")
    path.rename(path.with_name("anklet.log.1"))
    assert tail.read() == [b"two"]
    append(path, "three\n")
    assert tail.read() == [b"three"]


def test_a_file_that_was_cut_is_read_from_its_beginning(path):
    """`> anklet.log` truncates the file like this."""
    tail = Tail(path)
    append(path, "one\ntwo\n")
    assert tail.read() == [b"one", b"two"]
    path.write_text("new\n")
    assert tail.read() == [b"new"]


# ---- the last lines ----


@pytest.fixture
def rotated_log(path):
    """Three files of four lines with consecutive numbers. Every third line belongs to job 77."""
    numbers = iter(range(1, 13))
    for name in ("anklet.log.2", "anklet.log.1", "anklet.log"):
        records = [
            {"msg": "m", "n": n, "jobId": "77" if n % 3 == 0 else str(n)} for n in (next(numbers) for _ in "four")
        ]
        path.with_name(name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize(
    ("wanted", "most", "numbers"),
    [
        (LineFilter(), 3, [10, 11, 12]),
        (LineFilter(), 6, [7, 8, 9, 10, 11, 12]),
        (LineFilter(), 100, list(range(1, 13))),
        (LineFilter(job="77"), 3, [6, 9, 12]),
        (LineFilter(job="77"), 100, [3, 6, 9, 12]),
        (LineFilter(job="1"), 100, [1]),
        (LineFilter(job="99"), 100, []),
        (LineFilter(), 0, []),
    ],
)
def test_the_last_lines_are_found_across_rotations(rotated_log, wanted, most, numbers):
    """The lines are in order, from as many files as necessary."""
    found = last_lines(rotated_log, Tail(rotated_log).read(), wanted, most)
    assert [parsed(line)["n"] for line in found] == numbers


# ---- output for people ----


def drawn(line, width=200, **how):
    """The output on a terminal of that width."""
    console = Console(width=width, file=io.StringIO(), highlight=False, **how)
    LineWriter(console).write(line, parsed(line))
    return console.file.getvalue()


def test_a_record_is_one_line_with_what_is_its_own():
    """The line has the date unless it is today, and leaves out fields that are the same on every line."""
    text = drawn(json.dumps(RECORD).encode())
    moment = datetime.fromisoformat(RECORD["time"]).astimezone()
    assert text == (
        f"{moment:%Y-%m-%d %H:%M:%S} INFO  RUNNER1: job claimed workflowJobId=42 vmName=anklet-vm-1 "
        'ankaTemplate="macos 15" seconds=clone:1.5\n'
    )


def test_today_needs_no_day():
    """A record of today shows only the time of day."""
    now = datetime.now().astimezone()
    assert drawn(json.dumps({**RECORD, "time": now.isoformat()}).encode()).startswith(f"{now:%H:%M:%S} INFO")


@pytest.mark.parametrize("width", [30, 60])
def test_a_narrow_terminal_breaks_lines_and_loses_nothing(width):
    """At every width all words are there."""
    text = drawn(json.dumps(RECORD).encode(), width, force_terminal=True, no_color=True)
    assert "vmName=anklet-vm-1" in "".join(text.split("\n")).replace(" ", "") or "anklet-vm-1" in text


def test_levels_have_colours_on_a_terminal_only():
    """Output that does not go to a terminal has no colours."""
    line = json.dumps({**RECORD, "level": "ERROR"}).encode()
    assert "\x1b[1;31mERROR" in drawn(line, force_terminal=True, color_system="standard")
    assert "\x1b" not in drawn(line)


@pytest.mark.parametrize("line", [b"\x1b]0;owned\x07 text", json.dumps({**RECORD, "msg": "\x1b[2J"}).encode()])
def test_no_line_gives_the_terminal_orders(line):
    """Escape sequences in a record are shown as text, not sent to the terminal."""
    text = drawn(line, force_terminal=True, no_color=True)
    assert "\x07" not in text
    assert "\x1b]" not in text
    assert "\x1b[2J" not in text


def test_a_time_that_is_none_does_no_harm():
    """A handwritten line with an invalid time is still shown."""
    assert drawn(b'{"msg": "hello", "level": "INFO", "time": "soon"}') == "--:--:-- INFO  hello\n"
