"""Fixtures that a test process shares: one emulated GitHub, the files of a template, and the list of a job's effects."""

import itertools

import bench
import enumeration
import pytest
from emulators.github.control import GitHubServer


@pytest.fixture(scope="session")
def github():
    """One server; each case has its own repository. At the end its list of anomalies must be empty."""
    with GitHubServer() as server:
        server.add_token(bench.TOKEN, permissions={"administration": "write", "actions": "read"})
        yield server
        assert server.anomalies() == []


@pytest.fixture(scope="session")
def home(github, tmp_path_factory):
    """A guest's home directory with a runner in it."""
    folder = tmp_path_factory.mktemp("home")
    github.copy_runner(folder)
    return folder


@pytest.fixture(scope="session")
def undisturbed(github, home, tmp_path_factory):
    """A host that ran one job without any fault, and the lines of its trace."""
    folder = tmp_path_factory.mktemp("undisturbed") / "app"
    host = bench.Host(folder, github, home)
    host.plan["trace"] = True
    try:
        host.run(host.is_quiet)
        host.end()
        assert host.violations() == []
    finally:
        host.close()
    return host, enumeration.trace(folder)


@pytest.fixture
def judge(github, home, tmp_path):
    """A function that runs cases and fails if one of them violated a rule."""
    numbers = itertools.count()

    def judge(cases):
        outcomes = [
            enumeration.run(case, tmp_path / f"{tmp_path.name}-{next(numbers)}".lower(), github, home) for case in cases
        ]
        assert outcomes, "no case at all"
        assert {outcome.case.name: outcome.violations for outcome in outcomes if outcome.violations} == {}
        return outcomes

    return judge
