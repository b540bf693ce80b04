"""What a plugin is: a factory that makes, for one service, a source of jobs and a driver for them.

A plugin never makes or deletes a VM and never loops for ever. It sleeps only with its context's `wait`. Between calls it
keeps only what it `remember`s and what it can fetch again. It raises only the errors of `anklet_worker.contract.errors`. The core
names no plugin.
"""

from __future__ import annotations

from typing import Protocol

from anklet_worker.contract.context import Context
from anklet_worker.contract.driver import Driver
from anklet_worker.contract.source import Source

#: Version of the contract; raised when an older plugin could not follow a change. 1 had one class for both halves.
API_VERSION = 2


class Plugin(Protocol):
    """One service's plugin. The factory makes it once in a worker process; both halves may share what they know."""

    @property
    def source(self) -> Source:
        """The half that finds jobs."""
        ...

    @property
    def driver(self) -> Driver:
        """The half that runs them."""
        ...

    def close(self) -> None:
        """Close connections; the process is about to end."""
        ...


class PluginFactory(Protocol):
    """The target of an entry point, or the name `plugin` in a plugin.py: makes the plugin of one service.

    `api_version` is the version of the contract that the plugin was written for.
    """

    api_version: int

    def __call__(self, context: Context) -> Plugin:
        """Make the plugin of one service. Raises `ServiceFatal` when the service cannot run."""
        ...
