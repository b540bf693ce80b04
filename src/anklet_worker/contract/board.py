"""The board: short-lived notes, counters and turns that services share, so that one of them can ask the origin for all.

Knows no job system and no store.
"""

from __future__ import annotations

from typing import Protocol


class Board(Protocol):
    """Shared by all services that use the same store: those of one host, or with Redis those of many hosts.

    Start each key with the keyspace that it is about (`Job.keyspace`). Never put a secret here.

    No call raises. While the store does not answer, the board looks empty and every service gets the turn: each one then asks the
    origin for itself. All times are in seconds.
    """

    def turn(self, key: str, seconds: float) -> bool:
        """Take the turn for `key` and return True, or return False while another service has it.

        One service has the turn at a time. It ends after `seconds`; a call by its holder extends it.
        """
        ...

    def pass_on(self, key: str) -> None:
        """End this service's turn early, so that another service can take it."""
        ...

    def holder(self, key: str) -> str | None:
        """Return the owner of a turn, or of a job's lease (`key` is then `Job.key("claim")`).

        None when it has no owner or when the store does not answer.
        """
        ...

    def count(self, key: str, seconds: float, amount: int = 1) -> int | None:
        """Add `amount` to a shared counter and return its new value; None when the store does not answer.

        The counter starts again at 0 once `seconds` have passed without a call.
        """
        ...

    def post(self, key: str, text: str, seconds: float) -> None:
        """Leave a note that all services can read for `seconds`. It replaces an earlier note under the same key."""
        ...

    def read(self, key: str) -> str | None:
        """Return the note under `key`; None when there is none or when the store does not answer."""
        ...
