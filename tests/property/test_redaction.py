"""For any record and any secret, the log has one JSON object per line, no duplicate key, and no secret."""

import json
import logging

from hypothesis import given
from hypothesis import strategies as st

from anklet_worker.log.redaction import Redactor
from anklet_worker.log.service_log import LineFormatter

SECRETS = st.lists(st.text(min_size=4, max_size=40).filter(lambda text: not text.startswith("-----")), max_size=3)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40) | st.binary(max_size=40)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=4),
    max_leaves=12,
)


def without_doubles(pairs):
    """A dict of the pairs; fails on a duplicate key."""
    found = dict(pairs)
    assert len(found) == len(pairs)
    return found


def texts(value):
    """Every text in a decoded record, including keys and the written form of numbers."""
    match value:
        case dict():
            for key, inner in value.items():
                yield key
                yield from texts(inner)
        case list():
            for inner in value:
                yield from texts(inner)
        case None | bool():
            return
        case _:
            yield str(value)


def refuse(constant):
    """Refuse NaN and Infinity, which are not JSON."""
    raise AssertionError(constant)


@st.composite
def records(draw):
    """Secrets, and a record that contains them at random places."""
    secrets = draw(SECRETS)
    with_secret = st.sampled_from(secrets) if secrets else st.nothing()
    wrapped = st.builds(
        lambda before, secret, after: before + secret + after, st.text(max_size=5), with_secret, st.text(max_size=5)
    )
    value = VALUES | wrapped | with_secret
    fields = draw(st.dictionaries(st.text(max_size=8) | wrapped, value, max_size=6))
    message = draw(st.text(max_size=30) | wrapped)
    error = draw(st.none() | st.text(max_size=30) | wrapped)
    return secrets, message, fields, error


@given(records())
def test_no_line_shows_a_secret_and_every_line_is_one_object(drawn):
    """Any record becomes one line with one object, each key once, and no secret in any text."""
    secrets, message, fields, error = drawn
    record = logging.LogRecord("anklet", logging.INFO, __file__, 1, message, None, None)
    record.anklet = fields
    if error is not None:
        record.exc_info = (ValueError, ValueError(error), None)
    line = LineFormatter(Redactor(secrets), tracebacks=True).format(record)
    assert "\n" not in line
    decoded = json.loads(line, object_pairs_hook=without_doubles, parse_constant=refuse)
    # The fields that we write in every line may contain the password that a user chose, so they do not count.
    said = {key: value for key, value in decoded.items() if key not in ("time", "level")}
    ours = ("msg", "err", "where", "traceback", "Traceback (most recent call last):", "ValueError: ", "***")
    for text in texts(said):
        for secret in secrets:
            assert secret not in text or any(secret in word or word in secret for word in ours), (secret, text)


@given(SECRETS, st.text(max_size=60))
def test_redaction_is_idempotent(secrets, text):
    """A text without secrets stays as it is."""
    redact = Redactor(secrets)
    once = redact(text)
    assert redact(once) == once
