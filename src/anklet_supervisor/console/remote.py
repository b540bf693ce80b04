"""Commands that speak to a supervisor that runs elsewhere on this host: drain, stop, reload, pause, status.

They find it by the lock in its state directory, ask by signals and marks in files, and read its status file. They hold nothing.
"""

from __future__ import annotations

import difflib
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from anklet_supervisor.config.load import find_state_dir, service_names
from anklet_supervisor.daemon.host import running_supervisor
from anklet_supervisor.daemon.state_dir import explained
from anklet_supervisor.machine.state import Mode
from anklet_supervisor.report import status as status_file
from anklet_worker.contract.errors import ExitCode, UsageError
from anklet_worker.files import make_private_dir, remove, write_atomically
from anklet_worker.link.setup import pause_file

if TYPE_CHECKING:
    from anklet_supervisor.console.status_view import StatusView

_PAUSE = 0.05
_WATCH_PAUSE = 0.5
#: Seconds in which a supervisor that has just started writes its first status.
_STATUS_PATIENCE = 3.0


def signal_and_wait(config: Path, number: signal.Signals, wait: float | None) -> int:
    """Send the signal; with `wait`, wait so many seconds for the end, else 75. 3 when no supervisor runs."""
    state_dir = state_dir_of(config)
    pid = running_supervisor(state_dir)
    if pid is None:
        return _nobody(state_dir)
    current = status_file.read(state_dir)
    # A second SIGINT would not stop but cut off; who says `stop` twice does not mean that.
    if not (
        number is signal.SIGINT and current is not None and current.mode == Mode.STOPPING.value and current.pid == pid
    ) and not _sent(pid, number):
        return _nobody(state_dir)
    if wait is None:
        return int(ExitCode.OK)
    deadline = time.monotonic() + wait
    while running_supervisor(state_dir) == pid:
        if time.monotonic() >= deadline:
            _say(f"the supervisor (pid {pid}) has not ended within {wait:g} s; it goes on ending", error=True)
            return int(ExitCode.TEMPFAIL)
        time.sleep(_PAUSE)
    return int(ExitCode.OK)


def reload(config: Path, wait: float | None) -> int:
    """Have the configuration read again; with `wait`, wait so many seconds for what comes of it, else 75. 3: no supervisor runs.

    A configuration that cannot be used is 78, with its problems; a reload that is refused is 75.
    """
    state_dir = state_dir_of(config)
    pid = running_supervisor(state_dir)
    if pid is None:
        return _nobody(state_dir)
    before = None if wait is None else _document_of(state_dir, pid)
    asked = 0 if before is None or before.reload is None else before.reload.asked
    if not _sent(pid, signal.SIGHUP):
        return _nobody(state_dir)
    if wait is None:
        return int(ExitCode.OK)
    deadline = time.monotonic() + wait
    while time.monotonic() < deadline and running_supervisor(state_dir) == pid:
        document = status_file.read(state_dir)
        answer = None if document is None or document.pid != pid else document.reload
        if answer is not None and answer.answered > asked:
            for problem in answer.problems:
                _say(problem, error=True)
            return int(ExitCode.OK if not answer.problems else ExitCode.TEMPFAIL if answer.refused else ExitCode.CONFIG)
        time.sleep(_PAUSE)
    _say(f"the supervisor (pid {pid}) has not answered within {wait:g} s", error=True)
    return int(ExitCode.TEMPFAIL)


def _sent(pid: int, number: signal.Signals) -> bool:
    """Send a signal to a supervisor; False when it has ended since it was seen."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _nobody(state_dir: Path) -> int:
    _say(f"no supervisor is running (state directory {state_dir})", error=True)
    return int(ExitCode.NOT_RUNNING)


def set_paused(config: Path, service: str, *, paused: bool) -> int:
    """Mark a service as paused, or take the mark away, whether a supervisor runs or not: it outlasts restarts.

    Raises `UsageError` for a service that there is not, `ConfigErrors` when only the configuration could tell and cannot be read,
    `ConfigError` and `TemporaryError` for a state directory that cannot be written.
    """
    state_dir = state_dir_of(config)
    _check_service(config, state_dir, service)
    mark = pause_file(state_dir, service)
    with explained(state_dir):
        if paused:
            for folder in (state_dir, mark.parent.parent, mark.parent):
                make_private_dir(folder)
            write_atomically(mark, b"")
        else:
            remove(mark)
    if paused:
        _say(f"{service} takes no more jobs, until `anklet-supervisor resume {service}`; a job in hand finishes")
    else:
        _say(f"{service} takes jobs")
    return int(ExitCode.OK)


def _check_service(config: Path, state_dir: Path, service: str) -> None:
    """The services are those of the running supervisor; when none runs, those of the configuration. No secret is looked up."""
    pid = running_supervisor(state_dir)
    document = None if pid is None else _document_of(state_dir, pid)
    if document is not None:
        names = [one.name for one in document.services]
    else:
        names = service_names(config, os.environ, home=Path.home(), platform=sys.platform)
    if service not in names:
        near = difflib.get_close_matches(service, names, 1, 0.5)
        known = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
        raise UsageError(f"there is no service {service!r}; {known}")


def show_status(config: Path, *, as_json: bool, watch: bool) -> int:
    """Print what the supervisor does; 3 when none runs."""
    state_dir = state_dir_of(config)
    pid = running_supervisor(state_dir)
    if pid is None:
        return _nobody(state_dir)
    document = _document_of(state_dir, pid)
    if document is None:
        _say(f"the supervisor (pid {pid}) has not said its status within {_STATUS_PATIENCE:g} s", error=True)
        return int(ExitCode.TEMPFAIL)
    if as_json:
        _say(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
        return int(ExitCode.OK)
    from anklet_supervisor.console import status_view

    if watch:
        status_view.watch(lambda: _view(state_dir, pid), lambda: time.sleep(_WATCH_PAUSE))
    else:
        status_view.show(_drawn(state_dir, document))
    return int(ExitCode.OK)


def _document_of(state_dir: Path, pid: int) -> status_file.StatusDocument | None:
    """The document of this very supervisor: one that has just started may not have replaced its predecessor's yet."""
    deadline = time.monotonic() + _STATUS_PATIENCE
    while True:
        document = status_file.read(state_dir)
        if document is not None and document.pid == pid:
            return document
        if time.monotonic() >= deadline:
            return None
        time.sleep(_PAUSE)


def _view(state_dir: Path, pid: int) -> StatusView | None:
    """What to draw now; None once the supervisor has ended."""
    document = _document_of(state_dir, pid) if running_supervisor(state_dir) == pid else None
    return None if document is None else _drawn(state_dir, document)


def _drawn(state_dir: Path, document: status_file.StatusDocument) -> StatusView:
    from anklet_supervisor.console.status_view import StatusView

    now = time.time()
    return StatusView(document, now=now, age=now - status_file.written_at(state_dir, now))


def state_dir_of(config: Path) -> Path:
    """Where the running supervisor keeps its files. A configuration that is broken by now must not keep anybody from draining."""
    return find_state_dir(config, os.environ, home=Path.home(), platform=sys.platform)


def _say(text: str, *, error: bool = False) -> None:
    print(text, file=sys.stderr if error else sys.stdout)
