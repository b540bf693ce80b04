"""The launchd agent: the content of its property list, and the calls to launchctl."""

import os
import plistlib
import shutil
import stat
import subprocess
from pathlib import Path

import msgspec
import pytest
from fake_launchctl import FakeLaunchctl

from anklet_supervisor.config.host_keys import LogConfig
from anklet_supervisor.config.load import SupervisorConfig
from anklet_supervisor.doctor.facts import agent_is_current, commands
from anklet_supervisor.launchd.agent import (
    LABEL,
    Agent,
    Installation,
    installation,
    list_path,
    newsyslog_rule,
    property_list,
    target,
)
from anklet_worker.contract.errors import CliUnavailable, ConfigError, TemporaryError

ROOT = Path(__file__).resolve().parents[2]
ME = Installation(
    python=Path("/Users/me/anklet-supervisor/bin/python"),
    home=Path("/Users/me"),
    config=None,
    log_dir=Path("/Users/me/Library/Logs"),
)
CONTENT = property_list(ME)
NEEDS_PLISTUTIL = pytest.mark.skipif(
    shutil.which("plistutil") is None, reason="plistutil is not installed (Debian: libplist-utils)"
)


@pytest.fixture
def launchctl(tmp_path, monkeypatch):
    """A fake launchctl on PATH."""
    fake = FakeLaunchctl(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{fake.folder}{os.pathsep}{os.environ['PATH']}")
    return fake


@pytest.fixture
def agent(tmp_path):
    """The agent of user 501, with the fake launchctl on PATH."""
    return Agent(list_path(tmp_path), lambda words: commands().run(["launchctl", *words], timeout=20), uid=501)


# ---- the property list ----


def test_the_property_list_keeps_launchds_rules():
    """It runs in the foreground with absolute paths, restarts only after a failure, is not throttled, and has time to drain."""
    plist = plistlib.loads(CONTENT)
    assert plist["Label"] == LABEL
    program, *words = plist["ProgramArguments"]
    assert program.startswith("/")
    assert words == ["-m", "anklet_supervisor", "start", "--agent"]
    assert plist["KeepAlive"] == {"SuccessfulExit": False}
    assert (plist["RunAtLoad"], plist["ProcessType"], plist["ThrottleInterval"]) == (True, "Interactive", 10)
    assert plist["LimitLoadToSessionType"] == "Aqua"
    assert plist["ExitTimeOut"] >= 6 * 3600
    assert plist["Umask"] == 0o077
    for key in ("StandardOutPath", "StandardErrorPath"):
        assert plist[key].startswith("/Users/me/Library/Logs/")
    forbidden = {"EnableTransactions", "AbandonProcessGroup", "UserName", "Program", "OnDemand", "ServiceIPC"}
    assert not forbidden & set(plist)


def test_the_environment_holds_a_path_and_nothing_else():
    """The PATH leads to the VM tools. The file holds no secret, because every user can read it."""
    environment = plistlib.loads(CONTENT)["EnvironmentVariables"]
    assert list(environment) == ["PATH"]
    assert {"/usr/local/bin", "/opt/homebrew/bin", "/usr/sbin"} <= set(environment["PATH"].split(":"))


@pytest.mark.parametrize(("timeout", "seconds"), [(None, 86_400), (60.0, 660), (172_800.5, 173_400)])
def test_launchd_waits_longer_than_a_drain_lasts(timeout, seconds):
    """SIGTERM from launchd starts a drain, and SIGKILL must come only after the drain's deadline."""
    found = plistlib.loads(property_list(Installation(python=ME.python, home=ME.home, config=None, log_dir=ME.log_dir,
                                                      drain_timeout=timeout)))  # fmt: skip
    assert found["ExitTimeOut"] == seconds


def test_the_agent_of_a_configuration():
    """The command line names an unusual configuration file, and stray output goes to the log directory."""
    home = Path("/Users/me")
    config = SupervisorConfig(
        state_dir=home,
        plugins_path=home,
        pid_file_dir=home,
        log=LogConfig(file_dir=Path("/var/log/me")),
        drain_timeout=5.0,
    )
    usual = installation(home / ".config/anklet/config.yml", config, home, Path("/v/bin/python"))
    assert usual == Installation(
        python=Path("/v/bin/python"), home=home, config=None, log_dir=Path("/var/log/me"), drain_timeout=5.0
    )
    other = installation(Path("other.yml"), config, home)
    assert other.config == Path.cwd() / "other.yml"
    words = plistlib.loads(property_list(other))["ProgramArguments"]
    assert words[-2:] == ["--config", str(Path.cwd() / "other.yml")]
    assert installation(
        Path("x"), SupervisorConfig(state_dir=home, plugins_path=home, pid_file_dir=home), home
    ).log_dir == (home / "Library" / "Logs")


def test_the_examples_in_etc_are_those_of_the_program():
    """The examples in etc/ are up to date; `make docs` writes them."""
    for name, content in examples().items():
        assert (ROOT / "etc" / name).read_bytes() == content, name


def examples():
    """The generated files in etc/, for a user called `me`."""
    return {
        "com.anklet.supervisor.plist": CONTENT,
        "newsyslog.d/anklet.conf": newsyslog_rule(ME.log_dir, "me").encode(),
    }


@NEEDS_PLISTUTIL
def test_a_parser_that_is_not_ours_reads_the_property_list(tmp_path):
    """A round trip through libplist's binary form changes nothing."""
    source, binary, back = (tmp_path / name for name in ("a.plist", "a.bin", "b.plist"))
    source.write_bytes(CONTENT)
    for one, two, form in ((source, binary, "bin"), (binary, back, "xml")):
        subprocess.run(["plistutil", "-i", one, "-o", two, "-f", form], check=True, timeout=20)
    assert binary.read_bytes().startswith(b"bplist00")
    assert plistlib.loads(back.read_bytes()) == plistlib.loads(CONTENT)


def test_the_newsyslog_rule_has_its_fields():
    """newsyslog.conf(5): path, owner, mode, count, size in KiB, when, flags.

    The flag N means that no process is signalled.
    """
    (line,) = [line for line in newsyslog_rule(Path("/L"), "me").splitlines() if not line.startswith("#")]
    path, owner, mode, count, size, when, flags = line.split()
    assert (path, owner, mode, when) == ("/L/anklet.log", "me:staff", "640", "*")
    assert (int(count), int(size)) == (7, 102_400)
    assert flags == "NB"


# ---- launchctl ----


def test_install_writes_and_loads(agent, launchctl):
    """The property list is readable by launchd, and launchd loads exactly this content."""
    assert "is loaded from" in agent.install(CONTENT)
    assert launchctl.loaded == agent.path.read_bytes() == CONTENT
    assert stat.S_IMODE(agent.path.stat().st_mode) == 0o644
    assert [call[0] for call in launchctl.calls()] == ["print", "enable", "bootstrap"]
    assert launchctl.calls()[-1] == ["bootstrap", "gui/501", str(agent.path)]


def test_install_again_leaves_a_running_supervisor_alone(agent, launchctl):
    """Installing the same content again does not drain the running supervisor."""
    agent.install(CONTENT)
    assert "up to date" in agent.install(CONTENT)
    assert [call[0] for call in launchctl.calls()].count("bootout") == 0


def test_install_starts_what_has_drained(agent, launchctl):
    """After a drain the program stays down. `install` starts it again, because the operator wants it to run."""
    agent.install(CONTENT)
    launchctl.end()
    assert f"started {LABEL}" in agent.install(CONTENT)
    assert launchctl.calls()[-1] == ["kickstart", target(501)]
    assert "up to date" in agent.install(CONTENT)
    launchctl.end()
    launchctl.fail("kickstart", 1, "no")
    with pytest.raises(TemporaryError, match=r"did not start .*: no"):
        agent.install(CONTENT)


def test_install_replaces_another_list(agent, launchctl):
    """The old list is unloaded first: launchd accepts only one per label."""
    agent.install(CONTENT)
    agent.install(CONTENT.replace(b"86400", b"1000"))
    assert b"<integer>1000</integer>" in launchctl.loaded
    assert ["bootout", "gui/501/com.anklet.supervisor"] in launchctl.calls()


def test_a_refusal_is_told_in_launchds_words(agent, launchctl):
    """The error quotes launchd and adds the most likely reason."""
    launchctl.fail("bootstrap", 125, "Bootstrap failed: 125: Domain does not support specified action")
    with pytest.raises(ConfigError, match="Domain does not support specified action; are you logged in"):
        agent.install(CONTENT)


def test_uninstall_unloads_and_removes(agent, launchctl):
    """A second `uninstall` finds nothing to do and succeeds."""
    agent.install(CONTENT)
    assert "unloaded and removed" in agent.uninstall()
    assert launchctl.loaded is None
    assert not agent.path.exists()
    assert "was not installed" in agent.uninstall()


@pytest.mark.parametrize("action", ["install", "uninstall"])
def test_while_it_drains_nothing_is_removed(agent, launchctl, action):
    """The supervisor finishes its jobs first. The file stays in place, so that a second try can complete the change."""
    agent.install(CONTENT)
    launchctl.fail("bootout", 36, "Boot-out failed: 36: Operation now in progress")
    with pytest.raises(TemporaryError, match="its jobs finish first"):
        agent.uninstall() if action == "uninstall" else agent.install(CONTENT + b"\n")
    assert agent.path.read_bytes() == CONTENT


def test_another_failure_to_unload_is_told(agent, launchctl):
    """The error quotes launchd."""
    agent.install(CONTENT)
    launchctl.fail("bootout", 1, "Operation not permitted")
    with pytest.raises(TemporaryError, match="Operation not permitted"):
        agent.uninstall()


def test_status_tells_what_launchd_says(agent, launchctl):
    """The exit code is 3 if the agent is not loaded; otherwise the answer has the facts of launchctl's top level."""
    assert agent.status() == (3, f"{LABEL} is not loaded")
    agent.install(CONTENT)
    assert agent.status() == (0, f"{LABEL} is loaded: state running, pid 4711, runs 2, last exit code 0")
    (launchctl.folder / "loaded").unlink()
    code, said = agent.status()
    assert code == 3
    assert str(agent.path) in said
    launchctl.fail("print", 1, "no")
    with pytest.raises(TemporaryError, match="no"):
        agent.status()


def test_an_agent_of_an_older_configuration_is_noticed(tmp_path):
    """The agent is outdated when its file differs from what `agent install` would write."""
    config = SupervisorConfig(state_dir=tmp_path, plugins_path=tmp_path, pid_file_dir=tmp_path)
    path = tmp_path / "c.yml"
    assert not agent_is_current(path, config, tmp_path)
    list_path(tmp_path).parent.mkdir(parents=True)
    list_path(tmp_path).write_bytes(property_list(installation(path, config, tmp_path)))
    assert agent_is_current(path, config, tmp_path)
    assert not agent_is_current(path, msgspec.structs.replace(config, drain_timeout=60.0), tmp_path)


def test_without_launchctl_it_says_that_only_a_mac_has_it(agent, monkeypatch, tmp_path):
    """On Linux the message says that launchd needs macOS."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CliUnavailable, match="launchd needs macOS"):
        agent.status()


def test_the_agents_name_for_launchctl():
    """The target is the user's login session, the only one in which VMs run."""
    assert target(501) == "gui/501/com.anklet.supervisor"


if __name__ == "__main__":
    for file, text in examples().items():
        (ROOT / "etc" / file).parent.mkdir(exist_ok=True)
        (ROOT / "etc" / file).write_bytes(text)
