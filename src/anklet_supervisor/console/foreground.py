"""Shows the log on the terminal when the supervisor was started by hand and the log goes to a file.

Reads that file and owns nothing. It runs in its own thread, apart from the writer of the log, so a stopped terminal (Ctrl-S) stops
nothing else.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

from anklet_supervisor.console.log_view import LineWriter
from anklet_supervisor.log.reader import Tail, parsed

_PAUSE = 0.1
#: Seconds that the terminal gets for the last lines at the end.
_PATIENCE = 1.0


class Foreground:
    """Shows each new line of the log at `path`, until `stop`."""

    def __init__(self, path: Path) -> None:
        self._tail = Tail(path)
        self._tail.read()
        self._writer = LineWriter()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._show_all, name="foreground", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Show the lines that are still to come, and end."""
        self._over.set()
        self._thread.join(_PATIENCE)

    def _show_all(self) -> None:
        # The supervisor goes on without its terminal.
        with contextlib.suppress(OSError, ValueError):
            while not self._over.wait(_PAUSE):
                self._show()
            self._show()

    def _show(self) -> None:
        for line in self._tail.read():
            self._writer.write(line, parsed(line))
