"""The folders that keep a job's logs after its VM is gone: `<state_dir>/jobs/<job>/<attempt>/`.

Owns the folders and their removal when they are old; the plugin fills them. Files from guests are untrusted, so nothing here opens
or follows them.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from anklet_worker.files import make_private_dir
from anklet_worker.state_layout import Place
from anklet_worker.vm.names import parse_vm_name

#: Most jobs to keep, and the longest time in seconds.
_MOST_JOBS, _LONGEST = 200, 14 * 86_400.0


class Archive:
    """The folders of one host's jobs, shared by its services. `clock` returns seconds since the epoch, as file times do."""

    def __init__(self, state_dir: Path, clock: Callable[[], float] = time.time) -> None:
        self._dir = Place.ARCHIVE.path(state_dir)
        self._clock = clock

    def folder(self, vm: str) -> Path:
        """Make and return the folder of the attempt that made this VM, and remove old folders. Raises `OSError`."""
        parsed = parse_vm_name(vm)
        job, attempt = (parsed.job, str(parsed.attempt)) if parsed is not None else (vm, "1")
        make_private_dir(self._dir)
        self._prune(keep=job)
        job_folder = Place.ARCHIVED_JOB.in_folder(self._dir, job)
        attempt_folder = Place.ARCHIVED_ATTEMPT.in_folder(job_folder, attempt)
        make_private_dir(job_folder)
        make_private_dir(attempt_folder)
        return attempt_folder

    def _prune(self, keep: str) -> None:
        """Remove old folders, except job `keep`. Another service may do the same at the same time."""
        aged = []
        for path in self._dir.iterdir():
            with contextlib.suppress(FileNotFoundError):
                aged.append((path.stat(follow_symlinks=False).st_mtime, path))
        aged.sort(reverse=True)
        oldest = self._clock() - _LONGEST
        for number, (changed, path) in enumerate(aged, start=1):
            if path.name != keep and (number >= _MOST_JOBS or changed < oldest):
                shutil.rmtree(path, ignore_errors=True)
