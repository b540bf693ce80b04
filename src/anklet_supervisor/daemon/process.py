"""One worker process: start it, talk to it, hear it out, reap it.

Owns the process, its two pipes and the threads that move their bytes; decides nothing. What is heard goes into the inbox as
events, the death last of all.

The start method is spawn, by context: fork is unsafe on macOS, and a forked sibling would hold the pipe's other end open, so
that EOF never came. The child gets only its own ends; the parent closes them at once.
"""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection

from anklet_supervisor.machine.events import Event, WorkerExited, WorkerSaid, WorkerStarted
from anklet_worker.contract.errors import ProtocolError
from anklet_worker.link.channel import Channel, ChannelClosed
from anklet_worker.link.messages import Command, decode_fact
from anklet_worker.link.setup import WorkerSetup
from anklet_worker.main import run_worker

#: A worker that does not read this many commands is wedged. They are a handful in its whole life.
_OUTBOX = 64
#: Seconds that a process has to end after it closed its pipe, before it is killed.
_LINGER = 30.0
#: Signals that mean something to us, or that the terminal sends.
HELD_BACK = {signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR2}

_spawn = multiprocessing.get_context("spawn")


class WorkerProcess:
    """A started worker. `post` puts an event into the inbox, `write_log` a line into the log; both from our threads.

    Raises `OSError` when the system has no room for it; then no process of it lives.
    """

    def __init__(self, setup: WorkerSetup, post: Callable[[Event], None], write_log: Callable[[bytes], None]) -> None:
        self._name = setup.service.name
        self._post = post
        self._write_log = write_log
        self._outbox: queue.Queue[Command | None] = queue.Queue(_OUTBOX)
        ours, theirs = _spawn.Pipe(duplex=True)
        log_ours, log_theirs = _spawn.Pipe(duplex=False)
        self._channel = Channel(ours)
        self._log = log_ours
        # The loop may still have an order for it when its end is on the way to the inbox.
        self._closing = threading.Lock()
        self._closed = threading.Event()
        # Daemonic: if this process ends without us, multiprocessing sends SIGTERM, which means the same as the EOF: it detaches.
        self._process = _spawn.Process(target=run_worker, args=(setup, theirs, log_theirs), daemon=True)
        self._start(theirs, log_theirs)

    def _start(self, theirs: Connection, log_theirs: Connection) -> None:
        # The child inherits the mask, so that a signal to the group cannot end it before its handlers are in place.
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
        try:
            self._process.start()
            self._post(WorkerStarted(self._name, self._process.pid or 0))
            # Our threads never take a signal from the loop's, which would then not wake up for it.
            self._start_threads()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)
            theirs.close()
            log_theirs.close()

    def _start_threads(self) -> None:
        log_reader = threading.Thread(target=self._read_log, name=f"log of {self._name}", daemon=True)
        try:
            log_reader.start()
            for target, args in ((self._send, ()), (self._hear, (log_reader,))):
                threading.Thread(target=target, args=args, name=f"pipe of {self._name}", daemon=True).start()
        except RuntimeError:
            # The system has no thread for us, and nobody would hear this worker, nor its end.
            self._process.kill()
            self._process.join()
            self._outbox.put(None)
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None

    def tell(self, command: Command) -> None:
        """Send a command, never blocking; a worker that has stopped reading is killed."""
        try:
            self._outbox.put_nowait(command)
        except queue.Full:
            self.kill()

    def detach(self) -> None:
        """SIGTERM; it lets go of its VM and job, and ends."""
        with self._closing:
            if not self._closed.is_set():
                self._process.terminate()

    def kill(self) -> None:
        """SIGKILL; its VM and job stay, for a successor."""
        with self._closing:
            if not self._closed.is_set():
                self._process.kill()

    def join(self, timeout: float) -> None:
        """Wait for its end, for so many seconds."""
        self._closed.wait(timeout)

    def _send(self) -> None:
        while (command := self._outbox.get()) is not None:
            # What is for a worker that is gone is taken nonetheless: nobody may wait for room.
            with contextlib.suppress(ChannelClosed):
                self._channel.send(command)

    def _hear(self, log_reader: threading.Thread) -> None:
        try:
            while True:
                self._post(WorkerSaid(self._name, decode_fact(self._channel.receive())))
        except ChannelClosed:
            pass
        except ProtocolError:
            # Never by a worker of this installation: treat it as a crash, so that a fresh one takes over.
            self.kill()
        self._process.join(_LINGER)
        if self._process.is_alive():
            self.kill()
            self._process.join()
        log_reader.join(_LINGER)
        self._outbox.put(None)
        code = self._process.exitcode
        self._channel.close()
        with self._closing:
            self._closed.set()
            self._process.close()
        self._post(WorkerExited(self._name, -signal.SIGKILL if code is None else code))

    def _read_log(self) -> None:
        try:
            while True:
                self._write_log(self._log.recv_bytes())
        except (EOFError, OSError):
            self._log.close()
