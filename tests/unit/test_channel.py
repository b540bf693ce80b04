"""The worker's end of the pipe: messages whole, EOF as detach, slots asked for and granted."""

import multiprocessing
import os
import threading

import pytest

from anklet_worker.contract.errors import Detached, Interrupted, ProtocolError
from anklet_worker.link import channel
from anklet_worker.link import messages as m
from anklet_worker.link.channel import Channel, ChannelClosed, SupervisorLink
from anklet_worker.process.orders import Orders

SLOT = m.SlotRef(index=1, generation=4, nonce=99)


@pytest.fixture
def ends():
    """A parent's channel, and a started link at the other end with its orders."""
    ours, theirs = multiprocessing.Pipe()
    orders = Orders()
    link = SupervisorLink(Channel(theirs), orders)
    link.start()
    parent = Channel(ours)
    yield parent, link, orders
    parent.close()
    theirs.close()


def expect(parent, kind):
    """The next fact at the parent's end, which must be of this kind."""
    fact = m.decode_fact(parent.receive())
    assert isinstance(fact, kind)
    return fact


def acquire(link, result, patience=30.0, while_waiting=lambda: None):
    """Ask for a slot in a thread."""

    def asking():
        try:
            result.append(link.acquire_slot(patience, while_waiting))
        except (Interrupted, Detached) as error:
            result.append(type(error))

    thread = threading.Thread(target=asking)
    thread.start()
    return thread


def test_a_slot_is_asked_for_and_granted(ends):
    """One request goes up, one grant comes down."""
    parent, link, _ = ends
    result = []
    thread = acquire(link, result)
    expect(parent, m.SlotWanted)
    parent.send(m.GrantSlot(slot=SLOT))
    thread.join(30)
    assert result == [SLOT]


def test_a_drain_takes_the_request_back(ends):
    """Who drains wants no slot any more, and says so, for the grant may have crossed."""
    parent, link, _ = ends
    result = []
    thread = acquire(link, result)
    expect(parent, m.SlotWanted)
    parent.send(m.Drain())
    thread.join(30)
    assert result == [None]
    expect(parent, m.SlotDeclined)


def test_a_stop_takes_the_request_back(ends):
    """A stop interrupts the wait for a slot."""
    parent, link, _ = ends
    result = []
    thread = acquire(link, result)
    expect(parent, m.SlotWanted)
    parent.send(m.Stop())
    thread.join(30)
    assert result == [Interrupted]
    expect(parent, m.SlotDeclined)


def test_waiting_calls_back(ends):
    """While it waits, the worker may look after other things."""
    parent, link, _ = ends
    result, calls = [], []

    def called():
        calls.append(1)
        if len(calls) == 2:
            parent.send(m.GrantSlot(slot=SLOT))

    acquire(link, result, patience=0.01, while_waiting=called).join(30)
    assert result == [SLOT]
    assert len(calls) >= 2


def test_a_vanished_supervisor_means_detach(ends):
    """EOF on the pipe turns into the order to let go."""
    parent, link, orders = ends
    parent.close()
    with pytest.raises(Detached):
        orders.wait(30)
    link.tell(m.VMGone(vm="x"))  # a fact that nobody hears any more does no harm


def test_garbage_on_the_pipe_means_detach():
    """A supervisor that speaks another language is as good as gone."""
    ours, theirs = multiprocessing.Pipe()
    orders = Orders()
    SupervisorLink(Channel(theirs), orders).start()
    ours.send_bytes(b'anklet/999 {"type":"Stop"}')
    with pytest.raises(Detached):
        orders.wait(30)
    ours.close()
    theirs.close()


def test_closed_ends_raise():
    """Sending to, and receiving from, nobody is told as such."""
    ours, theirs = multiprocessing.Pipe()
    theirs.close()
    with pytest.raises(ChannelClosed):
        Channel(ours).receive()
    with pytest.raises(ChannelClosed):
        Channel(ours).send(m.Drain())
    ours.close()


GOLDEN = [
    (m.Drain(), b'anklet/1 {"type":"Drain"}'),
    (m.GrantSlot(slot=SLOT), b'anklet/1 {"type":"GrantSlot","slot":{"index":1,"generation":4,"nonce":99}}'),
]


@pytest.mark.parametrize(("message", "data"), GOLDEN)
def test_the_bytes_on_the_wire_are_fixed(message, data):
    """The encoding is plain JSON behind a version, and is read back as the same message."""
    assert m.encode(message) == data
    assert m.decode_command(data) == message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"anklet/1 ",
        b"anklet/1 {}",
        b'anklet/1 {"type":"Explode"}',
        b'anklet/2 {"type":"Drain"}',
        b"\x80\x04pickle",
        b'anklet/1 {"type":"Failed","reason":"\xff"}',
        b'anklet/1 {"type":"LogLevel","level":"\xff"}',
        b'anklet/1 {"type":"Drain","x":' + b"[" * 5000,
    ],
)
def test_what_is_no_message_is_refused(data):
    """Neither another version, nor garbage, nor a pickle is ever obeyed."""
    with pytest.raises(ProtocolError):
        m.decode_command(data)
    with pytest.raises(ProtocolError):
        m.decode_fact(data)


def test_another_level_for_the_log_is_handed_on(ends):
    """From the thread that reads; whoever wants to know is told."""
    parent, link, _ = ends
    told, heard = [], threading.Event()
    link.on_log_level = lambda level: (told.append(level), heard.set())
    parent.send(m.LogLevel(level="DEBUG"))
    assert heard.wait(30)
    assert told == ["DEBUG"]


def test_a_main_thread_that_does_not_let_go_is_noticed(monkeypatch):
    """SIGTERM while it is in a call that nothing cuts short: the reading thread sees the wake-up descriptor all the same."""
    monkeypatch.setattr(channel, "DETACH_PATIENCE", 0.01)
    ours, theirs = multiprocessing.Pipe()
    orders, overdue = Orders(), threading.Event()
    link = SupervisorLink(Channel(theirs), orders)
    link.on_overdue = overdue.set
    link.start()
    os.write(orders._detach_pipe[1], b"\x0f")  # as the interpreter does, before any handler runs
    assert overdue.wait(30)
    with pytest.raises(Detached):
        orders.check()
    ours.close()
    theirs.close()
