"""A worker's end of a pipe speaks what the supervisor's, one of multiprocessing's, does."""

import multiprocessing
import os
import threading

import pytest

from anklet_worker.link.pipe import PipeEnd

MESSAGES = [b"", b"x", b"m" * 16384, b"l" * 16385, b"h" * 1_000_000]


@pytest.fixture
def ends():
    """The supervisor's end, and the worker's."""
    ours, theirs = multiprocessing.Pipe()
    worker = PipeEnd(os.dup(theirs.fileno()))
    theirs.close()
    yield ours, worker
    ours.close()
    worker.close()


@pytest.mark.parametrize("message", MESSAGES, ids=len)
def test_messages_pass_both_ways(ends, message):
    """Of every size, longer than the pipe is, too."""
    ours, worker = ends
    for sender, receiver in (ends, (worker, ours)):
        thread = threading.Thread(target=sender.send_bytes, args=(message,))
        thread.start()
        assert receiver.recv_bytes() == message
        thread.join()


def test_a_supervisor_that_is_gone_is_eof(ends):
    """Between two messages."""
    ours, worker = ends
    ours.send_bytes(b"last")
    ours.close()
    assert worker.recv_bytes() == b"last"
    with pytest.raises(EOFError):
        worker.recv_bytes()
    with pytest.raises(OSError):  # noqa: PT011  whichever the system says first
        worker.send_bytes(b"to nobody")


def test_half_a_message_is_an_error(ends):
    """And no message."""
    ours, worker = ends
    os.write(ours.fileno(), b"\x00\x00\x00\x09half")
    ours.close()
    with pytest.raises(OSError, match="in the middle"):
        worker.recv_bytes()


def test_a_closed_end_says_so(ends):
    """Closing twice is closing once."""
    _, worker = ends
    worker.close()
    worker.close()
    for use in (worker.fileno, worker.recv_bytes, lambda: worker.send_bytes(b"")):
        with pytest.raises(OSError, match="closed"):
            use()
