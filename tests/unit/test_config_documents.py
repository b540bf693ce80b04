"""The table of keys, the example configuration and the original's own example agree with the program."""

import re
from pathlib import Path

import msgspec
import pytest
from anklet_github.figures import FIGURES
from anklet_github.rules import RULES

from anklet_supervisor.config.host_keys import HOST
from anklet_supervisor.config.load import load
from anklet_supervisor.config.service_keys import DRIVERS, SERVICE
from anklet_supervisor.config.tables import default_of, markdown, rows
from anklet_supervisor.config.values import _CONVERTERS
from anklet_worker.contract.service import Database, ServiceConfig
from anklet_worker.contract.settings import Kind, Secret
from anklet_worker.vm import drivers

TMP = Path("/tmp")  # noqa: S108  where the original says
ROOT = Path(__file__).parents[2]
ORIGINAL = ROOT / "tests" / "data" / "original-example.yml"
EXAMPLE = ROOT / "etc" / "config.example.yml"


def sections(section=HOST):
    """A section and all those inside it."""
    return [section, *(inner for key in section.keys if key.section for inner in sections(key.section))]


def test_the_originals_example_works_unchanged(tmp_path):
    """The original's configuration means here what it meant there."""
    private = tmp_path / "config.yml"
    private.write_bytes(ORIGINAL.read_bytes())
    private.chmod(0o600)
    # The user that the example names exists on no test machine.
    config, warnings = load(private, {}, home=Path("/h"), platform="darwin", is_dir=lambda _: True)
    common = {
        "plugin": "github",
        "settings": {"token": Secret("github_pat_1XXXXX"), "registration": "repo"},
        "origin": "75e6afabd95891cc",
        "figures": FIGURES,
        "repo": "anklet",
        "owner": "veertuinc",
        "registry_url": "http://anka.registry:8089",
        "sleep_interval": 10.0,
        "database": Database(enabled=True, host="localhost", port=6379, user="", password=None, database=0),
    }
    assert warnings == ()
    assert config.services == (ServiceConfig(name="RUNNER1", **common), ServiceConfig(name="RUNNER2", **common))
    assert (config.work_dir, config.pid_file_dir) == (TMP, TMP)
    assert config.log.file_dir == Path("/Users/myUser/Library/Logs")


@pytest.mark.parametrize("platform", ["darwin", "linux"])
def test_the_example_is_right(tmp_path, platform):
    """etc/config.example.yml loads without a problem where only its owner can read it."""
    private = tmp_path / "config.yml"
    private.write_bytes(EXAMPLE.read_bytes())
    private.chmod(0o600)
    env = {"ANKLET_EXAMPLE_TOKEN": "t"}
    config, warnings = load(private, env, home=tmp_path, platform=platform)
    assert warnings == ()
    assert [one.name for one in config.services] == ["RUNNER1", "RUNNER2"]


def test_the_example_shows_every_key():
    """Each key of the tables stands in the example, if only behind a #."""
    shown = set(re.findall(r"^ *(?:- )?(?:# )?(\w+):", EXAMPLE.read_text(), re.MULTILINE))
    names = {name.split(".")[-1] for name, *_ in (*rows(HOST), *rows(RULES.settings))}
    assert names <= shown, names - shown


def test_the_examples_defaults_are_the_defaults():
    """Where the example gives a default of the host, it is the program's."""
    text = EXAMPLE.read_text()
    for key in ("vm_limit", "vm_driver", "lease_ttl", "job_retry_attempts"):
        (default,) = [default for name, _, default, _ in rows(HOST) if name == key]
        assert re.search(rf"^{key}: {default}$", text, re.MULTILINE), key


@pytest.mark.parametrize(
    "section", [*sections(), *sections(RULES.settings)], ids=lambda section: section.name or "host"
)
def test_tables_and_types_agree(section):
    """Every key becomes a field of its section's type, every field of plain kind has its key, and kinds have converters."""
    fields = {field.name for field in msgspec.structs.fields(section.values)}
    names = {key.name for key in section.keys if not key.unused}
    derived = {Database: ({"host", "tls"}, {"url"}), ServiceConfig: ({"settings", "origin", "figures"}, set())}.get(
        section.values, (set(), set())
    )
    assert (fields - derived[0], fields & derived[0]) == (names - derived[1], derived[0])
    handled = {Kind.SECTION, Kind.SERVICES, Kind.SECRET, Kind.PRIVATE_KEY, Kind.PATTERNS, Kind.TEXTS, *_CONVERTERS}
    for key in section.keys:
        assert key.kind in handled
        assert key.doc
        assert (key.form == "") == (key.wanted == "")
        assert len(section.names()) == len({name for one in section.keys for name in one.spellings()})


def test_moved_keys_lead_to_known_ones():
    """Where a key of the later original is sent, there is a key; and no key of ours is said to have moved."""
    known = {name.removeprefix("services[].") for name, *_ in (*rows(HOST), *rows(RULES.settings))} | {"services"}
    for section in (*sections(), RULES.settings):
        assert not set(section.moved) & set(section.names())
        for moved in section.moved.values():
            assert (moved.to.removeprefix("services[].") in known) if moved.to else moved.advice


def test_the_table_as_markdown():
    """The README's table has one row for each key, with its default."""
    lines = markdown(HOST).splitlines()
    assert lines[:2] == ["| key | value | default | meaning |", "|---|---|---|---|"]
    assert "| `metrics.port` | whole number | 8080 | port to listen on |" in lines
    assert any(line.startswith("| `services[].database.password` | secret |") for line in lines)
    assert len(lines) == 2 + len(list(rows(HOST)))
    lines += markdown(RULES.settings, "services[].").splitlines()
    assert any(line.startswith("| `services[].token` | secret |") for line in lines)
    assert all(line.count("|") == 5 for line in lines)


def test_defaults_for_people():
    """Defaults are told as an operator would write them."""
    told = {key.name: default_of(section, key) for section in (SERVICE, RULES.settings) for key in section.keys}
    assert (told["sleep_interval"], told["registration"], told["name"]) == ("10", "repo", "required")


def test_drivers_of_the_program_can_be_chosen():
    """Each driver that the program has may stand in the configuration."""
    assert drivers.names() <= set(DRIVERS)
