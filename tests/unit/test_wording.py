"""The wording that all VM drivers share."""

import pytest

from anklet_worker.contract.errors import (
    AnswerUnreadable,
    FileUnusable,
    ImageUnusable,
    NotOurVM,
    PullBusy,
    RightsRefused,
    ToolRefused,
    VMLimitReached,
    VMNameExists,
    VMNotFound,
    VMTransient,
)
from anklet_worker.vm.wording import one_line, outcome_name


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (None, "done"),
        (VMNotFound("x"), "not_found"),
        (VMNameExists("x"), "name_exists"),
        (VMLimitReached("x"), "limit_reached"),
        (AnswerUnreadable("x"), "fatal"),
        (ToolRefused("x"), "fatal"),
        (ImageUnusable("x"), "fatal"),
        (FileUnusable("x"), "fatal"),
        (NotOurVM("x"), "fatal"),
        (VMTransient("x"), "transient"),
        (PullBusy("x"), "transient"),
        (RightsRefused("x"), "transient"),
    ],
)
def test_outcomes_have_words_for_metrics(error, word):
    """Dashboards depend on this fixed list."""
    assert outcome_name(error) == word


def test_foreign_text_fits_a_log_line():
    """Newlines, control characters and long texts become one short line."""
    assert one_line(" a\n\tb\x1b[31m\x00c\u2028d ") == "a b [31m c d"
    assert len(one_line("x" * 1000)) == 200
