"""The log writer: whole lines in order, even when the disk fails."""

import contextlib
import json
import os
import stat
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from anklet_supervisor.log.writer import LogWriter


def line(**fields):
    """A line of the log."""
    return json.dumps(fields).encode() + b"\n"


def records(path):
    """The file's lines; each must be one JSON object."""
    text = path.read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(one) for one in text.splitlines()]


def eventually(condition, deadline=10.0):
    """Poll until the condition holds."""
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, "not in time"
        threading.Event().wait(0.01)


@pytest.fixture
def writer(tmp_path):
    """A writer with its own directory."""
    one = LogWriter(tmp_path)
    yield one
    one.close()


@pytest.fixture
def path(tmp_path):
    """The log file."""
    return tmp_path / "anklet.log"


def test_lines_are_appended_in_order(writer, path):
    """New lines follow the old content, in order."""
    path.write_bytes(line(before=1))
    for number in range(100):
        writer.write(line(number=number))
    writer.close()
    assert records(path) == [{"before": 1}, *({"number": number} for number in range(100))]


def test_the_file_is_not_for_everybody(writer, path):
    """The owner may write, the group may read, and others have no access."""
    assert stat.S_IMODE(path.stat().st_mode) & ~0o640 == 0


def test_many_threads_write_whole_lines(writer, path):
    """Lines of several threads do not mix, and each thread's lines stay in order."""

    def write_many(who):
        for number in range(200):
            writer.write(line(who=who, number=number, filling="x" * 500))

    threads = [threading.Thread(target=write_many, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    found = records(path)
    for who in range(4):
        assert [record["number"] for record in found if record["who"] == who] == list(range(200))


def test_a_file_that_was_moved_away_is_made_anew(writer, path):
    """After the file is renamed, lines go to a new file within about a second."""
    writer.write(line(number=1))
    eventually(lambda: path.stat().st_size > 0)
    path.rename(path.with_suffix(".1"))

    def arrives():
        writer.write(line(number=2))
        return path.exists()

    eventually(arrives)
    writer.close()
    assert records(path.with_suffix(".1"))[0] == {"number": 1}
    assert records(path)[0] == {"number": 2}


FULL_DISK = """
    import json, pathlib, resource, sys, time
    from anklet_supervisor.log.writer import LogWriter

    folder = pathlib.Path(sys.argv[1])
    path = folder / "anklet.log"
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    writer = LogWriter(folder)

    def write(number):
        writer.write(json.dumps({"number": number, "filling": "x" * 270}).encode() + b"\\n")

    def until(condition):
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end

    for number in range(10):
        write(number)
    until(lambda: writer.dropped == 7)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    write(10)
    writer.close()
    print(writer.dropped)
"""


def test_a_full_disk_drops_whole_lines_says_so_and_recovers(tmp_path, path):
    """On a full disk lines are counted, no partial line stays, and later a line reports the number of lost lines."""
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert run.stdout == "7\n"
    assert run.stderr.count("\n") == 1
    assert "cannot write the log (File too large)" in run.stderr
    found = records(path)
    assert [record.get("number") for record in found] == [0, 1, 2, None, 10]
    assert (found[3]["level"], found[3]["lines"]) == ("WARN", 7)
    assert found[3]["msg"] == "log lines were lost because the log could not be written"


def test_a_vanished_directory_drops_lines_until_it_is_back(tmp_path, capfd):
    """A deleted directory does not stop the program; when it is back, so is the log."""
    folder = tmp_path / "log"
    folder.mkdir()
    writer = LogWriter(folder)
    (folder / "anklet.log").unlink()
    folder.rmdir()

    def dropping():
        writer.write(line(number=1))
        return writer.dropped > 0

    eventually(dropping)
    folder.mkdir()
    writer.write(line(number=2))
    writer.close()
    found = records(folder / "anklet.log")
    assert found[-1] == {"number": 2}
    assert sum(record.get("lines", 0) for record in found) == writer.dropped > 0
    assert capfd.readouterr().err.count("cannot write the log (No such file or directory)") == 1


def test_a_disk_that_hangs_stops_nobody(tmp_path, capfd):
    """If the disk hangs, `write` returns at once, and surplus lines are counted."""
    os.mkfifo(tmp_path / "anklet.log")
    reader = os.open(tmp_path / "anklet.log", os.O_RDONLY | os.O_NONBLOCK)
    filler = os.open(tmp_path / "anklet.log", os.O_WRONLY | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:  # hang from the first line on, so that there is exactly one outage
            os.write(filler, b"\n" * 4096)
    os.close(filler)
    writer = LogWriter(tmp_path)
    began = time.monotonic()
    for number in range(6000):
        writer.write(line(number=number, filling="x" * 200))
    assert time.monotonic() - began < 5
    assert writer.dropped > 0
    assert capfd.readouterr().err.count("the disk is too slow") == 1
    received = bytearray()

    def drain():
        with contextlib.suppress(BlockingIOError):
            received.extend(os.read(reader, 1 << 20))
        return b'"lines"' in received

    eventually(drain)
    writer_closed = threading.Thread(target=writer.close)
    writer_closed.start()
    eventually(lambda: drain() and not writer_closed.is_alive())
    os.close(reader)


STDOUT = """
    import sys
    from anklet_supervisor.log.writer import LogWriter
    writer = LogWriter(None)
    for number in range(100):
        writer.write(b'{"number": %d}\\n' % number)
    writer.close()
    print(writer.dropped, file=sys.stderr)
"""


def run_on_stdout(stdout):
    """Run a writer without a directory; its standard error."""
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(STDOUT)], stdout=stdout, stderr=subprocess.PIPE, text=True
    ) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    return out, err


def test_without_a_directory_the_log_goes_to_standard_output():
    """Without a directory every line goes to standard output, in order."""
    out, err = run_on_stdout(subprocess.PIPE)
    assert [json.loads(one)["number"] for one in out.splitlines()] == list(range(100))
    assert err == "0\n"


def test_a_closed_standard_output_ends_nothing():
    """If the reader of the pipe is gone, lines are dropped and counted."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        _, err = run_on_stdout(write_end)
    finally:
        os.close(write_end)
    first, count = err.splitlines()
    assert "cannot write the log (Broken pipe)" in first
    assert count == "100"


def open_files():
    """File descriptors of this process."""
    for name in os.listdir("/dev/fd"):  # noqa: PTH208  only the names are needed
        with contextlib.suppress(OSError):
            os.fstat(int(name))
            yield int(name)


def test_closing_twice_is_closing_once(tmp_path):
    """`close` closes every file descriptor."""
    writer = LogWriter(tmp_path)
    writer.close()
    writer.close()
    assert not any(os.path.samestat(os.fstat(fd), tmp_path.joinpath("anklet.log").stat()) for fd in open_files())


# ---- rotation by size ----


def numbers(path):
    """The numbers in a file's lines; none if there is no file."""
    return [record["number"] for record in records(path)] if path.exists() else []


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_a_file_that_has_reached_its_size_is_rotated(tmp_path, path, keep):
    """Rotation loses, doubles and tears no line; the oldest file is removed."""
    one = LogWriter(tmp_path, max_megabytes=0.001, keep=keep)
    for number in range(200):
        one.write(line(number=number, text="x" * 40))
    one.close()
    files = [tmp_path / f"anklet.log.{age}" for age in range(keep + 3, 0, -1)] + [path]
    kept = [number for file in files for number in numbers(file)]
    assert kept == list(range(200))[-len(kept) :]
    assert sum(file.exists() for file in files) == keep + 1
    assert all(file.stat().st_size < 1100 for file in files if file.exists())


def test_without_a_size_nothing_is_rotated(tmp_path, path):
    """Rotation can be turned off, for newsyslog."""
    one = LogWriter(tmp_path)
    for number in range(2000):
        one.write(line(number=number, text="x" * 100))
    one.close()
    assert len(numbers(path)) == 2000
    assert [entry.name for entry in tmp_path.iterdir()] == ["anklet.log"]


def test_a_file_that_was_long_at_the_start_is_rotated_first(tmp_path, path):
    """A file that is already too large is rotated at start."""
    path.write_bytes(line(number=0) * 200)
    one = LogWriter(tmp_path, max_megabytes=0.001, keep=1)
    one.write(line(number=1))
    one.close()
    assert numbers(path) == [1]
    assert len(numbers(tmp_path / "anklet.log.1")) == 200


def test_a_rotation_that_the_directory_refuses_loses_no_line(tmp_path, path):
    """If the file cannot be renamed, it keeps growing, and lines are kept or counted."""
    (tmp_path / "anklet.log.1").mkdir()
    (tmp_path / "anklet.log.1" / "x").touch()
    path.write_bytes(line(number=0) * 200)
    one = LogWriter(tmp_path, max_megabytes=0.001, keep=1)
    one.write(line(number=1))
    one.close()
    assert one.dropped == 0
    assert numbers(path)[-1] == 1
