"""A TCP proxy whose connections a test can cut, hang or delay, like those of a network."""

import contextlib
import socket
import threading
import time

_CHUNK = 65536


class TcpProxy:
    """Relays bytes between clients and one upstream address. `port` never changes."""

    def __init__(self, behind):
        self._behind = behind
        self._lock = threading.Lock()
        self._sockets = set()
        self._cut = False
        self._open_line = threading.Event()
        self._open_line.set()
        #: Delay of each chunk in seconds, in both directions.
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
            # Wakes the accepting thread.
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(10)

    def cut(self):
        """End every connection, and end new ones at once."""
        with self._lock:
            self._cut = True
            ended, self._sockets = self._sockets, set()
        for one in ended:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def hang(self):
        """Accept connections but relay nothing, as if packets were lost."""
        self._open_line.clear()

    def lead_to(self, behind):
        """Lead new connections to another address; the old ones stay."""
        self._behind = behind

    def mend(self):
        """Restore the line after `cut` or `hang`."""
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
