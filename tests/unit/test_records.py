"""Records on disk: every version ever written, damaged files, disks that refuse, and the lock of their holder."""

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
    """The folder of the records."""
    RecordBook(tmp_path)
    return tmp_path / "records"


@pytest.fixture
def book(tmp_path):
    """An empty record book."""
    return RecordBook(tmp_path)


@pytest.mark.parametrize("version", range(1, RECORD_VERSION + 1))
def test_every_version_that_was_ever_written_is_read(book, folder, version):
    """Each field is read, and the next write uses the present version."""
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
    """One word stood for the phases of VM and attempt. A job that runs through an upgrade is adopted by it."""
    old = (GOLDEN / "v2.json").read_text().replace('"phase":"ended"', f'"phase":"{word}"')
    (folder / f"{VM}.json").write_text(old)
    (record,), problems = book.load()
    assert (record.vm_phase, record.phase, problems) == (vm_phase, phase, [])


def test_a_vm_without_an_attempt_is_a_record_too(book, folder):
    """A record without a job is read back as it was written."""
    record = Record(service="S", host_id="h", boot_id="b", driver="anka", vm=VM, slot=SLOT, vm_phase=VMPhase.READY)
    book.save(record)
    assert book.load() == ([record], [])


def test_what_is_written_is_the_golden_form(book, folder):
    """Every change of the format needs a new version and a new golden file."""
    golden = (GOLDEN / f"v{RECORD_VERSION}.json").read_bytes()
    (folder / f"{VM}.json").write_bytes(golden)
    book.save(book.load()[0][0])
    assert msgspec.json.decode((folder / f"{VM}.json").read_bytes()) == msgspec.json.decode(golden)


@pytest.mark.parametrize(
    "content", [b'{"version":99}', b'{"version":99,"phase":"on the moon","vm":5}', b'{"version":0}']
)
def test_a_record_of_another_version_is_left_alone(book, folder, content):
    """Whatever it contains, it is neither moved nor judged, and its VM is named as untouchable."""
    path = folder / f"{VM}.json"
    path.write_bytes(content)
    records, (problem,) = book.load()
    assert records == []
    assert f"{VM}.json is of version" in problem
    assert "left alone, with its VM" in problem
    assert path.read_bytes() == content
    assert book.untouchable() == {VM}


def test_a_record_that_cannot_be_read_is_left_alone(book, folder):
    """A read error is no proof of damage."""
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
    """It is renamed beside earlier ones and reported once. Its VM no longer counts as on record."""
    for kept in (f"{VM}.json.corrupt", f"{VM}.json.corrupt-2"):
        (folder / f"{VM}.json").write_bytes(content)
        assert book.untouchable() == frozenset()
        records, (problem,) = book.load()
        assert records == []
        assert problem.endswith(f"kept as {kept}")
        assert (folder / kept).read_bytes() == content
    assert book.load() == ([], [])


def test_a_record_under_another_name_is_none(book, folder):
    """A copied record is not used: saving or removing it would touch the file of another attempt."""
    shutil.copy(GOLDEN / "v2.json", folder / "anklet-vm-00000001-0000aa-78-1.json")
    records, (problem,) = book.load()
    assert records == []
    assert f"it is about {VM}" in problem


def test_a_disk_that_refused_a_record_is_tried_before_the_next_job(book, folder, monkeypatch):
    """A check writes a probe only after a refusal, and passes as soon as the disk takes it."""
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
    """A VM may only be removed for having no record if the records can be listed."""
    folder.rmdir()
    with pytest.raises(RecordsUnreadable, match="cannot be read"):
        book.load()


@pytest.mark.parametrize("kind", [RecordBook, Holder])
def test_a_place_where_nothing_can_be_kept_is_told(tmp_path, kind):
    """The error is one line, and temporary."""
    (tmp_path / "file").write_text("")
    with pytest.raises(TemporaryError, match="file"):
        kind(tmp_path / "file" / "service")


def test_a_holder_is_alone(tmp_path):
    """A second holder finds the lock taken and does not wait. Afterwards the lock is free."""
    holder = Holder(tmp_path)
    with holder.at_once() as held:
        assert held
        with Holder(tmp_path).at_once() as second:
            assert not second
    with Holder(tmp_path).at_once() as again:
        assert again


def test_a_full_disk_keeps_no_holder_from_its_work(tmp_path, monkeypatch):
    """The lock counts; the process named in it only matters to the next worker."""
    monkeypatch.setattr("anklet_worker.life.holder.os.pwrite", _full)
    Holder(tmp_path).acquire(0.0, lambda _: None)
