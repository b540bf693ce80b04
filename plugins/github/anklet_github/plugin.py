"""The plugin itself: each question of the contract, answered by the module that knows.

Keeps the plugin contract (`anklet_worker.plugin`) and nothing else: how GitHub is asked, what is done in the guest, and how a
job is followed stand in the modules beside this one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from anklet_github import guest_logs
from anklet_github.api import Api
from anklet_github.connect import transport_of
from anklet_github.discovery import Discovery
from anklet_github.guest import GuestScripts
from anklet_github.http import Transport
from anklet_github.login import AppLogin, InstallationLogin, Login, TokenLogin
from anklet_github.payloads import Installation, InstallationToken, JitConfig
from anklet_github.repos import Repos
from anklet_github.runners import RunnerBusy, RunnerRegistry
from anklet_github.scope import Scope, scope_of
from anklet_github.sweep import Sweeper
from anklet_github.trouble import ApiTrouble, Conflict, NotFound, Refused, TimedOut, Unprocessable
from anklet_github.watch import Watch, Watching
from anklet_worker.contract.context import Context
from anklet_worker.contract.driver import Withdrawal
from anklet_worker.contract.errors import Interrupted, JobLost, RetryElsewhere, ServiceFatal
from anklet_worker.contract.guest import Guest
from anklet_worker.contract.job import Job, Outcome

#: What is on record of a registration, as `registration`: it was about to be asked for, or no answer came in time; it is there, or
#: GitHub is through with it; nothing was there to be had.
_ASKED, _UNANSWERED, _DONE, _REFUSED, _WITHDRAWN = "asked", "unanswered", "done", "refused", "withdrawn"
#: With these, a registration may be yet to come: also when we died, or had to let go, before the answer.
_PENDING = (_ASKED, _UNANSWERED)
#: Seconds in which GitHub may still carry out a registration whose answer was lost.
_LATE_REGISTRATION = 90.0
#: For so many seconds a started VM waits for GitHub to register its runner, with pauses of so many.
_OUTAGE_PATIENCE = 600.0
_INSIST_FIRST, _INSIST_LONGEST = 1.0, 20.0
#: While a job is watched or cleaned up, GitHub's limit is waited for no longer than this at a time: a VM does not wait for it.
_LONGEST_PAUSE = 5.0

T = TypeVar("T")

__all__ = ["GithubPlugin", "plugin"]


class GithubPlugin:
    """One service's repository or organization."""

    api_version = 1

    def __init__(self, context: Context) -> None:
        self._context = context
        self._scope = scope_of(context.service)
        self._transport = transport_of(context.service)
        self._api = Api(self._transport, _login(self._transport, self._scope, context), context)
        self._discovery = Discovery(Repos(self._api, context), context)
        self._runners = RunnerRegistry(self._api, self._scope)
        self._sweeper = Sweeper(self._runners, self._scope.keyspace, context)
        self._scripts = GuestScripts(context)
        #: The VM whose runner is known to have been removed by GitHub itself.
        self._removed: str | None = None

    def look(self) -> Sequence[Job]:
        """Queued jobs whose labels ask for a VM of ours, oldest first."""
        jobs = self._discovery.look()
        self._sweeper.sweep_if_due()
        return jobs

    def claim(self, job: Job) -> bool:
        """Still queued, and still asking for the same."""
        return self._discovery.may_claim(job)

    def drive(self, job: Job, guest: Guest) -> Outcome:
        """Install, register, start, watch. The runner is registered only when the guest is able to start it, and the job still
        waits for it."""
        self._scripts.install(guest)
        self._context.check()
        if self._context.service.runner_mode == "jit":
            config = self._insist(job, lambda: self._register(guest, _labels(job)))
            self._context.check()
            self._scripts.start(guest, config.encoded_jit_config)
        else:
            token = self._insist(job, self._runners.registration_token)
            self._context.remember(runner_name=guest.name)
            url = self._scope.registration_url(self._context.service.server_url)
            self._scripts.register(guest, url, token, _labels(job))
            self._context.check()
            self._scripts.start(guest, None)
        self._context.log.info("runner started", extra={"runnerName": guest.name})
        return self._watch(job, guest)

    def adopt(self, job: Job, guest: Guest) -> Outcome:
        """Watch on."""
        return self._watch(job, guest)

    def withdraw(self, job: Job, guest_name: str) -> Withdrawal:
        """GitHub's one compare-and-swap: 204 means that no job can land any more, 422 that one has. A runner that was registered
        and is not there any more has had its one job, most likely."""
        try:
            with self._api.bounded(_LONGEST_PAUSE):
                removed = self._remove(guest_name)
        except RunnerBusy:
            return Withdrawal.STARTED
        facts = self._context.recall()
        if not removed and "runner_id" in facts and facts.get("registration") == _DONE:
            return Withdrawal.VANISHED
        return Withdrawal.WITHDRAWN

    def collect(self, job: Job, guest: Guest, folder: Path) -> None:
        """The runner's logs, and ours of it."""
        guest_logs.collect(guest, folder)

    def settle(self, job: Job, guest_name: str) -> bool:
        """Remove the runner of a VM that is gone, unless GitHub has done so with its one job. Busy for GitHub: later."""
        if self._removed == guest_name and not self._may_come_late():
            return True
        try:
            with self._api.bounded(_LONGEST_PAUSE):
                self._remove(guest_name)
        except (RunnerBusy, ApiTrouble):
            return False
        asked_at = int(self._context.recall().get("asked_at", 0))
        return not (self._may_come_late() and 0 <= time.time() - asked_at < _LATE_REGISTRATION)

    def _may_come_late(self) -> bool:
        """Whether GitHub may still carry out a registration: one whose answer nobody heard, however later ones fared."""
        facts = self._context.recall()
        state = facts.get("registration")
        return state in _PENDING or (state != _WITHDRAWN and bool(facts.get("unheard")))

    def abandoned(self, guest_name: str) -> bool:
        """No runner of that name, or one without a job."""
        with self._api.bounded(_LONGEST_PAUSE):
            runner = self._runners.find(guest_name)
        return runner is None or not runner.busy

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def _watch(self, job: Job, guest: Guest) -> Outcome:
        watching = Watching(
            context=self._context, discovery=self._discovery, runners=self._runners, scripts=self._scripts
        )
        watch = Watch(watching, job, guest)
        # The guest's word must be heard while GitHub may not be asked.
        with self._api.bounded(_LONGEST_PAUSE):
            outcome = watch.to_the_end()
        if watch.removed:
            self._removed = guest.name
        return outcome

    def _insist(self, job: Job, effort: Callable[[], T]) -> T:
        """An outage of GitHub's costs no VM and no attempt: it is asked on, as long as the job may be had. Raises `JobLost`, and
        the trouble that lasts for too long."""
        deadline, pause, told = time.monotonic() + _OUTAGE_PATIENCE, _INSIST_FIRST, False
        while True:
            try:
                if not self._discovery.still_queued(job):
                    raise JobLost(f"job {job.id} is not queued any more")
                return effort()
            except Conflict:
                raise
            except ApiTrouble as error:
                if time.monotonic() + pause > deadline:
                    raise
                if not told:
                    self._context.log.warning(
                        "GitHub cannot register the runner now; trying on", extra={"err": str(error)}
                    )
                told = True
            self._context.wait(pause)
            pause = min(pause * 2, _INSIST_LONGEST)

    def _register(self, guest: Guest, labels: list[str]) -> JitConfig:
        # A refusal now says nothing of what an earlier request may have done whose answer was lost.
        first = self._context.recall().get("registration") in (None, _REFUSED)
        self._context.remember(registration=_ASKED, asked_at=int(time.time()))
        try:
            config = self._runners.register_jit(guest.name, labels)
        except TimedOut:
            unheard = int(self._context.recall().get("unheard", 0)) + 1
            self._context.remember(registration=_UNANSWERED, unheard=unheard)
            raise
        except (Unprocessable, NotFound, Refused, ServiceFatal) as error:
            self._context.remember(registration=_REFUSED if first else _DONE)
            if isinstance(error, Unprocessable):
                raise RetryElsewhere(f"GitHub refuses a runner with the job's labels: {error}") from error
            if isinstance(error, NotFound):
                # The job waits still, by GitHub's word of a moment ago: to take it again at once would burn one VM after the other.
                raise RetryElsewhere(f"GitHub knows no place to register the runner: {error}") from error
            raise
        except (ApiTrouble, Interrupted):
            # Not sent at all, or broken off: whatever became of it has become of it.
            self._context.remember(registration=_DONE)
            raise
        self._context.remember(registration=_DONE, runner_id=config.runner.id)
        return config

    def _remove(self, name: str) -> bool:
        """Whether there was one to remove. By the id on record, which is one call; by name where the reply with the id was lost,
        or another of that name may have come; not where GitHub refused to register any."""
        facts = self._context.recall()
        state, unheard = facts.get("registration"), int(facts.get("unheard", 0))
        if state == _WITHDRAWN or (state == _REFUSED and not unheard):
            return False
        known = None if unheard else facts.get("runner_id")
        there = self._runners.remove(name, None if known is None else int(known))
        if there and state in _PENDING and unheard <= 1:
            # The one that may have come has come, and is gone.
            self._context.remember(registration=_WITHDRAWN)
        return there


class _AppRoutes:
    """What an installation asks of GitHub as the App itself. Asked in the midst of other calls: no long limit is waited for."""

    def __init__(self, api: Api, scope: Scope) -> None:
        self._api = api
        self._scope = scope

    def installation(self) -> Installation:
        """The App's installation on the scope."""
        with self._api.bounded(_LONGEST_PAUSE):
            return self._api.get(f"{self._scope.path}/installation", Installation, configured=True)

    def token(self, installation_id: int) -> InstallationToken:
        """A new token; one too many does no harm."""
        path = f"/app/installations/{installation_id}/access_tokens"
        with self._api.bounded(_LONGEST_PAUSE):
            return self._api.post(path, InstallationToken, {}, repeatable=True, configured=True)


def _login(transport: Transport, scope: Scope, context: Context) -> Login:
    service = context.service
    if service.private_key is not None and service.app_id:
        app = Api(transport, AppLogin(service.app_id, service.private_key), context)
        return InstallationLogin(service, _AppRoutes(app, scope), scope.permissions)
    if service.token is None:
        raise ServiceFatal(f"service {service.name}: give a token, or a GitHub App's private_key and app_id")
    return TokenLogin(service.token)


def _labels(job: Job) -> list[str]:
    labels = job.details.get("labels")
    return list(labels) if isinstance(labels, list) else []


plugin = GithubPlugin
