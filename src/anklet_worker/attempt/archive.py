"""What is kept of each job when its VM is gone: `<state_dir>/jobs/<job>/<attempt>/`, filled by the plugin, pruned in time.

Owns the folders, not what is in them. Files of guests are foreign: nothing here opens or follows them.
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

#: How many jobs are kept, and for how many seconds.
_MOST_JOBS, _LONGEST = 200, 14 * 86_400.0


class Archive:
    """The folders of one host's jobs; services share them."""

    def __init__(self, state_dir: Path, clock: Callable[[], float] = time.time) -> None:
        self._dir = Place.ARCHIVE.path(state_dir)
        self._clock = clock

    def folder(self, vm: str) -> Path:
        """Make and return the folder of the attempt that made this VM; what is old goes. Raises `OSError`."""
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
        """Another service may do the same at the same time: what is gone is pruned."""
        aged = []
        for path in self._dir.iterdir():
            with contextlib.suppress(FileNotFoundError):
                aged.append((path.stat(follow_symlinks=False).st_mtime, path))
        aged.sort(reverse=True)
        oldest = self._clock() - _LONGEST
        for number, (changed, path) in enumerate(aged, start=1):
            if path.name != keep and (number >= _MOST_JOBS or changed < oldest):
                shutil.rmtree(path, ignore_errors=True)
