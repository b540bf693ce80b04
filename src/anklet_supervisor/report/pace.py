"""When a report file is due. Pure arithmetic on seconds of one clock that never goes back; knows no file.

Changes that come within a short time make one file. One is written now and then although nothing has changed: its age tells
readers that the supervisor lives.
"""

from __future__ import annotations

#: Seconds within which changes make one file, and so the least time between two files: at most ten a second.
GATHER = 0.1
#: Seconds after which a file is due although nothing has changed.
AT_LEAST = 4.0


class Pace:
    """Decides when to write. The owner reports changes and writes; `now` is always its clock's seconds."""

    def __init__(self, now: float) -> None:
        self._changed_at: float | None = now
        self._written_at = now

    def changed(self, now: float) -> None:
        """There is something new to write."""
        if self._changed_at is None:
            self._changed_at = now

    def written(self, now: float) -> None:
        """Everything up to now is in the file."""
        self._changed_at = None
        self._written_at = now

    @property
    def due(self) -> float:
        """When the next file is to be written."""
        if self._changed_at is None:
            return self._written_at + AT_LEAST
        return self._changed_at + GATHER
