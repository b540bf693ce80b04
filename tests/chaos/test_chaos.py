"""A small proof: a fleet with dying hosts and a Redis that loses its keys, and a chaos run of one seed.

`make chaos` is the large one.
"""

import random

import pytest
from chaos import plan as plans
from chaos.fleet import Fleet
from chaos.run import carry_out
from invariants import checker
from stage import job

#: Seconds that a job may wait although a slot is free: after a failure on our side, a host leaves it to others for half a minute.
LONGEST_STALL = 60.0


@pytest.mark.timeout(300)
def test_a_fleet_runs_its_jobs_through_deaths_of_hosts_and_redis(tmp_path):
    """Six hosts run a hundred jobs, each exactly once. Meanwhile two hosts reboot, one dies for good, and Redis is killed twice and
    comes back empty."""
    dice = random.Random(6)  # noqa: S311  dice, not a secret
    with Fleet(tmp_path, hosts=6, services=1) as fleet:
        fleet.start()
        for run in range(10):
            names = [f"job-{run}-{number}" for number in range(10)]
            fleet.offer_run([job(name, duration=dice.uniform(0, 0.2), pinned=run % 2 == 0) for name in names])
        deaths = [(84, lambda: reboot(fleet, 0)), (67, fleet.redis.restart), (50, lambda: reboot(fleet, 1))]
        deaths += [(33, lambda: fleet.bury(fleet.hosts[2])), (16, fleet.redis.restart)]
        for left, strike in deaths:
            fleet.until(lambda left=left: len(fleet.open_jobs()) <= left, f"{left} jobs are left", 90)
            strike()
        assert not fleet.settle(90)
        fleet.call_the_roll(60)
        assert not fleet.settle(60)
        assert fleet.drain() == [0] * 5
        evidence = fleet.evidence()
    evidence.save(tmp_path / "evidence.json")
    verdict = checker.judge(evidence, longest_stall=LONGEST_STALL)
    assert verdict.violations == []
    assert verdict.figures["jobs offered"] == 105
    assert verdict.figures["jobs done"] + verdict.figures["jobs killed with their host or VM"] == 105


def reboot(fleet, number):
    """Kill everything on the host, and boot it again."""
    fleet.hosts[number].power_off()
    fleet.hosts[number].launch()


@pytest.mark.timeout(300)
def test_a_chaotic_run_breaks_no_rule(tmp_path):
    """Three hosts with two services each, one seed, one minute."""
    shape = plans.Shape(seconds=60, longest=3.0, hangs=False)
    plan = plans.make(1, shape)
    report, evidence = carry_out(plan, tmp_path / "fleet", longest_stall=LONGEST_STALL)
    evidence.save(tmp_path / "evidence.json")
    assert report.violations == [], f"{report.text()}\n{plan}"
    assert report.faults > 20
    assert report.figures["jobs done"] > 10
