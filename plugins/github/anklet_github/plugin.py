"""The plugin of one service: builds what its source and its driver share, and how it logs in.

Knows the contract and the modules beside it; asks GitHub nothing itself.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from anklet_github.api import LONGEST_BOUNDED_PAUSE, Api
from anklet_github.connect import transport_of
from anklet_github.discovery import Discovery
from anklet_github.http import Transport
from anklet_github.login import AppLogin, InstallationLogin, Login, TokenLogin
from anklet_github.payloads import Installation, InstallationToken
from anklet_github.repos import Repos
from anklet_github.runners import RunnerRegistry
from anklet_github.scope import Scope, scope_of
from anklet_github.settings import settings_of
from anklet_github.source import GithubSource
from anklet_github.sweep import Sweeper
from anklet_github.tools import GithubTools
from anklet_worker.contract.context import Context
from anklet_worker.contract.errors import ServiceFatal
from anklet_worker.contract.installation import INSTALLATION

if TYPE_CHECKING:
    from anklet_github.driver import GithubDriver

__all__ = ["GithubPlugin", "plugin"]


class GithubPlugin:
    """One service's repository or organization: what its two halves share, and the halves."""

    api_version = 2

    def __init__(self, context: Context) -> None:
        scope = scope_of(context.service)
        self._transport = transport_of(context.service)
        api = Api(self._transport, _login(self._transport, scope, context), context)
        discovery = Discovery(Repos(api, context), context)
        runners = RunnerRegistry(api, scope)
        self._tools = GithubTools(context=context, scope=scope, api=api, discovery=discovery, runners=runners)
        self.source = GithubSource(discovery, Sweeper(runners, scope.keyspace, context))

    @cached_property
    def driver(self) -> GithubDriver:
        """The half that runs jobs. Its modules are loaded for the first job: an idle worker does without them."""
        with INSTALLATION.late_import("anklet_github.driver"):
            from anklet_github.driver import GithubDriver  # noqa: PLC0415

        return GithubDriver(self._tools)

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()


class _AppRoutes:
    """What an installation asks of GitHub as the App itself. Asked in the midst of other calls: no long limit is waited for."""

    def __init__(self, api: Api, scope: Scope) -> None:
        self._api = api
        self._scope = scope

    def installation(self) -> Installation:
        """The App's installation on the scope."""
        with self._api.bounded(LONGEST_BOUNDED_PAUSE):
            return self._api.get(f"{self._scope.path}/installation", Installation, configured=True)

    def token(self, installation_id: int) -> InstallationToken:
        """A new token; one too many does no harm."""
        path = f"/app/installations/{installation_id}/access_tokens"
        with self._api.bounded(LONGEST_BOUNDED_PAUSE):
            return self._api.post(path, InstallationToken, {}, repeatable=True, configured=True)


def _login(transport: Transport, scope: Scope, context: Context) -> Login:
    settings = settings_of(context.service)
    if settings.private_key is not None and settings.app_id:
        app = Api(transport, AppLogin(settings.app_id, settings.private_key), context)
        return InstallationLogin(context.service, _AppRoutes(app, scope), scope.permissions)
    if settings.token is None:
        raise ServiceFatal(f"service {context.service.name}: give a token, or a GitHub App's private_key and app_id")
    return TokenLogin(settings.token)


plugin = GithubPlugin
