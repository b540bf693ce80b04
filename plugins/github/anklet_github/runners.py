"""Registers, finds and removes the runners of one scope.

A runner has the name of its VM, so that it can be found even when the reply to its registration was lost. Knows nothing about jobs.
"""

from __future__ import annotations

from anklet_github.api import Api
from anklet_github.payloads import Groups, JitConfig, RegistrationToken, Runner, Runners
from anklet_github.scope import Scope
from anklet_github.trouble import ApiTrouble, Conflict, NotFound, Unprocessable
from anklet_worker.contract.errors import RetryHere, ServiceFatal

#: The id of the group Default, which every organization and repository has (GitHub REST docs, `runner_group_id`).
_DEFAULT_GROUP = 1
_WORK_FOLDER = "_work"


class RunnerBusy(RetryHere):
    """GitHub refuses to remove a runner while a job runs on it."""


class RunnerRegistry:
    """The runners of one scope."""

    def __init__(self, api: Api, scope: Scope) -> None:
        self._api = api
        self._scope = scope
        self._path = scope.runners_path
        self._group: int | None = None

    def register_jit(self, name: str, labels: list[str]) -> JitConfig:
        """Register a runner for one job, with exactly these labels.

        VM names are unique for all time, so an existing registration of this name is ours, from a lost reply. It is
        replaced, unless it is online or busy: our runner has not started yet.

        Raises `Unprocessable` for labels that GitHub refuses, `NotFound`, `RetryHere`, and `ServiceFatal` for an unknown group.
        """
        group = self._group_id()
        try:
            return self._register_in(group, name, labels)
        except NotFound:
            # The group may have been deleted and created again with another id.
            self._group = None
            anew = self._group_id()
            if anew == group:
                raise
            return self._register_in(anew, name, labels)

    def _register_in(self, group: int, name: str, labels: list[str]) -> JitConfig:
        body = {"name": name, "runner_group_id": group, "labels": labels, "work_folder": _WORK_FOLDER}
        try:
            return self._api.post(f"{self._path}/generate-jitconfig", JitConfig, body, repeatable=False)
        except Conflict:
            there = self.find(name)
            if there is not None and (there.busy or there.status == "online"):
                raise RetryHere(f"another runner already uses the name {name}") from None
            if there is not None:
                self.remove(name, there.id)
            return self._api.post(f"{self._path}/generate-jitconfig", JitConfig, body, repeatable=False)

    def registration_token(self) -> str:
        """A token with which a guest registers its own runner. A secret."""
        return self._api.post(f"{self._path}/registration-token", RegistrationToken, {}, repeatable=True).token

    def find(self, name: str) -> Runner | None:
        """The runner of this name, or None. Raises `ApiTrouble`."""
        rows = self._api.get_all(self._path, Runners, name=name)
        return next((runner for runner in rows if runner.name == name), None)

    def all(self) -> list[Runner]:
        """All runners of the scope, including those of others."""
        return self._api.get_all(self._path, Runners, urgent=False)

    def remove(self, name: str, runner_id: int | None = None) -> bool:
        """Remove the registration of this name. Return False when there is none. A known `runner_id` saves a call.

        Raises `RunnerBusy`, `ApiTrouble`.
        """
        if runner_id is not None and self._delete(runner_id):
            return True
        # A 404 for an id may be an error of GitHub's. Only a list without the name is proof.
        runner = self.find(name)
        if runner is not None and not self._delete(runner.id):
            raise ApiTrouble(f"GitHub lists runner {name} but answers 404 to its removal")
        return runner is not None

    def _delete(self, runner_id: int) -> bool:
        try:
            return self._api.delete(f"{self._path}/{runner_id}")
        except Unprocessable:
            raise RunnerBusy(f"GitHub says that runner {runner_id} runs a job") from None

    def _group_id(self) -> int:
        """The id of the configured group, requested once. Raises `ServiceFatal` for an unknown group."""
        wanted = self._scope.group
        if wanted is None:
            return _DEFAULT_GROUP
        if self._group is None:
            groups = self._api.get_all(f"{self._scope.path}/actions/runner-groups", Groups)
            found = next((group for group in groups if group.name.lower() == wanted.lower()), None)
            if found is None:
                names = ", ".join(sorted(group.name for group in groups)) or "none"
                raise ServiceFatal(f"runner.group: {self._scope.owner} has no runner group {wanted!r}; it has: {names}")
            self._group = found.id
        return self._group
