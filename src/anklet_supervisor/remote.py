"""Commands that speak to a supervisor that runs elsewhere on this host: drain, stop, status.

They find it by the lock in its state directory, ask by signals, and read its status file. They hold nothing.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from anklet_supervisor import status as status_file
from anklet_supervisor.config import ConfigErrors, default_state_dir, load_host
from anklet_supervisor.host import running_supervisor
from anklet_supervisor.state import Mode
from anklet_worker.errors import ExitCode

if TYPE_CHECKING:
    from rich.console import Group

_PAUSE = 0.05
_WATCH_PAUSE = 0.5


def signal_and_wait(config: Path, number: signal.Signals, wait: float | None) -> int:
    """Send the signal; with `wait`, wait so many seconds for the end, else 75. 3 when no supervisor runs."""
    state_dir = _state_dir(config)
    pid = running_supervisor(state_dir)
    if pid is None:
        _say(f"no supervisor is running (state directory {state_dir})", error=True)
        return int(ExitCode.NOT_RUNNING)
    current = status_file.read(state_dir)
    # A second SIGINT would not stop but cut off; who says `stop` twice does not mean that.
    if not (
        number is signal.SIGINT and current is not None and current.mode == Mode.STOPPING.value and current.pid == pid
    ):
        os.kill(pid, number)
    if wait is None:
        return int(ExitCode.OK)
    deadline = time.monotonic() + wait
    while running_supervisor(state_dir) == pid:
        if time.monotonic() >= deadline:
            _say(f"the supervisor (pid {pid}) has not ended within {wait:g} s; it goes on ending", error=True)
            return int(ExitCode.TEMPFAIL)
        time.sleep(_PAUSE)
    return int(ExitCode.OK)


def show_status(config: Path, *, as_json: bool, watch: bool) -> int:
    """Print what the supervisor does; 3 when none runs."""
    state_dir = _state_dir(config)
    pid = running_supervisor(state_dir)
    document = status_file.read(state_dir)
    if pid is None or document is None:
        _say(f"no supervisor is running (state directory {state_dir})", error=True)
        return int(ExitCode.NOT_RUNNING)
    if as_json:
        _say(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
    elif watch:
        _watch(state_dir, pid)
    else:
        from rich.console import Console

        Console().print(_view(document))
    return int(ExitCode.OK)


def _watch(state_dir: Path, pid: int) -> None:
    """Show the status until Ctrl-C, or until the supervisor ends."""
    from rich.live import Live

    with Live(screen=False, auto_refresh=False) as live:
        try:
            while running_supervisor(state_dir) == pid:
                document = status_file.read(state_dir)
                if document is not None:
                    live.update(_view(document), refresh=True)
                time.sleep(_WATCH_PAUSE)
        except KeyboardInterrupt:
            return


def _view(document: status_file.StatusDocument) -> Group:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    services = Table("service", "state", "status", "pid", "restarts", "job", "VM", box=None, pad_edge=False)
    for service in document.services:
        job, vm = ("-", "-") if service.job is None else (service.job.name, service.job.vm)
        services.add_row(
            *map(
                Text,
                (service.name, service.state, service.status, str(service.pid or "-"), str(service.restarts), job, vm),
            )
        )
    slots = Table("slot", "state", "service", "VM", "since", box=None, pad_edge=False)
    for slot in document.slots:
        slots.add_row(*map(Text, (str(slot.index), slot.state, slot.service or "-", slot.vm or "-", slot.since or "-")))
    reasons = [Text(f"\n{service.name}: {service.reason}") for service in document.services if service.reason]
    head = Text(f"{document.mode}, pid {document.pid}, version {document.version}, since {document.started_at}")
    return Group(head, "", services, "", slots, *reasons)


def _state_dir(config: Path) -> Path:
    """Where the running supervisor keeps its files. A configuration that is broken by now must not keep anybody from draining."""
    home = Path.home()
    try:
        return load_host(config, os.environ, home=home, platform=sys.platform).state_dir
    except ConfigErrors:
        return default_state_dir(os.environ, home=home, platform=sys.platform)


def _say(text: str, *, error: bool = False) -> None:
    print(text, file=sys.stderr if error else sys.stdout)
