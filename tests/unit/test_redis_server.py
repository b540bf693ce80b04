"""The redis-server that tests use is recent enough, starts empty, and always ends."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import redis_server


def test_the_server_found_is_new_enough():
    """The program itself would accept this version of Redis."""
    assert redis_server.version(redis_server.find()) >= (6, 2)


def test_a_server_dies_with_the_process_that_started_it(tmp_path):
    """The server ends even when the process that started it is killed and cannot clean up."""
    script = """
        import sys, time
        sys.path.insert(0, sys.argv[1])
        import redis_server
        server = redis_server.RedisServer(sys.argv[2]).start()
        print(server.pid, flush=True)
        sys.stdin.read()
    """
    starter = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), Path(redis_server.__file__).parent, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with starter:
        server = psutil.Process(int(starter.stdout.readline()))
        assert server.is_running()
        os.kill(starter.pid, signal.SIGKILL)
    server.wait(10)


def test_a_restart_forgets_everything_and_keeps_the_port(redis_server):
    """After a restart, clients find an empty server on the same port."""
    with redis_server.client() as client:
        client.set("key", "value")
        port = redis_server.port
        redis_server.restart()
        assert (client.get("key"), redis_server.port) == (None, port)
