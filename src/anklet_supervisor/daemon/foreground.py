"""Shows the log on the terminal of whoever starts the supervisor by hand, when the log itself goes to a file.

Reads that file and owns nothing. Its thread is no part of the program's work: the log's writer knows nothing of it, and a terminal
that is held (Ctrl-S) holds nothing else.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

from anklet_supervisor.console.log_view import LineWriter
from anklet_supervisor.log.reader import Tail, parsed

_PAUSE = 0.1
#: Seconds that the terminal gets at the end to show the last lines.
_PATIENCE = 1.0


class Foreground:
    """Shows each line that is written to the log at `path` from now on, until `stop`."""

    def __init__(self, path: Path) -> None:
        self._tail = Tail(path)
        self._tail.read()
        self._writer = LineWriter()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="foreground", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Show what is there, and end."""
        self._over.set()
        self._thread.join(_PATIENCE)

    def _follow(self) -> None:
        # A terminal that has gone is no reason to end.
        with contextlib.suppress(OSError, ValueError):
            while not self._over.wait(_PAUSE):
                self._show()
            self._show()

    def _show(self) -> None:
        for line in self._tail.read():
            self._writer.write(line, parsed(line))
