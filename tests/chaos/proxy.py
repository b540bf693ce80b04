"""A small TCP proxy in front of Redis, with one port per host. It can be slow, deaf or closed.

Owns sockets and one thread with an event loop. Knows nothing of Redis.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading

_CHUNK = 1 << 16


class Proxy:
    """One port on 127.0.0.1 that forwards to `target`. Any thread may call its methods."""

    def __init__(self, loop: asyncio.AbstractEventLoop, target: tuple[str, int]) -> None:
        self._loop = loop
        self._target = target
        self._writers: set[asyncio.StreamWriter] = set()
        #: Delay of each chunk in each direction, in seconds.
        self.latency = 0.0
        #: True while it accepts connections and forwards nothing.
        self.deaf = False
        self.port = 0

    async def open(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening and close all connections."""
        self._server.close()
        self._abort()

    def cut(self) -> None:
        """Break all connections; new ones work."""
        self._loop.call_soon_threadsafe(self._abort)

    def heal(self) -> None:
        """Be fast and open again. What a deaf proxy received is lost."""
        self.latency, self.deaf = 0.0, False
        self.cut()

    def _abort(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, far_writer}
        self._writers |= ends
        try:
            await asyncio.gather(self._carry(reader, far_writer), self._carry(far_reader, writer))
        finally:
            self._writers -= ends
            for end in ends:
                end.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(_CHUNK):
                if self.latency:
                    await asyncio.sleep(self.latency)
                while self.deaf:
                    await asyncio.sleep(0.1)
                writer.write(chunk)
                await writer.drain()
        writer.transport.abort()


class Proxies:
    """The thread that all proxies share."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._thread.start()
        self._all: list[Proxy] = []

    def add(self, target: tuple[str, int]) -> Proxy:
        """Return a proxy that listens."""
        proxy = Proxy(self._loop, target)
        asyncio.run_coroutine_threadsafe(proxy.open(), self._loop).result(10)
        self._all.append(proxy)
        return proxy

    def close(self) -> None:
        """Close all proxies, and end the thread."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _close(self) -> None:
        for proxy in self._all:
            await proxy.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
