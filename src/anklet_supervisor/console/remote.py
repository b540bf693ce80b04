"""Commands to a supervisor that runs in another process on this host: drain, stop, restart, reload, pause, resume, status.

They find it by the lock in its state directory, send it signals, write pause marks, and read its status file. They own no state.
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

#: Seconds between two looks at the supervisor, and between two views of `status --watch`.
_PAUSE = 0.05
_WATCH_PAUSE = 0.5
#: Seconds that a supervisor gets after its start to write its first status.
_STATUS_PATIENCE = 3.0


def signal_and_wait(config: Path, number: signal.Signals, wait: float | None) -> int:
    """Send the signal, and with `wait` wait that many seconds for the exit. Returns 75 on a timeout, 3 when none runs."""
    state_dir = state_dir_of(config)
    pid = running_supervisor(state_dir)
    if pid is None:
        return _not_running(state_dir)
    # A second SIGINT would skip the clean-up; a second `stop` must not.
    already_stopping = number is signal.SIGINT and _is_stopping(state_dir, pid)
    if not already_stopping and not _send(pid, number):
        return _not_running(state_dir)
    if wait is None:
        return int(ExitCode.OK)
    deadline = time.monotonic() + wait
    while running_supervisor(state_dir) == pid:
        if time.monotonic() >= deadline:
            _say(f"timed out after {wait:g} s: the supervisor (pid {pid}) is still shutting down", error=True)
            return int(ExitCode.TEMPFAIL)
        time.sleep(_PAUSE)
    return int(ExitCode.OK)


def _is_stopping(state_dir: Path, pid: int) -> bool:
    document = status_file.read(state_dir)
    return document is not None and document.pid == pid and document.mode == Mode.STOPPING.value


def reload(config: Path, wait: float | None) -> int:
    """Make the supervisor read its configuration again, and with `wait` wait that many seconds for the result.

    Prints the problems of the configuration. Returns 78 for a configuration that cannot be used, 75 for a refused reload, a
    timeout, or a supervisor that ended before it answered, 3 when none runs.
    """
    state_dir = state_dir_of(config)
    pid = running_supervisor(state_dir)
    if pid is None:
        return _not_running(state_dir)
    before = None if wait is None else _document_of(state_dir, pid)
    asked = 0 if before is None or before.reload is None else before.reload.asked
    if not _send(pid, signal.SIGHUP):
        return _not_running(state_dir)
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
    if running_supervisor(state_dir) == pid:
        _say(f"timed out after {wait:g} s: the supervisor (pid {pid}) has not answered", error=True)
    else:
        _say(f"the supervisor (pid {pid}) ended before it answered", error=True)
    return int(ExitCode.TEMPFAIL)


def _send(pid: int, number: signal.Signals) -> bool:
    """Send a signal to a supervisor; False when it has ended in the meantime."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _not_running(state_dir: Path) -> int:
    _say(f"no supervisor is running (state directory {state_dir})", error=True)
    return int(ExitCode.NOT_RUNNING)


def set_paused(config: Path, service: str, *, paused: bool) -> int:
    """Write a service's pause mark, or remove it. Needs no running supervisor; the mark outlasts restarts.

    Raises `UsageError` for an unknown service, `ConfigErrors` when no supervisor runs and the configuration cannot be read,
    `ConfigError` or `TemporaryError` when the state directory cannot be written.
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
        _say(
            f"paused {service}: it finishes its current job and takes no new one until `anklet-supervisor resume {service}`"
        )
    else:
        _say(f"resumed {service}")
    return int(ExitCode.OK)


def _check_service(config: Path, state_dir: Path, service: str) -> None:
    """Raise `UsageError` unless the running supervisor, or without one the configuration, has this service.

    Resolves no secret.
    """
    pid = running_supervisor(state_dir)
    document = None if pid is None else _document_of(state_dir, pid)
    if document is not None:
        names = [one.name for one in document.services]
    else:
        names = service_names(config, os.environ, home=Path.home(), platform=sys.platform)
    if service not in names:
        near = difflib.get_close_matches(service, names, 1, 0.5)
        known = f"did you mean {near[0]}?" if near else f"configured: {', '.join(names)}"
        raise UsageError(f"unknown service {service!r}; {known}")


def show_status(config: Path, *, as_json: bool, watch: bool) -> int:
    """Print the supervisor's status. Returns 3 when none runs, 75 when it writes none."""
    state_dir = state_dir_of(config)
    pid = running_supervisor(state_dir)
    if pid is None:
        return _not_running(state_dir)
    document = _document_of(state_dir, pid)
    if document is None:
        _say(
            f"timed out after {_STATUS_PATIENCE:g} s: the supervisor (pid {pid}) has not written its status", error=True
        )
        return int(ExitCode.TEMPFAIL)
    if as_json:
        _say(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
        return int(ExitCode.OK)
    from anklet_supervisor.console import status_view

    if watch:
        status_view.watch(lambda: _current_view(state_dir, pid), lambda: time.sleep(_WATCH_PAUSE))
    else:
        status_view.show(_view_of(state_dir, document))
    return int(ExitCode.OK)


def _document_of(state_dir: Path, pid: int) -> status_file.StatusDocument | None:
    """The status of this supervisor; waits while the file is still its predecessor's. None after `_STATUS_PATIENCE`."""
    deadline = time.monotonic() + _STATUS_PATIENCE
    while True:
        document = status_file.read(state_dir)
        if document is not None and document.pid == pid:
            return document
        if time.monotonic() >= deadline:
            return None
        time.sleep(_PAUSE)


def _current_view(state_dir: Path, pid: int) -> StatusView | None:
    """The view to draw now; None once the supervisor has ended."""
    document = _document_of(state_dir, pid) if running_supervisor(state_dir) == pid else None
    return None if document is None else _view_of(state_dir, document)


def _view_of(state_dir: Path, document: status_file.StatusDocument) -> StatusView:
    from anklet_supervisor.console.status_view import StatusView

    now = time.time()
    return StatusView(document, now=now, age=now - status_file.written_at(state_dir, now))


def state_dir_of(config: Path) -> Path:
    """The state directory of this configuration, found even when the file is broken: a drain must still work then."""
    return find_state_dir(config, os.environ, home=Path.home(), platform=sys.platform)


def _say(text: str, *, error: bool = False) -> None:
    print(text, file=sys.stderr if error else sys.stdout)
