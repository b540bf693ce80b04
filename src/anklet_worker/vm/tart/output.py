"""Reads the answers of Tart's command line: its listing, its version, and which error it reports. Pure.

Facts: Tart's source (2.32). Tart's own errors are bare lines on stderr, with exit status 2 for a VM that does not exist, does not
run, or runs already, and 1 for everything else; errors of Swift's libraries begin with `Error:`. An answer is judged by its text,
because `tart exec` ends with the guest's status.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterator

from anklet_worker.contract.errors import (
    AnswerUnreadable,
    ImageUnusable,
    Retry,
    RightsRefused,
    ToolRefused,
    VMError,
    VMLimitReached,
    VMNotFound,
    VMTransient,
)
from anklet_worker.vm.driver import VMInfo, VMState
from anklet_worker.vm.wording import one_line, quoted

#: How many of the last lines of a `tart run` an error quotes.
_LAST_LINES = 3

#: What errors say, in order of precedence. They contain names that a user typed, so the patterns match the rest of the line.
_TEXTS: tuple[tuple[str, type[VMError]], ...] = (
    (r"number of VMs exceeds the system limit", VMLimitReached),
    (r"number of virtual machines exceeds the limit", VMLimitReached),
    (r'^the specified VM ".*" does not exist\.?\s*$', VMNotFound),
    (r'^VM ".*" is not running\.?\s*$', VMTransient),
    (r"\bcode: 404\b|\bMANIFEST_UNKNOWN\b|\bNAME_UNKNOWN\b", VMNotFound),
    (r"^(?:Error: )?failed to parse remote name", VMNotFound),
    (r"\bAuthFailed\b|\bcode: 40[13]\b|\bDENIED\b|\bUNAUTHORIZED\b", ToolRefused),
    (r"\bVM is missing some of its files\b", ImageUnusable),
    (r"^Error: (?:Unknown option|Unexpected argument|Missing expected argument|The value )|^Usage: ", ToolRefused),
)
_FLAGS = re.IGNORECASE | re.MULTILINE
#: What an operator can do about a refusal or a damaged image, by what the error says.
_ADVICE = (
    (re.compile(r"\bAuthFailed\b|\bcode: 40[13]\b|DENIED|UNAUTHORIZED"), "log in on this host with `tart login`"),
    (re.compile(r"missing some of its files"), "delete the image on this host with `tart delete`"),
)
_OTHER_ADVICE = "this version of Tart does not know the command; update Tart on this host"
#: macOS 15 and later: a VM's keys are in the login keychain, which stays locked until somebody logs in at the desktop.
_KEYCHAIN = re.compile(r"-25308\b|SecKeyCreateRandomKey_ios failed|Interaction is not allowed with the Security Server")
#: `tart exec`'s own lines; everything else on stderr may be the guest's.
_EXEC_LINES = re.compile(
    r'^(?:the specified VM ".*" does not exist|VM ".*" is not running|(?:Error: )?Failed to connect to the VM using its '
    r"control socket: .*)\s*$",
    re.MULTILINE,
)
_VERSION = re.compile(r"^(\d+)\.(\d+)(?:\.\d+)*", re.MULTILINE)


def version(stdout: bytes) -> tuple[str, tuple[int, int]] | None:
    """The version as `tart --version` prints it, and its first two numbers; None for anything else."""
    found = _VERSION.search(stdout.decode(errors="replace").strip())
    return None if found is None else (found[0], (int(found[1]), int(found[2])))


def error_of(what: str, status: int, stderr: bytes, stdout: bytes = b"") -> VMError | RightsRefused:
    """The exception for a command that failed, in one line: the command, and Tart's own words."""
    text = stderr.decode(errors="replace")
    words = last_lines(text) or last_lines(stdout.decode(errors="replace")) or f"exit status {status}"
    if _KEYCHAIN.search(text):
        return RightsRefused(
            f"{what}: the login keychain is locked ({one_line(words)}); log in at the desktop, or `security unlock-keychain "
            "login.keychain-db`"
        )
    kind = classify(text)
    advice = f"; {_advice(text)}" if kind.retry is Retry.OPERATOR else ""
    return kind(f"{what}: {one_line(words)}{advice}")


def _advice(text: str) -> str:
    return next((advice for pattern, advice in _ADVICE if pattern.search(text)), _OTHER_ADVICE)


def classify(text: str) -> type[VMError]:
    """The class of an error by its text. An unknown text is worth another try."""
    return next((outcome for pattern, outcome in _TEXTS if re.search(pattern, text, _FLAGS)), VMTransient)


def address_in(stdout: bytes) -> str | None:
    """The address that `tart ip` prints; None when it prints no address."""
    words = stdout.decode(errors="replace").split()
    try:
        return str(ipaddress.IPv4Address(words[-1])) if words else None
    except ValueError:
        return None


def exec_words(stderr: bytes) -> str:
    """`tart exec`'s own last line, or nothing. It contains nothing of the guest's, which may be a secret."""
    lines = _EXEC_LINES.findall(stderr.decode(errors="replace"))
    return one_line(lines[-1]) if lines else ""


def vms(stdout: bytes) -> Iterator[VMInfo]:
    """The rows of `tart list --format json`, images that were pulled included.

    Raises `AnswerUnreadable` for anything that is not a listing: a VM that is overlooked would count as gone.
    """
    text = stdout.decode(errors="replace")
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError):
        raise AnswerUnreadable(f"cannot read the answer of tart list: {quoted(stdout)}") from None
    if not isinstance(rows, list):
        raise AnswerUnreadable(f"cannot read the answer of tart list: not a list: {one_line(text)}")
    for row in rows:
        name = row.get("Name") if isinstance(row, dict) else None
        if not isinstance(name, str):
            raise AnswerUnreadable(
                f"cannot read the answer of tart list: a row without a name: {one_line(json.dumps(row))}"
            )
        yield VMInfo(name=name, uuid="", state=_state(row.get("State"), row.get("Running")))


def _state(word: object, running: object) -> VMState:
    if running is True:
        return VMState.RUNNING
    try:
        return VMState(str(word).lower())
    except ValueError:
        # An unknown word: the VM counts as running unless Tart says that it does not run.
        return VMState.STOPPED if running is False else VMState.RUNNING


def last_lines(text: str) -> str:
    """The last lines that a command printed, on one line."""
    return " / ".join([line.strip() for line in text.splitlines() if line.strip()][-_LAST_LINES:])
