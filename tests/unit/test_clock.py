"""The loop's clock: no deadline passes while the process does not run."""

import pytest

from anklet_supervisor.daemon.clock import AwakeClock
from anklet_supervisor.machine import allocator, events
from anklet_supervisor.machine.model import Moment
from anklet_supervisor.machine.step import initial, step


class Source:
    """A clock that a test sets."""

    now = 500.0

    def __call__(self):
        return self.now


def test_it_runs_like_its_source_while_the_loop_turns():
    """While the loop turns, the clock counts every second of its source."""
    source = Source()
    clock = AwakeClock(source, 10.0)
    begin = clock()
    for _ in range(100):
        source.now += 4.0
        clock()
    assert clock() - begin == pytest.approx(400.0)


@pytest.mark.parametrize(("jump", "counts"), [(3600.0, 10.0), (86_400.0, 10.0), (-86_400.0, 0.0)])
def test_a_gap_counts_little_and_it_never_goes_back(jump, counts):
    """After an hour of SIGSTOP or a night's sleep the clock advances by its maximum step.

    It never goes back, even if its source does.
    """
    source = Source()
    clock = AwakeClock(source, 10.0)
    begin = clock()
    source.now += jump
    assert clock() - begin == counts
    source.now += 1.0
    assert clock() - begin == counts + 1.0


@pytest.mark.parametrize("leap", [86_400.0, -86_400.0])
def test_a_wall_clock_that_leaps_decides_nothing(leap):
    """Back-off, drain and stop use the monotonic clock."""
    model = initial(["A"], allocator.build(2, 1, [], 0.0), once=False, drain_timeout=100.0)
    histories = []
    for wall in (1e9, 1e9 + leap):
        one, effects = model, []
        for mono, event in (
            (0.0, events.Began()),
            (1.0, events.WorkerStarted("A", 1)),
            (2.0, events.WorkerExited("A", 70)),
            (3.1, events.Tick()),
            (4.0, events.WorkerStarted("A", 2)),
            (5.0, events.DrainAsked()),
            (104.0, events.Tick()),
            (105.0, events.Tick()),
        ):
            one, more = step(one, event, Moment(mono, wall if mono > 2.5 else 1e9))
            effects += more
        histories.append(effects)
    assert histories[0] == histories[1]
