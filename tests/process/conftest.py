"""Fixtures of whole-program tests: an emulated GitHub, and emulated Macs that are checked and shut down at the end.

Every request to GitHub is checked against GitHub's own OpenAPI description.
"""

import json

import pytest
from emulators.github.openapi import check_request
from stage import Mac, new_github


@pytest.fixture
def github():
    """An emulated GitHub.

    At the end, checks that the program broke no rule of GitHub and sent only documented requests.
    """
    server = new_github()
    yield server
    anomalies, requests = server.anomalies(), server.requests()
    server.stop()
    assert anomalies == []
    for request in _distinct(requests):
        if not request["path"].startswith(("/actions/runner/", "/_download/")):  # guest downloads, not API calls
            check_request(request["method"], request["path"], request["query"], request["body"])


def _distinct(requests):
    """The requests without repetitions: the program polls, so it sends the same request many times."""
    parts = ("method", "path", "query", "body")
    return {json.dumps([request[part] for part in parts], sort_keys=True): request for request in requests}.values()


@pytest.fixture
def new_mac(tmp_path, github):
    """Creates hosts. At the end, checks that no host ever ran three VMs and that no guest process is left."""
    macs = []

    def make(name="mac", **more):
        mac = Mac(tmp_path / name, github, **more)
        macs.append(mac)
        return mac

    yield make
    for mac in macs:
        most = mac.max_running()
        limit_refused = [event for host in mac.hosts for event in host.events("limit-refused")]
        mac.close()
        assert most <= 2
        assert mac.refusals_expected or not limit_refused, "a third VM was tried"
        assert not [process for host in mac.hosts for process in host.guest_processes()]


@pytest.fixture
def driver():
    """The VM driver of the host's services. Tests that apply to every driver are parametrized by it."""
    return "anka"


@pytest.fixture
def mac(new_mac, driver):
    """One host with one service."""
    return new_mac(driver=driver)
