"""A TCP proxy whose line can be cut, hung or delayed, as a network's can."""

import contextlib
import socket
import threading
import time

_CHUNK = 65536


class TcpProxy:
    """Carries bytes between clients and one address behind. `port` stays the same whatever becomes of the line."""

    def __init__(self, behind):
        self._behind = behind
        self._lock = threading.Lock()
        self._sockets = set()
        self._cut = False
        self._open_line = threading.Event()
        self._open_line.set()
        #: Seconds that each chunk is late, either way.
        self.delay = 0.0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._accepting = self._start(self._accept)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.cut()
        self._open_line.set()
        with contextlib.suppress(OSError):
            # Wakes the thread that accepts.
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(10)

    def cut(self):
        """Every connection ends, and new ones end at once."""
        with self._lock:
            self._cut = True
            ended, self._sockets = self._sockets, set()
        for one in ended:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def hang(self):
        """Connections are taken, and nothing comes through any more: packets are lost."""
        self._open_line.clear()

    def lead_to(self, behind):
        """New connections lead to another address; the old ones stay."""
        self._behind = behind

    def mend(self):
        """The line is as it was."""
        with self._lock:
            self._cut = False
        self._open_line.set()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._behind, 5)
            except OSError:
                client.close()
                continue
            with self._lock:
                refused = self._cut
                if not refused:
                    self._sockets |= {client, server}
            if refused:
                client.close()
                server.close()
                continue
            self._start(self._connect, client, server)

    def _connect(self, client, server):
        with client, server:
            back = self._start(self._carry, server, client)
            self._carry(client, server)
            back.join()
        with self._lock:
            self._sockets -= {client, server}

    def _carry(self, source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK):
                time.sleep(self.delay)
                self._open_line.wait()
                target.sendall(data)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def _start(work, *arguments):
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        thread.start()
        return thread
