"""One end of the pipe between supervisor and worker: send, receive, and the meaning of EOF.

Owns the connection and the worker's view of it: orders, granted slots, outcomes that the supervisor has counted. Does not know what
a job or a VM is. EOF means that the other side is gone.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable

from anklet_worker.contract.errors import AnkletError, ProtocolError
from anklet_worker.link.messages import (
    Command,
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
    Status,
    StatusChanged,
    Stop,
)
from anklet_worker.link.messages import decode_command as _decode_command
from anklet_worker.link.messages import encode as _encode
from anklet_worker.link.pipe import Pipe
from anklet_worker.process.orders import Orders

#: Seconds that the main thread gets to let go after a detach: as long as a supervisor that exits waits for its workers, and some.
DETACH_PATIENCE = 2.0


class ChannelClosed(AnkletError):
    """The other side is gone."""


class Channel:
    """Sends and receives whole messages as bytes; one thread may send while another receives, and several may send."""

    def __init__(self, connection: Pipe) -> None:
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

    def wait(self, other: int) -> bool:
        """Wait until there is something to receive, or the descriptor `other` is readable. False for `other`.

        Raises `ChannelClosed` when this end is closed.
        """
        try:
            poll = select.poll()
            for fd in (self._connection.fileno(), other):
                poll.register(fd, select.POLLIN)
            return other not in {fd for fd, _ in poll.poll()}
        except (OSError, ValueError) as error:
            raise ChannelClosed(f"the pipe is closed: {error}") from None

    def close(self) -> None:
        """Close this end; the other one sees EOF."""
        self._connection.close()


def _ignore(*_: object) -> None:
    """Do nothing: the place of a callback that is not set."""


class SupervisorLink:
    """A worker's view of its supervisor: facts go up, orders come down, slots are requested and granted.

    One daemon thread reads for as long as the process lives. EOF, or a failing send, is the order to detach.
    """

    def __init__(self, channel: Channel, orders: Orders) -> None:
        self._channel = channel
        self._orders = orders
        self._granted: SlotRef | None = None
        self._wanted = False
        #: Called, in the reading thread, with a new level for the log.
        self.on_log_level: Callable[[str], object] = _ignore
        #: Called, in the reading thread, when the process still lives `DETACH_PATIENCE` after a detach. None: never.
        self.on_overdue: Callable[[], object] | None = None
        self._heard: set[str] = set()
        #: The status that was reported last.
        self.status = Status.IDLE

    def start(self) -> None:
        """Begin to read commands."""
        threading.Thread(target=self._read, name="supervisor-link", daemon=True).start()

    def tell(self, fact: Fact) -> None:
        """Send a fact up; a supervisor that is gone turns into the order to detach."""
        if isinstance(fact, StatusChanged):
            self.status = fact.status
        try:
            self._channel.send(fact)
        except ChannelClosed:
            self._orders.detach()

    def tell_outcome(self, fact: JobFinished) -> None:
        """Send the outcome of a job up; `has_heard` is true once the supervisor has counted it."""
        self.tell(fact)

    def has_heard(self, vm: str) -> bool:
        """True when the supervisor has counted the outcome of the job in the VM of this name."""
        return vm in self._heard

    def forget_outcome(self, vm: str) -> None:
        """Drop what `has_heard` knows of this VM; nothing asks for it again."""
        self._heard.discard(vm)

    def acquire_slot(self, patience: float, while_waiting: Callable[[], None]) -> SlotRef | None:
        """Request a slot and wait until it is granted; None when a drain comes first.

        `while_waiting` is called every `patience` seconds of the wait. Raises `Interrupted` and `Detached`.
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
        """Withdraw the request; the supervisor frees a slot that it has already granted for it."""
        self._granted, self._wanted = None, False
        self.tell(SlotDeclined())

    def _read(self) -> None:
        # The detach descriptor, too: it is readable at once after SIGTERM, whatever the main thread does.
        try:
            while self._channel.wait(self._orders.detach_fd):
                self._obey(_decode_command(self._channel.receive()))
        except (ChannelClosed, ProtocolError):
            pass
        self._orders.detach()
        if self.on_overdue is not None:
            time.sleep(DETACH_PATIENCE)
            self.on_overdue()

    def _obey(self, command: Command) -> None:
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
