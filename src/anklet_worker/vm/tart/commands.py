"""How this program runs `tart`: its plain commands, and how their results are judged.

Knows no VM's life: that is the driver's.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from anklet_worker.process.command import CommandResult, CommandRunner
from anklet_worker.vm.tart.output import error_of
from anklet_worker.vm.tool import Tool


def tart_tool(commands: CommandRunner, log: logging.LoggerAdapter[logging.Logger]) -> Tool:
    """`tart`, which prints plain text."""
    return Tool(["tart"], verb, commands, log)


def verb(arguments: Sequence[str]) -> str:
    """The command's name in metrics, from a closed list."""
    return "probe" if arguments[0].startswith("-") else arguments[0]


def printed(what: str, result: CommandResult) -> bytes:
    """What the command `what` printed. Raises the error that its exit status and text report."""
    if result.status != 0:
        raise error_of(what, result.status, result.stderr, result.stdout)
    return result.stdout
