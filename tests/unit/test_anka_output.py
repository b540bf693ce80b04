"""Reading Anka's answers: envelopes, errors, listings, sizes, and the places of a guest's output."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anklet_worker.contract.errors import (
    AnswerUnreadable,
    ToolRefused,
    VMError,
    VMLimitReached,
    VMNameExists,
    VMNotFound,
    VMTransient,
)
from anklet_worker.vm.anka.output import (
    Envelope,
    classify,
    error_of,
    guest_error,
    guest_texts,
    is_local,
    parse_envelope,
    vms,
)
from anklet_worker.vm.driver import VMInfo, VMState

# ---- envelopes ----


@pytest.mark.parametrize(
    ("stdout", "expected"),
    [
        (b'{"status":"OK","code":0,"body":{},"message":"x"}\n', Envelope(ok=True, code=0, body={}, message="x")),
        (b'{"status": "OK", "body": {}, "message": ""}', Envelope(ok=True, body={})),
        (b'{"status":"OK"}', Envelope(ok=True)),
        (b'{"status":"OK","message":null,"code":null,"body":null}', Envelope(ok=True)),
        (b'{"status":"OK","body":"a-uuid"}\n\n  \n', Envelope(ok=True, body="a-uuid")),
        (b'{"status":"OK","body":[1]}\r\n', Envelope(ok=True, body=[1])),
        (b'{"status":"ERROR","code":3,"message":"x: not found"}', Envelope(ok=False, code=3, message="x: not found")),
        (b'{"status":"FAIL","message":"m","exception_type":"E"}', Envelope(ok=False, message="m")),
        (b'{"status":"OK","code":"3","message":7}', Envelope(ok=True, message="7")),
        (
            b'{"progress":10}\n{"status":"OK","message":"1"}\n{"status":"OK","message":"2"}',
            Envelope(ok=True, message="2"),
        ),
        (b'noise\n{"status":"OK","message":"in"}\nmore noise\n', Envelope(ok=True, message="in")),
        (b'{\n  "status": "OK",\n  "body": []\n}\n', Envelope(ok=True, body=[])),
    ],
)
def test_last_envelope_counts(stdout, expected):
    """The last line that is an envelope is the result; every field but the status may be missing or of any type."""
    assert parse_envelope(stdout) == expected


@pytest.mark.parametrize(
    "stdout",
    [
        b"",
        b"\n \n",
        b"plain",
        b"[]",
        b"null",
        b"1",
        b'"OK"',
        b"{}",
        b'{"status":1}',
        b'{"status":"odd"}',
        b'{"status":"OK"',
        b"\xff\x00",
        b"[" * 9999,
    ],
)
def test_what_is_no_envelope(stdout):
    """Any other text is not an envelope, and raises nothing."""
    assert parse_envelope(stdout) is None


@given(st.binary())
def test_any_bytes_are_read(stdout):
    """No output makes the parser fail."""
    parse_envelope(stdout)
    list(guest_texts(stdout))
    assert isinstance(error_of("anka list", 1, stdout, stdout), VMError)


# ---- classes of outcome ----

TEXTS = [
    # documented, or relied on by the vendor's clients
    ("macos: not found", None, VMNotFound),
    ("macos: not found\nrun `anka log` for details", None, VMNotFound),
    ("-x: device not found", None, VMNotFound),
    ("400 Did not find any versions with tag v9", None, VMNotFound),
    ("macos: does not exist.", None, VMNotFound),
    ("vm: maximum number of running instances exceeded", None, VMLimitReached),
    ("vm: Maximum Number of Running Instances Exceeded", 1, VMLimitReached),
    (
        "The number of virtual machines exceeds the limit. The maximum supported number has been reached.",
        None,
        VMLimitReached,
    ),
    ("vm: already exists", 18, VMNameExists),
    ("vm: name already exists.", None, VMNameExists),
    ("vm: failed to start: No child processes", 10, VMTransient),
    ("vm: failed to start: No such file or directory", 2, VMTransient),
    ("failed to checkout: Input/output error", 5, VMTransient),
    ("state_lib/5d2b.ank: failed to open image, error 2", None, VMTransient),
    ("communication timeout", None, VMTransient),
    ("failed to get status of task after start: Operation timed out", None, VMTransient),
    ("connection aborted", None, VMTransient),
    ("request failed with result 26: Failed to open/read local data", None, VMTransient),
    ("http://registry:8089: request failed with result 6: Could not resolve host: not found", None, VMTransient),
    ("Bad address", 14, VMTransient),
    ("vm: No space left on device", 28, VMTransient),
    ("EULA needs to be accepted", None, ToolRefused),
    ("Wrong host for license (-4)", None, ToolRefused),
    ("Product license key not supported on the current hardware", None, ToolRefused),
    ("unknown option: --shrink", None, ToolRefused),
    ("usage: anka clone [options] vmid", None, ToolRefused),
    # the code alone
    ("", 3, VMNotFound),
    ("something new", 18, VMNameExists),
    ("something new", 99, VMTransient),
    ("something new", None, VMTransient),
    ("", None, VMTransient),
    # the user's words come first and decide nothing
    ("maximum number of running instances exceeded: not found", 3, VMNotFound),
    ("license: not found", 3, VMNotFound),
    ("usage: not found", None, VMNotFound),
    ("not found: failed to start: No child processes", 10, VMTransient),
    ("already exists: not found", None, VMNotFound),
]


@pytest.mark.parametrize(("message", "code", "expected"), TEXTS)
def test_class_of_a_message(message, code, expected):
    """Each known text has one kind of error; the code decides only when the text says nothing."""
    assert classify(message, code) is expected


@pytest.mark.parametrize(
    ("stdout", "stderr", "expected", "said"),
    [
        (b'{"status":"ERROR","code":3,"message":"a: not found"}', b"anka: noise", VMNotFound, "anka x: a: not found"),
        (b'{"status":"ERROR","code":77}', b"", VMTransient, "anka x: error code 77"),
        (b"", b"note\nanka: a: not found\nsee `anka log`\n", VMNotFound, "anka x: anka: a: not found"),
        (b"", b"-anka: a: already exists\n", VMNameExists, "anka x: -anka: a: already exists"),
        (b"", b"something\nlast\n\n", VMTransient, "anka x: last"),
        (b"only this\n", b"", VMTransient, "anka x: only this"),
        (b"", b"", VMTransient, "anka x: exit status 9"),
        (b'{"status":"OK","body":{}}', b"", VMTransient, 'anka x: {"status":"OK","body":{}}'),
    ],
)
def test_error_quotes_ankas_own_words(stdout, stderr, expected, said):
    """An error has the command and Anka's words: from the envelope, else from stderr, else from the output."""
    error = error_of("anka x", 9, stdout, stderr)
    assert type(error) is expected
    assert str(error) == said


@pytest.mark.parametrize(
    ("status", "stdout", "stderr", "expected", "said"),
    [
        (1, b'{"status":"ERROR","code":3,"message":"vm: not found"}', b"", VMNotFound, "vm: not found"),
        (1, b"", b"s3cret\nanka: vm: maximum number of running instances exceeded\n", VMLimitReached, "exceeded"),
        (125, b"s3cret", b"s3cret: not found", VMTransient, "the guest is lost or does not answer"),
        (1, b"s3cret already exists", b"bash: s3cret: not found\n", VMTransient, "exit status 1"),
        (1, b'{"status":"ERROR","message":"s3cret"}', b"", VMTransient, "exit status 1"),
        (1, b'{"status":"ERROR","message":"s3cret\\nx: not found"}', b"", VMTransient, "exit status 1"),
        (0, b"", b"", VMTransient, "exit status 0"),
    ],
)
def test_guest_error_quotes_no_guest(status, stdout, stderr, expected, said):
    """A guest's output may hold secrets: only Anka's own words are quoted and judged."""
    error = guest_error("guest command", status, stdout, stderr)
    assert type(error) is expected
    assert said in str(error)
    assert "s3cret" not in str(error)


# ---- listings ----


def test_rows_of_a_listing():
    """Names, uuids, tags and states are read; a missing tag is None, an unknown state counts as running."""
    body = [
        {"name": "macos", "uuid": "u1", "creation_date": "x", "version": "v1", "status": "stopped"},
        {"name": "a", "uuid": "u2", "version": "", "status": "running"},
        {"name": "b", "uuid": "u3", "status": "suspended", "stop_date": 1},
        {"name": "c", "uuid": "u4", "status": "failed"},
        {"name": "d", "uuid": "u5", "status": "starting"},
        {"name": "e", "version": None},
        {"uuid": "u7", "status": "Stopped"},
    ]
    assert list(vms(body)) == [
        VMInfo(name="macos", uuid="u1", state=VMState.STOPPED, tag="v1"),
        VMInfo(name="a", uuid="u2", state=VMState.RUNNING),
        VMInfo(name="b", uuid="u3", state=VMState.SUSPENDED),
        VMInfo(name="c", uuid="u4", state=VMState.FAILED),
        VMInfo(name="d", uuid="u5", state=VMState.RUNNING),
        VMInfo(name="e", uuid="", state=VMState.RUNNING),
        VMInfo(name="u7", uuid="u7", state=VMState.STOPPED),
    ]


@pytest.mark.parametrize("body", [None, [], {}])
def test_empty_listings(body):
    """A host without VMs answers in several ways."""
    assert list(vms(body)) == []


@pytest.mark.parametrize("body", ["text", 1, {"name": "x"}, [1], [None], [{}], [{"name": 1}], [{"status": "running"}]])
def test_what_is_no_listing(body):
    """A listing with anything unreadable is refused: a VM that is overlooked would count as gone."""
    with pytest.raises(AnswerUnreadable, match="cannot read the answer of anka list"):
        list(vms(body))


@pytest.mark.parametrize(
    ("body", "message", "local"),
    [
        ({}, "macos: available locally", True),
        (None, "", True),
        ({"size": 9, "cached": 0}, "macos: available locally", True),
        ({"size": 100, "cached": 100, "available": 5}, "", True),
        ({"size": 100, "cached": 120}, "", True),
        ({"size": 0, "cached": 0}, "", True),
        ({"size": 100, "cached": 99, "available": 500}, "", False),
        ({"size": 100}, "", False),
        ({"bytes": 100}, "", False),
        ({"size": "100", "cached": "100"}, "", False),
    ],
)
def test_whether_all_of_a_template_is_here(body, message, local):
    """Nothing is pulled when the size check finds nothing missing. An unknown answer leads to a pull."""
    assert is_local(Envelope(ok=True, body=body, message=message)) is local


# ---- texts ----


@pytest.mark.parametrize(
    "stdout",
    [
        b"out\nend 0\n",
        json.dumps({"status": "OK", "body": "out\nend 0\n"}).encode(),
        json.dumps({"status": "OK", "message": "out\nend 0\n", "body": {}}).encode(),
        json.dumps({"status": "OK", "body": {"stdout": "out\nend 0\n", "exit": 0}}).encode(),
        b"out\nend 0\n" + json.dumps({"status": "OK", "body": {}}).encode(),
    ],
)
def test_guest_output_is_found_wherever_it_is(stdout):
    """A guest's output is plain, or in the body or the message of an envelope."""
    assert any("out\nend 0\n" in text for text in guest_texts(stdout))
