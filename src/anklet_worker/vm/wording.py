"""Words that all drivers have for people and for metrics: foreign text on one line, an outcome's name. Pure."""

from __future__ import annotations

from anklet_worker.contract.errors import VMFatal, VMLimitReached, VMNameExists, VMNotFound

_CUT = 200


def outcome_name(error: BaseException | None) -> str:
    """The class of outcome as metrics name it."""
    names: tuple[tuple[type[BaseException], str], ...] = (
        (VMNotFound, "not_found"),
        (VMNameExists, "name_exists"),
        (VMLimitReached, "limit_reached"),
        (VMFatal, "fatal"),
    )
    if error is None:
        return "done"
    return next((name for kind, name in names if isinstance(error, kind)), "transient")


def one_line(text: str) -> str:
    """Foreign text, fit for one line of a log."""
    folded = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return folded if len(folded) <= _CUT else folded[: _CUT - 1] + "…"
