"""The registration of one runner at GitHub: made at most once for a VM, announced on record first, and removed for certain.

Owns the facts `registration`, `asked_at`, `unheard` and `runner_id` of an attempt's record. A request whose answer was lost may
still be carried out later; these facts say so. Knows nothing of the guest.
"""

from __future__ import annotations

import time

from anklet_github.payloads import JitConfig
from anklet_github.runners import RunnerRegistry
from anklet_github.trouble import ApiTrouble, NotFound, Refused, TimedOut, Unprocessable
from anklet_worker.contract.driver import JobInHand
from anklet_worker.contract.errors import Interrupted, RetryElsewhere, ServiceFatal

#: Values of the fact `registration`. About to ask; asked, and no answer came in time; GitHub has answered (or never got the
#: request); GitHub refused, so nothing exists; the runner was seen and removed.
_ASKED, _UNANSWERED, _DONE, _REFUSED, _WITHDRAWN = "asked", "unanswered", "done", "refused", "withdrawn"
#: With these a registration may still come: we, too, may have died or detached before the answer.
_PENDING = (_ASKED, _UNANSWERED)
#: Seconds in which GitHub may still carry out a registration whose answer was lost.
_LATE_REGISTRATION = 90.0


class Registration:
    """The registration that belongs to the job in hand; the runner bears the VM's name."""

    def __init__(self, hand: JobInHand, runners: RunnerRegistry) -> None:
        self._hand = hand
        self._runners = runners

    def make(self, labels: list[str]) -> JitConfig:
        """Register a just-in-time runner. Raises `RetryElsewhere` when GitHub refuses the labels or the place, or `ApiTrouble`."""
        # A refusal now says nothing about an earlier request whose answer was lost.
        first = self._state() in (None, _REFUSED)
        self._hand.remember(registration=_ASKED, asked_at=int(time.time()))
        try:
            config = self._runners.register_jit(self._hand.vm, labels)
        except TimedOut:
            self._hand.remember(registration=_UNANSWERED, unheard=self._unheard() + 1)
            raise
        except (Unprocessable, NotFound, Refused, ServiceFatal) as error:
            self._hand.remember(registration=_REFUSED if first else _DONE)
            if isinstance(error, Unprocessable):
                raise RetryElsewhere(f"GitHub refuses a runner with the job's labels: {error}") from error
            if isinstance(error, NotFound):
                # GitHub said a moment ago that the job still waits: taking it again at once would burn one VM after the other.
                raise RetryElsewhere(f"GitHub knows no place to register the runner: {error}") from error
            raise
        except (ApiTrouble, Interrupted):
            # Not sent, or cut off in a way that leaves no request under way.
            self._hand.remember(registration=_DONE)
            raise
        self._hand.remember(registration=_DONE, runner_id=config.runner.id)
        return config

    def remove(self) -> bool:
        """Remove the runner; return whether there was one. Raises `RunnerBusy` when a job runs on it, or `ApiTrouble`.

        By the id on record, which is one call; by name where the answer with the id was lost or another runner of that name may
        have come. Asks nothing where GitHub refused to register any.
        """
        state, unheard = self._state(), self._unheard()
        if state == _WITHDRAWN or (state == _REFUSED and not unheard):
            return False
        known = None if unheard else self._hand.recall().get("runner_id")
        there = self._runners.remove(self._hand.vm, None if known is None else int(known))
        if there and state in _PENDING and unheard <= 1:
            # The one that could still come has come, and is gone.
            self._hand.remember(registration=_WITHDRAWN)
        return there

    @property
    def answered(self) -> bool:
        """GitHub has confirmed that the runner exists, or existed."""
        return self._state() == _DONE and "runner_id" in self._hand.recall()

    @property
    def may_come_late(self) -> bool:
        """GitHub may still carry out a request whose answer was lost, however later requests fared."""
        state = self._state()
        return state in _PENDING or (state != _WITHDRAWN and self._unheard() > 0)

    @property
    def is_final(self) -> bool:
        """No registration can come any longer."""
        asked_at = int(self._hand.recall().get("asked_at", 0))
        return not (self.may_come_late and 0 <= time.time() - asked_at < _LATE_REGISTRATION)

    def _state(self) -> str | int | None:
        return self._hand.recall().get("registration")

    def _unheard(self) -> int:
        return int(self._hand.recall().get("unheard", 0))
