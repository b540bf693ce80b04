"""The github plugin's scripts in the guest, run as bash processes of this machine."""

import io
import shutil
import subprocess
import tarfile

import pytest
from anklet_github import guest_logs
from anklet_github.guest import INSTALL, RUNNER_VERSION, GuestScripts, install_settings
from anklet_github.settings import GithubSettings, RunnerSettings
from github_fakes import MINE, FakeContext
from stage import eventually

from anklet_worker.contract.errors import RetryElsewhere, RetryHere
from anklet_worker.contract.guest import GuestResult
from anklet_worker.life.guest import exports


class LocalGuest:
    """Runs scripts as bash processes of this machine, in a home of its own with an empty environment."""

    name = MINE

    def __init__(self, home):
        self.home = home
        self.scripts = []
        self.path = "/usr/local/bin:/usr/bin:/bin"

    def run(self, script, *, env, timeout, looks_only=False):
        self.scripts.append(script)
        done = subprocess.run(
            ["/bin/bash", "-s"],
            input=exports(env) + script,
            cwd=self.home,
            env={"HOME": str(self.home), "PATH": self.path},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return GuestResult(status=done.returncode, output=done.stdout + done.stderr)

    def copy_in(self, source):
        target = self.home / source.name
        target.write_bytes(source.read_bytes())
        target.chmod(0o755)

    def copy_out(self, path, target):
        target.write_bytes((self.home / path).read_bytes())


def put_runner(home):
    """An image's runner that writes down how it was started."""
    folder = home / "actions-runner"
    folder.mkdir()
    (folder / "run.sh").write_text('#!/bin/sh\nprintf "%s" "$ACTIONS_RUNNER_INPUT_JITCONFIG" >"$HOME/started"\n')
    (folder / "config.sh").write_text(
        '#!/bin/sh\nenv | grep ACTIONS_RUNNER_INPUT_ | sort >"$HOME/configured"\necho "$@" >>"$HOME/configured"\n'
    )
    for script in folder.iterdir():
        script.chmod(0o755)


def test_a_runner_in_the_image_is_used(tmp_path):
    """Nothing is downloaded; the JIT configuration reaches run.sh by its environment."""
    put_runner(tmp_path)
    guest, scripts = LocalGuest(tmp_path), GuestScripts(FakeContext())
    scripts.install(guest)
    scripts.start(guest, "blob'with\"quotes$(x)")
    eventually((tmp_path / "started").exists, "the runner starts", 10)
    eventually(lambda: (tmp_path / "started").read_text() == "blob'with\"quotes$(x)", "it has its configuration", 10)
    assert not any("blob" in script for script in guest.scripts)


def test_no_runner_and_no_checksum_is_refused(tmp_path):
    """Nothing is downloaded that cannot be verified; the line says what to set."""
    with pytest.raises(RetryHere, match=r"runner\.sha256"):
        GuestScripts(FakeContext()).install(LocalGuest(tmp_path))


def test_an_operators_script_replaces_ours(tmp_path):
    """A file of that name in plugins_path/github/ is used instead."""
    home, theirs = tmp_path / "home", tmp_path / "plugins" / "github"
    home.mkdir()
    theirs.mkdir(parents=True)
    (theirs / INSTALL).write_text("echo theirs >installed-by\n")
    GuestScripts(FakeContext(tmp_path / "plugins")).install(LocalGuest(home))
    assert (home / "installed-by").read_text() == "theirs\n"


def test_token_mode_hands_everything_over_in_the_environment(tmp_path):
    """url, token, name and labels reach config.sh as ACTIONS_RUNNER_INPUT_*; no argument holds any of them."""
    put_runner(tmp_path)
    guest = LocalGuest(tmp_path)
    scripts = GuestScripts(FakeContext(runner_mode="token"))
    scripts.install(guest)
    scripts.register(guest, "https://github.com/acme/app", "AABBCC", ["a b", "c'd"])
    *environment, arguments = (tmp_path / "configured").read_text().splitlines()
    assert environment == [
        "ACTIONS_RUNNER_INPUT_LABELS=a b,c'd",
        f"ACTIONS_RUNNER_INPUT_NAME={MINE}",
        "ACTIONS_RUNNER_INPUT_TOKEN=AABBCC",
        "ACTIONS_RUNNER_INPUT_URL=https://github.com/acme/app",
    ]
    assert "AABBCC" not in arguments
    assert "--ephemeral" in arguments


def test_a_label_with_a_comma_cannot_be_registered_by_token(tmp_path):
    """It would become two labels."""
    with pytest.raises(RetryElsewhere, match="comma"):
        GuestScripts(FakeContext(runner_mode="token")).register(LocalGuest(tmp_path), "u", "t", ["a,b"])


def test_scripts_of_the_original_get_their_positions(tmp_path):
    """name, token, url, labels as arguments, each whole, whatever is in it."""
    home, theirs = tmp_path / "home", tmp_path / "plugins" / "github"
    home.mkdir()
    theirs.mkdir(parents=True)
    for name in ("install-runner.bash", "register-runner.bash", "start-runner.bash"):
        (theirs / name).write_text('printf "%s\\n" "$@" >got\n')
    scripts = GuestScripts(FakeContext(tmp_path / "plugins", runner_mode="token", script_arguments="original"))
    guest = LocalGuest(home)
    scripts.install(guest)
    scripts.register(guest, "https://github.com/acme/app", "AABBCC", ["a b", "$(touch hacked)"])
    assert (home / "got").read_text().splitlines() == [
        MINE,
        "AABBCC",
        "https://github.com/acme/app",
        "a b,$(touch hacked)",
    ]
    assert not (home / "hacked").exists()


def test_a_script_that_fails_tells_how(tmp_path):
    """Its status and the end of its output are in the one line."""
    home, theirs = tmp_path / "home", tmp_path / "plugins" / "github"
    home.mkdir()
    theirs.mkdir(parents=True)
    (theirs / INSTALL).write_text("echo no room on the disk >&2\nexit 9\n")
    with pytest.raises(RetryHere, match="status 9: no room on the disk"):
        GuestScripts(FakeContext(tmp_path / "plugins")).install(LocalGuest(home))


def test_a_script_that_traces_itself_tells_no_secret(tmp_path):
    """What an operator's script prints of the token or the JIT configuration is in no error, and so in no log."""
    home, theirs = tmp_path / "home", tmp_path / "plugins" / "github"
    home.mkdir()
    theirs.mkdir(parents=True)
    for name, word in (("register-runner.bash", "TOKEN"), ("start-runner.bash", "JITCONFIG")):
        (theirs / name).write_text(f'set -x\n: {"x" * 270} "$ACTIONS_RUNNER_INPUT_{word}"\nexit 3\n')
    scripts = GuestScripts(FakeContext(tmp_path / "plugins", runner_mode="token"))
    guest = LocalGuest(home)
    for name in ("register-runner.bash", "start-runner.bash"):
        guest.copy_in(theirs / name)
    secret = "AABBCCDDEEFFGGHHIIJJKKLLMMNNO"
    with pytest.raises(RetryHere, match=r"\*\*\*") as registering:
        scripts.register(guest, "https://github.com/acme/app", secret, ["a"])
    with pytest.raises(RetryHere, match=r"\*\*\*") as starting:
        scripts.start(guest, secret)
    assert "MMNNO" not in f"{registering.value} {starting.value}"


def test_a_start_script_that_blocks_does_not_hold_us_up(tmp_path):
    """An operator's script may run for as long as the runner."""
    home, theirs = tmp_path / "home", tmp_path / "plugins" / "github"
    home.mkdir()
    theirs.mkdir(parents=True)
    (theirs / "start-runner.bash").write_text("echo $$ >pid\nexec sleep 60\n")
    guest = LocalGuest(home)
    guest.copy_in(theirs / "start-runner.bash")
    GuestScripts(FakeContext(tmp_path / "plugins")).start(guest, None)
    subprocess.run(["kill", (home / "pid").read_text().strip()], check=True)


def test_the_downloads_settings():
    """Version and address are settings; the default address is that of the server's releases."""
    settings = install_settings(GithubSettings(runner=RunnerSettings(version="2.400.0", sha256="ab" * 32)))
    assert settings["RUNNER_DOWNLOAD_URL"] == (
        "https://github.com/actions/runner/releases/download/v2.400.0/actions-runner-osx-${arch}-2.400.0.tar.gz"
    )
    assert settings["RUNNER_SHA256"] == "ab" * 32


# ---- waiting ----

RUN_SH = """#!/bin/bash
cd "$(dirname "$0")"
until [ -e "$HOME/take-job" ]; do sleep 0.02; done
mkdir -p _diag; echo log >_diag/Worker_1.log; echo log >_diag/Runner_1.log
echo "2026-11-24 10:00:00Z: Running job: build"
until [ -e "$HOME/end" ]; do sleep 0.02; done
echo "2026-11-24 10:00:01Z: Job build completed with result: Failed"
echo "√ Removed .credentials"
echo "√ Removed .runner"
exit "$(cat "$HOME/end")"
"""


@pytest.fixture
def working(tmp_path):
    """A guest whose runner is started, and its scripts."""
    put_runner(tmp_path)
    (tmp_path / "actions-runner" / "run.sh").write_text(RUN_SH)
    guest, scripts = LocalGuest(tmp_path), GuestScripts(FakeContext())
    scripts.install(guest)
    scripts.start(guest, "jit")
    yield guest, scripts
    for mark in ("take-job", "end"):
        (tmp_path / mark).write_text("0")
    eventually((tmp_path / ".anklet-runner" / "ended").exists, "the runner ends", 10)


def test_a_wait_ends_when_the_runner_takes_up_a_job(working):
    """While it listens the wait lasts; its job's name is its own word."""
    guest, scripts = working
    assert scripts.wait(guest, 1, working=False).state == "waiting"
    (guest.home / "take-job").touch()
    sighting = scripts.wait(guest, 20, working=False)
    assert (sighting.state, sighting.job_name, sighting.result) == ("working", "build", None)


def test_what_an_image_holds_of_an_earlier_runner_counts_for_nothing(tmp_path):
    """Old marks and old logs in the image are not this runner's."""
    put_runner(tmp_path)
    (tmp_path / "actions-runner" / "run.sh").write_text(RUN_SH)
    (tmp_path / "actions-runner" / "_diag").mkdir()
    (tmp_path / "actions-runner" / "_diag" / "Worker_0.log").touch()
    (tmp_path / ".anklet-runner").mkdir()
    (tmp_path / ".anklet-runner" / "ended").write_text("0")
    guest, scripts = LocalGuest(tmp_path), GuestScripts(FakeContext())
    scripts.install(guest)
    scripts.start(guest, "jit")
    assert scripts.wait(guest, 1, working=False).state == "waiting"
    (tmp_path / "take-job").touch()
    assert scripts.wait(guest, 20, working=False).state == "working"
    (tmp_path / "end").write_text("0")
    assert scripts.wait(guest, 20, working=True).state == "ended"


def test_a_wait_ends_when_the_runner_does(working):
    """With run.sh's status, the runner's own word on the job, and on its registration."""
    guest, scripts = working
    (guest.home / "take-job").touch()
    (guest.home / "end").write_text("7")
    sighting = scripts.wait(guest, 20, working=True)
    assert (sighting.state, sighting.status, sighting.removed, sighting.result) == ("ended", "7", True, "Failed")
    assert sighting.over
    assert scripts.wait(guest, 20, working=True).state == "ended"


def test_a_runner_that_was_killed_with_its_keeper_is_gone(working):
    """Nothing was left to leave a mark."""
    guest, scripts = working
    pid = (guest.home / ".anklet-runner" / "pid").read_text().strip()
    subprocess.run(["kill", "-9", "--", f"-{pid}"], check=True)
    sighting = scripts.wait(guest, 20, working=True)
    assert sighting.state == "gone"
    (guest.home / ".anklet-runner" / "ended").touch()


def test_a_guest_with_another_start_script_tells_by_its_processes(tmp_path):
    """No mark of ours: the listener's command line is looked for; where nothing is found, that is said."""
    listener = tmp_path / "actions-runner" / "bin" / "Runner.Listener"
    listener.parent.mkdir(parents=True)
    listener.write_text('#!/bin/bash\nuntil [ -e "$HOME/end" ]; do sleep 0.02; done\n')
    listener.chmod(0o755)
    guest, scripts = LocalGuest(tmp_path), GuestScripts(FakeContext(), unseen_after=1)
    process = subprocess.Popen(["bash", str(listener)], env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"})
    assert scripts.wait(guest, 1, working=True).state == "waiting"
    (tmp_path / "end").touch()
    process.wait(10)
    assert scripts.wait(guest, 20, working=True).state == "unseen"


def test_a_wait_that_says_nothing_is_unseen(tmp_path):
    """A guest without a home, or a tool that swallows output."""
    guest = LocalGuest(tmp_path)
    guest.run = lambda *_, **__: GuestResult(status=127, output="bash: not found")
    assert GuestScripts(FakeContext()).wait(guest, 1, working=False).state == "unseen"


# ---- the runner's version ----


@pytest.mark.parametrize(
    ("version", "warned"), [("2.300.0", True), (RUNNER_VERSION, False), ("99.1", False), ("garbage", False)]
)
def test_an_old_runner_in_the_image_is_told_once(tmp_path, version, warned):
    """GitHub will stop giving it jobs."""
    put_runner(tmp_path)
    (tmp_path / "actions-runner" / "bin").mkdir()
    listener = tmp_path / "actions-runner" / "bin" / "Runner.Listener"
    listener.write_text(f"#!/bin/sh\necho {version}\n")
    listener.chmod(0o755)
    context = FakeContext()
    scripts = GuestScripts(context)
    for _ in range(2):
        scripts.install(LocalGuest(tmp_path))
    assert len(context.logged("WARNING")) == int(warned)


# ---- logs ----


def test_the_runners_logs_are_brought_home(tmp_path):
    """The newest ends of them, in the places where the runner has them."""
    home, folder = tmp_path / "home", tmp_path / "kept"
    diag = home / "actions-runner" / "_diag"
    diag.mkdir(parents=True)
    folder.mkdir()
    (home / "runner.log").write_text("said")
    (diag / "Worker_1.log").write_bytes(b"x" * (3 << 20) + b"the end")
    (diag / "Runner_1.log").write_text("listener")
    guest_logs.collect(LocalGuest(home), folder)
    assert (folder / "runner.log").read_text() == "said"
    assert (folder / "_diag" / "Runner_1.log").read_text() == "listener"
    kept = (folder / "_diag" / "Worker_1.log").read_bytes()
    assert len(kept) == 1 << 20
    assert kept.endswith(b"the end")
    assert not (folder / "logs.tgz").exists()


def archive(path, *members):
    """A guest's archive with these (TarInfo, content)."""
    with tarfile.open(path, "w:gz") as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def member(name, kind=tarfile.REGTYPE, link=""):
    """One member."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_a_hostile_archive_reaches_nothing(tmp_path):
    """Paths are cut to their last name; links, devices and hidden names are left out; files are private."""
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    (tmp_path / "victim").write_text("whole")
    packed = tmp_path / "p.tgz"
    archive(
        packed,
        (member("../../victim"), b"hit"),
        (member("/etc/passwd"), b"hit"),
        (member("link", tarfile.SYMTYPE, str(tmp_path / "victim")), b""),
        (member("hard", tarfile.LNKTYPE, "../../victim"), b""),
        (member(".bashrc"), b"hit"),
        (member("a\nb"), b"hit"),
        (member("fine.log"), b"log"),
    )
    guest_logs.unpack(packed, folder)
    assert (tmp_path / "victim").read_text() == "whole"
    assert sorted(path.name for path in folder.rglob("*")) == ["fine.log", "passwd", "victim"]
    assert (folder / "fine.log").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x1f\x8b\x08garbage"])
def test_an_archive_that_is_none_is_told(tmp_path, content):
    """No exception of a library."""
    (tmp_path / "p.tgz").write_bytes(content)
    with pytest.raises(RetryHere, match="cannot be read"):
        guest_logs.unpack(tmp_path / "p.tgz", tmp_path)


@pytest.mark.parametrize(
    "headers",
    [{"GNU.sparse.map": "a,b", "GNU.sparse.size": "3"}, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}],
)
def test_an_archive_made_up_by_a_job_is_no_archive(tmp_path, headers):
    """The guest ran a stranger's job, which may pack what `tarfile` was not made for."""
    packed, member = tmp_path / "p.tgz", tarfile.TarInfo("run.log")
    member.size, member.pax_headers = 600, headers
    with tarfile.open(packed, "w:gz", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(member, io.BytesIO(b"zz\n" * 200))
    with pytest.raises(RetryHere, match="cannot be read"):
        guest_logs.unpack(packed, tmp_path)


# ---- guests and runners that are not as ours ----


def bare_path(folder, *names):
    """A PATH with these programs and no others."""
    folder.mkdir()
    for name in names:
        (folder / name).symlink_to(shutil.which(name))
    return str(folder)


def test_a_guest_without_mkfifo_and_pgrep_will_do(tmp_path):
    """The wait looks every second instead."""
    home = tmp_path / "home"
    home.mkdir()
    put_runner(home)
    guest, scripts = LocalGuest(home), GuestScripts(FakeContext())
    guest.path = bare_path(tmp_path / "bin", "bash", "sh", "ls", "rm", "mkdir", "cat", "mv", "grep", "tail", "sleep")
    scripts.install(guest)
    scripts.start(guest, "jit")
    assert scripts.wait(guest, 10, working=False).state == "ended"
    eventually(lambda: not scripts.wait(guest, 10, working=False).left, "nothing is left", 10)


def test_a_runner_that_run_sh_leaves_in_the_background_is_seen(tmp_path):
    """run.sh is over, the runner is not; GitHub is to be asked how it does."""
    put_runner(tmp_path)
    (tmp_path / "actions-runner" / "run.sh").write_text(
        '#!/bin/sh\n(until [ -e "$HOME/end" ]; do sleep 0.02; done) >/dev/null 2>&1 &\n'
    )
    guest, scripts = LocalGuest(tmp_path), GuestScripts(FakeContext())
    scripts.install(guest)
    scripts.start(guest, "jit")
    eventually(lambda: scripts.wait(guest, 5, working=False).state == "ended", "run.sh is over", 10)
    assert scripts.wait(guest, 5, working=False).left
    (tmp_path / "end").touch()
    eventually(lambda: not scripts.wait(guest, 5, working=False).left, "the runner is over", 10)
