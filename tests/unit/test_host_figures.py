"""The host's figures: correct for every thread that asks, and absent when the system refuses."""

import threading
from typing import NamedTuple

import psutil
import pytest

from anklet_supervisor.report.host_figures import HostFigures, HostSampler


class Times(NamedTuple):
    """CPU times as Linux has them."""

    user: float
    system: float
    idle: float
    iowait: float
    guest: float


class Cpu:
    """A clock, and CPU times that a test sets."""

    def __init__(self):
        self.now = 100.0
        self.times = Times(0.0, 0.0, 0.0, 0.0, 0.0)

    def pass_time(self, seconds, **spent):
        """Let time pass and the counters move."""
        self.now += seconds
        self.times = self.times._replace(**{kind: getattr(self.times, kind) + more for kind, more in spent.items()})

    def sampler(self):
        """A sampler on this clock and these counters."""
        return HostSampler(lambda: self.now, lambda: self.times)


def test_the_cpu_percentage_is_what_was_not_idle():
    """Waiting for a disk counts as idle. Guests are part of user time and count once."""
    cpu = Cpu()
    sampler = cpu.sampler()
    cpu.pass_time(10, user=3.0, system=1.0, idle=5.0, iowait=1.0, guest=2.0)
    assert sampler.read().cpu_percent == 40.0


def test_every_thread_sees_the_same_percentage():
    """Each scrape has its own thread, and a thread's first call must not return 0."""
    cpu = Cpu()
    sampler = cpu.sampler()
    cpu.pass_time(10, user=5.0, idle=5.0)
    seen = []
    threads = [threading.Thread(target=lambda: seen.append(sampler.read().cpu_percent)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [50.0] * 4


def test_the_first_second_is_answered_by_the_mean_since_boot():
    """The first scrape already has a figure."""
    cpu = Cpu()
    cpu.pass_time(100, user=25.0, idle=75.0)
    sampler = cpu.sampler()
    assert sampler.read().cpu_percent == 25.0
    cpu.pass_time(0.9, user=0.9)
    assert sampler.read().cpu_percent == 25.0
    cpu.pass_time(0.1, user=0.1)
    assert sampler.read().cpu_percent == 100.0


def test_two_questions_at_once_have_one_answer():
    """A mean over a few milliseconds is useless, so a figure stays valid for one second."""
    cpu = Cpu()
    sampler = cpu.sampler()
    cpu.pass_time(10, user=5.0, idle=5.0)
    assert sampler.read().cpu_percent == 50.0
    cpu.pass_time(0.5, user=0.5)
    assert sampler.read().cpu_percent == 50.0
    cpu.pass_time(0.5, user=0.5)
    assert sampler.read().cpu_percent == 100.0


def test_counters_that_run_back_a_little_do_no_harm():
    """Systems correct their counters; the percentage stays between 0 and 100."""
    cpu = Cpu()
    sampler = cpu.sampler()
    cpu.pass_time(10, user=1.0, idle=-0.5)
    assert sampler.read().cpu_percent == 100.0
    cpu.pass_time(10, user=-1.0)
    assert sampler.read().cpu_percent == 100.0


def test_the_used_cores_are_cut_to_whole_ones():
    """The formula is the original's: int(cores * percentage / 100)."""
    assert HostFigures(cpu_count=8, cpu_percent=24.9).cpu_used == 1
    assert HostFigures(cpu_count=8).cpu_used is None
    assert HostFigures(cpu_percent=10.0).cpu_used is None


@pytest.mark.parametrize("error", [psutil.AccessDenied(), OSError("refused"), RuntimeError("no such file")])
def test_a_refusal_hides_only_its_own_figure(monkeypatch, error):
    """A figure that the system refuses is None; the others are still there."""

    def refuse(*_args, **_more):
        raise error

    monkeypatch.setattr(psutil, "virtual_memory", refuse)
    figures = HostSampler(cpu_times=refuse).read()
    assert figures.memory is None
    assert figures.cpu_percent is None
    assert figures.cpu_count > 0
    assert figures.disk[0] > 0


def test_real_figures_are_plausible():
    """Totals are positive, and no part exceeds its total."""
    figures = HostSampler().read()
    assert figures.cpu_count >= 1
    for total, used, available, percent in (figures.memory, figures.disk):
        assert total > 0
        assert 0 <= used <= total
        assert 0 <= available <= total
        assert 0 <= percent <= 100
