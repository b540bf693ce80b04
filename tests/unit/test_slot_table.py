"""The slot table's bytes: whole or refused, also while another process writes."""

import multiprocessing
import os

import pytest

from anklet_worker.contract.errors import ProtocolError
from anklet_worker.link.slots import Slot, SlotReader, SlotState, SlotTable, SlotWriter, decode, encode


def table(generation=1, *, state=SlotState.OCCUPIED, foreign=0):
    """Two slots whose fields all follow from one number, so that a torn read would show."""
    slot = Slot(
        index=0,
        state=state,
        generation=generation,
        nonce=generation * 3,
        since=float(generation),
        service=f"service {generation}",
        vm=f"vm-{generation}",
    )
    return SlotTable(slots=(slot, Slot(index=1)), foreign=foreign)


def test_what_is_written_is_read(tmp_path):
    """A reader sees the writer's table, with names in any script."""
    writer = SlotWriter(tmp_path / "slots", table())
    reader = SlotReader(tmp_path / "slots")
    assert reader.snapshot() == table()
    named = Slot(index=0, state=SlotState.RESERVED, generation=2, nonce=5, service="Dienst Ü 日本")
    writer.write(SlotTable(slots=(named, Slot(index=1)), foreign=1))
    assert reader.snapshot().slots[0] == named
    assert reader.snapshot().available == 0
    reader.close()
    writer.close()


def test_a_grant_is_known_by_index_generation_and_nonce(tmp_path):
    """A worker whose slot was given to another sees that it is not its own any more."""
    writer = SlotWriter(tmp_path / "slots", table(1))
    reader = SlotReader(tmp_path / "slots")
    ref = table(1).slots[0].ref
    assert reader.state_of(ref) is SlotState.OCCUPIED
    writer.write(table(2))
    assert reader.state_of(ref) is None
    reader.close()
    writer.close()


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda data: data[:-1],
        lambda data: b"X" + data[1:],
        lambda data: data[:60] + bytes([data[60] ^ 1]) + data[61:],
        lambda data: bytes(len(data)),
    ],
)
def test_damaged_bytes_are_refused(damage):
    """Torn, truncated, foreign or zeroed bytes are never taken for a table."""
    with pytest.raises(ProtocolError):
        decode(damage(encode(table())))


def test_a_corrupt_or_stale_file_is_replaced_at_start(tmp_path):
    """Whatever an earlier life left in the file, the writer begins with its own table at the right size."""
    path = tmp_path / "slots"
    path.write_bytes(os.urandom(100_000))
    SlotWriter(path, table()).close()
    assert path.stat().st_size == len(encode(SlotTable(slots=tuple(Slot(index=n) for n in range(4)))))
    assert SlotReader(path).snapshot() == table()


def test_a_symlink_in_its_place_is_refused(tmp_path):
    """The table is never written through a link that somebody planted."""
    (tmp_path / "target").write_bytes(b"precious")
    (tmp_path / "slots").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="slots"):
        SlotWriter(tmp_path / "slots", table())
    assert (tmp_path / "target").read_bytes() == b"precious"


def _write_many(path, rounds):
    writer = SlotWriter(path, table(1))
    for generation in range(1, rounds):
        writer.write(table(generation))


def test_no_torn_table_is_ever_read(tmp_path):
    """While another process writes as fast as it can, every snapshot is one that was written."""
    path = tmp_path / "slots"
    SlotWriter(path, table(1)).close()
    writing = multiprocessing.get_context("spawn").Process(target=_write_many, args=(path, 30_000))
    writing.start()
    reader = SlotReader(path)
    seen = set()
    while writing.is_alive():
        snapshot = reader.snapshot()
        generation = snapshot.slots[0].generation
        assert snapshot == table(generation)
        seen.add(generation)
    writing.join()
    assert writing.exitcode == 0
    assert len(seen) > 1
    reader.close()
