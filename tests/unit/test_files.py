"""Atomic, private files and directories that are safe against other users' links."""

import os
import resource
import signal
import stat
import threading

import pytest

from anklet_worker.files import make_private_dir, remove, remove_unfinished, write_atomically


def names(folder):
    """The names in a folder."""
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture
def small_files():
    """Limit every file of this process to 1000 bytes, to simulate a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path, durable):
    """The file has the new content, and no temporary file is left."""
    path = tmp_path / "record.json"
    write_atomically(path, b"old", durable=durable)
    write_atomically(path, b"new", durable=durable)
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["record.json"]


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_the_mode_is_the_one_asked_for_whatever_the_umask(tmp_path, mode):
    """The mode does not depend on the umask; it is private by default."""
    before = os.umask(0o777)
    try:
        write_atomically(tmp_path / "file", b"x", mode=mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_a_full_disk_leaves_the_old_file(tmp_path, small_files):
    """A failed write keeps the old content and leaves no temporary file."""
    path = tmp_path / "record.json"
    write_atomically(path, b"old")
    with pytest.raises(OSError, match="large"):
        write_atomically(path, b"x" * 5000)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["record.json"]


def test_readers_see_whole_files_only(tmp_path):
    """While a file is replaced repeatedly, each reader sees one whole content."""
    path = tmp_path / "status.json"
    contents = {b"a" * 50_000, b"b" * 90_000}
    write_atomically(path, b"a" * 50_000, durable=False)
    over = threading.Event()

    def rewrite():
        while not over.is_set():
            for content in contents:
                write_atomically(path, content, durable=False)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        seen = {path.read_bytes() for _ in range(500)}
    finally:
        over.set()
        writer.join()
    assert seen <= contents


def test_a_file_aside_of_somebody_else_is_not_written_into(tmp_path):
    """A symlink at the name of the temporary file does not redirect the write."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"theirs")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / f".anklet.pid.{os.getpid()}.new").symlink_to(elsewhere)
    write_atomically(folder / "anklet.pid", b"1")
    assert elsewhere.read_bytes() == b"theirs"
    assert (folder / "anklet.pid").read_bytes() == b"1"


def test_removing_what_is_gone_is_done(tmp_path):
    """Removing a missing file succeeds."""
    (tmp_path / "file").write_bytes(b"x")
    remove(tmp_path / "file")
    remove(tmp_path / "file")
    assert names(tmp_path) == []


def test_a_private_directory_is_made_with_its_parents(tmp_path):
    """A new directory has mode 0700."""
    make_private_dir(tmp_path / "a" / "b")
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700


def test_an_open_directory_is_closed_to_others(tmp_path):
    """An existing directory of this user gets mode 0700."""
    tmp_path.joinpath("state").mkdir(mode=0o755)
    make_private_dir(tmp_path / "state")
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


def test_a_link_in_place_of_a_private_directory_is_refused(tmp_path):
    """A symlink is refused: another user may have made it."""
    (tmp_path / "real").mkdir()
    (tmp_path / "state").symlink_to(tmp_path / "real")
    with pytest.raises(PermissionError, match="symbolic link"):
        make_private_dir(tmp_path / "state")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a directory of somebody else's")
def test_a_directory_of_somebody_else_is_refused(tmp_path):
    """A directory of another user is refused: its owner can change the content."""
    (tmp_path / "state").mkdir()
    os.chown(tmp_path / "state", 12345, 12345)
    with pytest.raises(PermissionError, match="another user"):
        make_private_dir(tmp_path / "state")


def test_a_file_in_place_of_a_directory_is_an_error(tmp_path):
    """An ordinary `OSError` passes through."""
    (tmp_path / "state").write_bytes(b"")
    with pytest.raises(FileExistsError):
        make_private_dir(tmp_path / "state")


def test_what_a_dead_writer_left_aside_is_removed(tmp_path):
    """Temporary files of dead processes are removed; other files stay."""
    for name in (".record.json.4711.new", ".other.json.1.new", "record.json", ".hidden"):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path)
    assert names(tmp_path) == [".hidden", "record.json"]
