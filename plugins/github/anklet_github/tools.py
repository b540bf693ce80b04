"""What both halves of the plugin share for one service. Owns nothing but the grouping."""

from __future__ import annotations

import msgspec

from anklet_github.api import Api
from anklet_github.discovery import Discovery
from anklet_github.runners import RunnerRegistry
from anklet_github.scope import Scope
from anklet_worker.contract.context import Context


class GithubTools(msgspec.Struct, frozen=True, kw_only=True):
    """What drives the jobs of one service at GitHub."""

    context: Context
    scope: Scope
    api: Api
    discovery: Discovery
    runners: RunnerRegistry
