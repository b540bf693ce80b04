"""The github plugin's registrations: the runner group's id, and what is concluded when GitHub has no place for a runner."""

import json

import pytest
from anklet_github.api import Api
from anklet_github.http import Reply
from anklet_github.login import TokenLogin
from anklet_github.registration import Registration
from anklet_github.runners import RunnerRegistry
from anklet_github.scope import scope_of
from anklet_github.settings import RunnerSettings
from anklet_github.trouble import NotFound
from github_fakes import MINE, FakeContext, FakeHand

from anklet_worker.contract.errors import RetryElsewhere, ServiceFatal
from anklet_worker.contract.settings import Secret


class Server:
    """An organization's runner groups, id by name."""

    def __init__(self, **groups):
        self.groups = groups
        self.asked = []

    def exchange(self, method, path, headers, body=None):
        self.asked.append((method, path.partition("?")[0].rpartition("/")[2]))
        if method == "GET":
            groups = [{"id": number, "name": name} for name, number in self.groups.items()]
            return Reply(200, {}, json.dumps({"total_count": len(groups), "runner_groups": groups}).encode())
        if json.loads(body)["runner_group_id"] not in self.groups.values():
            return Reply(404, {}, b'{"message": "Not Found"}')
        return Reply(201, {}, b'{"runner": {"id": 9, "name": "n"}, "encoded_jit_config": "c"}')


def registry(server, group):
    """The runners of an organization."""
    context = FakeContext(registration="org", repo="", runner=RunnerSettings(group=group))
    return RunnerRegistry(Api(server, TokenLogin(Secret("t")), context), scope_of(context.service))


def test_a_group_that_was_made_anew_is_found():
    """Its id is asked for once, and again when GitHub does not know it any more."""
    server = Server(Default=1, Macs=5)
    runners = registry(server, "macs")
    for _ in range(2):
        assert runners.register_jit(MINE, ["a"]).runner.id == 9
    assert server.asked.count(("GET", "runner-groups")) == 1
    server.groups["Macs"] = 6
    assert runners.register_jit(MINE, ["a"]).runner.id == 9
    assert server.asked.count(("GET", "runner-groups")) == 2


def test_a_group_that_is_gone_is_told():
    """An operator must act."""
    server = Server(Default=1, Macs=5)
    runners = registry(server, "Macs")
    runners.register_jit(MINE, ["a"])
    del server.groups["Macs"]
    with pytest.raises(ServiceFatal, match="no runner group 'Macs'; it has: Default"):
        runners.register_jit(MINE, ["a"])


def test_without_a_group_of_its_own_a_404_is_one():
    """There is nothing to look up."""
    server = Server()
    with pytest.raises(NotFound):
        registry(server, None).register_jit(MINE, ["a"])
    assert len(server.asked) == 1


def test_where_no_runner_can_be_registered_the_job_is_left_alone_for_a_while():
    """It waits still: taken again at once, it would cost a VM each time."""
    hand = FakeHand(None, FakeContext())
    with pytest.raises(RetryElsewhere, match="no place to register"):
        Registration(hand, registry(Server(), None)).make(["a"])
    assert hand.facts["registration"] == "refused"
