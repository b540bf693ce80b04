"""How a worker begins while its host is in trouble."""

import msgspec
import pytest
from test_service_loop import Bench

from anklet_worker import main
from anklet_worker.contract.errors import ConfigError, ExitCode, RightsRefused, VMTransient


class Effort:
    """Fails in these ways, one after the other, then succeeds."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.tries = 0

    def __call__(self):
        self.tries += 1
        if self.errors:
            raise self.errors.pop(0)
        return "begun"


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """A worker with everything around it; its pauses are short."""
    monkeypatch.setattr(main, "_TROUBLE_PAUSES", (0.001,))
    return Bench(tmp_path)


def begin(bench, effort, *, once=False):
    """As `_serve` does."""
    setup = msgspec.structs.replace(bench.setup, once=once)
    return main._outlasting(effort, setup, bench.orders, bench.tools.log)


def test_trouble_is_outlasted_and_told_once(bench):
    """A VM tool whose daemon is not up yet, say."""
    effort = Effort(*[VMTransient("no daemon")] * 5)
    assert begin(bench, effort) == "begun"
    assert effort.tries == 6
    assert bench.lines("WARNING") == ["the service cannot begin now; trying again"]


def test_one_pass_is_one_try(bench):
    """`--once` is for whoever wants to see what happens now."""
    effort = Effort(VMTransient("no daemon"))
    with pytest.raises(VMTransient):
        begin(bench, effort, once=True)
    assert effort.tries == 1


def test_a_drain_ends_it(bench):
    """Nothing has begun, so there is nothing to finish."""
    bench.orders.drain()
    with pytest.raises(VMTransient):
        begin(bench, Effort(VMTransient("no daemon")))


def test_what_no_wait_can_cure_is_not_waited_for(bench):
    """A licence, say."""
    with pytest.raises(RightsRefused):
        begin(bench, Effort(RightsRefused("no licence")))


def test_a_worker_that_is_not_started_again_does_not_say_that_it_is(bench):
    """A plugin written for another version of the contract: an operator must act."""

    def refuse():
        raise ConfigError("plugin 'mine' is written for plugin API 1")

    assert main._guarded(refuse, bench.tools.link, bench.tools.log) == ExitCode.CONFIG
    assert bench.lines("WARNING") == []


def test_a_plugin_that_exits_is_a_bug(bench):
    """Its exit code would say that all is well, and nothing would say where it was."""

    def leave():
        raise SystemExit(0)

    assert main._guarded(leave, bench.tools.link, bench.tools.log) == ExitCode.SOFTWARE
    assert bench.lines("ERROR") == ["a bug ended the worker; it is started again"]
