"""Which workflows a filter lets through."""

import pickle

import pytest
from anklet_github.settings import WorkflowFilter

from anklet_worker.contract.settings import compile_pattern

CASES = [
    # include, exclude, name, allowed
    ((), (), "anything", True),
    ((), ("Check PR",), "Check PR", False),
    ((), ("Check PR",), "Check PR 2", True),
    ((), ("Check PR", "Nightly"), "Check PR", False),
    ((), ("Check PR", "Nightly"), "Nightly", False),
    ((), ("Check PR", "Nightly"), "Build", True),
    (("t1.*",), (".*",), "t1-with-tag", True),
    (("t1.*",), (".*",), "t2", False),
    (("", "t1.*"), (".*",), "t1", True),
    (("",), ("Check PR",), "Check PR", False),
    (("",), ("Check PR",), "Build", True),
    (("t1", "t2"), (), "t2", True),
    (("t1",), (), "t1 more", False),
    (("t1",), ("",), "t3", False),
    (("",), ("",), "t3", True),
    ((), ("a|b",), "ab", True),
    ((), ("(?i)nightly.*",), "NIGHTLY build", False),
]


@pytest.mark.parametrize(("include", "exclude", "name", "allowed"), CASES)
def test_filter(include, exclude, name, allowed):
    """Any exclude leaves out, any include brings back or, alone, restricts; patterns match whole names; empty ones are none."""
    assert WorkflowFilter(include=include, exclude=exclude).allows(name) is allowed


def test_filter_on_its_way_to_a_worker():
    """A filter that has been used pickles, and is equal to one that has not."""
    used = WorkflowFilter(exclude=("a",))
    assert not used.allows("a")
    arrived = pickle.loads(pickle.dumps(used))  # noqa: S301  our own bytes
    assert arrived == used == WorkflowFilter(exclude=("a",))
    assert not arrived.allows("a")


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(", "missing )"),
        ("a{99999999999}", "too large"),
        ("*", "nothing to repeat"),
        ("(" * 5000 + ")" * 5000, "too large"),
    ],
)
def test_bad_patterns(pattern, reason):
    """What is no regular expression is a ValueError that says why."""
    with pytest.raises(ValueError, match=reason.replace(")", "\\)")):
        compile_pattern(pattern)


def test_patterns_that_python_frowns_at():
    """A pattern that only draws a warning is a pattern."""
    assert compile_pattern("[[a]").fullmatch("[")
