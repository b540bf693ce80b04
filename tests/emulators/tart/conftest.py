"""Fixtures of the emulator's own tests: a directory, and an emulated host in it that must leave no process behind."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from emulators.tart.bench import Host


@pytest.fixture
def directory():
    """A directory that is removed after the test."""
    with tempfile.TemporaryDirectory(prefix="fake-tart-") as path:
        yield Path(path)


@pytest.fixture
def host(directory):
    """A host with the local VM `tpl` as a clone source; all its processes end after the test."""
    with Host(directory / "host") as made:
        made.set(ip_pause=0.02)
        made.add_image("tpl")
        yield made
    assert made.guest_processes() == []
    assert made.command_pids() == []
