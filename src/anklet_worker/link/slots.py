"""The VM-slot semaphore in shared memory: its layout, its reader, its writer. The only file that knows the bytes.

A small memory-mapped file. The supervisor is its only writer, so no lock can be lost with a killed holder. Workers read it to learn
whether a slot is free, and whether the slot granted to them is still theirs. The supervisor rebuilds it at each start; what an
earlier one left is never read. Does not know who gets a slot.

It is a file, not `multiprocessing.shared_memory`: on Python 3.11 a process that only attaches by name destroys the segment when it
exits (cpython#82300).
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import time
import zlib
from enum import Enum
from pathlib import Path

import msgspec

from anklet_worker.contract.errors import ProtocolError
from anklet_worker.link.messages import SlotRef

#: More slots than any Mac may use. This bounds the file; the limit of macOS is enforced elsewhere.
MAX_SLOTS = 64

_MAGIC = b"ANKLET02"
_HEADER = struct.Struct(
    "<8sIIIII"
)  # magic, number of slots, foreign VMs, slots held back, length of what follows, its CRC
_SLOT = struct.Struct("<BxxxIQd256s64s")  # state, generation, nonce, since, service, vm
# A torn read lasts as long as the writer is off the CPU in the middle of a copy.
_READ_TRIES = 1000
_READ_PAUSE = 0.001


class SlotState(Enum):
    """FREE -> RESERVED -> OCCUPIED -> (ORPHANED ->) FREE. The value is the byte in the file."""

    #: No VM, no owner.
    FREE = 0
    #: Granted to a service; no VM is made yet.
    RESERVED = 1
    #: A VM exists, or is about to.
    OCCUPIED = 2
    #: Its worker is gone; the VM may still exist. Only proof that it does not frees the slot.
    ORPHANED = 3
    #: Withdrawn, because fewer VMs may run than there are slots. It is never granted.
    RETIRED = 4


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """One slot. `since` is Unix seconds, 0 for never; `generation` counts its grants; each grant has a fresh `nonce`."""

    index: int
    state: SlotState = SlotState.FREE
    generation: int = 0
    nonce: int = 0
    since: float = 0.0
    service: str = ""
    vm: str = ""

    @property
    def ref(self) -> SlotRef:
        """The grant that this slot stands for."""
        return SlotRef(index=self.index, generation=self.generation, nonce=self.nonce)


class SlotTable(msgspec.Struct, frozen=True, kw_only=True):
    """All slots. `foreign`: running VMs that are not ours, which count against the same limit. `held_back`: slots not granted,
    because the host has refused to run as many VMs as it should."""

    slots: tuple[Slot, ...]
    foreign: int = 0
    held_back: int = 0

    @property
    def limit(self) -> int:
        """How many VMs may run at once. Slots that are in use although the limit has shrunk still count."""
        return sum(slot.state is not SlotState.RETIRED for slot in self.slots)

    @property
    def available(self) -> int:
        """How many more VMs may be started now."""
        free = sum(slot.state is SlotState.FREE for slot in self.slots)
        return max(0, free - self.foreign - self.held_back)


def encode(table: SlotTable) -> bytes:
    """The bytes of a table. Raises `ValueError` for a number of slots that the file cannot hold (a bug)."""
    if not 1 <= len(table.slots) <= MAX_SLOTS:
        raise ValueError(f"a table of {len(table.slots)} slots")
    body = b"".join(_encode_slot(slot) for slot in table.slots)
    header = _HEADER.pack(_MAGIC, len(table.slots), table.foreign, table.held_back, len(body), zlib.crc32(body))
    return header + zlib.crc32(header).to_bytes(4, "little") + body


def decode(data: bytes) -> SlotTable:
    """Read the bytes of a table. Raises `ProtocolError` for bytes that are torn, corrupt, or of another version."""
    if len(data) < _HEADER.size + 4:
        raise ProtocolError("the slot table is too short")
    header, header_sum = data[: _HEADER.size], data[_HEADER.size : _HEADER.size + 4]
    if zlib.crc32(header) != int.from_bytes(header_sum, "little"):
        raise ProtocolError("the slot table's header is torn or corrupt")
    magic, count, foreign, held_back, length, checksum = _HEADER.unpack(header)
    body = data[_HEADER.size + 4 : _HEADER.size + 4 + length]
    if magic != _MAGIC or length != count * _SLOT.size or zlib.crc32(body) != checksum:
        raise ProtocolError("the slot table is torn, corrupt, or of another version")
    slots = tuple(_decode_slot(index, fields) for index, fields in enumerate(_SLOT.iter_unpack(body)))
    return SlotTable(slots=slots, foreign=foreign, held_back=held_back)


def _encode_slot(slot: Slot) -> bytes:
    return _SLOT.pack(
        slot.state.value, slot.generation, slot.nonce, slot.since, slot.service.encode()[:256], slot.vm.encode()[:64]
    )


def _decode_slot(index: int, fields: tuple[int, int, int, float, bytes, bytes]) -> Slot:
    state, generation, nonce, since, service, vm = fields
    return Slot(
        index=index,
        state=SlotState(state),
        generation=generation,
        nonce=nonce,
        since=since,
        service=service.rstrip(b"\0").decode(errors="replace"),
        vm=vm.rstrip(b"\0").decode(errors="replace"),
    )


#: Slots that the file has room for at least, so that their number can change while it is mapped.
_LEAST_ROOM = 4


def room_for(limit: int) -> int:
    """How many slots a table that starts with `limit` can grow to while it is mapped."""
    return max(limit, _LEAST_ROOM)


class SlotWriter:
    """The supervisor's end. Rewrites the file at its full size, because a full disk under a mapping raises SIGBUS.

    Raises `OSError`.
    """

    def __init__(self, path: Path, table: SlotTable) -> None:
        self._size = _HEADER.size + 4 + room_for(len(table.slots)) * _SLOT.size
        data = encode(table).ljust(self._size, b"\0")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            # In place, so that a worker which still maps the old table sees the new one.
            if os.pwrite(fd, data, 0) < self._size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.ftruncate(fd, self._size)
            os.fsync(fd)
            self._map = mmap.mmap(fd, self._size)
        finally:
            os.close(fd)

    def write(self, table: SlotTable) -> None:
        """Publish a table. A reader that meets a half-written one sees a wrong checksum and reads again."""
        data = encode(table)
        if len(data) > self._size:
            raise ValueError(f"a table of {len(table.slots)} slots has no room in the mapped file")
        self._map[: len(data)] = data

    def close(self) -> None:
        """Unmap. The file stays for `status`, until the next start replaces it."""
        self._map.close()


class SlotReader:
    """A worker's end (or that of `status`)."""

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._map = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(fd)

    def snapshot(self) -> SlotTable:
        """Return a whole table. Raises `ProtocolError` when the file is corrupt."""
        for _ in range(_READ_TRIES):
            try:
                return decode(self._map[:])
            except ProtocolError as error:
                problem = error
                time.sleep(_READ_PAUSE)
        raise problem

    def state_of(self, ref: SlotRef) -> SlotState | None:
        """The state of the slot while it stands for this grant; None when the grant is void."""
        slots = self.snapshot().slots
        if ref.index >= len(slots) or slots[ref.index].ref != ref:
            return None
        return slots[ref.index].state

    def close(self) -> None:
        """Unmap."""
        self._map.close()
