"""`job show` and `job list`: the timelines that the supervisor keeps of the latest jobs. Reads its file; needs no supervisor."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from anklet_supervisor.console import job_view
from anklet_supervisor.console.remote import state_dir_of
from anklet_supervisor.report import history
from anklet_supervisor.report.timelines import Timeline, durations, find
from anklet_worker.contract.errors import ExitCode


class _Shown(msgspec.Struct, frozen=True):
    """A timeline in the stable form of `--json`: times are Unix seconds, `seconds` from each step to the one before."""

    job: Timeline
    seconds: dict[str, float]


def show_job(config: Path, wanted: str, *, as_json: bool) -> int:
    """Show every attempt at the job of this id, or the one in the VM of this name; 1 when none is known."""
    state_dir = state_dir_of(config)
    lines = find(history.read(state_dir), wanted)
    if not lines:
        sys.stderr.write(f"no job {wanted} is among the latest of this host (state directory {state_dir})\n")
        return int(ExitCode.NEGATIVE)
    if as_json:
        sys.stdout.write(document(lines))
    else:
        job_view.show(lines)
    return int(ExitCode.OK)


def list_jobs(config: Path, *, as_json: bool) -> int:
    """List the latest attempts, the latest last."""
    lines = history.read(state_dir_of(config))
    if as_json:
        sys.stdout.write(document(lines))
    else:
        job_view.show_list(lines)
    return int(ExitCode.OK)


def document(lines: list[Timeline]) -> str:
    """The timelines in the stable form of `--json`."""
    shown = [_Shown(line, durations(line)) for line in lines]
    return msgspec.json.format(msgspec.json.encode(shown), indent=2).decode() + "\n"
