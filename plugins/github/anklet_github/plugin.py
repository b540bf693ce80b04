"""The plugin itself: each question of the contract, answered by the module that knows.

Keeps the plugin contract (`anklet_worker.plugin`) and nothing else: how GitHub is asked, what is done in the guest, and how a
job is followed stand in the modules beside this one.
"""

from __future__ import annotations

from collections.abc import Sequence

from anklet_github.api import Api, ApiTrouble, NotFound, Unprocessable
from anklet_github.discovery import Discovery
from anklet_github.guest import GuestScripts
from anklet_github.payloads import JitConfig
from anklet_github.runners import RunnerBusy, RunnerRegistry
from anklet_github.scope import scope_of
from anklet_github.watch import Watch, Watching
from anklet_worker.config import Secret, ServiceConfig
from anklet_worker.errors import JobLost, RetryElsewhere, ServiceFatal
from anklet_worker.job import Job, Outcome
from anklet_worker.plugin import Context, Guest, Withdrawal

__all__ = ["GithubPlugin", "plugin"]


class GithubPlugin:
    """One service's repository."""

    api_version = 1

    def __init__(self, context: Context) -> None:
        self._context = context
        service = context.service
        token = _token(service)
        self._scope = scope_of(service)
        self._api = Api(service.api_url, lambda: f"Bearer {token.reveal()}", context)
        self._discovery = Discovery(self._api, self._scope, context)
        self._runners = RunnerRegistry(self._api, self._scope)
        self._scripts = GuestScripts(context)

    def look(self) -> Sequence[Job]:
        """Queued jobs whose labels ask for a VM of ours, oldest first."""
        return self._discovery.look()

    def claim(self, job: Job) -> bool:
        """Still queued, and still asking for the same."""
        try:
            now = self._discovery.job(int(job.id))
        except NotFound:
            return False
        return now.status == "queued" and now.labels == job.details.get("labels")

    def drive(self, job: Job, guest: Guest) -> Outcome:
        """Install, register, start, watch. The runner is registered only when the guest is able to start it."""
        self._scripts.install(guest)
        self._context.check()
        self._context.remember(runner_name=guest.name)
        if self._context.service.runner_mode == "jit":
            config = self._register(guest, _labels(job))
            self._context.remember(runner_id=config.runner.id)
            self._context.check()
            self._scripts.start(guest, config.encoded_jit_config)
        else:
            url = self._scope.registration_url(self._context.service.server_url)
            self._scripts.register(guest, url, self._runners.registration_token(), _labels(job))
            self._context.check()
            self._scripts.start(guest, None)
        self._context.log.info("runner started", extra={"runnerName": guest.name})
        return self._watch(job, guest.name)

    def adopt(self, job: Job, guest: Guest) -> Outcome:
        """Watch on."""
        return self._watch(job, guest.name)

    def withdraw(self, job: Job, guest_name: str) -> Withdrawal:
        """GitHub's one compare-and-swap: 204 means that no job can land any more, 422 that one has."""
        try:
            self._remove(guest_name)
        except RunnerBusy:
            return Withdrawal.STARTED
        return Withdrawal.WITHDRAWN

    def settle(self, job: Job, guest_name: str) -> bool:
        """Remove the runner of a VM that is gone. Busy for GitHub: later."""
        try:
            self._remove(guest_name)
        except (RunnerBusy, ApiTrouble):
            return False
        return True

    def abandoned(self, guest_name: str) -> bool:
        """No runner of that name, or one without a job."""
        runner = self._runners.find(guest_name)
        return runner is None or not runner.busy

    def close(self) -> None:
        """Close the connections."""
        self._api.close()

    def _watch(self, job: Job, runner_name: str) -> Outcome:
        watching = Watching(context=self._context, discovery=self._discovery, runners=self._runners, scope=self._scope)
        return Watch(watching, job, runner_name).to_the_end()

    def _register(self, guest: Guest, labels: list[str]) -> JitConfig:
        try:
            return self._runners.register_jit(guest.name, labels)
        except Unprocessable as error:
            raise RetryElsewhere(f"GitHub refuses a runner with the job's labels: {error}") from error
        except NotFound as error:
            raise JobLost(f"GitHub knows no place to register the runner: {error}") from error

    def _remove(self, name: str) -> None:
        """By the id on record, which is one call; by name where the reply with the id was lost."""
        known = self._context.recall().get("runner_id")
        self._runners.remove(int(known) if known is not None else self._runners.find(name))


def _token(service: ServiceConfig) -> Secret:
    if service.registration != "repo":
        raise ServiceFatal(
            f"service {service.name}: registration {service.registration!r} is not in this version; repo is"
        )
    if service.token is None:
        raise ServiceFatal(f"service {service.name}: login as a GitHub App is not in this version; give a token")
    return service.token


def _labels(job: Job) -> list[str]:
    labels = job.details.get("labels")
    return list(labels) if isinstance(labels, list) else []


plugin = GithubPlugin
