"""Fixtures that several tiers of tests share."""

import logging
import os
import signal
import sys

import pytest
from redis_server import RedisServer


def pytest_configure():
    """Give the programs under test the environment that launchd gives them.

    A background shell ignores SIGINT, nohup SIGHUP, and both hand that down. A shell that forbids Python to keep byte code would
    have each of some thousand processes compile the program anew.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, default)


@pytest.fixture(scope="session")
def redis_session(tmp_path_factory):
    """The redis-server of this test process, started for the first test that needs it."""
    server = RedisServer(tmp_path_factory.mktemp("redis")).start()
    yield server
    server.stop()


@pytest.fixture
def redis_server(redis_session):
    """A running, empty redis-server, whatever the previous test did to it."""
    if not redis_session.running:
        redis_session.start()
    redis_session.flush()
    return redis_session


@pytest.fixture(autouse=True)
def _log_of_its_own():
    """Restore the root logger after each test: opening a log changes the whole process."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], level = before
    root.setLevel(level)
