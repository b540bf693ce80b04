"""What services that share a store tell each other."""

from __future__ import annotations

from typing import Protocol


class Board(Protocol):
    """What services with the same store (of a host, or with Redis of many) tell each other, so that one finds out for all.

    Keys begin with the keyspace of what they are about. Never raises: while the store is away the board is empty, and each
    service finds out for itself. Nothing on it is a secret.
    """

    def turn(self, key: str, seconds: float) -> bool:
        """True for one service at a time, which has the turn for so many seconds (asking again prolongs it)."""
        ...

    def pass_on(self, key: str) -> None:
        """Give the turn back before its time, so that another gets it."""
        ...

    def holder(self, key: str) -> str | None:
        """Who has a turn, or the lease `Job.key("claim")` of a job; None: nobody, or it cannot be told."""
        ...

    def count(self, key: str, seconds: float, amount: int = 1) -> int | None:
        """Add to a counter of all and return it; it is forgotten so many seconds after the last addition. None: not to be had."""
        ...

    def post(self, key: str, text: str, seconds: float) -> None:
        """Leave a note for all, instead of an earlier one, for so many seconds."""
        ...

    def read(self, key: str) -> str | None:
        """The note, if there is one."""
        ...
