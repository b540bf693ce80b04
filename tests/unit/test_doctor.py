"""What counts as a fit host: how facts are read, how they are judged, and how findings are shown."""

import io
import json
import os
import stat
from pathlib import Path

import msgspec
import pytest
from emulators.tart.control import TartHost
from rich.console import Console

from anklet_supervisor.config.load import Problem, Severity
from anklet_supervisor.doctor import doctor
from anklet_supervisor.doctor import facts as doctor_facts
from anklet_supervisor.doctor import view as doctor_view
from anklet_supervisor.doctor.doctor import (
    DriverFacts,
    Facts,
    ImageWanted,
    MacFacts,
    PathFacts,
    Reached,
    VMSeen,
    as_json,
    fit,
    judge,
)
from anklet_supervisor.doctor.facts import gather, power_on_mains
from anklet_worker.contract.findings import Finding, Verdict

OURS, THEIRS = "anklet-vm-0a1b2c3d-aaaaaa-1-1", "anklet-vm-ffffffff-aaaaaa-1-1"
GIB = 1 << 30
MAC = MacFacts(
    power={"sleep": "0", "autorestart": "1"},
    console_ours=True,
    auto_login="me",
    keychain_unlocked=True,
    dhcp_lease=600,
    agent_loaded=True,
)
ANKA = DriverFacts(
    name="anka",
    services=("RUNNER1",),
    product="Anka 3.9.0",
    vms=(VMSeen(name="macos-15", running=False), VMSeen(name=OURS, running=True)),
)
FIT = Facts(
    config="/c.yml",
    services=1,
    install_id="0a1b2c3d",
    drivers=(ANKA,),
    registries=(Reached(what="http://anka:8089", services=("RUNNER1",)),),
    stores=(Reached(what="Redis at redis:6379", services=("RUNNER1",)),),
    origins=(Finding(check="origin", verdict=Verdict.OK, said="there"),),
    disk=(200 * GIB, "/"),
    port=Reached(what="127.0.0.1:8080", services=()),
    paths=(PathFacts(path=Path("/s"), what="state_dir", mode=stat.S_IFDIR | 0o700),),
    mac=msgspec.structs.replace(MAC, virtualization_processes=1),
    agent_label="com.anklet.supervisor",
)


def with_mac(**changes):
    """A fit Mac, except for these facts about it."""
    return msgspec.structs.replace(FIT, mac=msgspec.structs.replace(FIT.mac, **changes))


def with_driver(**changes):
    """A fit Mac, except for these facts about its VM tool."""
    return msgspec.structs.replace(FIT, drivers=(msgspec.structs.replace(ANKA, **changes),))


def with_image(*, here, can_be_pulled=True):
    """A fit Mac whose service names an image."""
    image = ImageWanted(name="ghcr.io/a/b:c", services=("RUNNER1",), here=here, can_be_pulled=can_be_pulled)
    return with_driver(name="tart", images=(image,))


def changed(**changes):
    """A fit Mac, except for these facts."""
    return msgspec.structs.replace(FIT, **changes)


def path(mode, **more):
    """One path with that mode."""
    return (PathFacts(path=Path("/p"), what="something", mode=mode, **more),)


def test_a_fit_host_has_nothing_but_ok():
    """On a fit host each check gives `ok`, at least once and in the documented order."""
    findings = judge(FIT)
    assert {finding.verdict for finding in findings} == {Verdict.OK}
    assert fit(findings)
    order = list(dict.fromkeys(finding.check for finding in findings))
    assert order == [
        "configuration", "user", "VM tool", "templates", "registry", "origin", "Redis", "disk", "sleep", "login",
        "login after a reboot", "login keychain", "DHCP lease time", "leftover virtualization processes", "foreign VMs",
        "port", "file modes", "launchd agent",
    ]  # fmt: skip


ERROR = Problem("/c.yml", 3, 1, "no such thing")
HINT = Problem("/c.yml", 3, 1, "others can read this", Severity.WARN)


@pytest.mark.parametrize(
    ("facts", "check", "verdict", "words"),
    [
        (changed(problems=(ERROR,)), "configuration", "problem", "/c.yml:3:1: no such thing"),
        (changed(problems=(HINT,)), "configuration", "warning", "others can read this"),
        (changed(root=True), "user", "problem", "root"),
        (changed(root=True, mac=None), "user", "warning", "root"),
        (with_driver(error="anka is not on PATH", vms=None), "VM tool", "problem", "anka is not on PATH"),
        (with_driver(vms=(VMSeen(name=OURS, running=False),)), "templates", "warning", "no template"),
        (with_driver(vms=(VMSeen(name="a@sha256:0", running=False),)), "templates", "warning", "no template"),
        (with_image(here=True), "guest agent", "not checked", "whether it has tart's guest agent"),
        (with_image(here=False), "image", "warning", "ghcr.io/a/b:c is not on this host yet"),
        (with_image(here=False, can_be_pulled=False), "image", "problem", "nothing pulls it"),
        (changed(registries=(Reached(what="r", services=("A",), error="refused"),)), "registry", "warning", "refused"),
        (changed(stores=(Reached(what="r", services=("A",), error="away"),)), "Redis", "problem", "away"),
        (changed(disk=(4 * GIB, "/")), "disk", "problem", "4 GiB free"),
        (changed(disk=(49 * GIB, "/")), "disk", "warning", "49 GiB free"),
        (changed(disk=None), "disk", "not checked", "free space"),
        (with_mac(power={"sleep": "10"}), "sleep", "warning", "10 minutes"),
        (with_mac(power={"sleep": "0", "autorestart": "0"}), "power cut", "warning", "stays off"),
        (with_mac(power=None), "sleep", "not checked", "not checked: "),
        (with_mac(console_ours=False), "login", "problem", "not logged in"),
        (with_mac(auto_login=None), "login after a reboot", "warning", "automatic login is off"),
        (with_mac(keychain_unlocked=False), "login keychain", "warning", "locked"),
        (with_mac(keychain_unlocked=None), "login keychain", "not checked", "not checked: "),
        (with_mac(dhcp_lease=None), "DHCP lease time", "warning", "a day"),
        (with_mac(dhcp_lease=86_400), "DHCP lease time", "warning", "86400 s"),
        (with_mac(virtualization_processes=2), "leftover virtualization processes", "warning", "2 virtualization"),
        (with_driver(vms=None), "leftover virtualization processes", "not checked", "cannot be listed"),
        (with_driver(vms=(VMSeen(name=THEIRS, running=False),)), "foreign VMs", "warning", THEIRS),
        (changed(install_id=None), "foreign VMs", "warning", OURS),
        (changed(port=Reached(what="h:1", services=(), error="in use")), "port", "problem", "in use"),
        (changed(supervisor=7, port=Reached(what="h:1", services=(), error="in use")), "port", "ok", "pid 7"),
        (changed(paths=path(stat.S_IFDIR | 0o750)), "file modes", "warning", "other users can read"),
        (changed(paths=path(stat.S_IFDIR | 0o775, secret=False)), "file modes", "problem", "other users can change"),
        (changed(paths=path(0o600, ours=False)), "file modes", "problem", "another user"),
        (with_mac(agent_loaded=False), "launchd agent", "warning", "not loaded"),
        (changed(agent_current=False), "launchd agent", "warning", "differs from what `agent install` would write"),
    ],
)  # fmt: skip
def test_each_fault_is_told(facts, check, verdict, words):
    """Each problem and each warning has a remedy. Only problems make a host unfit."""
    findings = judge(facts)
    (found,) = [one for one in findings if one.check == check and words in one.said]
    assert found.verdict.value == verdict
    assert bool(found.remedy) is (verdict in ("problem", "warning"))
    assert fit(findings) is (verdict != "problem")


def test_what_is_not_there_yet_is_no_fault_of_its_mode():
    """A missing state directory is no problem: the first start creates it."""
    findings = judge(changed(paths=path(None)))
    assert [one.verdict for one in findings if one.check == "file modes"] == [Verdict.OK]


def test_elsewhere_than_on_a_mac_nothing_is_guessed():
    """On other systems, each check that needs a Mac reports `not checked`."""
    findings = judge(changed(mac=None))
    unchecked = {one.check for one in findings if one.verdict is Verdict.NOT_CHECKED}
    assert unchecked == {
        "sleep", "login", "login after a reboot", "login keychain", "DHCP lease time",
        "leftover virtualization processes", "launchd agent",
    }  # fmt: skip
    assert all("not checked: " in one.said for one in findings if one.verdict is Verdict.NOT_CHECKED)
    assert fit(findings)


def test_the_core_names_no_plugin():
    """Only plugins write about the place that jobs come from."""
    source = Path(doctor.__file__).read_text() + Path(doctor.__file__).with_name("facts.py").read_text()
    assert "github" not in source.lower()


PMSET = """Battery Power:
 lidwake              1
 sleep                1
AC Power:
 Sleep On Power Button 1
 autorestart          0
 sleep                0 (sleep prevented by caffeinate)
 displaysleep         10
"""


def test_the_settings_on_the_mains_are_read():
    """On a laptop, the mains settings count, not the battery's. Other Macs have only one group of settings."""
    assert power_on_mains(PMSET) == {"Sleep": "On", "autorestart": "0", "sleep": "0", "displaysleep": "10"}
    assert power_on_mains("AC Power:\n sleep 15\n") == {"sleep": "15"}
    assert power_on_mains(" sleep 15\n") == {"sleep": "15"}
    assert power_on_mains("") == {}


def test_the_facts_of_a_host_with_tart(tmp_path):
    """The facts include the tool's version, the local images, and which configured images are present."""
    host = TartHost(tmp_path / "tart")
    host.add_image("local")
    host.add_image("ghcr.io/acme/macos:latest")
    path = tmp_path / "config.yml"
    images = ["local", "ghcr.io/acme/macos", "ghcr.io/acme/later:1", "nowhere"]
    rows = "".join(
        f"  - {{name: R{n}, plugin: github, owner: a, repo: b, token: t, tart: {{image: {image}}}}}\n"
        for n, image in enumerate(images)
    )
    path.write_text(f"state_dir: {tmp_path}/state\nvm_driver: tart\nservices:\n{rows}")
    environment = {**os.environ, **host.environ()}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(doctor_facts, "_origins", lambda _: ())
        (facts,) = gather(path, tmp_path).drivers
    assert (facts.name, facts.product, facts.error) == ("tart", "Tart 2.32.1", "")
    assert {image.name: (image.here, image.can_be_pulled) for image in facts.images} == {
        "local": (True, False),
        "ghcr.io/acme/macos": (True, True),
        "ghcr.io/acme/later:1": (False, True),
        "nowhere": (False, False),
    }
    (found,) = [one for one in judge(changed(drivers=(facts,))) if one.check == "templates"]
    assert found.said == "tart has ghcr.io/acme/macos:latest, local"
    assert not (tmp_path / "state").exists()


def test_without_a_configuration_the_rest_is_examined(tmp_path):
    """A missing configuration does not hide other findings."""
    facts = gather(tmp_path / "none.yml", tmp_path)
    findings = judge(facts)
    assert not fit(findings)
    (first, *others) = findings
    assert first.remedy == "anklet-supervisor init"
    assert first.check == "configuration"
    assert "no such file" in first.said
    assert {"user", "disk", "login"} <= {one.check for one in others}


def test_json_is_stable():
    """The JSON document has the documented keys in their order."""
    document = json.loads(as_json(judge(with_mac(console_ours=False))))
    assert list(document) == ["fit", "findings"]
    assert document["fit"] is False
    assert all(list(one) == ["check", "verdict", "said", "remedy", "service"] for one in document["findings"])
    assert {one["verdict"] for one in document["findings"]} == {"ok", "problem"}


@pytest.mark.parametrize("width", [50, 80, 200])
def test_findings_are_drawn_with_their_remedies(width):
    """At every width the output is complete, and its end says whether the host is fit."""
    console = Console(width=width, file=io.StringIO(), highlight=False)
    doctor_view.show(judge(with_mac(console_ours=False, power={"sleep": "10"})), console)
    text = console.file.getvalue()
    assert all(len(line) <= width for line in text.splitlines())
    flat = " ".join(text.split())
    for word in ("FAIL", "warn", "sudo pmset", "->", "not ready: fix 1 problem", "RUNNER1:"):
        assert word in flat


def test_what_is_piped_has_whole_lines_and_nothing_behind_them(capsys):
    """Piped output has one line per finding, so that `doctor | grep FAIL` works."""
    doctor_view.show(judge(with_mac(console_ours=False)))
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("FAIL") for line in lines) == 1
    assert all(line == line.rstrip() for line in lines)
    assert not any("\x1b" in line for line in lines)


@pytest.mark.parametrize(
    ("facts", "summary"),
    [
        (FIT, "ready to run jobs"),
        (changed(agent_current=False), "ready to run jobs, 1 warning"),
        (with_mac(power={"sleep": "10", "autorestart": "0"}), "ready to run jobs, 2 warnings"),
        (with_mac(console_ours=False), "not ready: fix 1 problem"),
        (changed(root=True, problems=(ERROR,)), "not ready: fix 2 problems, starting at the top"),
    ],
)
def test_the_last_line_sums_up(capsys, facts, summary):
    """The last line has the number of warnings, or the number of problems to fix."""
    doctor_view.show(judge(facts))
    assert capsys.readouterr().out.splitlines()[-1] == summary
