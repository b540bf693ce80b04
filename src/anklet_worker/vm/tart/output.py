"""What Tart's command line answers: its listing, its version, and which class of outcome an error is. Pure.

Facts: Tart's source (2.32). Tart's own errors are bare lines on stderr, with exit status 2 for a VM that does not exist, does not
run, or runs already, and 1 for all else; errors of Swift's libraries begin with `Error:`. An answer is judged by its text, for
`tart exec` ends with the guest's status.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterator

from anklet_worker.contract.errors import RightsRefused, VMError, VMFatal, VMLimitReached, VMNotFound, VMTransient
from anklet_worker.vm.driver import VMInfo, VMState
from anklet_worker.vm.wording import one_line

#: How many of the last lines of a `tart run` an error quotes.
_LAST_LINES = 3

#: What errors say, in order of precedence. Names in them are what a user typed: what tells classes apart is the rest of the line.
_TEXTS: tuple[tuple[re.Pattern[str], type[VMError]], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE | re.MULTILINE), outcome)
    for pattern, outcome in (
        (r"number of VMs exceeds the system limit", VMLimitReached),
        (r"number of virtual machines exceeds the limit", VMLimitReached),
        (r'^the specified VM ".*" does not exist\.?\s*$', VMNotFound),
        (r'^VM ".*" is not running\.?\s*$', VMTransient),
        (r"\bcode: 404\b|\bMANIFEST_UNKNOWN\b|\bNAME_UNKNOWN\b", VMNotFound),
        (r"^(?:Error: )?failed to parse remote name", VMNotFound),
        (r"\bAuthFailed\b|\bcode: 40[13]\b|\bDENIED\b|\bUNAUTHORIZED\b", VMFatal),
        (r"\bVM is missing some of its files\b", VMFatal),
        (r"^Error: (?:Unknown option|Unexpected argument|Missing expected argument|The value )|^Usage: ", VMFatal),
    )
)
#: macOS 15 and later: a VM's keys are in the login keychain, which is locked without a login at the desktop.
_KEYCHAIN = re.compile(r"-25308\b|SecKeyCreateRandomKey_ios failed|Interaction is not allowed with the Security Server")
#: Lines that `tart exec` prints of itself; whatever else is on stderr may be the guest's.
_EXEC_LINES = re.compile(
    r'^(?:the specified VM ".*" does not exist|VM ".*" is not running|(?:Error: )?Failed to connect to the VM using its '
    r"control socket: .*)\s*$",
    re.MULTILINE,
)
_VERSION = re.compile(r"^(\d+)\.(\d+)(?:\.\d+)*", re.MULTILINE)


def version(stdout: bytes) -> tuple[str, tuple[int, int]] | None:
    """The version as `tart --version` prints it, and its first two numbers; None when that is none."""
    found = _VERSION.search(stdout.decode(errors="replace").strip())
    return None if found is None else (found[0], (int(found[1]), int(found[2])))


def error_of(what: str, status: int, stderr: bytes, stdout: bytes = b"") -> VMError | RightsRefused:
    """The exception for a command that failed, in one line: what was tried, and Tart's own words."""
    text = stderr.decode(errors="replace")
    words = last_lines(text) or last_lines(stdout.decode(errors="replace")) or f"exit status {status}"
    if _KEYCHAIN.search(text):
        return RightsRefused(
            f"{what}: the login keychain is locked ({one_line(words)}); log in at the desktop, or `security unlock-keychain "
            "login.keychain-db`"
        )
    return classify(text)(f"{what}: {one_line(words)}")


def classify(text: str) -> type[VMError]:
    """The class of outcome that an error is. What nobody knows is worth another try."""
    return next((outcome for pattern, outcome in _TEXTS if pattern.search(text)), VMTransient)


def address_in(stdout: bytes) -> str | None:
    """The address that `tart ip` prints; None when it prints none."""
    words = stdout.decode(errors="replace").split()
    try:
        return str(ipaddress.IPv4Address(words[-1])) if words else None
    except ValueError:
        return None


def exec_words(stderr: bytes) -> str:
    """What `tart exec` says of itself; empty when it says nothing. Nothing of the guest's is in it: that may be a secret."""
    lines = _EXEC_LINES.findall(stderr.decode(errors="replace"))
    return one_line(lines[-1]) if lines else ""


def vms(stdout: bytes) -> Iterator[VMInfo]:
    """The rows of `tart list --format json`, images that were pulled included.

    Raises `VMFatal` for what cannot be a listing: a VM that is overlooked would count as gone.
    """
    text = stdout.decode(errors="replace")
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError):
        raise VMFatal(f"tart list answers what cannot be understood: {one_line(text) or 'nothing'}") from None
    if not isinstance(rows, list):
        raise VMFatal(f"tart list answers what is no list: {one_line(text)}")
    for row in rows:
        name = row.get("Name") if isinstance(row, dict) else None
        if not isinstance(name, str):
            raise VMFatal(f"tart list answers a row without a name: {one_line(json.dumps(row))}")
        yield VMInfo(name=name, uuid="", state=_state(row.get("State"), row.get("Running")))


def _state(word: object, running: object) -> VMState:
    if running is True:
        return VMState.RUNNING
    try:
        return VMState(str(word).lower())
    except ValueError:
        # A word that no version is known to print; what may run is counted, unless Tart says that it does not.
        return VMState.STOPPED if running is False else VMState.RUNNING


def last_lines(text: str) -> str:
    """The end of what a command printed."""
    return " / ".join([line.strip() for line in text.splitlines() if line.strip()][-_LAST_LINES:])
