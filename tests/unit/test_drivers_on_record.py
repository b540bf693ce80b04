"""The VM drivers that records mention, because a host must also check those that are no longer configured."""

import json

from anklet_worker.life.records import drivers_on_record


def test_records_of_any_service_tell_their_drivers(tmp_path):
    """Records of removed services count, and so do records with unknown fields. Damaged records are ignored."""
    for service, name, content in (
        ("A", "one.json", json.dumps({"driver": "anka", "version": 99})),
        ("gone", "two.json", json.dumps({"driver": "tart"})),
        ("gone", "three.json", "{"),
        ("gone", "four.json", json.dumps({"driver": 7})),
        ("gone", "five.json.corrupt", json.dumps({"driver": "other"})),
    ):
        path = tmp_path / "services" / service / "records" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert drivers_on_record(tmp_path) == {"anka", "tart"}


def test_a_host_without_records_has_none(tmp_path):
    """At the first start there are no records."""
    assert drivers_on_record(tmp_path / "none") == set()
