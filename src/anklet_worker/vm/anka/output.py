"""Reads the answers of Anka's command line: the JSON envelope, and which error it reports. Pure.

Facts: Anka 3.9 documentation, and what the vendor's own clients rely on. Exit statuses and most codes are undocumented, so an
answer is judged by its message, with the code as a hint (3: not found, 18: name exists).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from anklet_worker.contract.errors import (
    AnswerUnreadable,
    ToolRefused,
    VMError,
    VMLimitReached,
    VMNameExists,
    VMNotFound,
    VMTransient,
)
from anklet_worker.vm.driver import VMInfo, VMState
from anklet_worker.vm.wording import one_line

_CODE_NOT_FOUND = 3
_CODE_NAME_EXISTS = 18
_CODES: dict[int | None, type[VMError]] = {_CODE_NOT_FOUND: VMNotFound, _CODE_NAME_EXISTS: VMNameExists}
#: The exit status of `anka run` when the guest is lost or does not answer.
_GUEST_LOST = 125

#: What messages say, in order of precedence. They begin with what the user typed, which may be anything (a template's name
#: comes from a workflow), so the patterns match the end of a line.
_TEXTS: tuple[tuple[str, type[VMError]], ...] = (
    # The registry or the network failed, whatever follows: `request failed with result <curl's code>: ...`.
    (r"request failed with result \d+", VMTransient),
    (r"already exists[.!]?\s*$", VMNameExists),
    (r"(?:not found|does not exist)[.!]?\s*$", VMNotFound),
    (r"did not find any versions with tag ", VMNotFound),
    (r"maximum number of running instances exceeded", VMLimitReached),
    (r"number of virtual machines exceeds the limit", VMLimitReached),
    (r"time-?out\b|timed out", VMTransient),
    (r"\beula\b|\blicen[sc]e\b", ToolRefused),
    (r"(?:unknown|unrecogni[sz]ed|invalid|no such) (?:option|command|argument)|^usage:", ToolRefused),
)
_FLAGS = re.IGNORECASE | re.MULTILINE
#: What an operator can do about a refusal.
_ADVICE = (
    (r"\beula\b", "accept the EULA on this host: run `anka` there by hand"),
    (r"\blicen[sc]e\b", "check `anka license show` on this host"),
)
_OTHER_ADVICE = "this version of Anka does not know the command; update Anka on this host"
#: A line of Anka's own on stderr; 2.x prefixes a dash.
_OWN_LINE = re.compile(r"^-?anka: .*$", re.MULTILINE)
_AVAILABLE_LOCALLY = "available locally"


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """Anka's answer in machine-readable mode. Every field but the status may be missing; the body may be of any type."""

    ok: bool
    message: str = ""
    code: int | None = None
    body: Any = None


def parse_envelope(stdout: bytes) -> Envelope | None:
    """The last line that is a JSON object with a status (a pull prints several); None when there is none."""
    text = stdout.decode(errors="replace")
    for line in reversed(text.splitlines()):
        envelope = _envelope(line)
        if envelope is not None:
            return envelope
    return _envelope(text)


def _envelope(text: str) -> Envelope | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or value.get("status") not in ("OK", "ERROR", "FAIL"):
        return None
    code, message = value.get("code"), value.get("message")
    return Envelope(
        ok=value["status"] == "OK",
        message="" if message is None else str(message),
        code=code if isinstance(code, int) else None,
        body=value.get("body"),
    )


def classify(message: str, code: int | None) -> type[VMError]:
    """The class of an error by its message. An unknown message is worth another try."""
    return _known(message, code) or VMTransient


def _known(message: str, code: int | None) -> type[VMError] | None:
    for pattern, outcome in _TEXTS:
        # `re` keeps the compiled pattern. An idle worker, which meets no error, does without.
        if re.search(pattern, message, _FLAGS):
            return outcome
    return _CODES.get(code)


def error_of(what: str, status: int, stdout: bytes, stderr: bytes) -> VMError:
    """The exception for a command that failed, in one line: the command, and Anka's own words."""
    envelope = parse_envelope(stdout)
    if envelope is not None and not envelope.ok:
        words = envelope.message or f"error code {envelope.code}"
        return _error(what, words, envelope.code)
    words = _own_line(stderr) or _last_line(stderr) or _last_line(stdout) or f"exit status {status}"
    return _error(what, words, None)


def _error(what: str, words: str, code: int | None) -> VMError:
    kind = classify(words, code)
    advice = f"; {_advice(words)}" if kind is ToolRefused else ""
    return kind(f"{what}: {one_line(words)}{advice}")


def _advice(words: str) -> str:
    return next((advice for pattern, advice in _ADVICE if re.search(pattern, words, _FLAGS)), _OTHER_ADVICE)


def guest_error(what: str, status: int, stdout: bytes, stderr: bytes) -> VMError:
    """The exception for a guest command whose end was not seen.

    Both streams may hold what the guest printed, secrets included: only Anka's own words are quoted.
    """
    envelope = parse_envelope(stdout)
    if envelope is not None and not envelope.ok and "\n" not in envelope.message.strip():
        known = _known(envelope.message, envelope.code)
        if known is not None:
            return known(f"{what}: {one_line(envelope.message)}")
    words = _own_line(stderr)
    if words:
        return classify(words, None)(f"{what}: {one_line(words)}")
    cause = "the guest is lost or does not answer" if status == _GUEST_LOST else f"exit status {status}"
    return VMTransient(f"{what}: its end was not seen ({cause})")


def vms(body: object) -> Iterator[VMInfo]:
    """The rows of a listing; an empty one may be a list, null, missing, or {}.

    Raises `AnswerUnreadable` for anything that is not a listing: a VM that is overlooked would count as gone.
    """
    if body is None or body == {}:
        return
    if not isinstance(body, list):
        raise AnswerUnreadable(f"cannot read the answer of anka list: not a list: {one_line(json.dumps(body))}")
    for row in body:
        uuid = row.get("uuid") if isinstance(row, dict) else None
        name = row.get("name", uuid) if isinstance(row, dict) else None
        if not isinstance(name, str):
            raise AnswerUnreadable(
                f"cannot read the answer of anka list: a row without a name: {one_line(json.dumps(row))}"
            )
        tag = row.get("version")
        yield VMInfo(
            name=name,
            uuid=uuid if isinstance(uuid, str) else "",
            state=_state(row.get("status")),
            tag=str(tag) if tag else None,
        )


def _state(word: object) -> VMState:
    try:
        return VMState(str(word).lower())
    except ValueError:
        # An unknown word: the VM may run, and what may run is counted.
        return VMState.RUNNING


def is_local(answer: Envelope) -> bool:
    """True when `pull --check-download-size` leaves nothing to download."""
    body = answer.body
    if not isinstance(body, dict) or not body or answer.message.endswith(_AVAILABLE_LOCALLY):
        return True
    size, cached = body.get("size"), body.get("cached")
    return isinstance(size, int | float) and isinstance(cached, int | float) and cached >= size


def guest_texts(stdout: bytes) -> Iterator[str]:
    """The places where a guest's output may be: plain, or inside an envelope; versions of Anka differ."""
    yield stdout.decode(errors="replace")
    envelope = parse_envelope(stdout)
    if envelope is not None:
        held = list(envelope.body.values()) if isinstance(envelope.body, dict) else [envelope.body]
        yield from (text for text in (*held, envelope.message) if isinstance(text, str))


def _own_line(data: bytes) -> str:
    lines = _OWN_LINE.findall(data.decode(errors="replace"))
    return str(lines[-1]) if lines else ""


def _last_line(data: bytes) -> str:
    lines = [line for line in data.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""
