"""The driving half of the plugin: installs, registers and starts the runner of one job, and removes its traces at GitHub.

Owns the order of these steps. What runs in the guest stands in `guest.py`, what is on record of a registration in
`registration.py`, how a job is watched in `watch.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from anklet_github import guest_logs
from anklet_github.api import LONGEST_BOUNDED_PAUSE
from anklet_github.discovery import labels_of
from anklet_github.guest import GuestScripts
from anklet_github.registration import Registration
from anklet_github.runners import RunnerBusy
from anklet_github.settings import settings_of
from anklet_github.tools import GithubTools
from anklet_github.trouble import ApiTrouble, Conflict
from anklet_github.watch import Watch, Watching
from anklet_worker.contract.backoff import Backoff
from anklet_worker.contract.driver import JobInHand, Withdrawal
from anklet_worker.contract.errors import JobLost
from anklet_worker.contract.guest import Guest
from anklet_worker.contract.job import Job, Outcome

#: Seconds for which a started VM waits while GitHub cannot register its runner, and the pauses between two tries.
_OUTAGE_PATIENCE = 600.0
_INSIST = Backoff(first=1.0, longest=20.0)

T = TypeVar("T")


class GithubDriver:
    """Implements `anklet_worker.contract.driver.Driver`."""

    def __init__(self, tools: GithubTools) -> None:
        self._context = tools.context
        self._scope = tools.scope
        self._api = tools.api
        self._discovery = tools.discovery
        self._runners = tools.runners
        self._scripts = GuestScripts(tools.context)
        #: The VM whose runner GitHub itself has removed, by the runner's own word.
        self._removed: str | None = None

    def claim(self, job: Job) -> bool:
        """Return whether GitHub still has the job queued, with the same labels."""
        return self._discovery.may_claim(job)

    def drive(self, hand: JobInHand, guest: Guest) -> Outcome:
        """Install, register, start, watch. Registers the runner only once the guest can start it and while the job still waits."""
        settings = settings_of(self._context.service)
        labels = labels_of(hand.job)
        self._scripts.install(guest)
        self._context.check()
        if settings.runner_mode == "jit":
            registration = Registration(hand, self._runners)
            config = self._insist(hand, lambda: registration.make(labels))
            self._context.check()
            self._scripts.start(guest, config.encoded_jit_config)
        else:
            token = self._insist(hand, self._runners.registration_token)
            hand.remember(runner_name=guest.name)
            self._scripts.register(guest, self._scope.registration_url(settings.server_url), token, labels)
            self._context.check()
            self._scripts.start(guest, None)
        hand.log.info("runner started", extra={"runnerName": guest.name})
        return self._watch(hand, guest)

    def adopt(self, hand: JobInHand, guest: Guest) -> Outcome:
        """Watch the job that an earlier process started."""
        return self._watch(hand, guest)

    def withdraw(self, hand: JobInHand) -> Withdrawal:
        """Delete the runner: GitHub's one compare-and-swap. 204 means that no job can land any longer, 422 that one has.

        A runner that was registered and is gone has had its one job, most likely.
        """
        registration = Registration(hand, self._runners)
        try:
            with self._api.bounded(LONGEST_BOUNDED_PAUSE):
                removed = registration.remove()
        except RunnerBusy:
            return Withdrawal.STARTED
        return Withdrawal.VANISHED if not removed and registration.answered else Withdrawal.WITHDRAWN

    def collect(self, hand: JobInHand, guest: Guest, folder: Path) -> None:  # noqa: ARG002  the contract hands over more
        """Copy the runner's logs, and ours about it."""
        guest_logs.collect(guest, folder)

    def settle(self, hand: JobInHand) -> bool:
        """Remove the runner of a VM that is gone, unless GitHub did so after its one job. False while GitHub counts it as busy."""
        registration = Registration(hand, self._runners)
        if self._removed == hand.vm and not registration.may_come_late:
            return True
        try:
            with self._api.bounded(LONGEST_BOUNDED_PAUSE):
                registration.remove()
        except (RunnerBusy, ApiTrouble):
            return False
        return registration.is_final

    def abandoned(self, vm: str) -> bool:
        """Return True when GitHub knows no runner of that name, or one without a job."""
        with self._api.bounded(LONGEST_BOUNDED_PAUSE):
            runner = self._runners.find(vm)
        return runner is None or not runner.busy

    def _watch(self, hand: JobInHand, guest: Guest) -> Outcome:
        watching = Watching(
            context=self._context, discovery=self._discovery, runners=self._runners, scripts=self._scripts
        )
        watch = Watch(watching, hand, guest)
        # Keep watching the guest even while GitHub may not be asked.
        with self._api.bounded(LONGEST_BOUNDED_PAUSE):
            outcome = watch.to_the_end()
        if watch.removed:
            self._removed = guest.name
        return outcome

    def _insist(self, hand: JobInHand, effort: Callable[[], T]) -> T:
        """Repeat the effort through an outage of GitHub, as long as the job is still queued: an outage costs no VM and no attempt.

        Raises `JobLost` when the job is gone, or the trouble that has lasted for `_OUTAGE_PATIENCE`.
        """
        deadline, backoff, logged = time.monotonic() + _OUTAGE_PATIENCE, _INSIST, False
        while True:
            try:
                if not self._discovery.still_queued(hand.job):
                    raise JobLost(f"job {hand.job.id} is no longer queued")
                return effort()
            except Conflict:
                raise
            except ApiTrouble as error:
                if time.monotonic() + backoff.pause > deadline:
                    raise
                if not logged:
                    hand.log.warning("GitHub cannot register the runner now; trying again", extra={"err": str(error)})
                logged = True
            self._context.wait(backoff.pause)
            backoff = backoff.next()
