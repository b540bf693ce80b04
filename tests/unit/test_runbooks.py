"""Every ERROR that the program can log has a section in the runbooks and a test that provokes it."""

import re
from pathlib import Path

import pytest
from error_lines import ROOT, error_lines

RUNBOOKS = (ROOT / "docs" / "runbooks.md").read_text()
ERRORS = error_lines()
#: The text of all tests, in which expected messages appear.
TESTS = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py") if path.name != Path(__file__).name)


def test_errors_are_found():
    """The search finds ERRORs in each form that the sources use."""
    assert {
        "not started",
        "the service cannot run: …",
        "a bug kept … from being answered",
        "cannot delete the VM; its slot stays occupied and the deletion is tried again",
    } <= set(ERRORS)


@pytest.mark.parametrize("message", sorted(ERRORS))
def test_every_error_has_a_line_in_the_runbooks(message):
    """Each ERROR is a heading, with advice below it."""
    match = re.search(rf"^### {re.escape(message)}\n\n(.+)", RUNBOOKS, re.MULTILINE)
    assert match, f"docs/runbooks.md has no section '### {message}' (logged in {ERRORS[message]})"


@pytest.mark.parametrize("message", sorted(ERRORS))
def test_every_error_is_provoked_by_a_test(message):
    """A test quotes at least the longest fixed part of each message."""
    fixed = max(message.split("…"), key=len).strip()
    assert fixed in TESTS, f"no test expects {fixed!r} (logged in {ERRORS[message]})"


def test_the_runbooks_know_no_error_that_is_none():
    """A section goes when its message goes."""
    assert set(re.findall(r"^### (.+)$", RUNBOOKS, re.MULTILINE)) == set(ERRORS)
