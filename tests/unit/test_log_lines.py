"""Log lines: form, order, fields, levels and redaction."""

import base64
import json
import logging
import re
import subprocess
import sys
import urllib.parse
from enum import Enum
from pathlib import Path

import pytest

from anklet_worker import __version__
from anklet_worker.log.redaction import Redactor
from anklet_worker.log.service_log import ServiceLog, one_line, open_log

TOKEN = "github_pat_bait/+=\"'é"
FIELDS = {"serviceName": "RUNNER1", "plugin": "github", "owner": "acme", "repo": "app"}


class Book:
    """Collects lines and parses them; a duplicate key fails."""

    def __init__(self):
        self.lines = []

    @property
    def records(self):
        """The lines as JSON objects."""
        return [json.loads(line, object_pairs_hook=without_doubles) for line in self.lines]

    @property
    def last(self):
        """The newest record."""
        return self.records[-1]


def without_doubles(pairs):
    """A dict of the pairs; fails on a duplicate key."""
    found = dict(pairs)
    assert len(found) == len(pairs), f"a key twice in {pairs}"
    return found


@pytest.fixture
def root_logger():
    """Restore the root logger after the test."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield root
    root.handlers, root.level = handlers, level


@pytest.fixture
def book():
    """An empty collection of lines."""
    return Book()


@pytest.fixture
def opened(book, root_logger, request):
    """Opens a log of a level, with the bait as its secret."""

    def open_at(level="INFO", secrets=(TOKEN,)):
        return open_log(book.lines.append, level, secrets, FIELDS, name=f"test.{request.node.name}")

    return open_at


def test_a_line_begins_with_the_documented_fields_in_their_order(opened, book):
    """Order: time, level, msg, ankletVersion, bound fields, then the line's own fields."""
    opened().info("looked for jobs", extra={"found": 2})
    assert list(book.last) == [
        "time", "level", "msg", "ankletVersion", "serviceName", "plugin", "owner", "repo", "found",
    ]  # fmt: skip
    assert book.last["ankletVersion"] == __version__
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", book.last["time"])
    assert book.lines[0].endswith(b"\n")
    assert book.lines[0].count(b"\n") == 1


@pytest.mark.parametrize(
    ("method", "word"), [("debug", "DEBUG"), ("info", "INFO"), ("warning", "WARN"), ("error", "ERROR")]
)
def test_levels_have_the_documented_words(opened, book, method, word):
    """The level is DEBUG, INFO, WARN or ERROR."""
    getattr(opened("DEBUG"), method)("said")
    assert book.last["level"] == word


@pytest.mark.parametrize(("level", "heard"), [("DEBUG", "DIWE"), ("INFO", "IWE"), ("ERROR", "E"), ("dev", "DIWE")])
def test_a_level_keeps_what_is_below_it_out(opened, book, level, heard):
    """INFO hides DEBUG, and ERROR hides every other level."""
    log = opened(level)
    for say in (log.debug, log.info, log.warning, log.error):
        say("said")
    assert len(book.lines) == len(heard)


def test_a_message_with_line_breaks_is_one_line(opened, book):
    """A line break in a message or a field is escaped."""
    opened().warning("one\ntwo\r\n\x1b[31mthree", extra={"branch": "a\nb"})
    assert book.lines[0].count(b"\n") == 1
    assert b"\x1b" not in book.lines[0]
    assert book.last["msg"] == "one\ntwo\r\n\x1b[31mthree"


def test_bind_leaves_the_log_it_came_from_alone(opened, book):
    """A job's fields do not appear in lines of the service or of the next job."""
    log = opened()
    first = log.bind(workflowJobId=1, vmName="a")
    second = first.bind(workflowJobId=2)
    first.info("first")
    log.info("service")
    second.info("second")
    assert [record.get("workflowJobId") for record in book.records] == [1, None, 2]
    assert [record.get("vmName") for record in book.records] == ["a", None, "a"]


def test_what_is_said_replaces_what_is_bound(opened, book):
    """The line's own field replaces a bound one."""
    opened().bind(conclusion="none").info("ended", extra={"conclusion": "success"})
    assert book.last["conclusion"] == "success"


def test_a_field_named_like_a_standard_one_is_kept_under_another_name(opened, book):
    """A field called `msg`, `time` or `level` is kept under another name."""
    opened().info("ours", extra={"msg": "theirs", "level": 9})
    assert (book.last["msg"], book.last["msg_"]) == ("ours", "theirs")
    assert (book.last["level"], book.last["level_"]) == ("INFO", 9)


def test_keys_that_become_one_text_stand_side_by_side(opened, book):
    """The keys 1 and "1" stay two keys."""
    opened().info("said", extra={"table": {1: "a", "1": "b"}})
    assert book.last["table"] == {"1": "a", "1_": "b"}


def fail_with(error):
    """Raise, in a function that the line must name."""
    raise error


def test_an_error_is_one_line_and_where_it_came_from(opened, book):
    """At INFO the line has the error and its innermost frames, but no traceback."""
    log = opened()
    try:
        fail_with(KeyError("a\nb"))
    except KeyError:
        log.exception("a bug")
    assert book.last["level"] == "ERROR"
    assert book.last["err"] == r"KeyError: 'a\nb'"
    assert book.last["where"].startswith("test_log_lines.py:")
    assert " fail_with < " in book.last["where"]
    assert "traceback" not in book.last


def test_debug_adds_the_traceback(opened, book):
    """At DEBUG the line has the whole traceback, redacted."""
    log = opened("DEBUG")
    try:
        fail_with(ValueError(f"refused: {TOKEN}"))
    except ValueError:
        log.exception("a bug")
    assert book.last["traceback"].startswith("Traceback (most recent call last):")
    assert book.last["err"] == "ValueError: refused: ***"
    assert "bait" not in book.lines[0].decode()


def test_an_error_given_by_hand_is_one_line(opened, book):
    """`err` never has line breaks, whatever its text."""
    opened().error("failed", extra={"err": OSError("first\n  second")})
    assert book.last["err"] == "first second"


@pytest.mark.parametrize(
    "form",
    [
        TOKEN,
        json.dumps(TOKEN),
        json.dumps(TOKEN, ensure_ascii=False),
        repr(TOKEN),
        urllib.parse.quote(TOKEN, safe=""),
        urllib.parse.quote_plus(TOKEN),
        base64.b64encode(TOKEN.encode()).decode(),
        base64.urlsafe_b64encode(TOKEN.encode()).decode(),
        TOKEN.encode().hex(),
        TOKEN.encode(),
        {"deep": [{"deeper": (TOKEN,)}]},
        {TOKEN: 1},
        ValueError(TOKEN),
        Path(f"/srv/{TOKEN}"),
    ],
    ids=range(14),
)
def test_a_secret_is_in_no_form_in_a_line(opened, book, form):
    """A secret is redacted plain, escaped, quoted, encoded, nested, as a key, in bytes and in an error."""
    opened().info("said %s", form, extra={"field": form})
    text = book.lines[0].decode()
    assert "bait" not in text
    assert "***" in book.last["msg"]
    assert base64.b64encode(TOKEN.encode()).decode()[:12] not in text
    assert TOKEN.encode().hex() not in text


@pytest.mark.parametrize("user", ["", "x", "xy", "xyz", "oauth2"])
def test_a_secret_is_found_inside_a_basic_authorization(user):
    """Base64 of `user:secret` differs with the length of the user's name, and is redacted for each."""
    secret = "correct-horse-battery-staple"
    header = base64.b64encode(f"{user}:{secret}".encode()).decode()
    left = Redactor([secret])(f"Authorization: Basic {header}").removeprefix("Authorization: Basic ")
    assert "***" in left
    # The text left around the mask is too short to reveal a word of the secret.
    assert len(left) - 3 <= len(base64.b64encode(f"{user}:".encode())) + 4


def test_each_line_of_a_pem_key_is_a_secret():
    """A private key is redacted with other line breaks, and line by line."""
    pem = "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQ\nxyzzyxyzzy\n-----END RSA PRIVATE KEY-----\n"
    redact = Redactor([pem])
    assert redact("line MIIEowIBAAKCAQ!") == "line ***!"
    assert redact(json.dumps(pem)).count("***") == 2
    assert redact("-----BEGIN RSA PRIVATE KEY-----") == "-----BEGIN RSA PRIVATE KEY-----"


@pytest.mark.parametrize("token", ["ghs_123456_" + "x" * 500 + ".y-z", "ghp_" + "a" * 36, "github_pat_" + "1" * 40])
def test_tokens_of_github_are_hidden_untold(token):
    """A token that is not in the configuration is redacted by its format."""
    assert Redactor(())(f"got {token}, go on") == "got ***, go on"


def test_secrets_too_short_to_look_for_do_not_blacken_the_log():
    """An empty or very short secret is ignored."""
    assert Redactor(["", "abc"])("abcdef") == "abcdef"


def test_a_number_that_is_a_secret_is_hidden(opened, book):
    """A password of digits is redacted in a number too."""
    opened(secrets=("12345678",)).info("said", extra={"number": 12345678, "other": 1234})
    assert (book.last["number"], book.last["other"]) == ("***", 1234)


class Colour(Enum):
    """An enumeration as a field value."""

    RED = "red"


class Mute:
    """An object whose `__str__` raises."""

    def __str__(self):
        raise RuntimeError("no")


def test_values_of_any_kind_make_a_valid_line(opened, book):
    """NaN, endless structures and foreign objects still give valid JSON."""
    endless = []
    endless.append(endless)
    values = {"nan": float("nan"), "inf": float("-inf"), "enum": Colour.RED, "mute": Mute(), "set": {1}, "none": None}
    opened().info("said", extra={**values, "endless": endless, "huge": 10**5000, "bytes": b"\xff", "bad": "\ud800"})
    record = book.last
    assert (record["nan"], record["inf"], record["enum"], record["set"], record["none"]) == (
        "nan", "-inf", "red", [1], None,
    )  # fmt: skip
    assert "without a text" in record["mute"]
    assert record["huge"].startswith("<a number of ")
    assert record["bytes"] == r"\xff"


def test_arguments_that_do_not_fit_their_message_lose_no_line(opened, book):
    """A line whose arguments do not match its format is still written, redacted."""
    opened().info("%d jobs", TOKEN)
    assert book.last["msg"].startswith("%d jobs (with wrong arguments ")
    assert "bait" not in book.last["msg"]


def test_a_long_text_loses_its_middle(opened, book):
    """A megabyte of text is cut to kilobytes, with its start and end."""
    opened().info("a" * 10**6 + "end")
    assert len(book.lines[0]) < 20_000
    assert book.last["msg"].startswith("aaa")
    assert book.last["msg"].endswith("aend")
    assert "characters left out" in book.last["msg"]


def test_libraries_are_heard_from_warning_on_and_never_above(opened, book):
    """Lines of libraries below WARNING are hidden, and their errors become a WARN."""
    opened("DEBUG")
    library = logging.getLogger("urllib3.connectionpool")
    library.info("chatter")
    library.error("failed with %s", TOKEN)
    assert len(book.lines) == 1
    assert book.last["level"] == "WARN"
    assert book.last["msg"] == "failed with ***"
    assert book.last["logger"] == "urllib3.connectionpool"
    assert book.last["serviceName"] == "RUNNER1"


def test_at_level_error_libraries_are_silent(opened, book):
    """LOG_LEVEL=ERROR also hides errors of libraries."""
    opened("ERROR")
    logging.getLogger("urllib3").warning("retrying")
    assert book.lines == []


def test_dev_is_for_people(opened, book):
    """The form is `[HH:MM:SS.mmm] LEVEL: msg {indented JSON, keys sorted}`, in colours, with the place in the source."""
    opened("dev").warning("look\x1b]0;here", extra={"token": TOKEN})
    text = book.lines[0].decode()
    found = re.fullmatch(
        r"\x1b\[37m\[\d\d:\d\d:\d\d\.\d{3}\]\x1b\[0m \x1b\[93mWARN:\x1b\[0m (.*?) \x1b\[93m(\{.*\})\x1b\[0m\n",
        text,
        re.DOTALL,
    )
    assert found is not None, text
    assert found[1] == r"look\x1b]0;here"
    fields = json.loads(found[2], object_pairs_hook=without_doubles)
    assert list(fields) == sorted(fields)
    assert fields["source"]["file"] == __file__
    assert fields["source"]["function"] == "test_dev_is_for_people"
    assert fields["token"] == "***"
    assert '\n  "owner": "acme"' in found[2]


def test_a_broken_pipe_does_not_end_the_work(root_logger, capsys):
    """A line that cannot be passed on goes to standard error."""

    def broken(_line):
        raise BrokenPipeError

    open_log(broken, "INFO", (TOKEN,), FIELDS, name="test.broken").info("still here %s", TOKEN)
    err = capsys.readouterr().err
    assert json.loads(err)["msg"] == "still here ***"


def test_a_line_without_a_log_has_the_same_form():
    """`one_line` has the same form as other lines."""
    record = json.loads(one_line("INFO", logging.WARNING, "lost", {"lines": 3}))
    assert list(record) == ["time", "level", "msg", "ankletVersion", "lines"]
    assert record["level"] == "WARN"
    assert b"\x1b[93mWARN:\x1b[0m lost" in one_line("dev", logging.WARNING, "lost", {})


def test_service_log_is_a_logger_adapter(opened):
    """The log is a `LoggerAdapter`, as plugins expect."""
    assert isinstance(opened(), logging.LoggerAdapter)
    assert isinstance(opened(), ServiceLog)


def test_logging_in_one_process_touches_nobody_elses(tmp_path):
    """Importing the module configures nothing; `open_log` does."""
    program = (
        "import logging, anklet_worker.log.service_log; print(logging.getLogger().handlers, logging.getLogger().level)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert run.stdout == "[] 30\n"


def test_a_log_that_is_opened_again_changes_for_all_who_hold_it(opened, book):
    """Opening the log again, as a reload does, changes level and secrets."""
    log = opened("INFO")
    log.debug("unheard")
    opened("DEBUG", secrets=("another_bait",))
    log.bind(more=1).debug("heard, without another_bait")
    (line,) = book.lines
    assert b"heard, without ***" in line
