"""Sweeping runners that nothing stands behind, and sparing all others."""

import pytest
from anklet_github.figures import LEFT_RUNNERS, SWEPT_RUNNERS
from anklet_github.payloads import Runner
from anklet_github.runners import RunnerBusy
from anklet_github.sweep import Sweeper, chosen
from anklet_github.trouble import ApiTrouble
from github_fakes import FakeContext, new_board

from anklet_worker.contract.errors import RightsRefused

OURS, THEIRS = "anklet-vm-00000001-", "anklet-vm-00000002-"


class FakeRunners:
    """A scope's runners."""

    def __init__(self, *runners):
        self.runners = list(runners)
        self.listed = 0
        self.removed = []

    def all(self):
        self.listed += 1
        return list(self.runners)

    def remove(self, name, runner_id):
        (runner,) = (one for one in self.runners if (one.name, one.id) == (name, runner_id))
        if runner.busy:
            raise RunnerBusy("busy")
        self.removed.append(name)
        self.runners.remove(runner)


def runner(number, prefix=OURS, status="offline", *, busy=False):
    """One of a scope."""
    return Runner(number, f"{prefix}aaaaaa-{number}-1", status, busy)


def sweeper(runners, board=None, vms=(), **service):
    """A sweeper on a clock of its own."""
    context = FakeContext(board=board, **service)
    context.vms = set(vms)
    return Sweeper(runners, "anklet:{acme/app}", context, lambda: context.now, lambda: 0.5), context


def pass_time(sweeping, context, seconds, step=300):
    """Let it sweep for so long."""
    end = context.now + seconds
    while context.now < end:
        context.store.shelf.notes.clear()
        context.now += step
        sweeping.sweep_if_due()


def test_a_runner_without_a_vm_goes_after_ten_minutes():
    """Not before, for it may be booting; it is counted."""
    runners = FakeRunners(runner(1))
    sweeping, context = sweeper(runners)
    pass_time(sweeping, context, 600)
    assert runners.removed == []
    assert context.figures[LEFT_RUNNERS] == 1
    pass_time(sweeping, context, 900)
    assert runners.removed == [f"{OURS}aaaaaa-1-1"]
    assert context.figures[SWEPT_RUNNERS] == 1


@pytest.mark.parametrize(
    "spared",
    [
        runner(1, THEIRS),
        runner(1, "somebody-"),
        runner(1, status="online"),
        runner(1, busy=True),
    ],
)
def test_all_others_are_spared(spared):
    """Another host's, a stranger's, one that is online, one that works."""
    runners = FakeRunners(spared)
    sweeping, context = sweeper(runners)
    pass_time(sweeping, context, 7200)
    assert runners.removed == []


def test_a_runner_whose_vm_is_here_is_spared():
    """It boots, or its record is being cleaned up."""
    runners = FakeRunners(runner(1))
    sweeping, context = sweeper(runners, vms={f"{OURS}aaaaaa-1-1"})
    pass_time(sweeping, context, 7200)
    assert runners.removed == []


def test_one_that_comes_back_online_is_given_its_time_anew():
    """Offline for ten minutes means in one piece."""
    runners = FakeRunners(runner(1))
    sweeping, context = sweeper(runners)
    pass_time(sweeping, context, 600)
    runners.runners = [runner(1, status="online")]
    pass_time(sweeping, context, 600)
    runners.runners = [runner(1)]
    pass_time(sweeping, context, 600)
    assert runners.removed == []


def test_never_many_at_a_time():
    """Five, or a quarter of all of ours."""
    left = [runner(number) for number in range(40)]
    since = dict.fromkeys(range(40), 0.0)
    assert len(chosen(left[:6], left[:6], since, 1000.0)) == 5
    assert len(chosen(left, left, since, 1000.0)) == 10


def test_a_mass_of_offline_runners_is_githubs_trouble():
    """Most runners of live VMs look offline as well: nothing is removed."""
    alive = [runner(number, THEIRS) for number in range(10)]
    left = [runner(20)]
    assert chosen([*alive, *left], left, {20: 0.0}, 1000.0) == []
    online = [runner(number, THEIRS, "online") for number in range(10)]
    assert chosen([*online, *left], left, {20: 0.0}, 1000.0) == left


def test_one_service_of_a_host_sweeps_and_one_list_serves_all_hosts():
    """Two services of a host, and one of another host, with one store."""
    board = new_board()
    runners = FakeRunners(runner(1))
    first, one = sweeper(runners, board)
    second, two = sweeper(runners, board, name="T")
    third, three = sweeper(runners, board, name="U")
    three.vm_prefix = THEIRS
    for sweeping, context in ((first, one), (second, two), (third, three)):
        context.now += 400
        sweeping.sweep_if_due()
    assert runners.listed == 1
    assert LEFT_RUNNERS in one.figures
    assert LEFT_RUNNERS not in two.figures
    assert three.figures[LEFT_RUNNERS] == 0


@pytest.mark.parametrize("trouble", [ApiTrouble("502"), RightsRefused("403")])
def test_trouble_is_for_the_next_time(trouble):
    """A sweep is nobody's errand, and ends no service."""

    def no_answer():
        raise trouble

    runners = FakeRunners(runner(1))
    sweeping, context = sweeper(runners)
    runners.all = no_answer
    pass_time(sweeping, context, 3600)
    assert context.logged("WARNING") == []
    assert context.logged("ERROR") == []
