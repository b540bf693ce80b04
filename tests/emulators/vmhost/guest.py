"""Run one command in a guest: a real process with the guest's home and environment, whose streams are relayed.

Owns processes, pipes and signals of a command like `anka run`. Three processes take part: the host command, an agent in a
separate session that is the parent of the guest's process, and the guest's process in a session of its own. The agent
outlives a killed host command. It may then read and discard the guest's output, so that a guest that keeps running does not
die of a broken pipe. Knows no VM states: the caller holds the state's lock while `spawn` runs, so that a stop sees either no
process or a complete one.
"""

from __future__ import annotations

import os
import select
import signal

_CHUNK = 1 << 16
_DONE = b"d"


class Guest:
    """The host's ends: the guest's stdin, stdout and stderr, the agent's reports, and the pipe whose EOF means that we died."""

    def __init__(self, ends, pid, *, status=None):
        self.stdin, self.stdout, self.stderr, self.reports, self.life = ends
        self.pid = pid
        self.status = status

    def let_go(self):
        """Tell the agent that the host command ends normally."""
        try:
            os.write(self.life, _DONE)
        except BrokenPipeError:  # the agent was killed
            return


#: What happens to the guest's process when its host command dies.
LIVES, PROCESS_DIES, SESSION_DIES = "lives", "process-dies", "session-dies"


def spawn(argv, env, directory, *, on_loss=LIVES, drain=True):
    """Start `argv` in the guest; returns once it is executed or has failed to execute (its status is then known).

    `on_loss` says what happens to the process when this host command dies. With `drain`, its output is still read after the end
    of this command; without it, writers then get a broken pipe.
    """
    stdin, stdout, stderr, reports, life = (os.pipe() for _ in range(5))
    if os.fork() == 0:
        try:
            _agent(
                (argv, env, directory),
                (stdin[0], stdout[1], stderr[1]),
                ({stdout[0], stderr[0]} if drain else set(), reports[1], life[0]),
                on_loss=on_loss,
            )
        finally:
            os._exit(0)
    for fd in (stdin[0], stdout[1], stderr[1], reports[1], life[0]):
        os.close(fd)
    ends = (stdin[1], stdout[0], stderr[0], reports[0], life[1])
    return Guest(ends, int(_read_line(reports[0]) or 0))


def _read_line(fd):
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(fd, 1)
        if not byte:
            return b""
        line += byte
    return line


def _agent(what, guest_ends, agent_ends, *, on_loss):
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    outputs, reports, life = agent_ends
    close_all_but({0, 1, 2, *guest_ends, *outputs, reports, life})
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, _note)
    child = _start(what, guest_ends)
    for fd in guest_ends:
        os.close(fd)
    _tell(reports, child)
    _watch(child, outputs, (wake, reports, life), on_loss=on_loss)


def _note(_number, _frame):
    """Do nothing; the handler exists so that SIGCHLD wakes the agent's select."""


def close_all_but(keep):
    """Close every open descriptor except these."""
    low = 0
    for fd in sorted(keep):
        if low < fd:  # an empty range that begins at 0 would close everything
            os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, 4096)


def _start(what, guest_ends):
    """Fork and execute the guest's process; returns when the program is loaded, so that its marker is visible."""
    seen, loaded = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _become(what, guest_ends)
        finally:
            os._exit(127)
    os.close(loaded)
    os.read(seen, 1)
    os.close(seen)
    return child


def _become(what, guest_ends):
    argv, env, directory = what
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD, signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for fd, end in enumerate(guest_ends):
        os.dup2(end, fd)
    os.umask(0o022)
    try:
        os.chdir(directory)
        os.execvpe(argv[0], argv, env)  # noqa: S606  the guest's argv never meets a shell
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
        os._exit(126 if isinstance(error, PermissionError) else 127)


def _watch(child, outputs, lines, *, on_loss):
    """Report the guest's status once; after the host command is gone, drain the output until every writer has closed it."""
    wake, reports, life = lines
    ended = host_gone = False
    while not (ended and host_gone and not outputs):
        readable, _, _ = select.select([wake, *([] if host_gone else [life]), *(outputs if host_gone else [])], [], [])
        if wake in readable:
            os.read(wake, _CHUNK)
        if not ended:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                ended = True
                _tell(reports, os.waitstatus_to_exitcode(status))
        if life in readable and not host_gone:
            host_gone = True
            if not os.read(life, 1) and on_loss != LIVES and not ended:
                (os.killpg if on_loss == SESSION_DIES else os.kill)(child, signal.SIGKILL)
        for fd in outputs & set(readable):
            if not os.read(fd, _CHUNK):
                outputs = outputs - {fd}


def _tell(reports, number):
    try:
        os.write(reports, b"%d\n" % number)
    except BrokenPipeError:  # the host command was killed
        return


class Relay:
    """Relay the host command's streams until the guest's process has ended.

    `write_out` gets the guest's standard output (bytes); standard error goes to fd 2. With `until_eof` the relay also waits for
    background processes that hold the streams. Without `from_stdin` the guest's standard input is empty.
    """

    def __init__(self, guest, write_out, *, until_eof, from_stdin=True):
        self._guest = guest
        self._write_out = write_out
        self._until_eof = until_eof
        self._pending = b""
        self._host_stdin_open = True
        self._sinks = {guest.stdout: write_out, guest.stderr: lambda data: write_all(2, data)}
        os.set_blocking(guest.stdin, False)
        self._stdin_open = True
        if not from_stdin:
            self._close_stdin()

    def run(self):
        """Relay until the end; returns the guest's exit status: negative for a signal, None if the agent vanished."""
        status, reported = None, False
        while not reported or (self._until_eof and self._sinks):
            reading = [*self._sinks, *([] if reported else [self._guest.reports])]
            if self._wants_stdin() and not reported:
                reading.append(0)
            writing = [self._guest.stdin] if self._pending and self._stdin_open else []
            readable, writable, _ = select.select(reading, writing, [])
            if writable:
                self._feed()
            if 0 in readable:
                self._take()
            for fd in [fd for fd in readable if fd in self._sinks]:
                self._carry(fd)
            if self._guest.reports in readable:
                reported = True
                line = _read_line(self._guest.reports)
                status = int(line) if line else None
        self._drain()
        return status

    def _wants_stdin(self):
        return self._host_stdin_open and self._stdin_open and not self._pending

    def _take(self):
        try:
            self._pending = os.read(0, _CHUNK)
        except OSError:  # a folder, or write-only
            self._pending = b""
        if not self._pending:
            self._host_stdin_open = False
            self._close_stdin()

    def _feed(self):
        try:
            sent = os.write(self._guest.stdin, self._pending)
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._pending = b""
            self._close_stdin()
            return
        self._pending = self._pending[sent:]

    def _close_stdin(self):
        if self._stdin_open:
            self._stdin_open = False
            os.close(self._guest.stdin)

    def _carry(self, fd):
        data = os.read(fd, _CHUNK)
        if data:
            self._sinks[fd](data)
        else:
            del self._sinks[fd]

    def _drain(self):
        for fd in list(self._sinks):
            os.set_blocking(fd, False)
            try:
                while fd in self._sinks:
                    self._carry(fd)
            except BlockingIOError:
                continue


def write_all(fd, data):
    """Write all of `data`. If the reader is gone, this process dies of SIGPIPE, as programs not written in Python do."""
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except BrokenPipeError:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGPIPE)
