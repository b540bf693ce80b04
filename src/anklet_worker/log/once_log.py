"""Log lines that repeat with every pass, written only the first time. Decides nothing else."""

from __future__ import annotations

from anklet_worker.log.service_log import ServiceLog


class OnceLog:
    """Writes each message about each thing once in the life of a worker."""

    def __init__(self, log: ServiceLog) -> None:
        self._log = log
        self._written: set[tuple[str, str]] = set()

    def error(self, message: str, about: str, **fields: object) -> None:
        """Write at ERROR, unless the same message about the same thing was written before."""
        if self._is_new(message, about):
            self._log.error(message, extra=fields)

    def warning(self, message: str, about: str, **fields: object) -> None:
        """Write at WARN, unless the same message about the same thing was written before."""
        if self._is_new(message, about):
            self._log.warning(message, extra=fields)

    def _is_new(self, message: str, about: str) -> bool:
        if (message, about) in self._written:
            return False
        self._written.add((message, about))
        return True
