"""Files that are replaced under a running process."""

import sys

import pytest

from anklet_worker import __version__
from anklet_worker.contract.errors import ExitCode, TemporaryError
from anklet_worker.contract.installation import INSTALLATION, Installation
from anklet_worker.link.setup import decode_setup, encode_setup


@pytest.fixture
def path(tmp_path):
    """The file that says which version is installed."""
    file = tmp_path / "__init__.py"
    install(file, "1.0")
    return file


def install(file, version):
    """As pip does: another file of that name."""
    new = file.with_name("new")
    new.write_text(f'"""A package."""\n\n__version__ = "{version}"\n')
    new.replace(file)


def test_the_version_that_runs_is_known():
    """Of this very installation."""
    assert INSTALLATION.installed() == __version__
    INSTALLATION.require_unchanged()


def test_another_version_refuses_imports(path):
    """In one line that says what to do."""
    installation = Installation(path, "1.0")
    install(path, "1.1")
    with pytest.raises(TemporaryError, match=r"version 1\.1 is installed, but version 1\.0 runs; restart"):
        installation.require_unchanged()
    with pytest.raises(TemporaryError), installation.late_import("not_loaded_yet"):
        raise AssertionError("imported")


def test_an_import_during_the_replacement_is_refused(path):
    """The import itself may have read new files."""
    installation = Installation(path, "1.0")
    with pytest.raises(TemporaryError), installation.late_import("not_loaded_yet"):
        install(path, "1.1")


def test_what_is_loaded_needs_no_files(path):
    """A job in hand goes on with what it has."""
    installation = Installation(path, "1.0")
    install(path, "1.1")
    with installation.late_import(next(iter(sys.modules))):
        pass


def test_files_that_are_gone_are_another_version(path):
    """Between the removal of the old files and the arrival of the new ones."""
    installation = Installation(path, "1.0")
    path.unlink()
    assert installation.installed() == ""
    with pytest.raises(TemporaryError):
        installation.require_unchanged()


def test_the_same_version_installed_anew_is_the_same(path):
    """`pip install --force-reinstall` costs nothing."""
    installation = Installation(path, "1.0")
    install(path, "1.0")
    installation.require_unchanged()
    installation.require_unchanged()


def test_a_worker_refuses_a_supervisor_of_another_version():
    """Before it reads anything of the settings."""
    with pytest.raises(TemporaryError, match=r"the supervisor runs version 0\.0\.9.*restart the supervisor") as caught:
        decode_setup(b"0.0.9\n" + b"\x80 no pickle of ours")
    assert caught.value.exit_code == ExitCode.TEMPFAIL


def test_settings_arrive_as_they_were_sent():
    """Of whatever types they are."""
    assert decode_setup(encode_setup({"service": "RUNNER1"})) == {"service": "RUNNER1"}
