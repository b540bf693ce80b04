"""Retries of a failed job: which host waits, and for how long."""

from pathlib import Path

import msgspec
import pytest
from attempt_fakes import JOB, worker_setup

from anklet_worker.attempt.retries import JobBackoff, Tries
from anklet_worker.contract.service import ServiceConfig
from anklet_worker.store.memory import MemoryStore, Shelf


class Fleet:
    """Hosts that share one store. The test sets its clock."""

    def __init__(self):
        self.now = 1000.0
        self.store = MemoryStore(Shelf(clock=lambda: self.now))

    def host(self, install_id, retries=5):
        """The retries of one host."""
        service = ServiceConfig(name="S", plugin="fake", job_retry_attempts=retries)
        return Tries(self.store, worker_setup(service, Path("/nonexistent"), install_id=install_id))


@pytest.fixture
def fleet():
    """A fleet in which no host has tried a job."""
    return Fleet()


def test_an_unfit_host_gives_up_for_itself_alone(fleet):
    """A host with a full disk is always free and fails at every job. Other hosts still try these jobs."""
    unfit, fit = fleet.host("bad"), fleet.host("good")
    jobs = [msgspec.structs.replace(JOB, id=str(number)) for number in range(20)]
    for job in jobs:
        assert [unfit.failed(job) for _ in range(5)] == [None] * 5
        assert unfit.failed(job).first
    assert all(unfit.over(job) for job in jobs)
    assert not any(fit.over(job) for job in jobs)


def test_a_job_that_no_host_can_run_is_left_alone_by_all(fleet):
    """After three hosts give up a job, the rest of the fleet does not try it. Only the first host logs an ERROR."""
    hosts = [fleet.host(name, retries=1) for name in ("a", "b", "c", "d")]
    told = []
    for host in hosts[:3]:
        assert not host.over(JOB)
        assert host.failed(JOB) is None
        told.append(host.failed(JOB).first)
    assert told == [True, False, False]
    assert hosts[3].over(JOB)
    fleet.now += 7201
    assert not hosts[3].over(JOB)


def test_an_outage_costs_a_job_ten_minutes(fleet):
    """A registry outage used up the tries. The host tries again at growing intervals, without another ERROR."""
    host = fleet.host("a", retries=0)
    for seconds in (600.0, 1200.0, 2400.0, 4800.0, 7200.0, 7200.0):
        given_up = host.failed(JOB)
        assert (given_up.seconds, given_up.first) == (seconds, seconds == 600.0)
        fleet.now += seconds - 1
        assert host.over(JOB)
        fleet.now += 2
        assert not host.over(JOB)


def test_a_job_may_be_put_off_for_weeks():
    """The pause stays finite even if an origin keeps a job queued for weeks."""
    now = [0.0]
    backoff = JobBackoff(lambda: now[0], jitter=lambda: 0.0)
    for _ in range(1100):
        now[0] += backoff.put_off("77", 30.0)
    assert backoff.put_off("77", 30.0) == 600.0


def test_backoff_doubles_and_ends():
    """Each pause is twice the last one, at most 750 seconds with jitter; after it the job is eligible again."""
    now = [0.0]
    backoff = JobBackoff(lambda: now[0], jitter=lambda: 1.0)
    assert [backoff.put_off("a", 2.0) for _ in range(3)] == [2.5, 5.0, 10.0]
    assert backoff.holds("a")
    assert not backoff.holds("b")
    now[0] = 10.0
    assert not backoff.holds("a")
    assert max(backoff.put_off("a", 2.0) for _ in range(20)) == 750.0
