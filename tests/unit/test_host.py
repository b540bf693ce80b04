"""The host: one supervisor per state directory, ids of machine and boot, a Mac that stays awake."""

import fcntl
import multiprocessing
import os
import re
import stat
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from anklet_supervisor.daemon import host
from anklet_supervisor.daemon.host import (
    UNKNOWN_HOST,
    InstanceLock,
    PidFile,
    boot_id,
    identify,
    keep_awake,
    running_supervisor,
)
from anklet_worker.contract.errors import AlreadyRunning, ConfigError, ExitCode, TemporaryError

HERE, THERE = "a" * 16, "b" * 16


def eventually(condition, deadline=10.0):
    """Poll until the condition holds; its value."""
    end = time.monotonic() + deadline
    while not (value := condition()):
        assert time.monotonic() < end, "not in time"
        threading.Event().wait(0.01)
    return value


HOLDER = """
    import os, pathlib, sys
    from anklet_supervisor.daemon.host import InstanceLock
    lock = InstanceLock(pathlib.Path(sys.argv[1]))
    lock.acquire()
    print(os.getpid(), flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock until it is killed."""
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert int(process.stdout.readline()) == process.pid
        yield process
        process.kill()


# ---- the lock ----


def test_a_second_supervisor_is_refused_with_the_pid_of_the_first(tmp_path, holder):
    """Exit code 75, and the pid of the one that runs."""
    with pytest.raises(
        AlreadyRunning, match=rf"already running: another supervisor \(pid {holder.pid}\) holds "
    ) as refusal:
        InstanceLock(tmp_path).acquire()
    assert refusal.value.exit_code == ExitCode.TEMPFAIL


def test_a_killed_supervisor_holds_nothing(tmp_path, holder):
    """The kernel releases the lock of a killed process; the pid that stays in the file does not count."""
    assert running_supervisor(tmp_path) == holder.pid
    holder.kill()
    holder.wait()
    assert (tmp_path / "lock").read_text() == f"{holder.pid}\n"
    assert running_supervisor(tmp_path) is None
    lock = InstanceLock(tmp_path)
    lock.acquire()
    assert running_supervisor(tmp_path) == os.getpid()
    lock.release()
    assert running_supervisor(tmp_path) is None


def test_a_pid_without_the_lock_means_nothing(tmp_path):
    """A pid in the lock file means nothing, even a live one, unless a process holds the lock."""
    (tmp_path / "lock").write_text(f"{os.getpid()}\n")
    assert running_supervisor(tmp_path) is None


def test_no_state_directory_no_supervisor(tmp_path):
    """Asking for the running supervisor creates nothing."""
    assert running_supervisor(tmp_path / "missing") is None
    assert not (tmp_path / "missing").exists()


def test_a_command_that_looks_does_not_keep_a_supervisor_from_starting(tmp_path):
    """A shared lock delays a start only for as long as it is held."""
    with (tmp_path / "lock").open("w+") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        threading.Timer(0.05, fcntl.flock, (looking, fcntl.LOCK_UN)).start()
        lock = InstanceLock(tmp_path)
        lock.acquire()
        lock.release()


def test_a_held_lock_without_a_pid_is_an_error(tmp_path):
    """An incomplete pid in the file is an error: a supervisor runs, but its pid is unknown."""
    with (tmp_path / "lock").open("w+") as held:
        held.write("12")
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(TemporaryError, match="its pid is not in it"):
            running_supervisor(tmp_path)


def test_a_child_program_does_not_inherit_the_lock(tmp_path):
    """A program that outlives its supervisor must not block the next one."""
    lock = InstanceLock(tmp_path)
    lock.acquire()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False) as child:
        lock.release()
        assert running_supervisor(tmp_path) is None
        child.stdin.close()


def hold_and_wait(state_dir, ready):
    """Hold the lock and wait; the target of the spawned process below."""
    ready.send(running_supervisor(Path(state_dir)))


def test_a_spawned_worker_does_not_inherit_the_lock(tmp_path):
    """Spawned workers have only the descriptors that they are given."""
    lock = InstanceLock(tmp_path)
    lock.acquire()
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    child = multiprocessing.get_context("spawn").Process(target=hold_and_wait, args=(str(tmp_path), theirs))
    child.start()
    lock_path = tmp_path / "lock"
    assert ours.recv() == os.getpid()
    child.join()
    lock.release()
    assert lock_path.exists()


def test_a_link_in_place_of_the_lock_is_refused(tmp_path):
    """Nothing is written through the link."""
    (tmp_path / "elsewhere").write_text("theirs")
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TemporaryError, match="cannot lock"):
        InstanceLock(tmp_path).acquire()
    assert (tmp_path / "elsewhere").read_text() == "theirs"


def test_the_lock_is_private(tmp_path):
    """Others can neither read nor hold it."""
    lock = InstanceLock(tmp_path)
    lock.acquire()
    lock.release()
    assert stat.S_IMODE((tmp_path / "lock").stat().st_mode) == 0o600


# ---- the pid file ----


def test_the_pid_file_points_at_us_and_goes_with_us(tmp_path):
    """The pid file is written atomically, readable by all, and removed at the end."""
    pid_file = PidFile(tmp_path)
    pid_file.write()
    path = tmp_path / "anklet.pid"
    assert path.read_text() == f"{os.getpid()}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    pid_file.remove()
    assert not path.exists()
    pid_file.remove()


@pytest.mark.parametrize("content", [b"1\n", b"\xff\xfe"])
def test_a_pid_file_of_somebody_else_stays(tmp_path, content):
    """A pid file that another supervisor has written in the meantime is not removed."""
    pid_file = PidFile(tmp_path)
    pid_file.write()
    (tmp_path / "anklet.pid").write_bytes(content)
    pid_file.remove()
    assert (tmp_path / "anklet.pid").read_bytes() == content


def test_a_pid_file_that_cannot_be_written_is_reported(tmp_path):
    """The line names the file."""
    with pytest.raises(TemporaryError, match=re.escape(str(tmp_path / "missing" / "anklet.pid"))):
        PidFile(tmp_path / "missing").write()


# ---- ids ----


def test_the_install_id_is_made_once(tmp_path):
    """The id has eight hex digits, is private, and is the same at each start."""
    first, second = identify(tmp_path), identify(tmp_path)
    assert first == second
    assert re.fullmatch(r"[0-9a-f]{8}", first.install_id)
    assert first.former_install_id is None
    assert stat.S_IMODE((tmp_path / "install-id").stat().st_mode) == 0o600


def test_two_installations_differ(tmp_path):
    """Each state directory has an id of its own."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert identify(tmp_path / "a").install_id != identify(tmp_path / "b").install_id


def test_a_directory_copied_from_another_host_gets_a_new_id(tmp_path):
    """The result names the old one, which the other host still has."""
    there = identify(tmp_path, THERE)
    here = identify(tmp_path, HERE)
    assert here.install_id != there.install_id
    assert here.former_install_id == there.install_id
    assert identify(tmp_path, HERE).install_id == here.install_id
    assert identify(tmp_path, HERE).former_install_id is None


@pytest.mark.parametrize(("first", "second"), [(UNKNOWN_HOST, HERE), (HERE, UNKNOWN_HOST)])
def test_a_host_without_an_id_keeps_the_install_id(tmp_path, first, second):
    """If the system once gives no id, the installation must not lose its VMs."""
    before = identify(tmp_path, first)
    after = identify(tmp_path, second)
    assert (after.install_id, after.host_id) == (before.install_id, first)


@pytest.mark.parametrize(
    "content", [b"", b"12345678", b"xyz\n", b"12345678 \xff\n", b"1234567890 " + b"a" * 16 + b"\n"]
)
def test_a_file_without_an_install_id_is_an_error_for_people(tmp_path, content):
    """The file is not replaced, because VMs may have the old id in their names."""
    (tmp_path / "install-id").write_bytes(content)
    with pytest.raises(ConfigError, match="holds no install id"):
        identify(tmp_path)
    assert (tmp_path / "install-id").read_bytes() == content


def test_an_id_that_cannot_be_saved_is_an_error(tmp_path):
    """Without the file, the next start would not know its VMs."""
    with pytest.raises(TemporaryError, match="cannot use"):
        identify(tmp_path / "missing")


def test_this_host_has_an_id_that_does_not_show_the_machine_id():
    """The machine id itself is confidential (machine-id(5)); its hash is stable."""
    assert re.fullmatch(r"[0-9a-f]{16}", host.host_id())
    assert host.host_id() == host.host_id()
    for path in (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id")):
        if path.is_file():
            assert not path.read_text().startswith(host.host_id())


def test_the_boot_id_is_the_kernels(tmp_path):
    """The id is the same in each process of this boot, and no file stores it."""
    program = "import pathlib, sys; from anklet_supervisor.daemon.host import boot_id; print(boot_id(pathlib.Path(sys.argv[1])))"
    other = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == boot_id(tmp_path) != ""


def test_without_a_kernels_boot_id_the_time_of_boot_stands_for_it(tmp_path, monkeypatch):
    """Setting the clock moves the boot time a little but not the id; a boot changes both."""
    monkeypatch.setattr(psutil, "boot_time", lambda: 1_700_000_000.6)
    first = boot_id(tmp_path, kernel="")
    monkeypatch.setattr(psutil, "boot_time", lambda: 1_700_000_020.2)
    assert boot_id(tmp_path, kernel="") == first == "1700000001"
    monkeypatch.setattr(psutil, "boot_time", lambda: 1_700_000_500.0)
    assert boot_id(tmp_path, kernel="") == "1700000500"


# ---- awake ----

CAFFEINATE = """#!/bin/sh
{ echo "$@"; ps -o pgid= -p $$; env; ls -l /proc/self/fd 2>/dev/null; } > "$0.said.new"
mv "$0.said.new" "$0.said"
"""


@pytest.fixture
def caffeinate(tmp_path, monkeypatch):
    """A program of that name on PATH that records how it was called."""
    program = tmp_path / "caffeinate"
    program.write_text(CAFFEINATE)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("RUNNER1_TOKEN", "bait")
    return program


def test_a_mac_is_kept_awake_by_a_program_that_ends_with_us(caffeinate):
    """`caffeinate -i -s -w PID` runs in its own process group, without the secrets of our environment."""
    pid = keep_awake(macos=True)
    os.waitpid(pid, 0)
    arguments, group, *rest = Path(f"{caffeinate}.said").read_text().splitlines()
    assert arguments == f"-i -s -w {os.getpid()}"
    assert int(group) == pid
    assert "bait" not in "\n".join(rest)


def test_other_systems_and_macs_without_the_program_are_left_alone(caffeinate, monkeypatch):
    """On other systems, and on Macs without the program, nothing is started."""
    assert keep_awake(macos=False) is None
    caffeinate.write_text("no program")
    caffeinate.chmod(0o755)
    assert keep_awake(macos=True) is None
    caffeinate.unlink()
    monkeypatch.setenv("PATH", "/nowhere")
    assert keep_awake(macos=True) is None
