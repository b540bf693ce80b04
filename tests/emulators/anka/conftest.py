"""Fixtures of the emulator's own tests: a directory, and an emulated host in it that must leave no process behind."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from emulators.anka.bench import Host


@pytest.fixture
def directory():
    """A directory that is removed after the test."""
    with tempfile.TemporaryDirectory(prefix="fake-anka-") as path:
        yield Path(path)


@pytest.fixture
def host(directory):
    """A host with the local template `tpl`; all its processes end after the test."""
    with Host(directory / "host") as made:
        made.add_template("tpl", tag="v1")
        yield made
    assert made.guest_processes() == []
    assert made.command_pids() == []
