"""How this program runs `anka`: each command's name in metrics, and how its machine-readable answer is judged.

Knows no VM's life: that is the driver's.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from anklet_worker.contract.errors import AnswerUnreadable
from anklet_worker.process.command import CommandResult, CommandRunner
from anklet_worker.vm.anka.output import Envelope, error_of, parse_envelope, vms
from anklet_worker.vm.driver import VMInfo
from anklet_worker.vm.tool import Tool
from anklet_worker.vm.wording import quoted

#: The answer of a command that succeeded and printed nothing.
SILENCE = Envelope(ok=True)


def anka_tool(commands: CommandRunner, log: logging.LoggerAdapter[logging.Logger]) -> Tool:
    """`anka`, which answers in JSON (`-j`)."""
    return Tool(["anka", "-j"], verb, commands, log)


def verb(arguments: Sequence[str]) -> str:
    """The command's name in metrics, from a closed list."""
    words = [word for word in arguments if not word.startswith("-")]
    if not words:
        return "probe"
    if words[0] != "registry":
        return words[0]
    return "check" if "--check-download-size" in arguments else "pull"


def envelope(what: str, result: CommandResult) -> Envelope:
    """The answer of the command `what`. Raises the `VMError` that it reports, or `AnswerUnreadable`."""
    answer = parse_envelope(result.stdout)
    if result.status != 0 or (answer is not None and not answer.ok):
        raise error_of(what, result.status, result.stdout, result.stderr)
    if answer is None:
        raise AnswerUnreadable(f"cannot read the answer of {what}: {quoted(result.stdout)}")
    return answer


def envelope_or_silence(what: str, result: CommandResult) -> Envelope:
    """The same for a command that may succeed and print nothing: `SILENCE` then."""
    silent = result.status == 0 and not result.stdout.strip()
    return SILENCE if silent else envelope(what, result)


def listed(answer: Envelope) -> list[VMInfo]:
    """The rows of a listing."""
    return list(vms(answer.body))
