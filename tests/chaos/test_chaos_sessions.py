"""The harness kills what it started, and nothing that reuses an id of it."""

import os
import subprocess
import sys
import time

import psutil
import pytest
from chaos.fleet import is_of_call
from chaos.sessions import Sessions

#: Like a supervisor: it leads a session and has a child that sets its title, as workers do. It prints a line when both are up.
_LEADER = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", '''
import setproctitle, sys
setproctitle.setproctitle("anklet-worker: " + "R" * 2000)
print("up", flush=True)
sys.stdin.read()
'''], stdin=subprocess.PIPE)
child.wait()
"""


@pytest.fixture
def start():
    """Starts a leader and its child with additional variables, and ends them."""
    started = []

    def begin(variables):
        process = subprocess.Popen(
            [sys.executable, "-c", _LEADER], env=os.environ | variables, stdout=subprocess.PIPE, start_new_session=True
        )
        started.append(process)
        assert process.stdout.readline() == b"up\n"
        return process

    yield begin
    for process in started:
        for one in (*psutil.Process(process.pid).children(), psutil.Process(process.pid)):
            one.kill()
        process.wait()
        process.stdout.close()


def test_a_supervisor_and_its_worker(start):
    """Both are found, although the worker's title overwrites part of its environment."""
    sessions = Sessions()
    mark = sessions.variables()
    leader = start(mark)
    sessions.add(leader.pid, mark)
    assert {process.pid for process in sessions.living()} == {
        leader.pid,
        *(child.pid for child in psutil.Process(leader.pid).children()),
    }
    assert len(sessions.lines()) == 2


@pytest.mark.parametrize("variables", [{}, Sessions().variables()])
def test_a_number_that_came_round(start, variables):
    """A session that reuses the id of an earlier supervisor belongs to a guest or to a later supervisor."""
    sessions = Sessions()
    leader = start(variables)
    sessions.add(leader.pid, sessions.variables())
    assert sessions.living() == []


def test_a_call_and_who_has_its_pid_now():
    """A call without an end is in flight only while the process that made it lives."""
    assert is_of_call({"pid": os.getpid(), "start": time.time()})
    assert not is_of_call({"pid": os.getpid(), "start": psutil.Process().create_time() - 60.0})
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert not is_of_call({"pid": child.pid, "start": time.time()})
