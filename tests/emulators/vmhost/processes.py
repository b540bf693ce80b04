"""Finds and ends the processes of a product's guests, and finds the product's commands.

Owns how to recognise a guest's process: a marker like FAKE_ANKA_VM=<uuid> in its environment, a working directory inside the
guest (Linux), or descent from such a process. Knows nothing of state and commands.
"""

from __future__ import annotations

import os
import signal
import time

_PAUSE = 0.01


class Process:
    """One process: its pid, the uuid of its VM ("" for none), and its arguments."""

    def __init__(self, pid, vm, argv):
        self.pid = pid
        self.vm = vm
        self.argv = argv

    def __repr__(self):
        return f"Process({self.pid}, {self.vm!r}, {self.argv!r})"


class Guests:
    """The guests of one product on one host: `folder` has a folder for each, `marker` is the variable that identifies a guest."""

    def __init__(self, folder, marker):
        self._folder = folder
        self._marker = marker + "="

    def find(self, uuids=None):
        """Return the living processes of guests (`uuids`: only of these)."""
        table = self._from_proc() if os.path.isdir("/proc/self") else self._from_ps()
        owner = {pid: vm for pid, (vm, _, _) in table.items() if vm and self._is_here(vm)}
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

    def end(self, uuids, grace):
        """End every process of these guests, with SIGTERM first if `grace` (seconds) is not 0; returns when all are gone."""
        if grace:
            deadline = time.monotonic() + grace
            _signal([process.pid for process in self.find(uuids)], signal.SIGTERM)
            while self.find(uuids) and time.monotonic() < deadline:
                time.sleep(_PAUSE)
        while True:
            found = self.find(uuids) or self.find(uuids)  # one look may miss a process that is just executing
            if not found:
                return
            kill(process.pid for process in found)
            time.sleep(_PAUSE)

    def _is_here(self, uuid):
        """False for the guests of another emulated host on this machine, which has the same marker but other uuids."""
        return os.path.isdir(os.path.join(self._folder, uuid))

    def _from_proc(self):
        """Map pid to (marker's uuid or "", parent pid, argv) for all processes except zombies."""
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
            vm = self._marked(environment) or self._by_directory(name)
            try:
                argv = _slurp(f"/proc/{name}/cmdline").decode(errors="replace").rstrip("\0").split("\0")
            except OSError:  # it has just ended
                continue
            table[int(name)] = (vm, int(parent), argv)
        return table

    def _marked(self, environment):
        # Most processes of the machine have no marker at all: skip the split.
        if self._marker.encode() not in environment:
            return ""
        for entry in environment.split(b"\0"):
            if entry.startswith(self._marker.encode()):
                return entry[len(self._marker) :].decode(errors="replace")
        return ""

    def _by_directory(self, pid):
        try:
            directory = os.readlink(f"/proc/{pid}/cwd")
        except OSError:
            return ""
        return directory[len(self._folder) + 1 :].split("/")[0] if directory.startswith(self._folder + "/") else ""

    def _from_ps(self):
        """The same from `ps`, without /proc (macOS hides the environment of system programs; descent covers those)."""
        with os.popen("ps -axEww -o pid=,ppid=,stat=,command=") as listing:  # noqa: S605  fixed text, no input
            return parse_ps(listing.read(), self._marker)


def commands(home, variable, programs):
    """The pids of the living `programs` whose environment names the host in `home` by `variable`, agents of guests included."""
    found = []
    names = {os.fsencode(program) for program in programs}
    entry = os.fsencode(variable) + b"="
    for pid in _pids():
        try:
            environment = _slurp(f"/proc/{pid}/environ")
            if entry not in environment:
                continue
            environment, line = environment.split(b"\0"), _slurp(f"/proc/{pid}/cmdline").split(b"\0")
        except OSError:
            continue
        homes = [os.path.realpath(given[len(entry) :]) for given in environment if given.startswith(entry)]
        if homes == [os.fsencode(home)] and any(os.path.basename(word) in names for word in line[:4]):
            found.append(pid)
    if os.path.isdir("/proc/self"):
        return found
    with os.popen("ps -axEww -o pid=,stat=,command=") as listing:  # noqa: S605  fixed text, no input
        lines = [line.split(None, 2) for line in listing if f"{variable}={home}" in line]
    lines = [line for line in lines if any(f"/{program} " in line[2] for program in programs)]
    return [int(pid) for pid, state, _ in lines if not state.startswith("Z")]


def kill(pids):
    """Send SIGKILL to each; ignores a process that is gone."""
    _signal(pids, signal.SIGKILL)


def _pids():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()] if os.path.isdir("/proc/self") else []


def _signal(pids, number):
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            continue


def _slurp(path):
    with open(path, "rb", buffering=0) as file:
        return file.read()


def parse_ps(listing, marker):
    """Parse `pid ppid stat command-and-environment` lines; `marker` is the variable with its equals sign."""
    table = {}
    for line in listing.splitlines():
        fields = line.split(None, 3)
        if len(fields) < 4 or fields[2].startswith("Z"):
            continue
        words = fields[3].split(" ")
        marked = [word[len(marker) :] for word in words if word.startswith(marker)]
        table[int(fields[0])] = (marked[0] if marked else "", int(fields[1]), words)
    return table
