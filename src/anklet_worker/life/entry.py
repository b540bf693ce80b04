"""One record as it stands in memory and on disk. The only writer of that record.

Owns when a change is durable and what a disk that refuses means for it. Knows neither table.
"""

from __future__ import annotations

import msgspec

from anklet_worker.contract.errors import RecordNotWritten
from anklet_worker.life.records import Record, RecordBook
from anklet_worker.log.service_log import ServiceLog


class Entry:
    """A record in hand. A VM and the attempt that borrows it share one, so that one write announces both lives."""

    def __init__(self, record: Record, book: RecordBook, log: ServiceLog) -> None:
        self.record = record
        self._book = book
        self._log = log

    def announce(self, **changes: object) -> None:
        """Put changes on disk before the effect that they announce. Raises `RecordNotWritten`; the effect must then not happen."""
        record = msgspec.structs.replace(self.record, **changes)
        self._book.save(record)
        self.record = record

    def note(self, **changes: object) -> None:
        """Put changes on disk if it takes them, and go on anyway.

        For the way back, whose effects remove things: the older record names all that has to go. And for a job that has started: by
        the older record the next process asks the origin whether one has.
        """
        try:
            self.announce(**changes)
        except RecordNotWritten as error:
            self._log.info("going on without a record", extra={"err": str(error)})
            self.amend(**changes)

    def amend(self, **changes: object) -> None:
        """Change the record in memory; the next write carries it along. For what is not worth a write of its own."""
        self.record = msgspec.structs.replace(self.record, **changes)

    def forget(self) -> None:
        """Nothing of VM and attempt is left: remove the record. One that stays for want of a working disk is looked at again."""
        self._book.remove(self.record)
