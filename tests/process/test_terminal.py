"""The commands in a real terminal: the README's first steps, narrow and wide terminals, with and without colours."""

import os
import plistlib
import re
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest
from fake_launchctl import FakeLaunchctl
from stage import OWNER, REPO, TOKEN, eventually, job
from test_job_life import finish, queue

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[()][A-Z0-9]|\x1b[=>78]")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
#: An actual colour: bold and dim do not count (https://no-color.org).
HUE = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:3[0-7]|9[0-7])[0-9;]*m")


class Terminal:
    """A terminal of a given width on a host. It passes commands to bash, as if a user typed them."""

    def __init__(self, mac, columns=120, **more):
        self._mac = mac
        self._columns = columns
        bin_dir = Path(sys.executable).parent
        env = mac.env()
        self.env = {
            **env,
            "PATH": f"{bin_dir}{os.pathsep}{env['PATH']}",
            "TERM": "xterm-256color",
            "LANG": "C.UTF-8",
            **more,
        }

    def run(self, line, timeout=30):
        """Start a command."""
        return pexpect.spawn(
            "bash", ["-c", line], env=self.env, cwd=str(self._mac.folder), dimensions=(50, self._columns),
            timeout=timeout, encoding="utf-8", use_poll=True,
        )  # fmt: skip

    def whole(self, line):
        """Run a command to its end; return its exit code and the screen."""
        child = self.run(line)
        child.expect(pexpect.EOF)
        child.close()
        return child.exitstatus, child.before


def plain(text):
    """The text on the screen, without escape sequences."""
    return ESCAPE.sub("", text).replace("\r", "")


def end(child):
    """Send Ctrl-C; return the exit code. No traceback may be on the screen."""
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert "Traceback" not in child.before
    return child.exitstatus


# ---- the README, step by step ----


def steps():
    """The commands in the README's section "Set it up", in order."""
    section = README[README.index("## Set it up") : README.index("## Day to day")]
    return re.findall(r"^ *\$ (.*)$", section, re.MULTILINE)


def answer(child):
    """Answer the questions of `init`."""
    for question, said in (("User or organization", OWNER), ("Repository", REPO), ("Access token", TOKEN)):
        child.expect(question)
        child.sendline(said)
    child.expect("next: anklet-supervisor doctor")
    child.expect(pexpect.EOF)
    assert TOKEN not in child.before


def test_a_new_user_gets_to_the_first_job_by_the_readme(mac, github):
    """Runs each command as the README prints it, from `init` to the metrics. This test plays launchd."""
    launchctl = FakeLaunchctl(mac.folder / "launchctl")
    overrides = {
        f"RUNNER{number}_{key}": value
        for number in (1, 2)
        for key, value in (("API_URL", github.url), ("SERVER_URL", github.url), ("SLEEP_INTERVAL", "0.2"))
    }
    mac.environment = {"ANKLET_METRICS_PORT": str(mac.port), **overrides}
    terminal = Terminal(mac)
    terminal.env["PATH"] = f"{launchctl.folder}{os.pathsep}{terminal.env['PATH']}"
    install, init, doctor, once, agent, status, logs, curl = steps()
    assert install.startswith("pipx install ")  # .ci/package tests the installation

    answer(terminal.run(init))
    assert terminal.whole("anklet-supervisor check")[0] == 0

    code, screen = terminal.whole(doctor)
    assert code == 0, screen
    assert "ready to run jobs" in plain(screen)

    ids = queue(github, job("first"))
    code, screen = terminal.whole(once)
    assert code == 0, screen
    assert github.job(ids[0])["conclusion"] == "success"
    assert "job claimed" in plain(screen)
    assert "supervisor ended" in plain(screen)
    assert "job claimed" in (mac.folder / ".local/state/anklet-supervisor/log/anklet.log").read_text()

    code, screen = terminal.whole(agent)
    assert (code, "is loaded from" in screen) == (0, True), screen
    assert "this shell's environment overrides: ANKLET_METRICS_PORT, RUNNER1_API_URL" in " ".join(plain(screen).split())
    plist = plistlib.loads(launchctl.loaded)
    paths = [plist["ProgramArguments"][0], plist["StandardOutPath"], plist["StandardErrorPath"]]
    assert all(path.startswith("/") for path in paths)
    mac.run(
        plist["ProgramArguments"],
        {**terminal.env, "PATH": f"{mac.anka.bin_dir}:{plist['EnvironmentVariables']['PATH']}"},
    )
    eventually(mac.is_ready, "the agent's program is ready")

    watch = terminal.run(status)
    watch.expect("RUNNER1.*ready")
    follow = terminal.run(logs)
    follow.expect("supervisor started")
    ids = queue(github, job("second", steps=["sleep 1"]))
    follow.expect("second")
    watch.expect("RUNNER[12] runs http")
    finish(mac, github, ids)
    assert end(watch) == 0
    assert end(follow) == 0
    code, screen = terminal.whole(curl.replace("localhost:8080", f"localhost:{mac.port}"))
    assert 'anklet_jobs_total{conclusion="success"' in screen
    show = f"anklet-supervisor job show {ids[0]}"
    eventually(lambda: "cleaned" in terminal.whole(show)[1], "the whole timeline is shown")
    # This test started the program, not launchd: `install` must report that another supervisor is running.
    code, screen = terminal.whole(agent)
    assert f"is running (pid {mac.process.pid})" in plain(screen).replace("\n", "")
    assert terminal.whole("anklet-supervisor drain --wait 30")[0] == 0
    assert mac.wait(10) == 0


# ---- width and colour ----


@pytest.fixture
def worked(new_mac, github):
    """A running host with a failed job in its history, a job in progress, and a known rate limit."""
    mac = new_mac()
    ids = queue(github, job("bad-tests", steps=["exit 1"]))
    mac.start()
    finish(mac, github, ids)
    queue(github, job("long-job", steps=["sleep 60"]))
    eventually(lambda: (mac.service_status()["job"] or {}).get("name") == "long-job", "a job is in hand", 20)
    return mac


def test_every_view_fits_every_terminal(worked):
    """At every width no line is wider than the screen, and no fact is missing.

    A terminal with colours shows them, NO_COLOR removes them, and a dumb terminal or a pipe gets no escape sequences.
    """
    config = f"--config {worked.config_path}"
    (failed,) = [one["id"] for one in worked.status()["failures"]]
    views = {
        f"anklet-supervisor status {config}": [
            "RUNNER1",
            "ready",
            "long-job",
            "occupied",
            "last failures",
            "requests left",
        ],
        f"anklet-supervisor doctor {config}": ["configuration", "not checked: ", "ready to run jobs"],
        f"anklet-supervisor job show {failed} {config}": ["bad-tests", "claimed", "cleaned", "failure"],
        f"anklet-supervisor job list {config}": ["bad-tests", "long-job", "failure"],
        f"anklet-supervisor logs -n 30 {config}": ["job claimed", "RUNNER1:", "INFO"],
    }
    for line, words in views.items():
        for columns, more, forbidden in (
            (40, {}, None),
            (160, {"NO_COLOR": "1"}, HUE),
            (80, {"TERM": "dumb"}, COLOUR),
        ):
            code, screen = Terminal(worked, columns, **more).whole(line)
            assert code == 0, screen
            assert max(map(len, plain(screen).splitlines())) <= columns, line
            flat = re.sub(r"\s+", "", plain(screen))
            for word in words:
                assert word.replace(" ", "") in flat, (line, columns, word)
            assert not forbidden.search(screen) if forbidden else HUE.search(screen), (line, more)
    # `head` closes the pipe early, and a pipe gets no escape sequences.
    code, screen = Terminal(worked, 40).whole(f"anklet-supervisor logs -n 1000 {config} | head -1 | grep -c $'\\x1b'")
    assert screen.split() == ["0"], screen


def test_the_live_view_lives_on_every_terminal(worked):
    """Changes appear below the earlier lines. The view ends at Ctrl-C and when the supervisor ends."""
    config = f"--config {worked.config_path}"
    dumb = Terminal(worked, 100, TERM="dumb").run(f"anklet-supervisor status --watch {config}")
    live = Terminal(worked, 60, NO_COLOR="1").run(f"anklet-supervisor status --watch {config}")
    live.expect("RUNNER1: ready")
    dumb.expect("RUNNER1: ready")  # rich assumes 80 columns for a dumb terminal
    assert end(dumb) == 0
    worked.stop()
    live.expect(pexpect.EOF)
    live.close()
    assert live.exitstatus == 0
    assert "Traceback" not in live.before


def test_init_takes_a_person_who_gives_up(new_mac):
    """After Ctrl-C or Ctrl-D at a question, nothing is written and no traceback appears."""
    mac = new_mac(runner=False)
    for key in ("\x03", "\x04"):
        child = Terminal(mac).run("anklet-supervisor init")
        child.expect("User or organization")
        child.send(key)
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus in (64, 130)
        assert "Traceback" not in child.before
    assert not (mac.folder / ".config").exists()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("to_file", [True, False])
def test_a_supervisor_whose_caller_has_closed_its_streams(mac, github, closed, to_file):
    """The program must not reuse descriptors 0 to 2 for its files: the log would go into the lock, and no worker would start."""
    if not to_file:
        del mac.config["log"]
    mac.write_config()
    ids = queue(github, mac.job())
    start = f'exec "{sys.executable}" -m anklet_supervisor start --config "{mac.config_path}" {closed}'
    mac.run(["/bin/sh", "-c", start], mac.env())
    eventually(mac.is_ready, "the supervisor is ready")
    assert finish(mac, github, ids) == ["success"]
    assert (mac.state_dir / "lock").read_text() == f"{mac.process.pid}\n"
    assert mac.command("drain", "--wait", "20").returncode == 0
    assert mac.wait() == 0
    assert "Traceback" not in mac.said()


def test_commands_whose_output_is_closed_answer_by_their_exit_code(mac):
    """A command with a closed standard output still exits with the right code, as with /dev/null."""
    mac.write_config()
    for words, code in (("job list", 0), ("check", 0), ("status", 3), ("agent print", 0)):
        line = f'exec "{sys.executable}" -m anklet_supervisor {words} --config "{mac.config_path}" >&-'
        done = subprocess.run(
            ["/bin/sh", "-c", line], env=mac.env(), capture_output=True, text=True, timeout=60, check=False
        )
        assert (words, done.returncode, "Traceback" in done.stderr) == (words, code, False)
