"""The emulated anka: run and cp; guest processes, their streams, environment and end.

Owns the proof of the behaviour inside guests.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest
from emulators.anka.bench import eventually, finish

BINARY = bytes(range(256)) * 2000


def goes_on(ticks):
    """Return True if a guest's process still writes to this file."""
    eventually(ticks.exists)
    size = ticks.stat().st_size
    eventually(lambda: ticks.stat().st_size >= size + 3)


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -9 $$", 137)])
def test_run_passes_the_exit_status(host, script, status):
    """The exit status is the guest command's; a death by signal is 128 plus the number. A stopped VM is started first."""
    host.ok("clone", "tpl", "one")
    assert host.anka("-j", "run", "one", "sh", "-c", script).returncode == status
    assert host.running() == ["one"]


def test_run_argv_meets_no_shell(host):
    """Everything after the vmid is the guest's argv, options and shell characters included."""
    host.ok("clone", "tpl", "one")
    done = host.anka("run", "-n", "one", "printf", "%s|", "-e", "a b", "$HOME", "*", "--yes", "")
    assert done.stdout == b"-e|a b|$HOME|*|--yes||"


def test_run_forwards_binary_streams(host):
    """A megabyte of all byte values goes in through stdin and comes out of stdout and stderr unchanged."""
    host.ok("clone", "tpl", "one")
    done = host.anka("run", "one", "tee", "/dev/stderr", stdin=BINARY)
    assert done.stdout == BINARY
    assert done.stderr == BINARY


def test_run_takes_a_script_from_stdin(host):
    """`bash -s` runs a script from stdin in the guest's home; a command that does not read stdin also ends."""
    host.ok("clone", "tpl", "one")
    done = host.anka("run", "one", "bash", "-s", stdin=b"pwd\necho $0\nexit 3\n")
    assert (done.returncode, done.stdout.decode().split()) == (3, [str(host.guest_home("one").resolve()), "bash"])
    process = host.begin("run", "one", "true", stdin=subprocess.PIPE)
    assert process.wait(timeout=20) == 0
    finish(process)


def test_run_environment_is_the_guests(host):
    """No host variable except the marker reaches the guest; only stdin, stdout and stderr are open."""
    host.ok("clone", "tpl", "one")
    done = host.anka("run", "one", "sh", "-c", "env; ls /proc/self/fd 2>/dev/null | wc -l", SECRET="bait")
    lines = done.stdout.decode().splitlines()
    guest = dict(line.split("=", 1) for line in lines[:-1])
    home = str(host.guest_home("one").resolve())
    assert guest.pop("PWD", home) == home
    assert guest == {
        "HOME": home,
        "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "USER": "anka",
        "SHELL": "/bin/bash",
        "XPC_SERVICE_NAME": "com.veertu.anka.addons.ankarun",
        "FAKE_ANKA_VM": host.vm("one")["uuid"],
    } | {key: guest[key] for key in guest if key in ("_", "SHLVL", "OLDPWD")}
    assert int(lines[-1]) in (0, 4)  # ls itself opens the fourth


def test_run_environment_options(host, directory):
    """-e and --env-file override; -E inherits, without overriding and without the emulator's variables; -w sets the folder."""
    host.ok("clone", "tpl", "one")
    (directory / "env").write_text('FROM_FILE="quoted"\n')
    show = 'echo "$A|$FROM_FILE|$INHERITED|$USER|$FAKE_ANKA_HOME|$PWD"'
    args = ["-e", "A=1 2", "--env-file", str(directory / "env"), "-E", "-w", "/", "one", "sh", "-c", show]
    done = host.anka("run", *args, INHERITED="yes", USER="root")
    assert done.stdout == b'1 2|"quoted"|yes|anka||/\n'


def test_run_quiet_and_background(host):
    """-q drops stdout; -b prints the guest's pid and returns while it runs."""
    host.ok("clone", "tpl", "one")
    assert host.anka("run", "-q", "one", "echo", "hi").stdout == b""
    pid = int(host.anka("run", "-b", "one", "sleep", "600").stdout)
    assert [process.pid for process in host.guest_processes("one")] == [pid]
    host.ok("stop", "one")
    assert host.guest_processes() == []


def test_run_of_a_missing_program(host):
    """A program that the guest does not have is status 127, one that is not executable 126, with text on stderr."""
    host.ok("clone", "tpl", "one")
    done = host.anka("run", "one", "no-such-program")
    assert (done.returncode, done.stderr) == (127, b"no-such-program: No such file or directory\n")
    assert host.anka("run", "one", "/etc/passwd").returncode == 126


def test_run_returns_before_background_processes(host):
    """`anka run` ends with its command even if a background process holds its streams; that one lives on and may write."""
    host.ok("clone", "tpl", "one")
    script = "(while :; do echo tick; echo >>ticks; sleep 0.02; done) & echo done"
    done = host.anka("run", "one", "bash", "-c", script)
    assert done.stdout.startswith((b"done\n", b"tick\n"))
    before = {process.pid for process in host.guest_processes("one") if process.argv[0] == "bash"}
    goes_on(host.guest_home("one") / "ticks")
    # The loop's shell lives on; one that it forked to become a `sleep` may be in the first list only.
    assert before & {process.pid for process in host.guest_processes("one")}


def test_run_waits_for_end_of_output_when_told(host):
    """With run_waits_for=eof, a background writer delays the end of `anka run` until it is gone."""
    host.set(run_waits_for="eof")
    host.ok("clone", "tpl", "one")
    assert host.anka("run", "one", "bash", "-c", "(sleep 0.3; echo late) & echo soon").stdout == b"soon\nlate\n"


@pytest.mark.parametrize(("choice", "lives"), [("lives", True), ("killed", False)])
def test_killing_the_host_command(host, choice, lives):
    """SIGKILL to the process group of `anka run` leaves the guest's process alive or kills it, as the switch says."""
    host.set(killed_run_guest=choice)
    host.ok("clone", "tpl", "one")
    script = "echo up; while :; do echo tick; echo >>ticks; sleep 0.02; done"
    process = host.begin("run", "one", "bash", "-c", script, start_new_session=True)
    assert process.stdout.read(3) == b"up\n"
    os.killpg(process.pid, signal.SIGKILL)
    finish(process)
    shell = lambda: [p for p in host.guest_processes("one") if p.argv[0] == "bash"]  # noqa: E731  a condition
    if lives:
        goes_on(host.guest_home("one") / "ticks")
        assert shell()
    else:
        eventually(lambda: not shell())


def test_run_dies_with_its_reader(host):
    """When the reader of its output is gone, `anka run` dies of SIGPIPE; the switch decides the fate of the guest's process."""
    host.set(killed_run_guest="killed")
    host.ok("clone", "tpl", "one")
    process = host.begin("run", "one", "bash", "-c", "while echo tick; do sleep 0.01; done")
    assert process.stdout.read(5) == b"tick\n"
    process.stdout.close()
    assert process.wait(timeout=20) == -signal.SIGPIPE
    process.stderr.close()
    eventually(lambda: not host.guest_processes())


def test_run_with_closed_standard_streams(host):
    """A closed stdin reads as empty, a closed stdout discards: no stream of the guest takes a closed descriptor's number."""
    host.ok("clone", "tpl", "one")
    script = (
        "anka run one cat <&-; anka run one cat 0>/dev/null; anka run one sh -c 'echo hi; exit 4' >&- 2>&-; echo $?"
    )
    done = subprocess.run(["bash", "-c", script], env=host.environ(), capture_output=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == (b"4\n", b"")


def test_run_of_a_stopped_guest_is_125(host):
    """If a guest is stopped, deleted or rebooted under a running command, the run ends with 125 and text on stderr."""
    host.run_vms("one")
    for args in (["stop", "-f", "one"], ["reboot", "one"], ["delete", "--yes", "one"]):
        process = host.begin("run", "one", "sleep", "600")
        eventually(lambda: host.guest_processes("one"))
        assert host.anka(*args).returncode == 0
        status, out, err = finish(process)
        assert (status, out) == (125, b"")
        assert err.startswith(b"anka: ")


def test_run_before_the_guest_is_ready(host):
    """The first runs after a start may find no guest: 125, as text on stderr, or as an envelope with -j."""
    host.set(boot_runs=2)
    host.run_vms("one")
    done = host.anka("run", "one", "true")
    assert (done.returncode, done.stderr) == (125, b"anka: communication timeout\n")
    done = host.anka("-j", "run", "one", "true")
    assert (done.returncode, json.loads(done.stdout)["message"]) == (125, "communication timeout")
    assert host.anka("run", "one", "true").returncode == 0


@pytest.mark.parametrize(
    ("choice", "stdout"),
    [
        ("raw", b"hi\n"),
        ("append", b'hi\n{"status": "OK", "code": 0, "body": {}, "message": ""}\n'),
        ("wrap", b'{"status": "OK", "code": 0, "body": "hi\\n", "message": ""}\n'),
    ],
)
def test_machine_readable_run(host, choice, stdout):
    """With -j, the guest's output is raw, is followed by an envelope, or is inside one, as the switch says."""
    host.set(run_json=choice)
    host.ok("clone", "tpl", "one")
    assert host.anka("-j", "run", "one", "echo", "hi").stdout == stdout


def test_graceful_stop_terminates_first(host):
    """`stop` sends SIGTERM to the guest's processes and waits; `stop -f` does not."""
    host.set(stop_grace=20)
    script = "trap 'echo bye > bye; exit 0' TERM; echo ready > ready; while :; do sleep 0.05; done"
    for args, said_bye in ((["stop"], True), (["stop", "--force"], False)):
        name = "one" if said_bye else "two"
        host.run_vms(name)
        host.anka("run", "-b", name, "bash", "-c", script)
        home = host.guest_home(name)
        eventually((home / "ready").exists)
        host.ok(*args, name)
        assert (home / "bye").exists() == said_bye
        assert host.guest_processes(name) == []


def test_cp_both_ways(host, directory):
    """Files arrive in the guest's home with their mode, and trees come back, by relative and by /Users/anka path."""
    host.run_vms("one")
    script = directory / "run.sh"
    script.write_text("#!/bin/sh\nmkdir -p actions-runner/_diag; echo log > actions-runner/_diag/Runner.log\n")
    script.chmod(0o755)
    host.ok("cp", "-a", str(script), "one:")
    assert host.anka("run", "one", "./run.sh").returncode == 0
    host.ok("cp", "-a", "one:/Users/anka/actions-runner/_diag", str(directory / "diag"))
    assert (directory / "diag" / "Runner.log").read_text() == "log\n"
    host.ok("cp", "one:actions-runner/_diag/Runner.log", str(directory))
    assert (directory / "Runner.log").read_text() == "log\n"


def test_cp_refusals(host, directory):
    """A missing source, a folder without -R, a missing target folder and a path outside the guest's home are refused."""
    host.run_vms("one")
    missing = directory / "missing"
    assert host.error("cp", str(missing), "one:") == (2, f"{missing}: No such file or directory")
    assert host.error("cp", "one:missing", str(directory))[0] == 2
    assert host.error("cp", str(directory), "one:")[0] == 21
    assert host.error("cp", "/etc/hosts", "one:no/such/folder")[0] == 2
    assert host.error("cp", "one:/etc/hosts", str(directory))[0] == 13
    assert host.error("cp", "one:../../../state.json", str(directory))[0] == 13


def test_cp_and_symlinks(host, directory):
    """-a copies a symlink as a symlink (dangling in the guest); plain cp and -RL copy its target."""
    host.run_vms("one")
    (directory / "real").write_text("content")
    (directory / "link").symlink_to(directory / "gone" / "real")
    host.ok("cp", "-a", str(directory / "link"), "one:")
    assert host.anka("run", "one", "cat", "link").returncode == 1
    (directory / "link").unlink()
    (directory / "link").symlink_to("real")
    host.ok("cp", str(directory / "link"), "one:followed")
    host.ok("cp", "-pRLf", str(directory / "link"), "one:followed-too")
    for name in ("followed", "followed-too"):
        assert host.anka("run", "one", "cat", name).stdout == b"content"
    host.ok("cp", "-n", "/etc/hosts", "one:followed")
    assert host.anka("run", "one", "cat", "followed").stdout == b"content"


def test_cp_to_a_stopped_vm(host):
    """A cp to a stopped VM is refused, starts it, or works on its disk, as the switch says."""
    host.ok("clone", "tpl", "one")
    assert host.error("cp", "/etc/hosts", "one:") == (1, "one: VM is not running")
    host.set(cp_stopped="offline")
    host.ok("cp", "/etc/hosts", "one:")
    assert host.running() == []
    host.set(cp_stopped="start")
    host.ok("cp", "/etc/hosts", "one:again")
    assert host.running() == ["one"]
