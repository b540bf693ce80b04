"""The state directory is private, writable and of a known version, or the start fails with one line and an exit code."""

import errno
import os
import stat
from pathlib import Path

import pytest

from anklet_supervisor.daemon.state_dir import explained, open_state_dir, take_over
from anklet_worker.contract.errors import ConfigError, ExitCode, TemporaryError
from anklet_worker.state_layout import PathKind, Place

FOLDERS = [place for place in Place if place.kind is PathKind.FOLDER]
FILES = [place for place in Place if place.kind is PathKind.FILE]


def example(place, state):
    """An example path of this place in the state directory."""
    return place.path(state, *("A" * place.pattern.count("*")))


def mode(path):
    """A path's permissions."""
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def state(tmp_path):
    """A state directory after a supervisor's run."""
    path = tmp_path / "state"
    assert open_state_dir(path) == []
    take_over(path)
    for place in FOLDERS:
        example(place, path).mkdir(mode=0o700, exist_ok=True)
    for place in FILES:
        if place is not Place.VERSION:
            example(place, path).write_text("x")
            example(place, path).chmod(place.mode)
    return path


def test_a_new_directory_is_private_and_has_a_version(tmp_path):
    """The directory of the services is private too."""
    path = tmp_path / "a" / "state"
    open_state_dir(path)
    take_over(path)
    assert mode(path) == mode(path / "services") == 0o700
    assert (path / "version").read_text() == "1\n"


def test_a_directory_in_order_is_left_as_it_is(state):
    """A correct directory gives no report."""
    assert open_state_dir(state) == []


@pytest.mark.parametrize("place", Place)
@pytest.mark.parametrize("dangles", [False, True])
def test_a_symbolic_link_is_refused_wherever_it_stands(state, tmp_path, place, dangles):
    """The exit code is 78, with the path and what to do, even if the link dangles."""
    path, target = example(place, state), tmp_path / "target"
    path.rename(target)
    path.symlink_to(tmp_path / "nowhere" if dangles else target)
    with pytest.raises(ConfigError, match="symbolic link") as caught:
        open_state_dir(state)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("place", Place)
def test_permissions_of_others_are_removed_and_reported(state, place):
    """Each path that others could write gives one line; a path that they could only read gives none."""
    path = example(place, state)
    path.chmod(0o777)
    assert open_state_dir(state) == [f"removed group/other write permission from {path} (mode was 777)"]
    assert mode(path) == place.mode
    path.chmod(place.mode | 0o055)
    assert open_state_dir(state) == []
    assert mode(path) == place.mode


@pytest.mark.parametrize("place", Place)
def test_a_path_of_the_wrong_kind_is_refused(state, place):
    """The exit code is 78, with the path.

    A stray file among the services' folders is ignored: file managers create some.
    """
    path = example(place, state)
    path.rename(state.parent / "moved")
    path.touch(0o600) if place.kind is PathKind.FOLDER else path.mkdir(0o700)
    if place.has_any_name:
        assert open_state_dir(state) == []
        return
    with pytest.raises(ConfigError, match=f"{path} is not a {place.kind.value}; move it away"):
        open_state_dir(state)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_what_belongs_to_another_user_is_refused(state):
    """The exit code is 78: the owner could change the content while we use it."""
    os.chown(state / "slots", 65534, 65534)
    with pytest.raises(ConfigError, match="another user"):
        open_state_dir(state)


def test_a_directory_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    """The exit code is 78, with what to do. The system's answer counts, not the mode bits."""
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    with pytest.raises(ConfigError, match="chmod u\\+rwx"):
        open_state_dir(tmp_path / "state")


@pytest.mark.parametrize("text", ["2\n", "17\n"])
def test_a_later_version_is_refused_and_left_untouched(state, text):
    """The exit code is 78: a downgrade could lose what the later version wrote."""
    (state / "version").write_text(text)
    with pytest.raises(ConfigError, match="later version") as caught:
        open_state_dir(state)
    assert caught.value.exit_code is ExitCode.CONFIG
    assert (state / "version").read_text() == text


@pytest.mark.parametrize("text", [None, "", "one\n", "1", "0\n"])
def test_earlier_versions_and_damage_are_taken_over(state, text):
    """A directory without a version file is of the first format."""
    (state / "version").unlink()
    if text is not None:
        (state / "version").write_text(text)
        (state / "version").chmod(0o600)
    assert open_state_dir(state) == []
    take_over(state)
    assert (state / "version").read_text() == "1\n"


def test_what_a_killed_writer_left_aside_is_removed(state):
    """Unfinished files are never read, and do not pile up."""
    (state / ".status.json.4711.new").write_text("{")
    take_over(state)
    assert not (state / ".status.json.4711.new").exists()


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [
        (errno.ENOSPC, TemporaryError, 75),
        (errno.EDQUOT, TemporaryError, 75),
        (errno.EIO, TemporaryError, 75),
        (errno.EACCES, ConfigError, 78),
        (errno.EROFS, ConfigError, 78),
        (errno.ELOOP, ConfigError, 78),
    ],
)
def test_a_refusal_of_the_system_is_one_line_with_its_exit_code(number, kind, code):
    """The exit code says whether a retry may help, and the line names the file."""
    with pytest.raises(kind) as caught, explained(Path("/state")):
        raise OSError(number, os.strerror(number), "/state/slots")
    assert caught.value.exit_code == code
    assert "/state/slots" in str(caught.value)
    assert os.strerror(number) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_paths_are_built_from_the_list(tmp_path):
    """Each `*` takes the next name. A caller that already has the folder gives only the names of the last part."""
    assert Place.RECORD.path(tmp_path, "A", "vm-1") == tmp_path / "services" / "A" / "records" / "vm-1.json"
    assert Place.RECORD.in_folder(tmp_path, "vm-1") == tmp_path / "vm-1.json"
    for names in ((), ("A", "vm-1", "x")):
        with pytest.raises(ValueError, match="argument"):
            Place.RECORD.path(tmp_path, *names)


def test_the_locks_of_both_drivers_have_the_same_names(tmp_path):
    """`ImageLocks` gets the folder and does not know which driver it belongs to."""
    for anka, tart in (
        (Place.ANKA_PULL_LOCK, Place.TART_PULL_LOCK),
        (Place.ANKA_PULL_NOTE, Place.TART_PULL_NOTE),
    ):
        assert anka.in_folder(tmp_path) == tart.in_folder(tmp_path)
    assert Place.ANKA_IMAGE_LOCK.in_folder(tmp_path, "x") == Place.TART_IMAGE_LOCK.in_folder(tmp_path, "x")
