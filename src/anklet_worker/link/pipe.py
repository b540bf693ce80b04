"""A worker's ends of the pipes that its supervisor made with `multiprocessing.Pipe`.

Owns the framing of messages on a descriptor, which is that of CPython's `multiprocessing.connection.Connection`: four bytes of
length in network order, then the message. Knows no message.

A class of our own, because importing multiprocessing costs each worker 1.5 MB for what takes a screen here.
"""

from __future__ import annotations

import os
import struct
from typing import Protocol

_LENGTH = struct.Struct("!i")
#: The longest message; longer ones would have another header.
_LONGEST = 0x7FFFFFFF


class Pipe(Protocol):
    """One end of a pipe: ours, or one of multiprocessing's."""

    def send_bytes(self, data: bytes, /) -> None:
        """Send one message whole. Raises `OSError`."""

    def recv_bytes(self) -> bytes:
        """Wait for one message. Raises `EOFError` when the other side is gone, and `OSError`."""

    def fileno(self) -> int:
        """The descriptor, to wait for. Raises `OSError` or `ValueError` when this end is closed."""

    def close(self) -> None:
        """Close this end."""


class PipeEnd:
    """One end, by its descriptor, which it owns."""

    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd

    def fileno(self) -> int:
        """The descriptor. Raises `OSError` when this end is closed."""
        if self._fd is None:
            raise OSError("this end is closed")
        return self._fd

    def send_bytes(self, data: bytes, /) -> None:
        """Send one message whole; blocks while the pipe is full. Raises `OSError`, and `ValueError` for one that is too long."""
        if len(data) > _LONGEST:
            raise ValueError("the message is too long")
        rest = memoryview(_LENGTH.pack(len(data)) + data)
        while rest:
            rest = rest[os.write(self.fileno(), rest) :]

    def recv_bytes(self) -> bytes:
        """Wait for one message. Raises `EOFError` when the other side is gone, `OSError` when it went in mid-message."""
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size, at_start=True))
        return self._read(length, at_start=False)

    def _read(self, size: int, *, at_start: bool) -> bytes:
        content = b""
        while len(content) < size:
            chunk = os.read(self.fileno(), size - len(content))
            if not chunk:
                if at_start and not content:
                    raise EOFError
                raise OSError("the other side closed in the middle of a message")
            content += chunk
        return content

    def close(self) -> None:
        """Close the descriptor; closing twice is closing once."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)
