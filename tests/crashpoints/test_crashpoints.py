"""A process dies at any effect: a job that started ends normally, a job that did not is run later, and nothing is left.

Covers one point of each kind of effect; `make crashpoints` covers all points. The undisturbed run is compared with what the
emulators saw, so these tests fail when the enumeration misses a new kind of effect.
"""

import re
from collections import Counter

import bench
import enumeration
import pytest
from enumeration import Point

from anklet_worker.store.embedded import SqliteStore

#: Effects of a worker without a name, at which a death does no harm: directories, locks, and files that others may ignore.
_HARMLESS = re.compile(
    r"os\.mkdir .*/state/(services/RUNNER1(/records)?|locks)'"  # made again when missing
    r"|open .*/state/locks/(pull|image-[0-9a-f]+)\.lock'"  # a lock ends with its holder
    r"|os\.(remove|rename) .*/state/\.?vms-anka\.json"  # a listing that other services may read
    r"|open .*/state/\.vms-anka\.json"
)
#: The effects at which a process dies in these tests.
_TELLING = re.compile(
    r"record (?!driving)|anka (pull|clone|start|cp|delete|run (true|install|start|wait|collect))$|api POST"
    r"|store (claim claim|release claim)|fact (SlotOccupied|JobStarted|JobFinished|SlotReleased)$"
)
#: Number of groups of cases, so that several test processes can share them.
_PARTS = 8
#: Ten times as long as on an idle machine.
pytestmark = pytest.mark.timeout(400)


def telling(undisturbed):
    """Return the first effect of each kind in `_TELLING`."""
    found = enumeration.points(undisturbed[1])
    return [point for point in found if point.nth == 1 and _TELLING.match(point.name)]


def test_every_effect_is_a_point(undisturbed):
    """The trace names everything that the emulators and the interpreter's audit hook saw."""
    host, lines = undisturbed
    names = Counter(line["name"].split()[0] for line in lines if "name" in line)
    assert names["anka"] == len(host.anka.calls())
    requests = [request for request in host.github.requests() if f"/{host.repo}/" in request["path"]]
    assert names["api"] == len(requests)
    assert names["fact"] == len(host.facts)
    outside = [f"{line['outside']} {line['what']}" for line in lines if "outside" in line]
    assert [line for line in outside if not _HARMLESS.match(line)] == []


def test_every_kind_of_effect_has_been_seen(undisturbed):
    """The enumeration contains the main effects of a job."""
    names = {point.name for point in enumeration.points(undisturbed[1])}
    phases = ("claimed", "making", "starting", "driving", "started", "ended", "gone", "removed")
    assert names >= {f"record {phase}" for phase in phases}
    assert names >= {"anka pull", "anka clone", "anka start", "anka cp", "anka run start", "anka delete", "anka list"}
    assert names >= {"store claim claim", "store release claim", "fact SlotOccupied", "fact SlotReleased", "hold"}
    assert names >= {"api POST /repos/{owner}/{repo}/actions/runners/generate-jitconfig", "archive filled"}


@pytest.mark.parametrize("part", range(_PARTS))
def test_a_worker_that_is_killed_loses_nothing(undisturbed, judge, part):
    """After a SIGKILL at each kind of effect, the job runs exactly once and nothing is left."""
    outcomes = judge(list(enumeration.deaths(telling(undisturbed)))[part::_PARTS])
    assert all(outcome.reached for outcome in outcomes)


@pytest.mark.parametrize("name", ["anka clone", "anka delete"])
def test_a_command_that_outlives_its_worker_is_waited_for(judge, name):
    """Even if its process was not noted: the command had been announced."""
    cases = enumeration.deaths_in_the_middle([Point(name, 1)])
    (outcome,) = judge([case for case in cases if "before note of begin" in case.name])
    assert outcome.reached


def test_a_registration_that_comes_after_the_death_is_removed(judge):
    """GitHub completes the request after the worker is gone."""
    registration = Point("api POST /repos/{owner}/{repo}/actions/runners/generate-jitconfig", 1)
    (outcome,) = judge(enumeration.deaths_in_the_middle([registration]))
    assert outcome.reached


def test_two_deaths_in_a_row_lose_nothing(undisturbed, judge):
    """The next worker dies too, while it cleans up after the first."""
    outcomes = judge(list(enumeration.double_deaths(telling(undisturbed)))[3::6])
    assert any(outcome.reached for outcome in outcomes)


@pytest.mark.parametrize("part", range(3))
def test_an_effect_that_fails_loses_nothing(undisturbed, judge, part):
    """No process dies, but a record cannot be written, the store does not answer, a command fails, or a reply is lost."""
    # A record that cannot be removed is tried again half a minute later.
    points = [point for point in telling(undisturbed) if point.fails and point.name != "record removed"]
    outcomes = judge(list(enumeration.failures(points))[part::12])
    assert all(outcome.reached for outcome in outcomes)


@pytest.mark.parametrize("part", range(2))
def test_a_supervisor_that_dies_loses_nothing(undisturbed, judge, part):
    """Its worker detaches, the next supervisor learns about the slots from the records, and the job goes on."""
    points = [Point(f"fact {kind}", 1) for kind in ("SlotWanted", "SlotOccupied", "JobStarted", "SlotReleased")]
    outcomes = judge(list(enumeration.orphanings(points))[part::4])
    assert all(outcome.reached for outcome in outcomes)


def test_a_worker_that_lets_go_loses_nothing(undisturbed, judge):
    """SIGTERM before each effect, as at an upgrade."""
    judge(list(enumeration.detachments(telling(undisturbed)))[5::9])


def test_the_judge_sees_whatever_is_left(github, home, tmp_path):
    """The judge reports one leftover of each kind, planted here."""
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
