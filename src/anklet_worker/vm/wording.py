"""Text that every driver writes in the same way: foreign output cut to one line, and outcomes as metrics name them. Pure."""

from __future__ import annotations

from anklet_worker.contract.errors import VMError

_CUT = 200


def outcome_name(error: BaseException | None) -> str:
    """The word for a command's outcome in metrics; None is success."""
    if error is None:
        return "done"
    return error.outcome if isinstance(error, VMError) else VMError.outcome


def one_line(text: str) -> str:
    """Foreign text on one line of printable characters, cut to 200 of them."""
    folded = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return folded if len(folded) <= _CUT else folded[: _CUT - 1] + "…"


def quoted(output: bytes) -> str:
    """A command's output on one line, for an error message; "nothing" for an empty one."""
    return one_line(output.decode(errors="replace")) or "nothing"
