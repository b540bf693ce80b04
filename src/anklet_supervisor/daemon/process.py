"""One worker process: start it, send it commands, receive its facts, reap it.

Owns the process, its pipes and the threads that move their bytes; decides nothing. Facts go into the inbox as events, and the
exit of the process comes last.

A worker is a new interpreter (`python -m anklet_worker`), never a fork: fork is unsafe on macOS, and a forked sibling would keep
the pipe's other end open, so EOF would never come. It is not started by multiprocessing, whose spawned child imports the command
line again, and which keeps a resource tracker running that nothing here uses. A worker inherits its own three descriptors and no
other; its settings and secrets come over the pipe, never in argv.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe, wait

from anklet_supervisor.machine.events import Event, WorkerExited, WorkerSaid, WorkerStarted
from anklet_worker.contract.errors import ProtocolError
from anklet_worker.link.channel import Channel, ChannelClosed
from anklet_worker.link.messages import Command, decode_fact, encode
from anklet_worker.link.setup import WorkerSetup, encode_setup

#: A worker that leaves this many commands unread is wedged. A worker gets a handful in its whole life.
_OUTBOX = 64
#: Seconds that a process has to exit after it closed its pipe, before it is killed.
_LINGER = 30.0
#: Signals that mean something to us, or that the terminal sends.
HELD_BACK = {signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR2}
#: The worker's program: arguments of the interpreter.
_PROGRAM = ("-m", "anklet_worker")


class WorkerProcess:
    """A started worker. `post` puts an event into the inbox, `write_log` a line into the log; both are called by our threads.

    Raises `OSError` when the system has no room for the worker; then no process is left.
    """

    def __init__(self, setup: WorkerSetup, post: Callable[[Event], None], write_log: Callable[[bytes], None]) -> None:
        self._name = setup.service.name
        self._post = post
        self._write_log = write_log
        self._outbox: queue.Queue[bytes | None] = queue.Queue(_OUTBOX)
        # The first message. Our thread sends it, so a worker that never reads cannot block the loop.
        self._outbox.put(encode_setup(setup))
        # The loop may still send a signal when the exit of the process is on its way to the inbox.
        self._reaping = threading.Lock()
        self._reaped = threading.Event()
        self._start()

    def _start(self) -> None:
        ours, theirs = Pipe(duplex=True)
        log_ours, log_theirs = Pipe(duplex=False)
        # The worker holds the other end until it exits, and does nothing else with it.
        self._life, life_theirs = Pipe(duplex=False)
        self._channel, self._log = Channel(ours), log_ours
        # The child inherits the mask, so that a signal to the group cannot end it before its handlers are in place.
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
        try:
            self._process = _spawn(theirs, log_theirs, life_theirs)
            self._post(WorkerStarted(self._name, self._process.pid))
            # Our threads block these signals for good: a signal that one of them takes would not wake the loop.
            self._start_threads()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)
            for end in (theirs, log_theirs, life_theirs):
                end.close()

    def _start_threads(self) -> None:
        log_reader = threading.Thread(target=self._read_log, name=f"log of {self._name}", daemon=True)
        try:
            log_reader.start()
            for target, args in ((self._send, ()), (self._receive, (log_reader,))):
                threading.Thread(target=target, args=args, name=f"pipe of {self._name}", daemon=True).start()
        except RuntimeError:
            # The system has no thread for us, so nothing would notice what this worker says, nor its exit.
            self._process.kill()
            self._process.wait()
            self._outbox.put(None)
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None

    def tell(self, command: Command) -> None:
        """Send a command, never blocking; a worker that has stopped reading is killed."""
        try:
            self._outbox.put_nowait(encode(command))
        except queue.Full:
            self.kill()

    def detach(self) -> None:
        """Send SIGTERM: the worker lets go of its VM and job, and exits."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL: its VM and job stay, for a successor."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with self._reaping:
            if not self._reaped.is_set():
                self._process.send_signal(number)

    def join(self, timeout: float) -> None:
        """Wait for its exit, at most `timeout` seconds."""
        self._reaped.wait(timeout)

    def _send(self) -> None:
        while (message := self._outbox.get()) is not None:
            # Messages for a worker that is gone are taken all the same: the loop must never wait for room.
            with contextlib.suppress(ChannelClosed):
                self._channel.send_bytes(message)

    def _receive(self, log_reader: threading.Thread) -> None:
        try:
            while True:
                self._post(WorkerSaid(self._name, decode_fact(self._channel.receive())))
        except ChannelClosed:
            pass
        except ProtocolError:
            # A worker of this installation never sends this: treat it as a crash, so that a fresh one takes over.
            self.kill()
        code = self._reap()
        log_reader.join(_LINGER)
        self._outbox.put(None)
        self._channel.close()
        self._post(WorkerExited(self._name, code))

    def _reap(self) -> int:
        """Wait for the exit, and kill a process that closed its pipe but does not exit. Returns the exit code."""
        if not wait([self._life], _LINGER):
            self.kill()
            wait([self._life])
        # It has closed everything, so it is exiting: this wait is short. Under the lock, because its pid is free afterwards.
        with self._reaping:
            code = self._process.wait()
            self._reaped.set()
        self._life.close()
        return code

    def _read_log(self) -> None:
        try:
            while True:
                self._write_log(self._log.recv_bytes())
        except (EOFError, OSError):
            self._log.close()


def _spawn(*inherited: Connection) -> subprocess.Popen[bytes]:
    """Start the worker's program with these descriptors, named in its arguments, and our standard output and error."""
    fds = tuple(connection.fileno() for connection in inherited)
    return subprocess.Popen(
        [sys.executable, *_interpreter_options(), *_PROGRAM, *map(str, fds)], stdin=subprocess.DEVNULL, pass_fds=fds
    )


def _interpreter_options() -> list[str]:
    """The worker finds its modules where this process found them, and never in the current directory."""
    flags = {"-E": sys.flags.ignore_environment, "-s": sys.flags.no_user_site, "-P": True}
    # Tracebacks go to the log as names of frames: columns in the source would only take memory.
    return [*(option for option, is_set in flags.items() if is_set), "-X", "no_debug_ranges"]
