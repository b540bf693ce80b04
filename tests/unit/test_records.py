"""Records on disk: every version that was ever written, damage, disks that refuse, and who holds them."""

import shutil
from pathlib import Path

import msgspec
import pytest

from anklet_worker.contract.errors import RecordNotWritten, RecordsUnreadable, TemporaryError
from anklet_worker.contract.job import Conclusion
from anklet_worker.life.attempt_phases import Phase
from anklet_worker.life.holder import Holder
from anklet_worker.life.records import RECORD_VERSION, Record, RecordBook
from anklet_worker.life.vm_phases import VMPhase
from anklet_worker.link.messages import SlotRef

GOLDEN = Path(__file__).with_name("records")
VM = "anklet-vm-00000001-0000aa-77-2"
SLOT = SlotRef(index=1, generation=3, nonce=99)


@pytest.fixture
def folder(tmp_path):
    """Where the records are."""
    RecordBook(tmp_path)
    return tmp_path / "records"


@pytest.fixture
def book(tmp_path):
    """A book."""
    return RecordBook(tmp_path)


@pytest.mark.parametrize("version", range(1, RECORD_VERSION + 1))
def test_every_version_that_was_ever_written_is_read(book, folder, version):
    """Field by field; and written in this program's form when it is written again."""
    shutil.copy(GOLDEN / f"v{version}.json", folder / f"{VM}.json")
    (record,), problems = book.load()
    assert problems == []
    assert (record.service, record.vm, record.attempt, record.slot) == ("RUNNER1", VM, 2, SLOT)
    assert (record.job.id, record.job.vm.tag, record.job.details["labels"]) == ("77", "v1", ["self-hosted", "anka"])
    assert record.facts == {"registration": "done", "runner_id": 12}
    assert record.phase is {1: Phase.STARTED, 2: Phase.ENDED, 3: Phase.ENDED}[version]
    assert record.vm_phase is {1: VMPhase.READY, 2: VMPhase.GOING, 3: VMPhase.GOING}[version]
    assert record.origin == {1: "", 2: "5f2b9e1c0a7d4433", 3: "5f2b9e1c0a7d4433"}[version]
    conclusion = record.outcome and record.outcome.conclusion
    assert conclusion is {1: None, 2: Conclusion.SUCCESS, 3: Conclusion.SUCCESS}[version]
    assert record.version == RECORD_VERSION
    book.save(record)
    assert book.load() == ([record], [])


@pytest.mark.parametrize(
    ("word", "vm_phase", "phase"),
    [
        ("claimed", VMPhase.PLANNED, Phase.CLAIMED),
        ("vm_intended", VMPhase.MAKING, Phase.CLAIMED),
        ("vm_starting", VMPhase.STARTING, Phase.CLAIMED),
        ("driving", VMPhase.READY, Phase.DRIVING),
        ("started", VMPhase.READY, Phase.STARTED),
        ("ended", VMPhase.GOING, Phase.ENDED),
        ("vm_gone", VMPhase.GONE, Phase.ENDED),
    ],
)
def test_every_phase_of_version_2_is_read(book, folder, word, vm_phase, phase):
    """It told the lives of VM and attempt with one word; a job that runs through an upgrade is adopted by it."""
    old = (GOLDEN / "v2.json").read_text().replace('"phase":"ended"', f'"phase":"{word}"')
    (folder / f"{VM}.json").write_text(old)
    (record,), problems = book.load()
    assert (record.vm_phase, record.phase, problems) == (vm_phase, phase, [])


def test_a_vm_without_an_attempt_is_a_record_too(book, folder):
    """Read back as it was written."""
    record = Record(service="S", host_id="h", boot_id="b", driver="anka", vm=VM, slot=SLOT, vm_phase=VMPhase.READY)
    book.save(record)
    assert book.load() == ([record], [])


def test_what_is_written_is_the_golden_form(book, folder):
    """A change of the form is a new version, with a golden file of its own."""
    golden = (GOLDEN / f"v{RECORD_VERSION}.json").read_bytes()
    (folder / f"{VM}.json").write_bytes(golden)
    book.save(book.load()[0][0])
    assert msgspec.json.decode((folder / f"{VM}.json").read_bytes()) == msgspec.json.decode(golden)


@pytest.mark.parametrize(
    "content", [b'{"version":99}', b'{"version":99,"phase":"on the moon","vm":5}', b'{"version":0}']
)
def test_a_record_of_another_version_is_left_alone(book, folder, content):
    """Whatever else is in it: not moved, not judged; its VM is named, so that nobody touches it."""
    path = folder / f"{VM}.json"
    path.write_bytes(content)
    records, (problem,) = book.load()
    assert records == []
    assert f"{VM}.json is of version" in problem
    assert "left alone, with its VM" in problem
    assert path.read_bytes() == content
    assert book.untouchable() == {VM}


def test_a_record_that_cannot_be_read_is_left_alone(book, folder):
    """It is no proof of damage."""
    (folder / f"{VM}.json").mkdir()
    records, (problem,) = book.load()
    assert records == []
    assert "cannot be read" in problem
    assert book.untouchable() == {VM}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"version":2}',
        b'{"version":3}',
        b'{"version":"2"}',
        b"\xff\xfe\x00",
        b'{"vm":1}',
        b'{"vm":"\xff"}',
        b'{"vm":' + b"[" * 5000,
    ],
)
def test_a_damaged_record_is_kept_as_evidence(book, folder, content):
    """Beside earlier evidence, and told once; nobody takes its VM for looked after."""
    for kept in (f"{VM}.json.corrupt", f"{VM}.json.corrupt-2"):
        (folder / f"{VM}.json").write_bytes(content)
        assert book.untouchable() == frozenset()
        records, (problem,) = book.load()
        assert records == []
        assert problem.endswith(f"kept as {kept}")
        assert (folder / kept).read_bytes() == content
    assert book.load() == ([], [])


def test_a_record_under_another_name_is_none(book, folder):
    """Copied by hand: saved or removed, it would touch a file of another attempt."""
    shutil.copy(GOLDEN / "v2.json", folder / "anklet-vm-00000001-0000aa-78-1.json")
    records, (problem,) = book.load()
    assert records == []
    assert f"it is about {VM}" in problem


def test_a_disk_that_refused_a_record_is_tried_before_the_next_job(book, folder, monkeypatch):
    """And as soon as it takes one again, it will do; while it is well nothing is tried."""
    shutil.copy(GOLDEN / "v2.json", folder / f"{VM}.json")
    (record,), _ = book.load()
    book.check()
    with monkeypatch.context() as patch:
        patch.setattr("anklet_worker.life.records.write_atomically", _full)
        with pytest.raises(RecordNotWritten, match="No space left"):
            book.save(record)
        with pytest.raises(RecordNotWritten, match="No space left"):
            book.check()
    book.check()
    assert [path.name for path in folder.iterdir()] == [f"{VM}.json"]
    with monkeypatch.context() as patch:
        patch.setattr("anklet_worker.life.records.write_atomically", _full)
        book.check()


def _full(*_args, **_more):
    raise OSError(28, "No space left on device")


def test_records_that_cannot_be_listed_are_not_no_records(book, folder):
    """Nothing may be removed for being on no record then."""
    folder.rmdir()
    with pytest.raises(RecordsUnreadable, match="cannot be read"):
        book.load()


@pytest.mark.parametrize("kind", [RecordBook, Holder])
def test_a_place_where_nothing_can_be_kept_is_told(tmp_path, kind):
    """In one line, as something that may pass."""
    (tmp_path / "file").write_text("")
    with pytest.raises(TemporaryError, match="file"):
        kind(tmp_path / "file" / "service")


def test_a_holder_is_alone(tmp_path):
    """Another finds the lock taken, and does not wait; afterwards it is free."""
    holder = Holder(tmp_path)
    with holder.at_once() as held:
        assert held
        with Holder(tmp_path).at_once() as second:
            assert not second
    with Holder(tmp_path).at_once() as again:
        assert again


def test_a_full_disk_keeps_no_holder_from_its_work(tmp_path, monkeypatch):
    """The lock is what counts; the name in it is for a successor."""
    monkeypatch.setattr("anklet_worker.life.holder.os.pwrite", _full)
    Holder(tmp_path).acquire(0.0, lambda _: None)
