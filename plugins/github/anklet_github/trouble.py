"""The errors of GitHub requests, by what they mean to the caller. No text ever holds a token.

Knows no status line and no header; `api.py` chooses the error.
"""

from __future__ import annotations

from anklet_worker.contract.errors import RetryHere

#: The cause of a refusal of the login itself, and so of every request with it.
LOGIN = "login"


class ApiTrouble(RetryHere):
    """GitHub could not be reached, or did not answer as documented. A retry may succeed."""


class LimitPause(ApiTrouble):
    """The rate limit would delay the request until it no longer serves a purpose."""


class TimedOut(ApiTrouble):
    """No answer in time. The request may still take effect."""


class NotFound(ApiTrouble):
    """404: it does not exist, or the token may not see it."""


class Conflict(ApiTrouble):
    """409: it exists already."""


class Unprocessable(ApiTrouble):
    """422: GitHub refuses the request as it is (a busy runner, a label that is not allowed)."""


class Refused(ApiTrouble):
    """401, 403, and 404 for a configured path: GitHub refuses the login, or the login lacks a right. `refusals.py` judges it.

    `cause` names what is refused: everything (`LOGIN`), a route of a repository, or a path.
    """

    def __init__(self, text: str, cause: str) -> None:
        super().__init__(text)
        self.cause = cause
