"""What the enumeration shares within a test process: one emulated GitHub, the content of a template, and the effects of a job."""

import itertools

import bench
import enumeration
import pytest
from emulators.github.control import GitHubServer


@pytest.fixture(scope="session")
def github():
    """One server; each case has a repository of its own. At the end it must have noticed nothing that must not happen."""
    with GitHubServer() as server:
        server.add_token(bench.TOKEN, permissions={"administration": "write", "actions": "read"})
        yield server
        assert server.anomalies() == []


@pytest.fixture(scope="session")
def home(github, tmp_path_factory):
    """A guest's home with a runner in it."""
    folder = tmp_path_factory.mktemp("home")
    github.copy_runner(folder)
    return folder


@pytest.fixture(scope="session")
def undisturbed(github, home, tmp_path_factory):
    """A host on which one job ran with nothing going wrong, and the lines of its trace."""
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
    """A function that runs cases and fails with whatever any of them has violated."""
    numbers = itertools.count()

    def judge(cases):
        outcomes = [
            enumeration.run(case, tmp_path / f"{tmp_path.name}-{next(numbers)}".lower(), github, home) for case in cases
        ]
        assert outcomes, "no case at all"
        assert {outcome.case.name: outcome.violations for outcome in outcomes if outcome.violations} == {}
        return outcomes

    return judge
