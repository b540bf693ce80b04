"""An emulated `ssh` client whose network contains only the guests of this host.

Owns OpenSSH's options, host keys, and the password prompt: without a terminal, only the program SSH_ASKPASS can answer it.
Knows of VMs only what a network shows: which VM has an address, and whether something listens there.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import sys
import time

from emulators.vmhost import faults, guest, invocation

from . import inside, library, network
from .cli import Call, open_store

_FLAGS = "46aCnqTvx"
_VALUES = "Filop"
_TROUBLE = 255
_PROMPTS = 3
#: The supported options of ssh_config, in lower case; most have no effect here.
_WORDS = """
addkeystoagent addressfamily batchmode checkhostip ciphers clearallforwardings compression connectionattempts connecttimeout
controlmaster controlpath controlpersist escapechar exitonforwardfailure forwardagent forwardx11 forwardx11trusted
globalknownhostsfile gssapiauthentication hashknownhosts hostkeyalgorithms identitiesonly identityagent identityfile ipqos
kbdinteractiveauthentication kexalgorithms loglevel macs numberofpasswordprompts passwordauthentication permitlocalcommand port
preferredauthentications pubkeyauthentication requesttty serveralivecountmax serveraliveinterval stricthostkeychecking
tcpkeepalive updatehostkeys user userknownhostsfile visualhostkey
"""
_KNOWN = frozenset(_WORDS.split())
_METHODS = "publickey,password,keyboard-interactive"


class _Failed(Exception):
    """The connection failed; the argument is the text for standard error."""


def main(argv):
    """Run one command line and end the process."""
    invocation.run("ssh", "FAKE_TART_HOME", ["ssh", *argv], open_store, lambda store, line: _execute(Call(store, line)))


def _execute(call):
    call.begin("ssh")
    try:
        plan = _Plan(call.argv[1:])
        call.strike("before")
        status = _connect(call, plan)
        call.strike("after")
    except faults.Replaced as replaced:
        fault = replaced.fault
        sys.stderr.write(f"{fault['message']}\n" if fault["message"] else "")
        guest.write_all(1, (fault["stdout"] or "").encode())
        return _TROUBLE if fault["exit_status"] is None else fault["exit_status"]
    except _Failed as failed:
        sys.stderr.write(f"{failed}\n")
        return _TROUBLE
    return status


class _Plan:
    """The parsed command line."""

    def __init__(self, argv):
        self.options = {}
        self.quiet = self.no_stdin = False
        words = self._flags(list(argv))
        if not words:
            raise _Failed("usage: ssh [options] destination [command [argument ...]]")
        destination = re.sub("^ssh://", "", words.pop(0))
        words = self._flags(words)
        user, _, host = destination.rpartition("@")
        if user:
            self.options["user"] = user
        self.host = host
        self.command = " ".join(words)

    def _flags(self, words):
        while words and words[0].startswith("-") and words[0] != "-":
            letters = words.pop(0)[1:]
            if letters == "-":
                break
            while letters:
                letter, letters = letters[0], letters[1:]
                if letter in _VALUES:
                    if not (letters or words):
                        raise _Failed(f"option requires an argument -- {letter}")
                    self._value(letter, letters or words.pop(0))
                    break
                if letter not in _FLAGS:
                    raise _Failed(f"unknown option -- {letter}")
                self.quiet |= letter == "q"
                self.no_stdin |= letter == "n"
        return words

    def _value(self, letter, value):
        if letter == "o":
            name, equals, given = value.partition("=" if "=" in value else " ")
            if not equals or name.strip().lower() not in _KNOWN:
                raise _Failed(f"command-line: line 0: Bad configuration option: {name.strip().lower()}")
            self.options.setdefault(name.strip().lower(), given.strip().strip('"'))
        elif letter == "i" and not os.path.exists(os.path.expanduser(value)):
            sys.stderr.write(f"Warning: Identity file {value} not accessible: No such file or directory.\n")
        elif letter == "F" and value != "none" and not os.path.exists(value):
            raise _Failed(f"Can't open user config file {value}: No such file or directory")
        elif letter in "pl":
            self.options.setdefault({"p": "port", "l": "user"}[letter], value)

    def get(self, name, default):
        """The value of an ssh_config option, in lower case."""
        return self.options.get(name, default).lower()

    @property
    def user(self):
        """The user to log in as."""
        return self.options.get("user") or os.environ.get("USER", "root")

    @property
    def port(self):
        """The port of sshd."""
        return self.options.get("port", "22")

    @property
    def silent(self):
        """True when warnings are suppressed."""
        return self.quiet or self.get("loglevel", "info") in ("quiet", "fatal", "error")


def _connect(call, plan):
    if not re.fullmatch(r"[0-9.]+", plan.host):
        raise _Failed(f"ssh: Could not resolve hostname {plan.host}: nodename nor servname provided, or not known")
    machine, disk = _reach(call, plan)
    _check_host_key(plan, disk)
    _log_in(call, plan)
    call.pause_for_delay("ssh")
    process = _spawn(call, plan, machine)
    call.strike("middle")
    relay = guest.Relay(process, lambda data: guest.write_all(1, data), until_eof=True, from_stdin=not plan.no_stdin)
    status = relay.run()
    process.let_go()
    if status != 0 and inside.is_lost(call, process):
        _lose(call, plan)
    return status if status is not None and status >= 0 else _TROUBLE


def _reach(call, plan):
    """The hypervisor's operation and the disk of the VM that answers at this address."""
    with call.store.transaction() as tx:
        machine = network.at(tx, plan.host)
        vm = machine and library.by_disk(call.store, machine["uuid"])
        if vm:
            machine["sshs"] += 1
            listens = vm.disk()["sshd"] and tx.settings["sshd"] and plan.port == "22"
            if listens and machine["sshs"] > tx.settings["boot_sshs"]:
                return machine, vm.disk()
    where = f"connect to host {plan.host} port {plan.port}"
    if vm:
        raise _Failed(f"ssh: {where}: Connection refused")
    limit = plan.options.get("connecttimeout")
    time.sleep(min(float(limit) if limit and limit.isdigit() else 75, call.settings["ssh_silence"]))
    raise _Failed(f"ssh: {where}: Operation timed out")


# -- host keys ----------------------------------------------------------------------------------------


def _check_host_key(plan, disk):
    """Check the host key, which clones share with their image: add, ask about or refuse an unknown key; refuse a changed one."""
    key = base64.b64encode(hashlib.sha256(disk["host_key"].encode()).digest()).decode()
    files = plan.options.get("userknownhostsfile", "~/.ssh/known_hosts").split()
    known = [line.split() for file in files for line in _lines(os.path.expanduser(file))]
    keys = [line[2] for line in known if len(line) == 3 and line[0] == plan.host]
    if key in keys:
        return
    strict = plan.get("stricthostkeychecking", "ask")
    if keys and strict not in ("no", "off"):
        raise _Failed("@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\nHost key verification failed.")
    if keys:  # with a changed key, OpenSSH sends no password
        for method in ("passwordauthentication", "kbdinteractiveauthentication"):
            plan.options[method] = "no"
        return
    if strict == "yes":
        raise _Failed(
            f"No ED25519 host key is known for {plan.host} and you have requested strict checking.\nHost key verification failed."
        )
    if strict == "ask" and _ask("Are you sure you want to continue connecting (yes/no/[fingerprint])? ") != "yes":
        raise _Failed("Host key verification failed.")
    _add_key(plan, os.path.expanduser(files[0]), key)


def _lines(path):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().splitlines()
    except OSError:
        return []


def _add_key(plan, path, key):
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{plan.host} ssh-ed25519 {key}\n")
    except OSError:
        sys.stderr.write(f"Failed to add the host to the list of known hosts ({path}).\n")
    if not plan.silent:
        sys.stderr.write(f"Warning: Permanently added '{plan.host}' (ED25519) to the list of known hosts.\n")
        sys.stderr.flush()


# -- logging in ---------------------------------------------------------------------------------------


def _log_in(call, plan):
    """Prompt for the password as often as OpenSSH does, by the allowed methods."""
    ways = {
        "keyboard-interactive": (f"({plan.user}@{plan.host}) Password:", "kbdinteractiveauthentication"),
        "password": (f"{plan.user}@{plan.host}'s password: ", "passwordauthentication"),
    }
    preferred = plan.get("preferredauthentications", "publickey,keyboard-interactive,password").split(",")
    if plan.get("batchmode", "no") == "yes":
        preferred = []
    wanted = (call.settings["ssh_user"], call.settings["ssh_password"])
    for method in preferred:
        prompt, option = ways.get(method, ("", ""))
        if not prompt or plan.get(option, "yes") == "no":
            continue
        for _ in range(int(plan.get("numberofpasswordprompts", str(_PROMPTS)))):
            password = _ask(prompt)
            if password is None:
                break
            if (plan.user, password) == wanted:
                return
            sys.stderr.write("Permission denied, please try again.\n" if method == "password" else "")
    raise _Failed(f"{plan.user}@{plan.host}: Permission denied ({_METHODS}).")


def _ask(prompt):
    """The answer of the program SSH_ASKPASS; None when that must not be used, or gives up."""
    program = os.environ.get("SSH_ASKPASS")
    require = os.environ.get("SSH_ASKPASS_REQUIRE", "")
    if not program or require == "never" or (require != "force" and not os.environ.get("DISPLAY")):
        return None
    try:
        done = subprocess.run([program, prompt], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    except OSError as error:
        sys.stderr.write(f"ssh_askpass: exec({program}): {error.strerror}\n")
        return None
    return done.stdout.decode(errors="replace").split("\n")[0] if done.returncode == 0 else None


# -- the session --------------------------------------------------------------------------------------


def _spawn(call, plan, machine):
    """Start the login shell's command in the guest, as sshd does, which also waits for the end of output."""
    with call.store.transaction() as tx:
        now = tx.machine(machine["uuid"])
        if now is None or now["pid"] != machine["pid"] or now.get("stopping"):
            raise _Failed(f"Connection closed by {plan.host} port {plan.port}")
        home = call.store.guest_home(machine["uuid"])
        path = inside.guest_path(call.store, tx.settings["ssh_path"])
        connection = f"192.168.64.1 50000 {plan.host} 22"
        env = inside.environment(tx.settings, machine["uuid"], home, PATH=path, SSH_CONNECTION=connection)
        argv = ["bash", "-c", plan.command] if plan.command else ["bash", "-s"]
        process = guest.spawn(argv, env, home, on_loss=guest.LIVES, drain=False)
    process.machine = machine
    return process


def _lose(call, plan):
    """The VM is gone. With ssh_lost=hangs the client notices this only if it checks whether the server is alive."""
    if call.settings["ssh_lost"] == "closed":
        raise _Failed(f"Connection to {plan.host} closed by remote host.")
    interval = int(plan.get("serveraliveinterval", "0"))
    while not interval:
        time.sleep(3600)
    time.sleep(min(interval * int(plan.get("serveralivecountmax", "3")), call.settings["ssh_silence"]))
    raise _Failed(f"Timeout, server {plan.host} not responding.")
