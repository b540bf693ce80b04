"""When status.json is written: often enough to be true, and no oftener."""

import itertools

from anklet_supervisor.report.pace import AT_LEAST, GATHER, Pace


def files(changes, until, step=0.001):
    """Times at which files are written when changes come at these times, all of them seconds."""
    pace, written, now = Pace(0.0), [], 0.0
    waiting = sorted(changes)
    while now < until:
        while waiting and waiting[0] <= now:
            pace.changed(waiting.pop(0))
        if now >= pace.due:
            pace.written(now)
            written.append(now)
        now = round(now + step, 6)
    return written


def test_single_changes_make_at_most_ten_files_a_second():
    """One every 5 ms, each with an empty inbox before and after it: the old pause let each make a file."""
    written = files([1 + 0.005 * number for number in range(200)], 3.0)
    assert 9 <= len([at for at in written if 1 <= at < 2.2]) <= 11
    assert all(later - earlier >= GATHER for earlier, later in itertools.pairwise(written))


def test_a_burst_makes_one_file():
    """Changes within 100 ms make one."""
    written = files([1 + 0.0002 * number for number in range(347)], 2.0)
    assert len([at for at in written if at >= 1]) == 1


def test_changes_without_end_are_written_all_the_while():
    """An inbox that is never empty must not keep the file old."""
    written = files([0.0005 * number for number in range(10_000)], 5.0)
    assert max(later - earlier for earlier, later in itertools.pairwise(written)) < 0.2


def test_the_last_change_is_in_the_file_soon():
    """Within a second; here within 100 ms."""
    for last in (1.0, 1.05, 1.0999, 1.1):
        written = files([1.0, last], 2.0)
        assert last <= written[-1] <= last + GATHER + 0.002


def test_without_changes_it_is_written_now_and_then():
    """Its age tells that the supervisor lives: at least every 5 s."""
    written = files([], 30.0, step=0.01)
    assert all(later - earlier <= AT_LEAST + 0.02 < 5 for earlier, later in itertools.pairwise(written))
    assert len(written) <= 9


def test_the_first_file_does_not_wait():
    """A start is news."""
    assert files([], 1.0)[0] <= GATHER + 0.002
