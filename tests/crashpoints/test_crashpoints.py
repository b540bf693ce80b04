"""Whoever dies at whatever effect: a job that started goes on and ends, one that did not is run later, and nothing is left.

A part of the enumeration, one point for each kind of effect; `make crashpoints` takes every point. The undisturbed run is held
against what the emulators saw, so that a new kind of effect is missed here before it is missed by the enumeration.
"""

import re
from collections import Counter

import bench
import enumeration
import pytest
from enumeration import Point

from anklet_worker.store.embedded import SqliteStore

#: What a worker does besides, and why its death there is no matter: directories, locks and lines that mean nothing by themselves.
_HARMLESS = re.compile(
    r"os\.mkdir .*/state/(services/RUNNER1(/records)?|locks)'"  # made where they are missing
    r"|open .*/state/locks/(pull|image-[0-9a-f]+)\.lock'"  # a lock dies with its holder
    r"|os\.(remove|rename) .*/state/\.?vms-anka\.json"  # a listing for others to read, only as good as its age
    r"|open .*/state/\.vms-anka\.json"
)
#: At each of these somebody dies here; at all others in `make crashpoints`.
_TELLING = re.compile(
    r"record (?!driving)|anka (pull|clone|start|cp|delete|run (true|install|start|wait|collect))$|api POST"
    r"|store (claim claim|release claim)|fact (SlotOccupied|JobStarted|JobFinished|SlotReleased)$"
)
#: Shares of the cases, so that several test processes have their part.
_PARTS = 8
#: A machine that is busy with other things takes ten times as long.
pytestmark = pytest.mark.timeout(400)


def telling(undisturbed):
    """The first effect of each kind at which a death tells most."""
    found = enumeration.points(undisturbed[1])
    return [point for point in found if point.nth == 1 and _TELLING.match(point.name)]


def test_every_effect_is_a_point(undisturbed):
    """The emulators and the interpreter's own audit saw nothing that the trace does not name."""
    host, lines = undisturbed
    names = Counter(line["name"].split()[0] for line in lines if "name" in line)
    assert names["anka"] == len(host.anka.calls())
    requests = [request for request in host.github.requests() if f"/{host.repo}/" in request["path"]]
    assert names["api"] == len(requests)
    assert names["fact"] == len(host.facts)
    outside = [f"{line['outside']} {line['what']}" for line in lines if "outside" in line]
    assert [line for line in outside if not _HARMLESS.match(line)] == []


def test_every_kind_of_effect_has_been_seen(undisturbed):
    """What a job consists of, in few words: the enumeration is not empty where it matters."""
    names = {point.name for point in enumeration.points(undisturbed[1])}
    phases = ("claimed", "making", "starting", "driving", "started", "ended", "gone", "removed")
    assert names >= {f"record {phase}" for phase in phases}
    assert names >= {"anka pull", "anka clone", "anka start", "anka cp", "anka run start", "anka delete", "anka list"}
    assert names >= {"store claim claim", "store release claim", "fact SlotOccupied", "fact SlotReleased", "hold"}
    assert names >= {"api POST /repos/{owner}/{repo}/actions/runners/generate-jitconfig", "archive filled"}


@pytest.mark.parametrize("part", range(_PARTS))
def test_a_worker_that_is_killed_loses_nothing(undisturbed, judge, part):
    """SIGKILL after each kind of effect: the next worker leaves nothing, and the job runs exactly once."""
    outcomes = judge(list(enumeration.deaths(telling(undisturbed)))[part::_PARTS])
    assert all(outcome.reached for outcome in outcomes)


@pytest.mark.parametrize("name", ["anka clone", "anka delete"])
def test_a_command_that_outlives_its_worker_is_waited_for(judge, name):
    """Also one whose process was never noted: it had been announced."""
    cases = enumeration.deaths_in_the_middle([Point(name, 1)])
    (outcome,) = judge([case for case in cases if "before note of begin" in case.name])
    assert outcome.reached


def test_a_registration_that_comes_after_the_death_is_removed(judge):
    """GitHub carries it out when nobody listens any more."""
    registration = Point("api POST /repos/{owner}/{repo}/actions/runners/generate-jitconfig", 1)
    (outcome,) = judge(enumeration.deaths_in_the_middle([registration]))
    assert outcome.reached


def test_two_deaths_in_a_row_lose_nothing(undisturbed, judge):
    """The successor dies, too, while it looks after what the first has left."""
    outcomes = judge(list(enumeration.double_deaths(telling(undisturbed)))[3::6])
    assert any(outcome.reached for outcome in outcomes)


@pytest.mark.parametrize("part", range(3))
def test_an_effect_that_fails_loses_nothing(undisturbed, judge, part):
    """Nobody dies, but a record cannot be written, a store does not answer, a command fails, a reply is lost."""
    # A record that cannot be removed is tried again half a minute later.
    points = [point for point in telling(undisturbed) if point.fails and point.name != "record removed"]
    outcomes = judge(list(enumeration.failures(points))[part::12])
    assert all(outcome.reached for outcome in outcomes)


@pytest.mark.parametrize("part", range(2))
def test_a_supervisor_that_dies_loses_nothing(undisturbed, judge, part):
    """Its worker lets go; the next supervisor knows of the slots what the records say, and the job goes on."""
    points = [Point(f"fact {kind}", 1) for kind in ("SlotWanted", "SlotOccupied", "JobStarted", "SlotReleased")]
    outcomes = judge(list(enumeration.orphanings(points))[part::4])
    assert all(outcome.reached for outcome in outcomes)


def test_a_worker_that_lets_go_loses_nothing(undisturbed, judge):
    """An upgrade in the middle of anything: SIGTERM before an effect."""
    judge(list(enumeration.detachments(telling(undisturbed)))[5::9])


def test_the_judge_sees_whatever_is_left(github, home, tmp_path):
    """One thing of each kind, left on purpose."""
    host = bench.Host(tmp_path / "judged", github, home)
    name = "anklet-vm-0000beef-abcdef-1-1"
    service = host.state_dir / "services" / bench.SERVICE
    try:
        host.run(host.is_quiet)
        host.end()
        assert host.leftovers() == {}
        host.anka.add_template(name)
        github.add_runner(bench.OWNER, host.repo, name, ["anka"])
        (service / "records" / f".{name}.json.1.new").touch()
        (service / "command.json").touch()
        store = SqliteStore(host.state_dir / "leases.db", host.setup.boot_id)
        store.claim(f"anklet:{{{bench.OWNER}/{host.repo}}}:claim:1", "somebody", 60)
        store.close()
        assert set(host.leftovers()) == {"vms", "runners", "records", "note", "claims"}
        assert len(host.violations()) == 5
    finally:
        host.close()
