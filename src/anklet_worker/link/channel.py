"""One end of the pipe between supervisor and worker: send, receive, and what EOF means.

Owns the connection and nothing else: what a message says is decided elsewhere. EOF means that the other side is gone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from multiprocessing.connection import Connection

from anklet_worker.contract.errors import AnkletError, ProtocolError
from anklet_worker.link.messages import (
    Drain,
    Fact,
    GrantSlot,
    JobFinished,
    LogLevel,
    Message,
    OutcomeHeard,
    SlotAnswered,
    SlotDeclined,
    SlotRef,
    SlotWanted,
    Stop,
)
from anklet_worker.link.messages import decode_command as _decode_command
from anklet_worker.link.messages import encode as _encode
from anklet_worker.process.orders import Orders


class ChannelClosed(AnkletError):
    """The other side is gone."""


class Channel:
    """Sends and receives whole messages as bytes; one thread may send while another receives, and several may send."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()

    def send(self, message: Message) -> None:
        """Send one message; blocks while the pipe is full. Raises `ChannelClosed`."""
        self.send_bytes(_encode(message))

    def send_bytes(self, data: bytes) -> None:
        """Send the bytes of one message; blocks while the pipe is full. Raises `ChannelClosed`."""
        with self._sending:
            try:
                self._connection.send_bytes(data)
            except (OSError, ValueError) as error:
                raise ChannelClosed(f"the pipe is closed: {error}") from None

    def receive(self) -> bytes:
        """Wait for one message and return its bytes. Raises `ChannelClosed` at EOF."""
        try:
            return self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise ChannelClosed(f"the pipe is closed: {error}") from None

    def close(self) -> None:
        """Close this end; the other one sees EOF."""
        self._connection.close()


def _ignore(_level: str) -> None:
    """Nobody wants to know."""


class SupervisorLink:
    """A worker's view of its supervisor: facts go up, orders come down, and slots are asked for and granted.

    One daemon thread reads for as long as the process lives. EOF, or a failing send, is the order to detach.
    """

    def __init__(self, channel: Channel, orders: Orders) -> None:
        self._channel = channel
        self._orders = orders
        self._granted: SlotRef | None = None
        self._wanted = False
        #: Told, from the thread that reads, of another level for the log.
        self.on_log_level: Callable[[str], object] = _ignore
        self._heard: set[str] = set()

    def start(self) -> None:
        """Begin to read commands."""
        threading.Thread(target=self._read, name="supervisor-link", daemon=True).start()

    def tell(self, fact: Fact) -> None:
        """Send a fact up; a supervisor that is gone turns into the order to detach."""
        try:
            self._channel.send(fact)
        except ChannelClosed:
            self._orders.detach()

    def tell_outcome(self, fact: JobFinished) -> None:
        """Send the end of a job up; `has_heard` answers when it has been counted."""
        self.tell(fact)

    def has_heard(self, vm: str) -> bool:
        """Whether the supervisor has counted the end of the job in the VM of this name."""
        return vm in self._heard

    def forget_outcome(self, vm: str) -> None:
        """Nobody will ask about this VM any more."""
        self._heard.discard(vm)

    def acquire_slot(self, patience: float, while_waiting: Callable[[], None]) -> SlotRef | None:
        """Ask for a slot and wait until it is granted; None when a drain comes first.

        `while_waiting` is called each `patience` seconds of the wait. Raises `Interrupted` and `Detached`.
        """
        if not self._wanted:
            self._wanted = True
            self.tell(SlotWanted())
        try:
            while not self._orders.wait_for(lambda: self._granted is not None or self._orders.draining, patience):
                while_waiting()
        except AnkletError:
            self._take_request_back()
            raise
        if self._orders.draining:
            self._take_request_back()
            return None
        granted, self._granted, self._wanted = self._granted, None, False
        return granted

    def _take_request_back(self) -> None:
        """The supervisor frees a slot that it granted to a service whose request is taken back."""
        self._granted, self._wanted = None, False
        self.tell(SlotDeclined())

    def _read(self) -> None:
        while True:
            try:
                command = _decode_command(self._channel.receive())
            except (ChannelClosed, ProtocolError):
                self._orders.detach()
                return
            match command:
                case GrantSlot(slot=slot):
                    self._granted = slot
                    self._orders.notify()
                case SlotAnswered():
                    self._orders.notify()
                case LogLevel(level=level):
                    self.on_log_level(level)
                case OutcomeHeard(vm=vm):
                    self._heard.add(vm)
                    self._orders.notify()
                case Drain():
                    self._orders.drain()
                case Stop():
                    self._orders.stop()
