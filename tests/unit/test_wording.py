"""Words for people and metrics that all drivers share."""

from anklet_worker.contract.errors import VMFatal, VMLimitReached, VMNameExists, VMNotFound, VMTransient
from anklet_worker.vm.wording import one_line, outcome_name


def test_outcomes_have_names_for_metrics():
    """Each class of outcome has one name of a closed list."""
    kinds = (None, VMNotFound("x"), VMNameExists("x"), VMLimitReached("x"), VMFatal("x"), VMTransient("x"))
    assert [outcome_name(kind) for kind in kinds] == [
        "done",
        "not_found",
        "name_exists",
        "limit_reached",
        "fatal",
        "transient",
    ]


def test_foreign_text_fits_a_log_line():
    """Newlines, control characters and endless texts become one short line."""
    assert one_line(" a\n\tb\x1b[31m\x00c\u2028d ") == "a b [31m c d"
    assert len(one_line("x" * 1000)) == 200
