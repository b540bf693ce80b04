"""`job show` and `job list`: the timelines of the latest jobs. Reads the supervisor's file; needs no running supervisor."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from anklet_supervisor.console.remote import state_dir_of
from anklet_supervisor.report import history
from anklet_supervisor.report.timelines import Timeline, durations, find
from anklet_worker.contract.errors import ExitCode


class _Shown(msgspec.Struct, frozen=True):
    """A timeline as `--json` prints it. Times are Unix seconds; `seconds` is how long each step took since the one before."""

    job: Timeline
    seconds: dict[str, float]


def show_job(config: Path, wanted: str, *, as_json: bool) -> int:
    """Show every attempt at the job with this ID, or the one in the VM with this name. Returns 1 when there is none."""
    state_dir = state_dir_of(config)
    lines = find(history.read(state_dir), wanted)
    if not lines:
        sys.stderr.write(f"no job {wanted} in the history of this host (state directory {state_dir})\n")
        return int(ExitCode.NEGATIVE)
    if as_json:
        sys.stdout.write(document(lines))
    else:
        from anklet_supervisor.console import job_view  # noqa: PLC0415  --json needs no rich

        job_view.show(lines)
    return int(ExitCode.OK)


def list_jobs(config: Path, *, as_json: bool) -> int:
    """List the latest attempts, newest last."""
    lines = history.read(state_dir_of(config))
    if as_json:
        sys.stdout.write(document(lines))
    else:
        from anklet_supervisor.console import job_view  # noqa: PLC0415  --json needs no rich

        job_view.show_list(lines)
    return int(ExitCode.OK)


def document(lines: list[Timeline]) -> str:
    """The timelines as JSON with stable keys."""
    shown = [_Shown(line, durations(line)) for line in lines]
    return msgspec.json.format(msgspec.json.encode(shown), indent=2).decode() + "\n"
