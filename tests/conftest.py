"""Fixtures that several tiers of tests share."""

import logging
import signal

import pytest
from redis_server import RedisServer


def pytest_configure():
    """What a shell starts in the background ignores Ctrl-C, what nohup starts a lost terminal, and both hand that down; the
    programs under test must not inherit it."""
    for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, default)


@pytest.fixture(scope="session")
def redis_session(tmp_path_factory):
    """The one redis-server of this test process, started when the first test asks."""
    server = RedisServer(tmp_path_factory.mktemp("redis")).start()
    yield server
    server.stop()


@pytest.fixture
def redis_server(redis_session):
    """A running redis-server with nothing in it, whatever the test before did to it."""
    if not redis_session.running:
        redis_session.start()
    redis_session.flush()
    return redis_session


@pytest.fixture(autouse=True)
def _log_of_its_own():
    """A log that a test opens is the process's: the next test gets the process as it was."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], level = before
    root.setLevel(level)
