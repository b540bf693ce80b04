"""The proxy in front of Redis: forwarding, delay, deafness, resets."""

import time

import pytest
import redis
from chaos.proxy import Proxies


@pytest.fixture
def proxy(redis_server):
    """A proxy in front of a running Redis."""
    proxies = Proxies()
    yield proxies.add((redis_server.host, redis_server.port))
    proxies.close()


@pytest.fixture
def client(proxy):
    """A client that uses the proxy, with a timeout of two seconds and no retry."""
    with redis.Redis(port=proxy.port, socket_timeout=2.0, retry=None) as client:
        yield client


def test_it_passes_everything_on(client):
    """It forwards both ways, large values too."""
    client.set("key", "x" * 500_000)
    assert len(client.get("key")) == 500_000


def test_a_late_answer_is_late(proxy, client):
    """Each direction takes the latency longer."""
    client.ping()
    proxy.latency = 0.05
    begun = time.monotonic()
    client.ping()
    assert time.monotonic() - begun >= 0.1


def test_a_deaf_proxy_is_silent_until_it_is_healed(proxy, client):
    """Connections stay open, and nothing arrives."""
    client.ping()
    proxy.deaf = True
    with pytest.raises(redis.exceptions.TimeoutError):
        client.ping()
    proxy.heal()
    assert client.ping()


def test_a_cut_breaks_what_stands(proxy, client, redis_server):
    """A reset breaks connections, and new ones work."""
    client.ping()
    connection = client.connection_pool.get_connection()
    proxy.cut()
    with pytest.raises(redis.exceptions.ConnectionError):
        connection.read_response()
    client.connection_pool.release(connection)
    assert redis.Redis(port=proxy.port, socket_timeout=5).ping()


def test_without_redis_there_is_no_connection(client, redis_server):
    """The proxy's answers are those of Redis itself."""
    redis_server.stop()
    with pytest.raises(redis.exceptions.ConnectionError):
        client.ping()
