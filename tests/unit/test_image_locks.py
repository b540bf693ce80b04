"""Locks for pulls and clones between the processes of one host, and pulls that outlive their worker."""

import contextlib
import errno
import os
import subprocess
import sys
import time

import msgspec
import psutil
import pytest

from anklet_worker.contract.errors import Detached, PullBusy, VMTransient
from anklet_worker.process.command import InFlight
from anklet_worker.process.orders import Orders
from anklet_worker.vm.image_locks import ImageLocks


@pytest.fixture
def one(tmp_path):
    """The locks as one worker has them."""
    return ImageLocks(tmp_path / "locks")


@pytest.fixture
def other(tmp_path):
    """The same locks as another worker has them."""
    return ImageLocks(tmp_path / "locks")


def test_one_pull_at_once(one, other):
    """Two pulls never run at once, even of different images; the next may begin after the first."""
    with one.pulling("a"), pytest.raises(PullBusy, match="another pull"), other.pulling("b"):
        pass
    with other.pulling("b"):
        pass


def test_no_clone_during_the_pull_of_the_same_image(one, other):
    """An image that is being pulled cannot be cloned under any of its names; other images can."""
    with one.pulling("name", "uuid"):
        with pytest.raises(PullBusy, match="is being pulled"), other.cloning("uuid"):
            pass
        with pytest.raises(PullBusy), other.cloning("x", "name"):
            pass
        with other.cloning("another"):
            pass


def test_no_pull_during_a_clone_of_the_same_image(one, other):
    """An image that is being cloned cannot be pulled; several workers may clone it; a refused pull leaves nothing locked."""
    with one.cloning("a"), other.cloning("a"):
        with pytest.raises(PullBusy, match="is being cloned"), other.pulling("b", "a"):
            pass
        with other.pulling("b"):
            pass


@pytest.mark.parametrize("name", ["pull.lock", "image-ca978112ca1bbdca.lock"])
def test_a_lock_that_the_disk_refuses_is_trouble_that_may_pass(one, tmp_path, name):
    """A disk error is a passing VM error, not a bug that ends the worker."""
    (tmp_path / "locks" / name).mkdir()
    with pytest.raises(VMTransient, match=rf"cannot open .*{name}: Is a directory"), one.pulling("a"):
        pass


def test_a_pull_that_cannot_be_counted_is_not_begun(one, other, monkeypatch):
    """On a full disk the pull is refused, and its locks are free again."""

    def full(_fd, _data):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(VMTransient, match=r"cannot write .*: No space"), one.pulling("a"):
            pass
    with other.pulling("a"):
        pass


def test_pulls_leave_marks(one, other):
    """All workers see that a pull has begun, and that it has ended; a refused pull leaves no mark."""
    assert other.pull_marks() == 0
    with one.pulling("a"):
        assert other.pull_marks() == 1
        with pytest.raises(PullBusy), other.pulling("a"):
            pass
    assert other.pull_marks() == 2


def test_running_pull_is_seen(one, other):
    """A worker can tell whether any pull runs on the host, also after one that failed."""
    assert not other.pull_runs()
    with contextlib.suppress(VMTransient), one.pulling("a"):
        assert other.pull_runs()
        raise VMTransient("the registry is down")
    assert not other.pull_runs()


def test_pull_of_a_worker_that_detached_is_seen_to_its_end(one, other):
    """The pull runs as long as its process; once that is over, the missing end mark is added."""
    process = detach_from_pull(one, ["cat"])
    with process:
        assert other.pull_runs()
        process.stdin.close()
    marks = other.pull_marks()
    assert not other.pull_runs()
    assert other.pull_marks() == marks + 1
    assert not one.pull_runs()
    assert other.pull_marks() == marks + 1


def test_end_mark_that_the_disk_refuses_is_no_trouble(one, other, monkeypatch):
    """The pull itself has succeeded; others see its end later."""
    write = os.write

    def begin_only(fd, data):
        if data == b"e":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", begin_only)
        with one.pulling("a"):
            pass
        assert other.pull_runs()
    assert not other.pull_runs()


def test_lock_of_a_killed_holder_is_free(one, tmp_path):
    """A worker that dies in the middle leaves no lock."""
    script = (
        "import sys; from pathlib import Path; from anklet_worker.vm.image_locks import ImageLocks\n"
        "with ImageLocks(Path(sys.argv[1])).pulling('a'):\n print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "locks")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(PullBusy), one.pulling("a"):
            pass
        process.kill()
    with one.pulling("a"):
        pass


def child_with(fds, argv=("cat",)):
    """A process that holds descriptors; `cat` until its input ends."""
    return subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=fds, start_new_session=True
    )


def detach_from_pull(locks, argv):
    """A pull's process that goes on after the detach of its worker."""
    orders = Orders()
    orders.detach()
    with contextlib.suppress(Detached), locks.pulling("a") as hold:
        process = child_with(hold.fds, argv)
        hold.note(InFlight(pid=process.pid, created=psutil.Process(process.pid).create_time(), verb="registry"))
        orders.check()
    return process


def test_pull_keeps_its_locks_after_a_detach(one, other):
    """After a detach the locks live as long as the pull's process."""
    process = detach_from_pull(one, ["cat"])
    with process:
        with pytest.raises(PullBusy), other.pulling("b"):
            pass
        with pytest.raises(PullBusy), other.cloning("a"):
            pass
        process.stdin.close()
    with other.pulling("a"), pytest.raises(PullBusy), one.cloning("a"):
        pass


def test_what_a_pull_leaves_behind_holds_no_lock(one, other):
    """A daemon that the pull started inherits the descriptors but does not block later pulls."""
    with one.pulling("a") as hold:
        process = child_with(hold.fds)
    with process:
        with other.pulling("a"):
            pass
        process.stdin.close()


@pytest.mark.parametrize(("age", "ends"), [(60.0, False), (4 * 3600.0, True)])
def test_pull_that_nobody_watches_is_ended_when_overdue(one, tmp_path, age, ends):
    """The pull of a dead worker continues for hours at most: then it is ended, and its locks are free."""
    process = detach_from_pull(one, ["sleep", "300"])
    other = ImageLocks(tmp_path / "locks", lambda: time.time() + age)
    try:
        if ends:
            with other.pulling("a"):
                pass
            assert process.wait(10) < 0
        else:
            with pytest.raises(PullBusy), other.pulling("a"):
                pass
            assert process.poll() is None
    finally:
        process.kill()
        process.stdin.close()
        process.wait()


def test_note_of_a_pull_comes_and_goes(one, tmp_path):
    """A pull's process is noted while it runs; a damaged note is ignored."""
    path = tmp_path / "locks" / "pull.json"
    with one.pulling("a") as hold:
        hold.note(InFlight(pid=os.getpid(), created=1.0, verb="registry"))
        assert msgspec.json.decode(path.read_bytes(), type=InFlight).pid == os.getpid()
        hold.note(None)
        assert not path.exists()
    path.write_text("{")
    with one.pulling("a"):
        pass
