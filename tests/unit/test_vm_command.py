"""One command's life, with real children: output, input, time-outs, stop, detach, and what a later process does about it."""

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import psutil
import pytest

from anklet_worker.contract.errors import CliUnavailable, ConfigError, Detached, Interrupted, VMTransient
from anklet_worker.process import command as module
from anklet_worker.process.command import (
    CommandRunner,
    CommandSettings,
    InFlight,
    OnStop,
    run_capture,
    settle_in_flight,
)
from anklet_worker.process.orders import Orders

SECRET = "ghs_1234567_bait"


class Bench:
    """A runner in a folder of its own, and what its hooks were told."""

    def __init__(self, folder):
        self.folder = folder
        self.orders = Orders()
        self.notes = []
        self.env = {"PATH": os.environ["PATH"], "PLAIN": "seen", "BAIT": f"x {SECRET} y", "SHORT": "s"}

    def runner(self, **changes):
        settings = {
            "env": self.env,
            "secrets": (SECRET, "", "s"),
            "cwd": self.folder,
            "in_flight": self.notes.append,
            "ended": lambda *_: None,
        }
        return CommandRunner(self.orders, CommandSettings(**{**settings, **changes}))

    def sh(self, script, *, timeout=20.0, **more):
        """Run a shell script."""
        return self.runner().run(["/bin/sh", "-c", script], timeout=timeout, **more)

    def pid_in(self, name):
        """The process that wrote its pid to a file, once it has."""
        path = self.folder / name
        eventually(lambda: path.exists() and path.read_text().endswith("\n"))
        return int(path.read_text())

    def later(self, name, order):
        """Give `order` once the child has written the file `name`."""

        def wait_and_order():
            eventually((self.folder / name).exists)
            order()

        thread = threading.Thread(target=wait_and_order)
        thread.start()
        return thread


@pytest.fixture
def bench(tmp_path):
    """A bench whose children are all gone after the test."""
    made = Bench(tmp_path)
    yield made
    for note in made.notes:
        if note is not None and note.pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(note.pid, signal.SIGKILL)


def eventually(condition, seconds=20.0):
    """Wait until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        select.select([], [], [], 0.01)


def lives(pid):
    """True while the process runs (a zombie does not)."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# ---- ending by itself ----


def test_result_holds_status_and_both_outputs(bench):
    """A command's exit status, stdout and stderr come back apart from each other."""
    result = bench.sh("echo out; echo noise >&2; exit 7")
    assert (result.status, result.stdout, result.stderr) == (7, b"out\n", b"noise\n")
    assert not result.timed_out
    assert result.seconds > 0


def test_death_by_signal_is_a_negative_status(bench):
    """A command that a signal ended has the signal's number, negative, as its status."""
    assert bench.sh("kill -9 $$").status == -9


def test_large_input_and_output_pass_at_once(bench):
    """Megabytes in and out at the same time do not dead-lock, and arrive whole."""
    data = os.urandom(400_000)
    result = bench.runner().run(["cat"], timeout=30, stdin=data)
    assert result.stdout == data


def test_input_that_nobody_reads_is_no_error(bench):
    """A command may end without reading its input."""
    assert bench.sh("exit 3", stdin=b"x" * 1_000_000).status == 3


def test_without_input_stdin_is_at_its_end(bench):
    """A command that asks a question gets no answer, instead of waiting for one."""
    assert bench.sh("cat; echo end").stdout == b"end\n"


def test_endless_output_keeps_its_first_and_last(bench):
    """Of a very long output the first 64 KiB and the last MiB are kept."""
    result = bench.sh("echo first; head -c 3000000 /dev/zero | tr '\\0' x; echo; echo last")
    assert result.stdout.startswith(b"first\n")
    assert result.stdout.endswith(b"x\nlast\n")
    assert len(result.stdout) == 64 * 1024 + 1 + 1024 * 1024


def test_output_without_end_ends_the_command(bench, monkeypatch):
    """A command that would fill the disk is ended and reported, within seconds."""
    monkeypatch.setattr(module, "_MOST_OUTPUT", 1_000_000)
    with pytest.raises(VMTransient, match="printed more than"):
        bench.sh("echo $$ >pid; exec yes")
    assert not lives(bench.pid_in("pid"))
    assert bench.notes[-1] is None


def test_grandchild_that_holds_the_output_delays_nothing(bench):
    """A process that the command leaves behind, with the command's output open, is neither waited for nor ended."""
    began = time.monotonic()
    result = bench.sh("sleep 300 & echo $! >pid; echo done")
    assert result.stdout == b"done\n"
    assert time.monotonic() - began < 10
    pid = bench.pid_in("pid")
    assert lives(pid)
    os.kill(pid, signal.SIGKILL)


def test_end_is_noticed_at_once(bench):
    """Nothing is polled: twenty short commands take no twenty intervals."""
    began = time.monotonic()
    for _ in range(20):
        bench.sh(":")
    assert time.monotonic() - began < 5


def test_files_and_threads_do_not_pile_up(bench):
    """A hundred commands later the process holds as many descriptors and threads as before."""
    bench.sh(":")
    me = psutil.Process()
    before = me.num_fds()
    for _ in range(30):
        bench.sh("echo x", stdin=b"y")
    assert me.num_fds() <= before
    eventually(lambda: not [thread for thread in threading.enumerate() if thread.name == "command"])


# ---- what a child is given ----


def test_child_gets_the_environment_without_secrets(bench):
    """A variable that holds a secret is kept from children; a short secret takes no innocent variable with it."""
    env = bench.sh("env").stdout.decode()
    assert "PLAIN=seen" in env
    assert "PATH=" in env
    assert SECRET not in env
    assert "SHORT=" not in env


def test_child_runs_in_its_own_session_and_in_the_work_directory(bench):
    """A command has its own session (Ctrl-C does not reach it) and the given current directory."""
    script = "import os,json; print(json.dumps([os.getsid(0)==os.getpid(), os.getcwd()]))"
    result = bench.runner().run([sys.executable, "-c", script], timeout=20)
    assert json.loads(result.stdout) == [True, str(bench.folder.resolve())]


def test_only_named_descriptors_are_inherited(bench):
    """A descriptor in `keep_open` is the child's, too; others are not."""
    with (bench.folder / "lock").open("w") as lock, (bench.folder / "other").open("w") as other:
        kept, closed = lock.fileno(), other.fileno()
        script = f"import os,sys\nos.fstat({kept})\ntry: os.fstat({closed})\nexcept OSError: print('closed')"
        result = bench.runner().run([sys.executable, "-c", script], timeout=20, keep_open=[kept])
        assert result.stdout == b"closed\n"


# ---- that cannot be started ----


def test_missing_tool_is_unavailable(bench):
    """A tool that is not on PATH makes the service unfit, and the message says which and where it was looked for."""
    with pytest.raises(CliUnavailable, match=r"no-such-tool is not on PATH \(.*is it installed"):
        bench.runner().run(["no-such-tool"], timeout=5)


def test_a_tool_that_has_run_may_be_missing_for_a_moment(bench, monkeypatch):
    """It is being replaced by another version, as often as that may be. For longer, and the service is unfit."""
    tool, aside, runner = bench.folder / "tool", bench.folder / "aside", bench.runner()
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    for _ in range(2):
        assert runner.run([str(tool)], timeout=5).status == 0
        tool.rename(aside)
        with pytest.raises(VMTransient, match="tool is not on PATH"):
            runner.run([str(tool)], timeout=5)
        with pytest.raises(VMTransient, match="tool is not on PATH"):
            runner.launch([str(tool)], bench.folder / "output")
        aside.rename(tool)
    assert runner.run([str(tool)], timeout=5).status == 0
    tool.unlink()
    monkeypatch.setattr(module, "_REPLACED_WITHIN", 0.0)
    with pytest.raises(CliUnavailable, match="tool is not on PATH"):
        runner.run([str(tool)], timeout=5)


@pytest.mark.parametrize(("mode", "content"), [(0o644, "#!/bin/sh\n"), (0o755, "no program at all\n")])
def test_unfit_tool_is_unavailable(bench, mode, content):
    """A file that may not be executed, or is no program, makes the service unfit."""
    tool = bench.folder / "tool"
    tool.write_text(content)
    tool.chmod(mode)
    with pytest.raises(CliUnavailable, match="tool cannot be executed"):
        bench.runner().run([str(tool)], timeout=5)
    assert bench.notes[1:] == [None]


def test_missing_work_directory_is_named(bench):
    """A missing work_dir is not mistaken for a missing tool."""
    with pytest.raises(CliUnavailable, match=r"work_dir .*gone cannot be entered"):
        bench.runner(cwd=bench.folder / "gone").run(["/bin/sh"], timeout=5)


def test_shortage_is_temporary(bench):
    """What the host lacks for a moment (here: an argument list too long) does not condemn the tool."""
    with pytest.raises(VMTransient, match="cannot be started now"):
        bench.runner().run(["/bin/echo", "x" * 4_000_000], timeout=5)


# ---- time-out ----


def test_timeout_ends_the_whole_group(bench):
    """At its time-out a command is ended with its children, and the result says so."""
    began = time.monotonic()
    result = bench.sh("sleep 300 & echo $! >pid; echo begun; wait", timeout=0.5)
    assert result.timed_out
    assert result.status == -signal.SIGTERM
    assert result.stdout == b"begun\n"
    assert 0.5 <= time.monotonic() - began < 10
    pid = bench.pid_in("pid")
    eventually(lambda: not lives(pid))


def test_timeout_kills_who_ignores_sigterm(bench, monkeypatch):
    """A command, or a child of it in a group of its own, that ignores SIGTERM gets SIGKILL after the grace."""
    monkeypatch.setattr(module, "_TERM_GRACE", 0.3)
    own_group = f"{sys.executable} -c 'import os,time; os.setpgid(0, 0); print(os.getpid(), flush=True); time.sleep(300)' >child"
    script = f"trap '' TERM; echo $$ >leader; {own_group} & while :; do wait; sleep 1; done"
    result = bench.sh(script, timeout=1.0)
    assert result.timed_out
    assert result.status == -signal.SIGKILL
    for name in ("leader", "child"):
        pid = bench.pid_in(name)
        eventually(lambda pid=pid: not lives(pid))


def test_child_that_ignores_sigterm_does_not_outlive_its_parent(bench, monkeypatch):
    """SIGKILL goes to whoever is left of the session, also when the command itself heeded SIGTERM."""
    monkeypatch.setattr(module, "_TERM_GRACE", 1.0)
    result = bench.sh("(trap '' TERM; echo begun >>pids; while :; do sleep 1; done) & echo $! >pid; wait", timeout=1.0)
    assert result.timed_out
    pid = bench.pid_in("pid")
    eventually(lambda: not lives(pid))


# ---- stop and detach ----


def test_stop_ends_what_only_reads(bench):
    """A stop ends a read-only command and raises Interrupted."""
    thread = bench.later("begun", bench.orders.stop)
    with pytest.raises(Interrupted):
        bench.sh("echo $$ >pid; echo >begun; exec sleep 300")
    thread.join()
    assert not lives(bench.pid_in("pid"))
    assert bench.notes[-1] is None


def test_stop_lets_an_effect_finish(bench):
    """A stop lets a command with an effect end by itself; its result is returned, and what comes next is interrupted."""
    thread = bench.later("begun", bench.orders.stop)
    result = bench.sh("echo >begun; sleep 0.5; echo finished", on_stop=OnStop.FINISH)
    thread.join()
    assert result.stdout == b"finished\n"
    with pytest.raises(Interrupted):
        bench.sh("echo never", on_stop=OnStop.FINISH)
    with bench.orders.shield():
        assert bench.sh("echo clean-up").stdout == b"clean-up\n"


def test_stop_does_not_lengthen_a_timeout(bench):
    """An effect that hangs ends at its time-out, stop or not."""
    thread = bench.later("begun", bench.orders.stop)
    assert bench.sh("echo >begun; exec sleep 300", timeout=1.0, on_stop=OnStop.FINISH).timed_out
    thread.join()


@pytest.mark.parametrize("on_stop", [OnStop.KILL, OnStop.FINISH])
def test_detach_leaves_the_command_running_to_its_end(bench, on_stop):
    """After a detach the command goes on, prints without harm, and reaches its end; the note of it stays."""
    thread = bench.later("begun", bench.orders.detach)
    with pytest.raises(Detached):
        bench.sh(
            "echo $$ >pid; echo >begun; while [ ! -e go ]; do sleep 0.05; done; echo more; echo done >done",
            on_stop=on_stop,
        )
    thread.join()
    pid = bench.pid_in("pid")
    assert lives(pid)
    assert [note.pid for note in bench.notes] == [None, pid]
    (bench.folder / "go").touch()
    eventually((bench.folder / "done").exists)
    eventually(lambda: not lives(pid))


@pytest.mark.parametrize("order", ["stop", "detach"])
def test_every_order_ends_a_command_that_only_waits(bench, order):
    """Nothing is left of it, nor of its note, which says that nobody need wait for it."""
    thread = bench.later("begun", getattr(bench.orders, order))
    with pytest.raises(Detached if order == "detach" else Interrupted):
        bench.sh("echo $$ >pid; echo >begun; exec sleep 300", on_stop=OnStop.DISCARD)
    thread.join()
    eventually(lambda: not lives(bench.pid_in("pid")))
    assert [note and note.expendable for note in bench.notes] == [True, True, None]


def test_command_outlives_the_death_of_its_worker(bench):
    """A worker that is killed does not take its command along, nor break its output."""
    script = """
import os, sys
from pathlib import Path
from anklet_worker.process.orders import Orders
from anklet_worker.process.command import CommandRunner, CommandSettings
nothing = lambda *_: None
settings = CommandSettings(env=os.environ, secrets=(), cwd=Path.cwd(), in_flight=nothing, ended=nothing)
CommandRunner(Orders(), settings).run(["sh", "-c", sys.argv[1]], timeout=60)
"""
    inner = "echo $$ >pid; while [ ! -e go ]; do sleep 0.05; done; echo more; echo done >done"
    worker = subprocess.Popen([sys.executable, "-c", script, inner], cwd=bench.folder)
    pid = bench.pid_in("pid")
    worker.kill()
    worker.wait()
    (bench.folder / "go").touch()
    eventually((bench.folder / "done").exists)
    eventually(lambda: not lives(pid))


# ---- notes ----


def test_command_in_flight_is_noted_by_pid_and_time(bench):
    """The note names the very process, with its verb, before the end, and is withdrawn after it."""
    bench.runner().run(["/bin/sh", "-c", "echo $$"], timeout=10)
    intent, note, end = bench.notes
    assert (intent.pid, intent.argv) == (None, ("/bin/sh", "-c", "echo $$"))
    assert (note.verb, end) == ("echo $$", None)
    assert note.pid
    assert abs(note.created - time.time()) < 60


def test_note_of_its_own_replaces_the_hook(bench):
    """A command with a note of its own (a pull) is not told to the common hook."""
    own = []
    result = bench.sh("echo $$", note=own.append)
    assert bench.notes == []
    assert own[1].pid == int(result.stdout)
    assert own[2] is None


def test_note_that_cannot_be_written_keeps_nothing_from_running(bench):
    """A full disk must not keep the command from running that would make room."""

    def full(_):
        raise OSError(28, "No space left on device")

    assert bench.runner(in_flight=full).run(["echo", "x"], timeout=10).stdout == b"x\n"


def test_bug_in_a_hook_leaves_no_process(bench):
    """An exception from a hook ends the command that it was told of."""
    pids = []

    def broken(note):
        if note is not None and note.pid:
            pids.append(note.pid)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        bench.runner(in_flight=broken).run(["sleep", "300"], timeout=10)
    assert not lives(pids[0])


# ---- settling what an earlier process left ----


@pytest.fixture
def left_running(bench):
    """A function that starts a script as an earlier process would have left it: (note, Popen)."""
    started = []

    def start(script):
        process = subprocess.Popen(["/bin/sh", "-c", script], cwd=bench.folder, start_new_session=True)
        started.append(process)
        return InFlight(pid=process.pid, created=psutil.Process(process.pid).create_time(), verb="clone"), process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_settling_waits_for_the_end(bench, left_running):
    """A command of an earlier process that ends within the time is waited for, and not harmed."""
    note, process = left_running("while [ ! -e go ]; do sleep 0.05; done; exit 4")
    naps = []

    def nap(seconds):
        naps.append(seconds)
        (bench.folder / "go").touch()
        select.select([], [], [], seconds)

    settle_in_flight(note, 20, nap)
    assert naps
    assert process.wait(5) == 4


def test_settling_ends_what_does_not_end(bench, left_running, monkeypatch):
    """A command that outlasts the patience is ended with its whole session, SIGTERM or not."""
    monkeypatch.setattr(module, "_TERM_GRACE", 0.3)
    note, process = left_running("trap '' TERM; sleep 300 & echo $! >pid; while :; do wait; done")
    child = bench.pid_in("pid")
    settle_in_flight(note, 0.2)
    assert process.wait(5) == -signal.SIGKILL
    eventually(lambda: not lives(child))


def test_settling_waits_for_nothing_that_only_waits(left_running):
    """A wait in a guest that outlived its worker is ended at once."""
    note, process = left_running("exec sleep 300")
    began = time.monotonic()
    settle_in_flight(msgspec.structs.replace(note, expendable=True), 60)
    assert process.wait(5) == -signal.SIGTERM
    assert time.monotonic() - began < 10


def test_settling_spares_another_process_of_that_pid(left_running):
    """A process that has the pid by chance (its creation time differs) is not touched, and not waited for."""
    note, process = left_running("exec sleep 300")
    began = time.monotonic()
    settle_in_flight(InFlight(pid=note.pid, created=note.created - 100, verb="clone"), 30)
    assert time.monotonic() - began < 5
    assert process.poll() is None


def test_settling_what_is_gone_returns(left_running):
    """A command that has ended since, reaped or not, is settled."""
    note, process = left_running("exit 0")
    eventually(lambda: not lives(note.pid))
    settle_in_flight(note, 30)
    process.wait()
    settle_in_flight(note, 30)
    settle_in_flight(InFlight(pid=2**22 + 1, created=1.0, verb="clone"), 30)


def test_settling_is_cut_short_by_an_order(bench, left_running):
    """The wait for a command of an earlier process obeys orders, and leaves the command alone then."""
    note, process = left_running("exec sleep 300")
    bench.orders.detach()
    with pytest.raises(Detached):
        settle_in_flight(note, 30, bench.orders.wait)
    assert process.poll() is None


def test_detached_command_is_settled_by_the_next_process(bench):
    """What a detach left running is found by its note, and ended when patience is over."""
    thread = bench.later("begun", bench.orders.detach)
    with pytest.raises(Detached):
        bench.sh("echo >begun; exec sleep 300")
    thread.join()
    note = bench.notes[-1]
    settle_in_flight(note, 0.1)
    assert not lives(note.pid)


def test_a_command_whose_pid_was_never_noted_is_found(bench, left_running):
    """A worker that died between the start of a command and the note of its pid: the intent, and the process table, tell."""
    before = time.time()
    _, process = left_running("exec sleep 300.25")
    eventually(lambda: psutil.Process(process.pid).cmdline() == ["sleep", "300.25"])
    settle_in_flight(InFlight(pid=None, created=before - 100, verb="sleep", argv=("sleep", "300.25")), 0.1)
    settle_in_flight(InFlight(pid=None, created=before, verb="sleep", argv=("sleep", "300")), 0.1)
    assert process.poll() is None
    settle_in_flight(InFlight(pid=None, created=before, verb="sleep", argv=("/usr/bin/sleep", "300.25")), 0.1)
    assert process.wait(5) == -signal.SIGTERM


def test_an_intent_is_withdrawn_when_nothing_came_of_it(bench):
    """A tool that cannot be executed leaves no note."""
    with pytest.raises(CliUnavailable):
        bench.runner().run(["/nonexistent/tool"], timeout=10)
    assert [note and note.pid for note in bench.notes] == [None, None]


# ---- commands of the configuration ----


def test_configured_command_gives_its_first_line():
    """`run_capture` gives the first line without its newline, or all of it when asked."""
    assert run_capture("printf 'token\\nrest\\n'") == "token"
    assert run_capture("printf 'token\\nrest\\n'", whole=True) == "token\nrest"
    assert run_capture("sh -c 'echo \"a b\"; echo noise >&2'") == "a b"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("sh -c 'echo s3cret; echo s3cret >&2; exit 9'", "'sh' ended with exit code 9"),
        ("no-such-tool s3cret", "'no-such-tool' cannot be executed"),
        ("sh -c 's3cret", "cannot be split"),
        ("", "is empty"),
    ],
)
def test_configured_command_that_fails_betrays_nothing(command, said):
    """The error of a configured command names the command, and nothing of its arguments or output."""
    with pytest.raises(ConfigError, match=said) as caught:
        run_capture(command)
    assert "s3cret" not in str(caught.value)


def test_configured_command_has_a_time_limit(tmp_path):
    """A configured command that hangs, or whose child holds its output, is ended in time."""
    script = tmp_path / "slow"
    script.write_text(f"#!/bin/sh\nsleep 300 & echo $! >{tmp_path}/pid; echo s3cret; wait\n")
    script.chmod(0o755)
    began = time.monotonic()
    with pytest.raises(ConfigError, match="did not end within"):
        run_capture(str(script), 0.5)
    assert time.monotonic() - began < 10
    pid = int(Path(tmp_path / "pid").read_text())
    eventually(lambda: not lives(pid))


# ---- launched, not run ----


def test_launched_process_goes_on_and_its_output_is_kept(bench, tmp_path):
    """It has a session of its own, reads nothing, prints to its file, is noted nowhere, and no order ends it."""
    output = tmp_path / "run.log"
    output.write_text("earlier\n")
    script = "cat; echo out; echo err >&2; echo $$ >pid; exec sleep 300"
    launched = bench.runner().launch(["/bin/sh", "-c", script], output)
    try:
        pid = bench.pid_in("pid")
        bench.orders.stop()
        assert (launched.process.pid, launched.process.created) == (pid, psutil.Process(pid).create_time())
        assert os.getsid(pid) == pid
        assert launched.status is None
        assert output.read_text() == "earlier\nout\nerr\n"
        assert bench.notes == []
    finally:
        settle_in_flight(launched.process, 0.0)
    eventually(lambda: launched.status == -signal.SIGTERM)


def test_launched_process_that_ends_tells_its_status(bench, tmp_path):
    """It is reaped, and its file belongs to us alone."""
    output = tmp_path / "run.log"
    launched = bench.runner().launch(["/bin/sh", "-c", "exit 7"], output)
    eventually(lambda: launched.status == 7)
    assert output.stat().st_mode & 0o777 == 0o600
    assert not psutil.pid_exists(launched.process.pid)


def test_launched_process_outlives_the_death_of_its_worker(bench, tmp_path):
    """SIGKILL of the worker leaves it alone, and its later output still has a place."""
    program = f"""
import os, signal
from pathlib import Path
from anklet_worker.process.orders import Orders
from anklet_worker.process.command import CommandRunner, CommandSettings
settings = CommandSettings(env=os.environ, secrets=(), cwd=Path({str(tmp_path)!r}), in_flight=print, ended=print)
script = "echo $$ >pid; while [ ! -e go ]; do sleep 0.05; done; echo later; echo done >done"
CommandRunner(Orders(), settings).launch(["/bin/sh", "-c", script], Path("run.log"))
os.kill(os.getpid(), signal.SIGKILL)
"""
    worker = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=False, capture_output=True)
    assert worker.returncode == -signal.SIGKILL
    (tmp_path / "go").touch()
    eventually((tmp_path / "done").exists)
    assert (tmp_path / "run.log").read_text() == "later\n"


def test_launch_of_a_missing_tool_is_unavailable(bench, tmp_path):
    """As a command's."""
    with pytest.raises(CliUnavailable, match="is not on PATH"):
        bench.runner().launch(["no-such-tool"], tmp_path / "run.log")


def test_launch_without_a_place_for_output_is_temporary(bench, tmp_path):
    """Nothing is started then; a link is not followed."""
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for output in (tmp_path / "missing" / "run.log", tmp_path / "link"):
        with pytest.raises(VMTransient, match="cannot be written"):
            bench.runner().launch(["/bin/sh", "-c", "touch started"], output)
    assert not (tmp_path / "started").exists()
    assert not (tmp_path / "elsewhere").exists()


def test_stop_and_detach_keep_a_launch_from_happening(bench, tmp_path):
    """An order that came before is obeyed."""
    bench.orders.stop()
    with pytest.raises(Interrupted):
        bench.runner().launch(["/bin/sh", "-c", "touch started"], tmp_path / "run.log")
    assert not (tmp_path / "started").exists()


def test_more_variables_for_some_commands(bench):
    """Another runner of the same worker has them; the first one has not, and secrets pass in neither."""
    more = bench.runner().with_env({"MORE": "seen", "WORSE": SECRET})
    shown = more.run(["/usr/bin/env"], timeout=20).stdout.decode()
    assert "MORE=seen\n" in shown
    assert "PLAIN=seen\n" in shown
    assert SECRET not in shown
    assert "MORE" not in bench.runner().run(["/usr/bin/env"], timeout=20).stdout.decode()


# ---- locks ----


def test_inherited_lock_outlives_a_detach(bench):
    """A lock whose descriptor the child keeps open stays held after a detach, until the child ends."""
    path = bench.folder / "lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    thread = bench.later("begun", bench.orders.detach)
    with pytest.raises(Detached):
        bench.sh("echo >begun; while [ ! -e go ]; do sleep 0.05; done", keep_open=[fd])
    thread.join()
    os.close(fd)
    with path.open() as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (bench.folder / "go").touch()

        def free():
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        eventually(free)
