"""Registers and removes runners. A runner bears its VM's name, so that it is found whatever reply was lost."""

from __future__ import annotations

from anklet_github.api import Api, Conflict, Unprocessable
from anklet_github.payloads import JitConfig, RegistrationToken, Runner, Runners
from anklet_github.scope import Scope
from anklet_worker.errors import RetryHere

#: The group that every organisation and repository has (GitHub REST docs: `runner_group_id`, 1 is Default).
_DEFAULT_GROUP = 1
_WORK_FOLDER = "_work"


class RunnerBusy(RetryHere):
    """GitHub refuses to remove a runner while a job runs on it."""


class RunnerRegistry:
    """The runners of one scope."""

    def __init__(self, api: Api, scope: Scope) -> None:
        self._api = api
        self._path = scope.runners_path

    def register_jit(self, name: str, labels: list[str]) -> JitConfig:
        """Register a runner for one job, with exactly these labels. A registration of this name is ours from a lost reply (the
        name is that of one VM, for ever): it is removed and made anew. Raises `Unprocessable` for labels that GitHub refuses."""
        body = {"name": name, "runner_group_id": _DEFAULT_GROUP, "labels": labels, "work_folder": _WORK_FOLDER}
        try:
            return self._api.post(f"{self._path}/generate-jitconfig", JitConfig, body, repeatable=False)
        except Conflict:
            self.remove(self.find(name))
            return self._api.post(f"{self._path}/generate-jitconfig", JitConfig, body, repeatable=False)

    def registration_token(self) -> str:
        """A token with which a guest registers its runner itself. A secret."""
        return self._api.post(f"{self._path}/registration-token", RegistrationToken, {}, repeatable=True).token

    def find(self, name: str) -> Runner | None:
        """The runner of this name."""
        rows = self._api.get_all(self._path, Runners, name=name)
        return next((runner for runner in rows if runner.name == name), None)

    def remove(self, runner: Runner | int | None) -> None:
        """Remove a registration; none is removed already. Raises `RunnerBusy`."""
        if runner is None:
            return
        runner_id = runner if isinstance(runner, int) else runner.id
        try:
            self._api.delete(f"{self._path}/{runner_id}")
        except Unprocessable:
            raise RunnerBusy(f"GitHub says that runner {runner_id} runs a job") from None
