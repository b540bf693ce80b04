"""Names every effect that a process has on the world, and strikes at a chosen one.

Wraps the methods that write records, send facts, take leases, run VM commands and call GitHub, but only in the process that calls
`install`: a child made for one test, or a program started with `injected` on its path. The program contains nothing for it. An
effect is identified by its name and by how often that name has occurred in this process.

Strikes: `kill` (SIGKILL to this process), `kill-other` (to the supervisor from its worker, or the reverse), `kill-both`, `detach`
(SIGTERM to the worker), `error` (the effect's ordinary failure). A strike comes `before` the effect, which then does not happen;
`after` it, so that only the reply is lost; or `during` it, shortly after it began, for effects that are held.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import functools
import json
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
from anklet_github.api import route_of
from anklet_github.driver import GithubDriver
from anklet_github.http import NoAnswer, Transport

from anklet_worker.attempt.archive import Archive
from anklet_worker.contract.errors import ProtocolError, RecordNotWritten, StoreUnavailable
from anklet_worker.life.attempt_phases import Phase
from anklet_worker.life.holder import Holder
from anklet_worker.life.records import RecordBook
from anklet_worker.life.vm_phases import VMPhase
from anklet_worker.link.channel import Channel, SupervisorLink
from anklet_worker.link.messages import FigureReported, StageTook, StatusChanged, decode_command
from anklet_worker.link.slots import SlotWriter
from anklet_worker.process.command import CommandResult, CommandRunner
from anklet_worker.store.embedded import SqliteStore
from anklet_worker.vm.image_locks import PullHold

#: Seconds after the begin of an effect that is held for longer.
_INTO_IT = 0.2
_NUMBER = re.compile(r":[0-9]+$")
WORKER, SUPERVISOR = "worker", "supervisor"
#: Effects of a worker that only report something. A death at one of them equals a death at the effect before it.
TELLTALES = (
    "StageTook",
    "DriverCommandEnded",
    "ApiCalled",
    "FigureReported",
    "ApiBudgetSeen",
    "QueueSeen",
    "StatusChanged",
)


class Ledger:
    """The effects of this process so far, and the strikes planned for it. One per process.

    `plan` has `folder` (for traces and the marks of strikes), `trace` (True to record effects) and `strikes`, a list of dicts with
    role, name, nth, when, act. Each strikes once, in its order, in the first process of its role that reaches it.
    """

    def __init__(self, plan, role=None):
        self._folder = Path(plan["folder"])
        self._strikes = plan["strikes"]
        self._role = role
        self._seen = {}
        self._lock = threading.Lock()
        self._inside = threading.local()
        self._trace = None
        if plan.get("trace"):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._trace = os.open(self._folder / "effects.jsonl", flags, 0o600)

    @property
    def role(self):
        """The role of this process: supervisor or worker."""
        if self._role is None:
            self._role = SUPERVISOR if multiprocessing.parent_process() is None else WORKER
        return self._role

    def inside(self):
        """True while this thread is inside an effect."""
        return bool(self._outer())

    def _outer(self):
        """The effects that this thread is inside, outermost first."""
        if not hasattr(self._inside, "names"):
            self._inside.names = []
        return self._inside.names

    def around(self, name, effect, failure):
        """Run an effect, and strike if it is the planned one. `failure` produces the effect's ordinary failure."""
        outer = self._outer()
        if name.startswith("note of ") and outer:
            name = f"{name} of {outer[-1]}"
        with self._lock:
            nth = self._seen[name] = self._seen.get(name, 0) + 1
        self.write({"role": self.role, "pid": os.getpid(), "name": name, "nth": nth})
        strike = self._strike_at(name, nth)
        if strike and strike["when"] == "before":
            self._mark(strike)
            if strike["act"] == "error":
                return failure()
            self._act(strike["act"])
        if strike and strike["when"] == "during":
            self._mark(strike)
            threading.Timer(_INTO_IT, self._act, [strike["act"]]).start()
        outer.append(name)
        try:
            result = effect()
        finally:
            outer.pop()
        if strike and strike["when"] == "after":
            self._mark(strike)
            if strike["act"] == "error":
                return failure()
            self._act(strike["act"])
        return result

    def write(self, line):
        """Add a line to the trace."""
        if self._trace is not None:
            os.write(self._trace, json.dumps(line).encode() + b"\n")

    def _strike_at(self, name, nth):
        for number, strike in enumerate(self._strikes):
            if self._path(number).exists():
                continue
            matches = (strike["role"], strike["name"], strike["nth"]) == (self.role, name, nth)
            return {**strike, "number": number} if matches else None
        return None

    def _path(self, number):
        return self._folder / f"struck-{number}"

    def _mark(self, strike):
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self._path(strike["number"]), os.O_CREAT | os.O_EXCL, 0o600))

    def _act(self, act):
        if act == "detach":
            os.kill(os.getpid(), signal.SIGTERM)
        elif act == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        elif act == "kill-both":
            # As launchd does: it kills the process group of a supervisor that died.
            self._act("kill-other")
            self._act("kill")
        elif self.role == WORKER:
            _kill_and_wait(psutil.Process(os.getppid()))
        else:
            for child in psutil.Process().children():
                line = " ".join(child.cmdline())
                # A worker has its title only once it has its settings.
                if "anklet-worker" in line or "-m anklet_worker" in line:
                    _kill_and_wait(child)


def _kill_and_wait(process):
    with contextlib.suppress(psutil.Error):
        process.kill()
        deadline = time.monotonic() + 5
        while process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
            time.sleep(0.005)


def install(plan, role=None):
    """Wrap the seams of this process."""
    ledger = Ledger(plan, role)
    for owner, method, name_of, failure in _SEAMS:
        _wrap(ledger, owner, method, name_of, failure)
    _wrap_supervisor(ledger)
    if plan.get("trace"):
        sys.addaudithook(functools.partial(_audit, ledger))
    return ledger


def _wrap(ledger, owner, method, name_of, failure):
    original = getattr(owner, method)

    @functools.wraps(original)
    def wrapped(self, *args, **more):
        name = name_of(self, *args, **more)
        if name is None or (name.startswith("command ") and ledger.role == WORKER):
            return original(self, *args, **more)
        return ledger.around(name, lambda: original(self, *args, **more), failure)

    setattr(owner, method, wrapped)


# ---- names ----

#: Words that occur in only one guest script -> what the script does.
_SCRIPTS = {
    "install-runner.bash": "install",
    "register-runner.bash": "register",
    "start-runner.bash": "start",
    "anklet-runner state=": "wait",
    ".anklet-logs.tgz": "collect",
}


def _record(_book, record):
    """Name the phase of VM and attempt in one word."""
    if record.vm_phase is VMPhase.GONE:
        return "record gone"
    making = record.phase is Phase.CLAIMED and record.vm_may_exist
    return f"record {record.vm_phase.value if making else record.phase.value}"


def _note(_owner, command):
    return "note of " + ("end" if command is None else "intent" if command.pid is None else "begin")


def _fact(_link, fact):
    kind = type(fact).__name__
    match fact:
        case StatusChanged(status=status):
            return f"fact {kind} {status.value}"
        case StageTook(stage=stage):
            return f"fact {kind} {stage}"
        case FigureReported(figure=figure):
            return f"fact {kind} {figure}"
    return f"fact {kind}"


def _key(key):
    """Return the kind of a store key, without the parts that differ from run to run."""
    identity, _, kind = key.partition("}")
    if identity.endswith("/etag"):
        return "etag"
    return re.sub(r"^queue:[^:]+", "queue", kind.removeprefix(":").removesuffix(":"))


def _stored(method):
    return lambda _store, key, *_args, **_more: f"store {method} {_key(_NUMBER.sub('', key))}"


def _anka(_runner, argv, *, stdin=b"", **_more):
    words = [word for word in argv if not word.startswith("-")]
    if words[1:2] == ["registry"]:
        return "anka check" if "--check-download-size" in argv else "anka pull"
    if words[1:2] == ["run"]:
        return f"anka run {_script(stdin) or words[3]}"
    return " ".join(words[:2])


def _script(stdin):
    """Name the script that a guest gets."""
    packed = re.search(rb"<<'([^']+)'[^\n]*\n(.*?)\1", stdin, re.DOTALL)
    text = base64.b64decode(packed[2]).decode() if packed else ""
    return next((name for mark, name in _SCRIPTS.items() if mark in text), None)


def _api(_transport, method, path, *_args, **_more):
    return f"api {route_of(method, path)}"


def _sent(_channel, data):
    """Name a command to a worker. The first message, its setup, is part of the start."""
    try:
        return f"command {type(decode_command(data)).__name__}"
    except ProtocolError:
        return None


def _always(name):
    return lambda *_args, **_more: name


# ---- ordinary failures ----


def _no_record():
    raise RecordNotWritten("cannot write the record: No space left on device")


def _no_space():
    raise OSError(errno.ENOSPC, "No space left on device")


def _stays():
    return False


def _no_store():
    raise StoreUnavailable("the store does not answer")


def _no_answer():
    raise NoAnswer("no answer: Connection reset by peer")


def _refused():
    reply = b'{"status": "ERROR", "code": 1, "message": "it did not work"}\n'
    return CommandResult(status=1, stdout=reply, stderr=b"", seconds=0.0, timed_out=False)


def _never():
    raise AssertionError("this effect has no ordinary failure")


_SEAMS = [
    (Holder, "acquire", _always("hold"), _never),
    (RecordBook, "save", _record, _no_record),
    (RecordBook, "remove", _always("record removed"), _stays),
    (RecordBook, "note_in_flight", _note, _no_space),
    (PullHold, "note", _note, _no_space),
    (SupervisorLink, "tell", _fact, _never),
    (SqliteStore, "__init__", _always("store open"), _no_store),
    *(
        (SqliteStore, method, _stored(method), _no_store)
        for method in ("claim", "renew", "release", "holder", "count", "post", "read")
    ),
    (CommandRunner, "run", _anka, _refused),
    (Transport, "exchange", _api, _no_answer),
    (Archive, "folder", _always("archive folder"), _no_space),
    (GithubDriver, "collect", _always("archive filled"), _no_space),
    (SlotWriter, "__init__", _always("slots made"), _never),
    (SlotWriter, "write", _always("slots written"), _never),
    (Channel, "send_bytes", _sent, _never),
]


def _wrap_supervisor(ledger):
    """Wrap the supervisor's own effects. A worker must not import these modules."""
    if ledger.role == WORKER:
        return
    from anklet_supervisor.daemon import host, process, start  # noqa: PLC0415  see above
    from anklet_supervisor.report import history, status  # noqa: PLC0415  see above

    for owner, method, name in (
        (host.InstanceLock, "acquire", "lock"),
        (host.PidFile, "write", "pid file written"),
        (host.PidFile, "remove", "pid file removed"),
        (history.JobHistory, "save", "history saved"),
        (status.StatusFile, "write", "status written"),
        (process.WorkerProcess, "__init__", "worker started"),
    ):
        _wrap(ledger, owner, method, _always(name), _never)
    identify = start.identify
    start.identify = lambda *args: ledger.around("identity known", lambda: identify(*args), _never)


# ---- everything else that touches the world ----

_AUDITED = frozenset(
    {
        "os.mkdir",
        "os.rename",
        "os.remove",
        "os.rmdir",
        "os.link",
        "os.symlink",
        "os.truncate",
        "os.kill",
        "os.killpg",
        "shutil.move",
        "shutil.rmtree",
        "socket.connect",
        "sqlite3.connect",
        "subprocess.Popen",
        "os.exec",
        "os.posix_spawn",
        "os.fork",
        "os.system",
    }
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _audit(ledger, event, args):
    """Record what touches the world outside of every named effect."""
    opened = event == "open" and isinstance(args[2], int) and args[2] & _WRITES
    if (opened or event in _AUDITED) and not ledger.inside() and "__pycache__" not in repr(args):
        ledger.write({"role": ledger.role, "pid": os.getpid(), "outside": event, "what": repr(args[:2])})
