"""Find and end the processes of a guest.

Owns how a process is recognised as a guest's: the marker FAKE_ANKA_VM=<uuid> in its environment, a working directory inside
the guest (Linux), or descent from such a process. Knows nothing of state and commands.
"""

from __future__ import annotations

import os
import signal
import time

MARKER = "FAKE_ANKA_VM="
_PAUSE = 0.01


class Process:
    """One process: its pid, the uuid of its VM ("" when none), and its arguments."""

    def __init__(self, pid, vm, argv):
        self.pid = pid
        self.vm = vm
        self.argv = argv

    def __repr__(self):
        return f"Process({self.pid}, {self.vm!r}, {self.argv!r})"


def find(guests, uuids=None):
    """The living processes of guests (`uuids`: of these only). `guests` is the folder that holds the guests' folders."""
    table = _from_proc(guests) if os.path.isdir("/proc/self") else _from_ps()
    owner = {pid: vm for pid, (vm, _, _) in table.items() if vm and _lies_in(guests, vm)}
    children = {}
    for pid, (_, parent, _) in table.items():
        children.setdefault(parent, []).append(pid)
    todo = list(owner)
    while todo:
        parent = todo.pop()
        for child in children.get(parent, ()):
            if child not in owner:
                owner[child] = owner[parent]
                todo.append(child)
    owner.pop(os.getpid(), None)
    return [Process(pid, vm, table[pid][2]) for pid, vm in owner.items() if uuids is None or vm in uuids]


def commands(home):
    """The pids of the living `anka` processes of the host in `home`, agents of guests included."""
    found = []
    for pid in _pids():
        try:
            environment, line = (_slurp(f"/proc/{pid}/{name}").split(b"\0") for name in ("environ", "cmdline"))
        except OSError:
            continue
        homes = [os.path.realpath(entry[15:]) for entry in environment if entry.startswith(b"FAKE_ANKA_HOME=")]
        if homes == [os.fsencode(home)] and any(os.path.basename(word) == b"anka" for word in line[:4]):
            found.append(pid)
    if os.path.isdir("/proc/self"):
        return found
    with os.popen("ps -axEww -o pid=,stat=,command=") as listing:  # noqa: S605  fixed text, no input
        lines = [line.split(None, 2) for line in listing if f"FAKE_ANKA_HOME={home}" in line and "/anka " in line]
    return [int(pid) for pid, state, _ in lines if not state.startswith("Z")]


def _pids():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()] if os.path.isdir("/proc/self") else []


def kill(pids):
    """SIGKILL to each; one that is gone is done."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def end(guests, uuids, grace):
    """End every process of these guests, with SIGTERM first when `grace` (seconds) is not 0; returns when all are gone."""
    if grace:
        deadline = time.monotonic() + grace
        _signal(find(guests, uuids), signal.SIGTERM)
        while find(guests, uuids) and time.monotonic() < deadline:
            time.sleep(_PAUSE)
    while True:
        found = find(guests, uuids) or find(guests, uuids)  # one look may miss a process that is just being executed
        if not found:
            return
        _signal(found, signal.SIGKILL)
        time.sleep(_PAUSE)


def _lies_in(guests, uuid):
    """Another emulated host on this machine has the same marker but other uuids."""
    return os.path.isdir(os.path.join(guests, uuid))


def _signal(found, number):
    for process in found:
        try:
            os.kill(process.pid, number)
        except (ProcessLookupError, PermissionError):
            continue


def _from_proc(guests):
    """By pid: (marker's uuid or "", parent pid, argv), of the processes that are not zombies."""
    table = {}
    for name in map(str, _pids()):
        try:
            stat = _slurp(f"/proc/{name}/stat")
            environment = _slurp(f"/proc/{name}/environ")
        except OSError:
            continue
        state, parent = stat[stat.rindex(b")") + 2 :].split()[:2]
        if state in (b"Z", b"X"):
            continue
        vm = _marked(environment) or _by_directory(name, guests)
        try:
            argv = _slurp(f"/proc/{name}/cmdline").decode(errors="replace").rstrip("\0").split("\0")
        except OSError:  # it ended just now
            continue
        table[int(name)] = (vm, int(parent), argv)
    return table


def _slurp(path):
    with open(path, "rb", buffering=0) as file:
        return file.read()


def _marked(environment):
    for entry in environment.split(b"\0"):
        if entry.startswith(MARKER.encode()):
            return entry[len(MARKER) :].decode(errors="replace")
    return ""


def _by_directory(pid, guests):
    try:
        directory = os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return ""
    return directory[len(guests) + 1 :].split("/")[0] if directory.startswith(guests + "/") else ""


def _from_ps():
    """The same from `ps`, for hosts without /proc (macOS hides the environment of some system programs: descent covers those)."""
    with os.popen("ps -axEww -o pid=,ppid=,stat=,command=") as listing:  # noqa: S605  fixed text, no input
        return parse_ps(listing.read())


def parse_ps(listing):
    """Read `pid ppid stat command-and-environment` lines."""
    table = {}
    for line in listing.splitlines():
        fields = line.split(None, 3)
        if len(fields) < 4 or fields[2].startswith("Z"):
            continue
        words = fields[3].split(" ")
        marked = [word[len(MARKER) :] for word in words if word.startswith(MARKER)]
        table[int(fields[0])] = (marked[0] if marked else "", int(fields[1]), words)
    return table
