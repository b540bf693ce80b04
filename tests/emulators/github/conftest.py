"""Fixtures of the emulator's own tests: a server of its own for each test, clients and guests that leave nothing behind."""

from __future__ import annotations

import contextlib

import pytest
from emulators.github.bench import TOKEN, Api, Guest, Listener
from emulators.github.control import GitHubServer


@pytest.fixture
def github():
    """A server with the organisation octo-org, its repository hello, and a token that may do all."""
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
    """The REST API for the token that may do all."""
    return closing.enter_context(contextlib.closing(Api(github.url)))


@pytest.fixture
def listen(closing):
    """A function: a JIT configuration -> a Listener with an open session."""

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
    """A function: names (or job dicts) -> the run that holds these jobs."""

    def queued(*jobs, labels=("self-hosted", "anka"), **more):
        made = [{"labels": list(labels), **({"name": job} if isinstance(job, str) else job)} for job in jobs]
        return github.queue_run("octo-org", "hello", made, **more)

    return queued
