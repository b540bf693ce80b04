"""The emulated tart: exec, ip and ssh; guest processes, their streams, environment and end.

Owns the proof of the behaviour inside guests and on their network.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest
from emulators.tart.bench import eventually, finish

BINARY = bytes(range(256)) * 2000
NO_AGENT = "Failed to connect to the VM using its control socket: "
NO_KEYS = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR")


# -- exec ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -9 $$", 255)])
def test_exec_passes_the_exit_status(host, script, status):
    """The exit status is the guest command's; a death by signal is 255."""
    host.run_vms("one")
    assert host.tart("exec", "one", "sh", "-c", script).returncode == status


def test_exec_argv_meets_no_shell(host):
    """Everything after the name is the guest's argv, options and shell characters included."""
    host.run_vms("one")
    assert host.ok("exec", "one", "printf", "%s|", "-i", "a b", "$HOME", "*", "--") == "-i|a b|$HOME|*|--|"


def test_exec_forwards_binary_streams(host):
    """With -i, half a megabyte of all byte values goes in through stdin and comes out of stdout and stderr unchanged."""
    host.run_vms("one")
    done = host.tart("exec", "-i", "one", "tee", "/dev/stderr", stdin=BINARY)
    assert (done.stdout == BINARY, done.stderr == BINARY) == (True, True)


def test_exec_takes_a_script_from_stdin(host):
    """`exec -i NAME bash -s` runs a script from stdin in the guest's home; without -i stdin is empty."""
    host.run_vms("one")
    done = host.tart("exec", "-i", "one", "bash", "-s", stdin=b"pwd\nexit 3\n")
    assert (done.returncode, done.stdout.decode().strip()) == (3, str(host.guest_home("one").resolve()))
    assert host.tart("exec", "one", "cat", stdin=b"ignored").stdout == b""
    process = host.begin("exec", "-i", "one", "true", stdin=subprocess.PIPE)
    assert process.wait(timeout=20) == 0
    finish(process)


def test_exec_environment_is_the_guests(host):
    """No host variable except the marker reaches the guest; only stdin, stdout and stderr are open."""
    host.run_vms("one")
    done = host.tart("exec", "one", "sh", "-c", "env; ls /proc/self/fd 2>/dev/null | wc -l", SECRET="bait")
    lines = done.stdout.decode().splitlines()
    guest = dict(line.split("=", 1) for line in lines[:-1])
    home = str(host.guest_home("one").resolve())
    assert guest.pop("PWD", home) == home
    assert guest.pop("PATH").endswith("guest-bin:/bin:/usr/bin:/usr/sbin:/usr/local/bin:/opt/homebrew/bin")
    assert guest == {
        "HOME": home,
        "USER": "admin",
        "LOGNAME": "admin",
        "SHELL": "/bin/zsh",
        "XPC_SERVICE_NAME": "org.cirruslabs.tart-guest-agent",
        "FAKE_TART_VM": host.vm("one")["uuid"],
    } | {key: guest[key] for key in guest if key in ("_", "SHLVL", "OLDPWD")}
    assert int(lines[-1]) in (0, 4)  # ls itself opens the fourth


def test_exec_of_what_is_no_program(host):
    """A command that the agent cannot start is an error of the call, status 1, whatever a shell would report."""
    host.run_vms("one")
    text = 'Error: unknown (2): exec: "no-such-program": executable file not found in $PATH'
    assert host.error("exec", "one", "no-such-program") == (1, text)
    assert host.error("exec", "one", "/etc/passwd") == (
        1,
        "Error: unknown (2): fork/exec /etc/passwd: permission denied",
    )
    assert host.error("exec", "one", "./x") == (1, "Error: unknown (2): fork/exec ./x: no such file or directory")


@pytest.mark.parametrize(("choice", "lives"), [("closed", False), ("drained", True)])
def test_exec_ends_with_its_command(host, choice, lives):
    """A background process does not delay `exec`; its later output hits a broken pipe or is discarded, as the switch says."""
    host.set(exec_output=choice)
    host.run_vms("one")
    script = (
        "(trap 'echo >broken; exit' PIPE; while echo tick; do echo >>ticks; sleep 0.02; done; echo >broken) & echo done"
    )
    assert "done" in host.ok("exec", "one", "bash", "-c", script)
    home = host.guest_home("one")
    if lives:
        eventually((home / "ticks").exists)
        size = (home / "ticks").stat().st_size
        eventually(lambda: (home / "ticks").stat().st_size >= size + 3)
        assert not (home / "broken").exists()
    else:
        eventually((home / "broken").exists)


def test_exec_waits_for_the_end_of_output_when_told(host):
    """With exec_waits_for=eof, a background writer delays the end of `tart exec` until it is gone."""
    host.set(exec_waits_for="eof")
    host.run_vms("one")
    assert host.ok("exec", "one", "bash", "-c", "(sleep 0.3; echo late) & echo soon") == "soon\nlate\n"


@pytest.mark.parametrize(("choice", "lives"), [("killed", False), ("lives", True)])
def test_killing_exec(host, choice, lives):
    """After `tart exec` is killed, the agent kills only the command itself, or not even that, as the switch says."""
    host.set(killed_exec_guest=choice)
    host.run_vms("one")
    process = host.begin(
        "exec", "one", "bash", "-c", "setsid sleep 600 & echo up; sleep 601; :", start_new_session=True
    )
    assert process.stdout.read(3) == b"up\n"
    eventually(lambda: len(host.guest_processes("one")) == 3)
    os.killpg(process.pid, signal.SIGKILL)
    finish(process)
    if not lives:
        eventually(lambda: sorted(p.argv[1] for p in host.guest_processes("one")) == ["600", "601"])
    eventually(lambda: {"600", "601"} <= {p.argv[1] for p in host.guest_processes("one")})
    assert len(host.guest_processes("one")) == (3 if lives else 2)


def test_exec_when_the_vm_ends(host):
    """If a VM ends under a running command, `exec` fails with 1 and no guest process is left."""
    host.run_vms("one")
    process = host.begin("exec", "one", "sleep", "600")
    eventually(lambda: host.guest_processes("one"))
    host.ok("stop", "one")
    status, out, err = finish(process)
    assert (status, out, err) == (1, b"", b"Error: unavailable (14): Transport became inactive\n")
    assert host.guest_processes() == []


def test_exec_without_an_agent(host):
    """No agent in the image, none on the host, and an agent that comes up late: status 1 and Tart's text."""
    host.add_image("vanilla", agent=False)
    host.run_vm("vanilla")
    host.run_vms("one")
    status, text = host.error("exec", "vanilla", "true")
    assert (status, text[: len(NO_AGENT)], text.endswith(", is the Tart Guest Agent running?")) == (1, NO_AGENT, True)
    host.set(guest_agent=False)
    assert host.error("exec", "one", "true")[0] == 1
    host.set(guest_agent=True, boot_execs=2)
    host.ok("stop", "one")
    host.run_vm("one")
    assert [host.tart("exec", "one", "true").returncode for _ in range(3)] == [1, 1, 0]


def test_exec_may_lose_the_tail_of_its_output(host):
    """With exec_tail_lost, the next exec loses the last piece of its output but still returns the status."""
    host.set(exec_tail_lost=1)
    host.run_vms("one")
    script = "echo first; sleep 0.2; echo last; exit 5"
    done = host.tart("exec", "one", "bash", "-c", script)
    assert (done.returncode, done.stdout) == (5, b"first\n")
    assert host.tart("exec", "one", "bash", "-c", script).stdout == b"first\nlast\n"


# -- addresses ----------------------------------------------------------------------------------------


def test_ip_comes_after_some_looks(host):
    """`ip` finds nothing in its first looks after a start; with --wait it keeps looking."""
    host.set(ip_after_polls=2)
    host.run_vms("one")
    assert host.error("ip", "one") == (1, "no IP address found")
    host.set(ip_pause=0.6)
    assert host.ok("ip", "one", "--wait", "5").startswith("192.168.64.")
    assert host.ok("ip", "one", "--resolver", "arp") == host.ok("ip", "one", "--resolver", "agent")


def test_ip_of_a_vm_that_does_not_run(host):
    """Without a lease, `ip` waits for a pause, fails, and asks whether the VM runs."""
    host.set(ip_pause=0.3)
    begin = time.monotonic()
    assert host.error("ip", "tpl") == (1, "no IP address found, is your VM running?")
    assert time.monotonic() - begin >= 0.3
    text = (
        "no IP address found, is your VM running? (also make sure that Guest agent for Tart is running inside of a VM)"
    )
    assert host.error("ip", "tpl", "--resolver", "agent") == (1, text)


def test_a_lease_outlives_its_vm(host):
    """The lease file still knows a stopped VM, and a clone with the same MAC that never ran; arp and agent do not."""
    host.add_image("ghcr.io/acme/macos:v1")
    host.ok("clone", "ghcr.io/acme/macos:v1", "one")
    host.run_vm("one")
    address = host.ok("ip", "one")
    host.ok("stop", "one")
    assert host.ok("ip", "one") == address
    host.ok("delete", "one")
    host.ok("clone", "ghcr.io/acme/macos:v1", "two")
    assert host.ok("ip", "two") == address
    assert host.error("ip", "two", "--resolver", "arp")[0] == 1
    assert host.ssh(*NO_KEYS, f"admin@{address.strip()}", "true").stderr.endswith(b"Operation timed out\n")
    assert "ip_address=192.168.64." in (host.home / "dhcpd_leases").read_text()


def test_a_stale_lease_comes_before_the_right_one(host):
    """With stale_lease, a new VM first has an address that no VM uses, then its own."""
    host.set(stale_lease=True, ip_after_polls=1)
    host.run_vms("one")
    assert host.ok("ip", "one") == "192.168.64.254\n"
    assert host.ok("ip", "one") != "192.168.64.254\n"


def test_running_vms_have_addresses_of_their_own(host):
    """Two running VMs never have the same address, and an expired lease does not count."""
    host.run_vms("one", "two")
    assert host.ok("ip", "one") != host.ok("ip", "two")
    host.ok("stop", "one")
    host.set(lease_seconds=-1)
    host.ok("clone", "tpl", "three")
    host.run_vm("three")
    assert host.error("ip", "three")[0] == 1


# -- ssh ----------------------------------------------------------------------------------------------


@pytest.fixture
def reached(host):
    """A host with a running VM, as `admin@ADDRESS`."""
    host.run_vms("one")
    return f"admin@{host.ok('ip', 'one').strip()}"


def test_ssh_runs_a_command_by_the_login_shell(host, reached):
    """The words of the command are joined and read by a shell; stdin, stdout, stderr and exit status are the command's."""
    done = host.ssh(*NO_KEYS, "-T", reached, "cat; echo", '"a  b"', ";", "echo oops >&2; exit 9", stdin=BINARY)
    assert (done.returncode, done.stdout, done.stderr) == (9, BINARY + b"a  b\n", b"oops\n")
    done = host.ssh(*NO_KEYS, reached, "bash -s", stdin=b"pwd; echo $USER $SSH_CONNECTION; exit 3")
    assert done.returncode == 3
    assert done.stdout.decode().split()[:3] == [str(host.guest_home("one").resolve()), "admin", "192.168.64.1"]
    assert host.ssh(*NO_KEYS, "-n", reached, "cat", stdin=b"ignored").stdout == b""
    assert host.ssh(*NO_KEYS, reached, "kill -9 $$").returncode == 255
    assert host.ssh(*NO_KEYS, reached, stdin=b"exit 4").returncode == 4


def test_ssh_asks_for_the_password_by_its_program_only(host, reached):
    """The password comes from SSH_ASKPASS when that is forced; a wrong one is asked for repeatedly and then refused."""
    asked = host.home / "asked"
    assert host.ssh(*NO_KEYS, reached, "true", ASKED=str(asked)).returncode == 0
    assert asked.read_text() == f"({reached}) Password:\n"
    only = ("-o", "PreferredAuthentications=password", "-o", "NumberOfPasswordPrompts=1")
    done = host.ssh(*NO_KEYS, *only, reached, "true", password="guess", ASKED=str(asked))
    assert done.returncode == 255
    assert done.stderr.decode().endswith(f"{reached}: Permission denied (publickey,password,keyboard-interactive).\n")
    assert asked.read_text().splitlines()[1:] == [f"{reached}'s password: "]
    for more in ({"SSH_ASKPASS_REQUIRE": ""}, {"SSH_ASKPASS_REQUIRE": "never"}, {"SSH_ASKPASS": "/no/such/program"}):
        assert host.ssh(*NO_KEYS, reached, "true", **{"DISPLAY": "", **more}).returncode == 255
    assert host.ssh(*NO_KEYS, "-o", "BatchMode=yes", reached, "true").returncode == 255
    assert host.ssh(*NO_KEYS, "-l", "root", reached.partition("@")[2], "true").returncode == 255


def test_ssh_host_keys(host, reached, directory):
    """An unknown key is refused or kept, by option; clones of one image share a key; another key at the address is refused."""
    known = directory / "known_hosts"
    keep = ("-o", f"UserKnownHostsFile={known}")
    done = host.ssh(*keep, "-o", "StrictHostKeyChecking=yes", reached, "true")
    assert (done.returncode, done.stderr.endswith(b"Host key verification failed.\n")) == (255, True)
    assert host.ssh(*keep, reached, "true").returncode == 255  # asks, and a password is no answer
    done = host.ssh(*keep, "-o", "StrictHostKeyChecking=accept-new", reached, "true")
    assert (done.returncode, done.stderr.startswith(b"Warning: Permanently added")) == (0, True)
    assert host.ssh(*keep, "-o", "StrictHostKeyChecking=yes", reached, "true").stderr == b""
    known.write_text(known.read_text().replace("ssh-ed25519 ", "ssh-ed25519 x"))
    done = host.ssh(*keep, "-o", "StrictHostKeyChecking=accept-new", reached, "true")
    assert b"REMOTE HOST IDENTIFICATION HAS CHANGED" in done.stderr
    assert host.ssh(*keep, "-o", "StrictHostKeyChecking=no", reached, "true").returncode == 255  # sends no password


def test_ssh_to_nobody(host, reached):
    """An address without a VM times out; a guest that is not up yet or has no sshd refuses: 255 each."""
    host.set(ssh_silence=0.2)
    begin = time.monotonic()
    done = host.ssh(*NO_KEYS, "-o", "ConnectTimeout=5", "admin@192.168.64.99", "true")
    assert (done.returncode, done.stderr) == (255, b"ssh: connect to host 192.168.64.99 port 22: Operation timed out\n")
    assert time.monotonic() - begin >= 0.2
    assert host.ssh(*NO_KEYS, "-p", "2222", reached, "true").stderr.endswith(b"port 2222: Connection refused\n")
    host.set(sshd=False)
    assert host.ssh(*NO_KEYS, reached, "true").stderr.endswith(b"Connection refused\n")
    host.set(sshd=True, boot_sshs=2)
    host.ok("stop", "one")
    host.run_vm("one")
    assert [host.ssh(*NO_KEYS, reached, "true").returncode for _ in range(3)] == [255, 255, 0]


@pytest.mark.parametrize("alive", [(), ("-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=1")])
def test_ssh_when_the_vm_ends(host, reached, alive):
    """When the VM ends, ssh reports it or finds out by itself: 255."""
    if alive:
        host.set(ssh_lost="hangs", ssh_silence=0.1)
    more = {
        "SSH_ASKPASS": str(host.home / "askpass"),
        "SSH_ASKPASS_REQUIRE": "force",
        "ANSWER": "admin",
        "ASKED": os.devnull,
    }
    host.ssh(*NO_KEYS, reached, "true")  # creates the askpass program
    argv = ["ssh", *NO_KEYS, *alive, reached, "sleep 600"]
    process = subprocess.Popen(argv, env=host.environ(**more), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    eventually(lambda: host.guest_processes("one"))
    host.ok("stop", "one")
    status, _, err = finish(process)
    assert status == 255
    assert (b"not responding" if alive else b"closed by remote host") in err


@pytest.mark.parametrize(
    "args",
    [["-Z", "a", "true"], ["-o", "Frobnicate=yes", "a"], ["-o", "Port"], ["-p"], ["-F", "/no/such/file", "a"], []],
)
def test_ssh_is_strict(host, args):
    """Unknown options, missing values and missing files are refused with 255."""
    assert host.ssh(*args).returncode == 255


def test_ssh_waits_for_the_end_of_output(host, reached):
    """As with sshd, a background process that holds the output delays the client's end."""
    done = host.ssh(*NO_KEYS, reached, "(sleep 0.3; echo late) & echo soon")
    assert done.stdout == b"soon\nlate\n"


def test_ssh_faults_and_record(host, reached):
    """The emulated ssh is recorded in calls.jsonl and accepts faults."""
    host.fault("ssh", exit_status=255, message="kex_exchange_identification: Connection closed by remote host")
    assert host.ssh(*NO_KEYS, reached, "true").returncode == 255
    assert host.ssh(*NO_KEYS, reached, "true").returncode == 0
    assert [call["status"] for call in host.calls() if call["argv"][0] == "ssh"] == [255, 0]
