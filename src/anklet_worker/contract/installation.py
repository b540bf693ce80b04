"""The installed files of this program: are they still those that this process began with?

pip and brew replace files under a running supervisor. Owns the identity of the installation at the start of the process, and the
one door for every import that comes later. Knows no module.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import anklet_worker
from anklet_worker.contract.errors import TemporaryError

_VERSION = re.compile(rb"^__version__ = \"([^\"]+)\"", re.MULTILINE)


class Installation:
    """The version that runs, by the file that says so: `path` is a module with the line `__version__ = "..."`."""

    def __init__(self, path: Path, version: str) -> None:
        self._path = path
        self._version = version
        self._identity = _identity(path)

    def installed(self) -> str:
        """The version that is installed now; empty while its files are being replaced. Looks at the disk, cheaply."""
        identity = _identity(self._path)
        if identity is not None and identity == self._identity:
            return self._version
        try:
            found = _VERSION.search(self._path.read_bytes())
        except OSError:
            return ""
        installed = found[1].decode(errors="replace") if found else ""
        if installed == self._version:
            # The same version was reinstalled.
            self._identity = identity
        return installed

    def require_unchanged(self) -> None:
        """Raise `TemporaryError` when another version is installed than the one that runs."""
        installed = self.installed()
        if installed != self._version:
            raise TemporaryError(
                f"version {installed or 'unknown'} is installed, but version {self._version} runs; restart the supervisor"
            )

    @contextlib.contextmanager
    def late_import(self, module: str) -> Iterator[None]:
        """Import a module inside this after the start: it is of the running version, or `TemporaryError` is raised.

        A module that is loaded already needs nothing from the disk.
        """
        if module in sys.modules:
            yield
            return
        self.require_unchanged()
        yield
        # Files may be replaced while the import reads them.
        self.require_unchanged()


def _identity(path: Path) -> tuple[int, int, int, int] | None:
    try:
        info = path.stat()
    except OSError:
        return None
    return (info.st_dev, info.st_ino, info.st_mtime_ns, info.st_size)


#: The installation that this process began with.
INSTALLATION = Installation(Path(anklet_worker.__file__), anklet_worker.__version__)
