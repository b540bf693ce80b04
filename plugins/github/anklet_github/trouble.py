"""What can go wrong when GitHub is asked, by who should act. No text ever holds a token."""

from __future__ import annotations

from anklet_worker.contract.errors import RetryHere

#: The cause of a refusal of the login itself: of all that is asked with it.
LOGIN = "login"


class ApiTrouble(RetryHere):
    """GitHub could not be asked, or did not answer as documented; it may the next time."""


class LimitPause(ApiTrouble):
    """GitHub's limit leaves no room for a question before it has lost its purpose."""


class TimedOut(ApiTrouble):
    """No answer in time: what was asked for may be yet to happen."""


class NotFound(ApiTrouble):
    """404: it does not exist, or the token may not see it."""


class Conflict(ApiTrouble):
    """409: it exists already."""


class Unprocessable(ApiTrouble):
    """422: refused as it is (a runner that is busy, a label that is not allowed)."""


class Refused(ApiTrouble):
    """401, 403, and 404 for what was configured: who we are, or what we may do, is refused. For how long must show.

    `cause` is what is refused: all (`LOGIN`), a route of a repository, or a path.
    """

    def __init__(self, text: str, cause: str) -> None:
        super().__init__(text)
        self.cause = cause
