"""The state directory after jobs with both drivers contains only paths that `Place` lists."""

import signal
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from stage import eventually
from test_job_life import finish, queue

from anklet_worker.state_layout import PathKind, Place


def place_of(path):
    """The `Place` of a path (relative to the state directory), or None."""
    parts = path.parts
    for place in Place:
        pattern = place.pattern.split("/")
        if len(pattern) == len(parts) and all(map(fnmatchcase, parts, pattern)):
            return place
    return None


def places(mac):
    """Each path in the state directory with its place, except guests' files and unfinished writes."""
    paths = {path.relative_to(mac.state_dir): path for path in mac.state_dir.rglob("*")}
    return {
        path: place_of(short)
        for short, path in paths.items()
        if place_of(Path(*short.parts[:3])) is not Place.ARCHIVED_ATTEMPT or len(short.parts) == 3
        if not fnmatchcase(path.name, ".*.new")
    }


def seen(mac):
    """The places in use. Fails on a path without a place."""
    found = places(mac)
    assert [str(path) for path, place in found.items() if place is None] == []
    return set(found.values())


def test_the_list_explains_every_path_of_a_host_with_both_drivers(new_mac, github, tmp_path):
    """Every path has a place while jobs run, across a restart with a paused service, at the end, and after damage to files."""
    mac = new_mac(services=2, driver="anka+tart")
    del mac.config["pid_file_dir"]
    gate = tmp_path / "gate"
    wait = f"while [ ! -e {gate} ]; do sleep 0.05; done"
    ids = queue(github, *(mac.job(f"by {name}", driver=name, steps=[wait]) for name in mac.drivers))
    mac.start()
    eventually(lambda: all(github.job(one)["status"] == "in_progress" for one in ids), "both jobs run", 60)
    used = seen(mac)
    assert mac.command("pause", "RUNNER2").returncode == 0
    mac.send(signal.SIGUSR2)
    assert mac.wait(15) == 75
    used |= seen(mac)
    mac.start()
    gate.touch()
    assert finish(mac, github, ids) == ["success"] * 2
    assert mac.drain() == 0
    used |= seen(mac)
    Place.RECORD.path(mac.state_dir, "RUNNER1", "anklet-vm-x").write_text("{")
    Place.HISTORY.path(mac.state_dir).write_text("{")
    mac.start()
    assert mac.drain() == 0
    used |= seen(mac)
    assert {
        Place.LOCK, Place.SLOTS, Place.STATUS, Place.HISTORY, Place.DAMAGED_HISTORY, Place.STORE, Place.RECORD,
        Place.DAMAGED_RECORD, Place.HOLDER_LOCK, Place.PAUSE_MARK, Place.VM_LISTING, Place.ARCHIVED_ATTEMPT, Place.PID_FILE,
        Place.ANKA_IMAGE_LOCK, Place.TART_IMAGE_LOCK, Place.TART_RUN_NOTE, Place.TART_RUN_OUTPUT,
    } <= used  # fmt: skip


@pytest.mark.parametrize("driver", ["anka", "tart"])
def test_every_path_has_the_kind_and_mode_that_the_list_says(mac, github):
    """The next start finds nothing to tidy up, except for one WARN about a path that others could write."""
    ids = queue(github, mac.job())
    mac.start()
    assert finish(mac, github, ids) == ["success"]
    assert mac.drain() == 0
    for path, place in places(mac).items():
        assert path.is_dir() if place.kind is PathKind.FOLDER else path.is_file(), path
        assert not path.stat().st_mode & 0o777 & ~place.mode, path
    listing = Place.VM_LISTING.path(mac.state_dir, mac.drivers[0])
    listing.chmod(0o666)
    mac.start()
    (line,) = mac.log_lines(level="WARN")
    assert line["msg"] == f"removed group/other write permission from {listing} (mode was 666)"
    assert mac.drain() == 0
