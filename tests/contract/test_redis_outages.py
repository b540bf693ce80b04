"""Hosts that share one Redis over a line that is cut, hangs or is slow; a Redis that forgets; a host that dies."""

import logging
import time

import pytest
from redis_server import RedisServer
from tcp_proxy import TcpProxy

from anklet_worker.contract.errors import StoreUnavailable
from anklet_worker.contract.service import Database
from anklet_worker.store.lazy_store import LazyStore
from anklet_worker.store.lease import LeaseKeeper
from anklet_worker.store.redis_store import RedisStore

KEY = "anklet:{octo/app}:claim:4711"
#: The leases' TTL in seconds: long enough for a busy machine, short enough to wait for.
TTL = 1.5
AWAY, BACK = (
    "the claim store does not answer: taking no new jobs; running jobs continue",
    "the claim store answers again",
)


def eventually(condition, what, deadline=20.0):
    """Wait until the condition holds, and return its value."""
    end = time.monotonic() + deadline
    while not (value := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.01)
    return value


class Host:
    """One host's store and leases, with its own connection to Redis."""

    def __init__(self, name, redis_server):
        self.line = TcpProxy((redis_server.host, redis_server.port))
        self.log = logging.getLogger(f"{name}-{id(self)}")
        self.lines = []
        self.log.addHandler(_Keep(self.lines))
        self.log.setLevel(logging.INFO)
        database = Database(enabled=True, host="127.0.0.1", port=self.line.port)
        self.store = LazyStore(lambda: RedisStore(database, name), TTL, self.log)
        self.leases = LeaseKeeper(self.store, f"{name}:S", TTL, self.log)

    def take(self):
        """True if the claim succeeds; False also during an outage."""
        try:
            return self.leases.take(KEY)
        except StoreUnavailable:
            return False

    def die(self):
        """Stop renewing, and release nothing."""
        self.leases.close()

    def close(self):
        """Close the host at the end of the test."""
        self.leases.close()
        self.store.close()
        self.line.__exit__()


class _Keep(logging.Handler):
    def __init__(self, lines):
        super().__init__()
        self.lines = lines

    def emit(self, record):
        self.lines.append(record.getMessage())


@pytest.fixture
def hosts(redis_server):
    """Two hosts."""
    both = [Host("one", redis_server), Host("two", redis_server)]
    yield both
    for host in both:
        host.close()


def test_the_job_of_a_dead_host_is_free_within_the_lease(hosts):
    """Another host gets the job of a dead host when the lease expires, and not before."""
    one, two = hosts
    assert one.take()
    began = time.monotonic()
    one.die()
    assert not two.take()
    eventually(two.take, "the other host has it")
    assert time.monotonic() - began < TTL + 2


@pytest.mark.parametrize("trouble", ["cut", "hang"])
def test_a_host_that_is_cut_off_knows_that_its_claim_is_in_doubt(hosts, trouble):
    """A host that is cut off knows that its claim is in doubt, so it registers nothing.

    Once reconnected, it knows that it lost the claim. It logs one WARN and one INFO.
    """
    one, two = hosts
    assert one.take()
    getattr(one.line, trouble)()
    eventually(two.take, "the other host has it")
    eventually(lambda: one.leases.may_have_been_lost(KEY), "it is in doubt")
    assert not one.leases.lost(KEY)
    one.line.mend()
    eventually(lambda: one.leases.lost(KEY), "it is lost for certain")
    assert not two.leases.may_have_been_lost(KEY)
    assert [line for line in one.lines if line in (AWAY, BACK)] == [AWAY, BACK]
    assert one.leases.give_back(KEY) is False
    assert two.leases.give_back(KEY) is True


def test_a_claim_given_back_while_cut_off_is_free_as_soon_as_the_line_is_mended(hosts, redis_server):
    """The claim is released at once, long before it expires."""
    one, two = hosts
    assert one.take()
    one.line.cut()
    assert one.leases.give_back(KEY) is False
    with redis_server.client() as admin:
        admin.pexpire(KEY, 3_600_000)
        one.line.mend()
        eventually(lambda: admin.get(KEY) is None, "it is released")
    assert two.take()


def test_a_redis_that_forgets_everything_gives_a_claim_to_one_host(hosts, redis_server):
    """After FLUSHALL the first host to claim gets the job, and the other one learns that it lost its claim."""
    one, two = hosts
    with redis_server.client() as admin:
        for _ in range(3):
            assert one.take()
            admin.flushall()
            taken = two.take()
            eventually(lambda: admin.get(KEY), "somebody has it")
            holder = admin.get(KEY)
            assert holder == ("two:S" if taken else "one:S")
            if taken:
                eventually(lambda: one.leases.lost(KEY), "the first host knows")
                two.leases.give_back(KEY)
            one.leases.give_back(KEY)


def test_a_slow_line_costs_no_claim(hosts):
    """A delay of a tenth of a second each way costs no claim."""
    one, two = hosts
    one.line.delay = 0.1
    assert one.take()
    end = time.monotonic() + 1.5 * TTL
    while time.monotonic() < end:
        assert not two.take()
        time.sleep(0.05)
    assert not one.leases.lost(KEY)
    assert AWAY not in one.lines


def test_a_redis_that_became_a_replica_is_left_for_its_successor(tmp_path):
    """After a failover, old connections lead to a replica; the store reconnects by name and reaches the new primary."""
    servers = []
    for name in ("former", "successor"):
        (tmp_path / name).mkdir()
        servers.append(RedisServer(tmp_path / name).start())
    former, successor = servers
    host = Host("one", former)
    try:
        assert host.take()
        host.line.lead_to((successor.host, successor.port))
        with former.client() as admin:
            admin.replicaof(successor.host, successor.port)
        eventually(lambda: former.client().info("replication")["role"] == "slave", "it is a replica")
        eventually(host.take, "the successor is asked")
        with successor.client() as admin:
            assert admin.get(KEY) == "one:S"
    finally:
        host.close()
        for server in servers:
            server.stop()
