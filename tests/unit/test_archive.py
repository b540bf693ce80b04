"""The folders of past jobs: names and pruning."""

import os

from anklet_worker.attempt.archive import Archive
from anklet_worker.vm.names import vm_name

DAY = 86_400.0


def test_each_attempt_has_a_private_folder_of_its_own(tmp_path):
    """The path has job and attempt, so that an operator finds it by the job's id."""
    archive = Archive(tmp_path)
    folder = archive.folder(vm_name("0123abcd", "S", "4711", 2))
    assert folder == tmp_path / "jobs" / "4711" / "2"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert archive.folder(vm_name("0123abcd", "S", "4711", 2)) == folder


def test_a_name_that_is_none_of_ours_cannot_leave_the_folder(tmp_path):
    """A malformed VM name still leads to a folder inside the archive."""
    assert Archive(tmp_path).folder("anklet-vm-x").parent == tmp_path / "jobs" / "anklet-vm-x"


def test_what_is_old_goes(tmp_path):
    """Folders older than two weeks are removed."""
    now = [1000 * DAY]
    archive = Archive(tmp_path, lambda: now[0])
    for job in ("1", "2"):
        folder = archive.folder(vm_name("0123abcd", "S", job, 1))
        (folder / "log").write_text("x")
        os.utime(folder.parent, (now[0], now[0]))
    now[0] += 13 * DAY
    os.utime(tmp_path / "jobs" / "2", (now[0], now[0]))
    now[0] += 2 * DAY
    archive.folder(vm_name("0123abcd", "S", "3", 1))
    assert sorted(path.name for path in (tmp_path / "jobs").iterdir()) == ["2", "3"]


def test_only_so_many_are_kept(tmp_path):
    """Only the newest two hundred jobs are kept."""
    archive = Archive(tmp_path, lambda: 2000.0)
    for number in range(210):
        folder = archive.folder(vm_name("0123abcd", "S", str(number), 1))
        os.utime(folder.parent, (1000 + number, 1000 + number))
    kept = {int(path.name) for path in (tmp_path / "jobs").iterdir()}
    assert len(kept) <= 200
    assert min(kept) >= 9
