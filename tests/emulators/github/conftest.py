"""Fixtures of the emulator's own tests: a separate server for each test, clients and guests that leave nothing behind."""

from __future__ import annotations

import contextlib

import pytest
from emulators.github.bench import TOKEN, Api, Guest, Listener
from emulators.github.control import GitHubServer


@pytest.fixture
def github():
    """A server with the organisation octo-org, its repository hello, and a token with all permissions."""
    with GitHubServer() as server:
        server.add_org("octo-org")
        server.add_repo("octo-org", "hello")
        server.add_token(TOKEN)
        yield server


@pytest.fixture
def closing():
    """A stack that closes at the end of the test."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def api(github, closing):
    """The REST API with the token that has all permissions."""
    return closing.enter_context(contextlib.closing(Api(github.url)))


@pytest.fixture
def listen(closing):
    """A function that opens a session with a JIT configuration and returns its Listener."""

    def opened(config):
        listener = closing.enter_context(contextlib.closing(Listener(config)))
        assert listener.open() == 200
        return listener

    return opened


@pytest.fixture
def guest(github, closing):
    """A guest; its processes end with the test."""
    return closing.enter_context(contextlib.closing(Guest(github)))


@pytest.fixture
def queue(github):
    """A function that queues a run with these jobs (names or job dicts) and returns the run."""

    def queued(*jobs, labels=("self-hosted", "anka"), **more):
        made = [{"labels": list(labels), **({"name": job} if isinstance(job, str) else job)} for job in jobs]
        return github.queue_run("octo-org", "hello", made, **more)

    return queued
