"""The plan of a chaos run: the same for the same seed, in order, within its bounds. And its report."""

import pytest
from chaos import plan as plans
from chaos import report as reports
from chaos import run
from chaos.faults import _ON_ALL, _ON_HOST

SHAPE = plans.Shape(seconds=1800, rate=40)


def test_a_seed_gives_one_plan():
    """The same seed gives exactly the same plan; another seed gives another."""
    assert plans.make(7, SHAPE) == plans.make(7, SHAPE)
    assert str(plans.make(7, SHAPE)) == str(plans.make(7, SHAPE))
    assert plans.make(7, SHAPE) != plans.make(8, SHAPE)


def test_a_long_plan_has_every_kind_of_fault_on_every_host():
    """Events are in order, and none comes after the end."""
    plan = plans.make(1, SHAPE)
    assert {fault.kind for fault in plan.faults} == set(plans.KINDS)
    assert {fault.host for fault in plan.faults} == {None, 0, 1, 2}
    for things in (plan.faults, plan.offers):
        assert list(things) == sorted(things, key=lambda thing: thing.at)
        assert all(0 <= thing.at < SHAPE.seconds for thing in things)
    assert len(plan.faults) == pytest.approx(1200, rel=0.15)


def test_every_kind_can_be_carried_out():
    """Each kind of fault has a method that carries it out."""
    assert set(_ON_HOST) | set(_ON_ALL) == set(plans.KINDS)
    for fault in plans.make(1, SHAPE).faults:
        assert fault.kind in (_ON_ALL if fault.host is None else _ON_HOST)


def test_there_are_jobs_of_every_sort():
    """Jobs are short or long, fail, need a pull, are cancelled, or may go to any runner."""
    offers = plans.make(1, SHAPE).offers
    for sort in (
        [offer for offer in offers if offer.seconds > 10],
        [offer for offer in offers if offer.fails],
        [offer for offer in offers if offer.pulled is not None],
        [offer for offer in offers if offer.cancel_after is not None],
        [offer for offer in offers if not offer.pinned],
    ):
        assert 0 < len(sort) < len(offers)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "make chaos SEED=9 MINUTES=2"),
        (["--minutes", "0.5", "--rate", "40"], "make chaos SEED=9 MINUTES=0.5"),
        (
            ["--minutes", "31", "--rate", "42", "--jobs", "12", "--hosts", "6"],
            "make chaos SEED=9 MINUTES=31 RATE=42 JOBS=12 HOSTS=6",
        ),
    ],
)
def test_the_command_for_another_go_names_all_that_the_plan_depends_on(given, said):
    """The printed command gives the same plan again."""
    assert run.again(9, run.arguments(given)) == said


def report(**more):
    """A small report."""
    facts = {
        "command": "make chaos SEED=1 MINUTES=2",
        "seed": 1,
        "shape": {"hosts": 3, "services": 2},
        "wall_seconds": 125.2,
        "figures": {"jobs offered": 1200, "longest stall, s": 2.5},
        "struck": {"worker-kill": 3, "host-reboot": 1},
        "missed": {},
        "violations": [],
    }
    return reports.Report(**{**facts, **more})


def test_a_report_tells_figures_and_violations():
    """Both forms, for a terminal and as JSON, have the figures."""
    text = report().text()
    assert "1,200" in text
    assert "every rule was kept" in text
    assert report().as_json()["faults"] == 4
    assert "every rule" not in report(violations=["lost: job 7"]).text()
    assert "lost: job 7" in report(violations=["lost: job 7"]).text()


def test_a_report_replaces_the_last_one_in_a_page():
    """The rest of the page stays, and a page without the block is refused."""
    page = f"before\n{reports._BEGIN}\nold\n{reports._END}\nafter\n"
    once = reports.fill_in(page, report().markdown())
    assert once == reports.fill_in(once, report().markdown())
    assert once.startswith("before\n")
    assert once.endswith("after\n")
    assert "old" not in once
    assert "| worker-kill | 3 |" in once
    with pytest.raises(ValueError, match="no lines"):
        reports.fill_in("before\nafter\n", "x")
