"""What Anka's command line answers: the JSON envelope, and which class of outcome an answer is. Pure.

Facts: Anka 3.9 documentation and what the vendor's own clients rely on. Exit numbers and most codes are undocumented: an
answer is judged by its message, with the code as a hint (3: not found, 18: name exists).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec

from anklet_worker.vm import (
    VMError,
    VMFatal,
    VMInfo,
    VMLimitReached,
    VMNameExists,
    VMNotFound,
    VMState,
    VMTransient,
)

_CODE_NOT_FOUND = 3
_CODE_NAME_EXISTS = 18
_CUT = 200

#: Pieces of messages, lower case, in order of precedence. What matches none is worth another try.
_TEXTS: tuple[tuple[str, type[VMError]], ...] = (
    ("maximum number of running instances exceeded", VMLimitReached),
    ("number of virtual machines exceeds the limit", VMLimitReached),
    ("already exists", VMNameExists),
    ("not found", VMNotFound),
    ("did not find any versions", VMNotFound),
    ("does not exist", VMNotFound),
    ("eula", VMFatal),
    ("license", VMFatal),
    ("unknown option", VMFatal),
    ("unrecognized", VMFatal),
    ("usage:", VMFatal),
)


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """Anka's answer in machine-readable mode. Every field but the status may be missing; the body may be of any type."""

    ok: bool
    message: str = ""
    code: int | None = None
    body: Any = None


def parse_envelope(stdout: bytes) -> Envelope | None:
    """The last line that is a JSON object with a status (a pull prints several); None when there is none."""
    for line in reversed(stdout.decode(errors="replace").splitlines()):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and value.get("status") in ("OK", "ERROR"):
            code = value.get("code")
            return Envelope(
                ok=value["status"] == "OK",
                message=str(value.get("message") or ""),
                code=code if isinstance(code, int) else None,
                body=value.get("body"),
            )
    return None


def classify(message: str, code: int | None) -> type[VMError]:
    """The class of outcome that an error is."""
    lowered = message.lower()
    for text, outcome in _TEXTS:
        if text in lowered:
            return outcome
    if code == _CODE_NAME_EXISTS:
        return VMNameExists
    if code == _CODE_NOT_FOUND:
        return VMNotFound
    return VMTransient


def error_of(what: str, status: int, stdout: bytes, stderr: bytes) -> VMError:
    """The exception for a command that failed, in one line: what was tried, and Anka's own words."""
    envelope = parse_envelope(stdout)
    if envelope is not None and not envelope.ok:
        words = envelope.message or f"error code {envelope.code}"
        return classify(words, envelope.code)(f"{what}: {one_line(words)}")
    words = _last_line(stderr) or _last_line(stdout) or f"exit status {status}"
    return classify(words, None)(f"{what}: {one_line(words)}")


def outcome_name(error: BaseException | None) -> str:
    """The class of outcome as metrics name it."""
    names: tuple[tuple[type[VMError], str], ...] = (
        (VMNotFound, "not_found"),
        (VMNameExists, "name_exists"),
        (VMLimitReached, "limit_reached"),
        (VMFatal, "fatal"),
    )
    if error is None:
        return "done"
    return next((name for kind, name in names if isinstance(error, kind)), "transient")


def vms(body: object) -> Iterator[VMInfo]:
    """The rows of a listing. An empty one may be a list, null, missing, or an object (EULA not accepted): no rows then."""
    if not isinstance(body, list):
        return
    for row in body:
        if isinstance(row, dict) and isinstance(row.get("name"), str) and isinstance(row.get("uuid"), str):
            yield VMInfo(
                name=row["name"],
                uuid=row["uuid"],
                state=_state(row.get("status")),
                tag=row.get("version") or None,
            )


def _state(word: object) -> VMState:
    try:
        return VMState(str(word).lower())
    except ValueError:
        # A word that no version is known to print; it may run, and what may run is counted.
        return VMState.RUNNING


def is_local(answer: Envelope) -> bool:
    """Whether `pull --check-download-size` says that nothing is left to be downloaded."""
    body = answer.body
    if not isinstance(body, dict) or not body:
        return True
    size, cached = body.get("size"), body.get("cached")
    return isinstance(size, int) and isinstance(cached, int) and cached >= size


def one_line(text: str) -> str:
    """Foreign text, fit for one line of a log."""
    folded = " ".join(text.split())
    return folded if len(folded) <= _CUT else folded[: _CUT - 1] + "…"


def _last_line(data: bytes) -> str:
    lines = [line for line in data.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""
