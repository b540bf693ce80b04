"""Reading Tart's output: versions, errors, listings and addresses."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anklet_worker.contract.errors import (
    AnswerUnreadable,
    ImageUnusable,
    RightsRefused,
    ToolRefused,
    VMError,
    VMLimitReached,
    VMNotFound,
    VMTransient,
)
from anklet_worker.vm.driver import VMInfo, VMState
from anklet_worker.vm.tart.output import address_in, classify, error_of, exec_words, version, vms


@pytest.mark.parametrize(
    ("stdout", "expected"),
    [
        (b"2.32.1\n", ("2.32.1", (2, 32))),
        (b"2.27.0", ("2.27.0", (2, 27))),
        (b"10.1", ("10.1", (10, 1))),
        (b"warning: x\n2.30.0\n", ("2.30.0", (2, 30))),
        (b"", None),
        (b"SNAPSHOT\n", None),
        (b"tart", None),
        (b"\xff\xfe", None),
    ],
)
def test_version(stdout, expected):
    """The version's text, and its numbers for comparison."""
    assert version(stdout) == expected


@pytest.mark.parametrize(
    ("stderr", "outcome"),
    [
        ('the specified VM "x" does not exist', VMNotFound),
        ('the specified VM "is not running" does not exist\n', VMNotFound),
        ('VM "x" is not running', VMTransient),
        ('VM "the specified VM "y" does not exist" is not running', VMTransient),
        ('VM "x" is running', VMTransient),
        ('VM "x" is already running!', VMTransient),
        ("The number of VMs exceeds the system limit", VMLimitReached),
        ("The number of VMs exceeds the system limit (other running VMs: a, b)", VMLimitReached),
        ("Error: The number of virtual machines exceeds the limit. The maximum supported number", VMLimitReached),
        ("VM is missing some of its files (config.json, disk.img or nvram.bin)", ImageUnusable),
        ("failed to parse remote name: x", VMNotFound),
        ('Error: UnexpectedHTTPStatusCode(when: "pulling manifest", code: 404, details: "…")', VMNotFound),
        ('Error: UnexpectedHTTPStatusCode(when: "pulling manifest", code: 503, details: "…")', VMTransient),
        ('Error: UnexpectedHTTPStatusCode(when: "auth", code: 403, details: "DENIED")', ToolRefused),
        ('Error: AuthFailed(why: "received 401")', ToolRefused),
        ("Error: Unknown option '--random-mac'\nUsage: tart set", ToolRefused),
        ("Error: The Internet connection appears to be offline.", VMTransient),
        ("no IP address found, is your VM running?", VMTransient),
        ("", VMTransient),
    ],
)
def test_errors_have_classes(stderr, outcome):
    """Errors have the texts of Tart's source; an unknown text is worth another try."""
    assert classify(stderr) is outcome
    error = error_of("tart x", 1, stderr.encode())
    assert type(error) is outcome
    assert str(error).startswith("tart x: ")
    assert "\n" not in str(error)


def test_error_without_words_tells_the_status():
    """The message quotes stderr, else the output, else the exit status."""
    assert str(error_of("tart x", 5, b"")) == "tart x: exit status 5"
    assert str(error_of("tart x", 5, b" \n", b"said\n")) == "tart x: said"


def test_error_quotes_the_last_lines():
    """The cause is in the last lines, so several are quoted."""
    error = error_of("tart run", 1, b"one\ntwo\n\nthree\nfour\n")
    assert str(error) == "tart run: two / three / four"


@pytest.mark.parametrize(
    "stderr",
    [
        b"Keychain returned unsuccessful status -25308",
        b"Error: SecKeyCreateRandomKey_ios failed",
        b"Interaction is not allowed with the Security Server.",
    ],
)
def test_locked_keychain_is_a_matter_of_rights(stderr):
    """No VM starts until a user logs in or unlocks the keychain; the message says so."""
    error = error_of("tart run", 1, stderr)
    assert isinstance(error, RightsRefused)
    assert "security unlock-keychain" in str(error)


def test_listing():
    """Local VMs and pulled images are rows alike; an unknown state is decided by Tart's `Running`."""
    rows = [
        {"Source": "local", "Name": "a", "Disk": 50, "Size": 20, "Running": True, "State": "running"},
        {"Source": "OCI", "Name": "ghcr.io/a/b:c", "Running": False, "State": "stopped"},
        {"Name": "s", "State": "suspended"},
        {"Name": "odd-running", "Running": True, "State": "stopped"},
        {"Name": "odd-stopped", "Running": False, "State": "resting"},
        {"Name": "unknown"},
    ]
    found = list(vms(json.dumps(rows, indent=2).encode()))
    assert found[0] == VMInfo(name="a", uuid="", state=VMState.RUNNING)
    assert [row.state.value for row in found] == ["running", "stopped", "suspended", "running", "stopped", "running"]


@pytest.mark.parametrize("stdout", [b"", b"what?", b"{}", b"null", b'["a"]', b'[{"State": "running"}]', b"[" * 5000])
def test_listing_that_is_none_is_refused_whole(stdout):
    """Anything that is not a listing is refused: a VM that is overlooked would count as gone."""
    with pytest.raises(AnswerUnreadable):
        list(vms(stdout))


@pytest.mark.parametrize(
    ("stdout", "expected"),
    [
        (b"192.168.64.5\n", "192.168.64.5"),
        (b"waiting\n192.168.64.5", "192.168.64.5"),
        (b"", None),
        (b"-oProxyCommand=x", None),
        (b"300.1.1.1", None),
    ],
)
def test_address(stdout, expected):
    """Only an IPv4 address is accepted: it becomes ssh's destination."""
    assert address_in(stdout) == expected


def test_words_of_exec_are_its_own_only():
    """A guest's output is not quoted."""
    own = "Failed to connect to the VM using its control socket: x, is the Tart Guest Agent running?"
    assert exec_words(f"s3cret\n{own}\ns3cret".encode()) == own
    assert exec_words(b"s3cret\nError: s3cret") == ""


@given(st.binary(max_size=300))
def test_no_answer_breaks_the_reading(data):
    """Any text has a kind of error."""
    assert isinstance(error_of("tart x", 1, data), VMError | RightsRefused)
    version(data)
    address_in(data)
    exec_words(data)
    with contextlib.suppress(AnswerUnreadable):
        list(vms(data))
