"""One command's life, with real children: output, input, time-outs, stop, detach, and clean-up by a later process."""

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
    """A runner in a new folder, and the notes that its hook received."""

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
        """Run a shell script. The folder in its arguments tells it from the same script of a test that runs beside this one."""
        return self.runner().run(["/bin/sh", "-c", f"{script}\n# {self.folder}"], timeout=timeout, **more)

    def pid_in(self, name):
        """Wait until a process has written its pid to a file; return the process."""
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
    """Wait until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        select.select([], [], [], 0.01)


def lives(pid):
    """True while the process runs (a zombie does not)."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# ---- normal ends ----


def test_result_holds_status_and_both_outputs(bench):
    """A command's exit status, stdout and stderr come back separately."""
    result = bench.sh("echo out; echo noise >&2; exit 7")
    assert (result.status, result.stdout, result.stderr) == (7, b"out\n", b"noise\n")
    assert not result.timed_out
    assert result.seconds > 0


def test_death_by_signal_is_a_negative_status(bench):
    """The status of a command that a signal ended is the negative number of the signal."""
    assert bench.sh("kill -9 $$").status == -9


def test_large_input_and_output_pass_at_once(bench):
    """Megabytes in and out at the same time do not deadlock, and arrive complete."""
    data = os.urandom(400_000)
    result = bench.runner().run(["cat"], timeout=30, stdin=data)
    assert result.stdout == data


def test_unread_input_is_not_an_error(bench):
    """A command may end without reading its input."""
    assert bench.sh("exit 3", stdin=b"x" * 1_000_000).status == 3


def test_without_input_stdin_is_at_its_end(bench):
    """A command that asks a question reads the end of its input instead of waiting."""
    assert bench.sh("cat; echo end").stdout == b"end\n"


def test_endless_output_keeps_its_first_and_last(bench):
    """A very long output is cut to its first 64 KiB and its last MiB."""
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
    """Nothing is polled: twenty short commands do not take twenty intervals."""
    began = time.monotonic()
    for _ in range(20):
        bench.sh(":")
    assert time.monotonic() - began < 5


def test_files_and_threads_do_not_accumulate(bench):
    """After many commands the process holds as many descriptors and threads as before."""
    bench.sh(":")
    me = psutil.Process()
    before = me.num_fds()
    for _ in range(30):
        bench.sh("echo x", stdin=b"y")
    assert me.num_fds() <= before
    eventually(lambda: not [thread for thread in threading.enumerate() if thread.name == "command"])


# ---- environment of a child ----


def test_child_gets_the_environment_without_secrets(bench):
    """No child gets a variable that contains a secret; a short secret removes only a variable that equals it."""
    env = bench.sh("env").stdout.decode()
    assert "PLAIN=seen" in env
    assert "PATH=" in env
    assert SECRET not in env
    assert "SHORT=" not in env


def test_child_runs_in_its_own_session_and_in_the_work_directory(bench):
    """A command has its own session (Ctrl-C does not reach it) and the given working directory."""
    script = "import os,json; print(json.dumps([os.getsid(0)==os.getpid(), os.getcwd()]))"
    result = bench.runner().run([sys.executable, "-c", script], timeout=20)
    assert json.loads(result.stdout) == [True, str(bench.folder.resolve())]


def test_only_named_descriptors_are_inherited(bench):
    """The child inherits the descriptors in `keep_open` and no others."""
    with (bench.folder / "lock").open("w") as lock, (bench.folder / "other").open("w") as other:
        kept, closed = lock.fileno(), other.fileno()
        script = f"import os,sys\nos.fstat({kept})\ntry: os.fstat({closed})\nexcept OSError: print('closed')"
        result = bench.runner().run([sys.executable, "-c", script], timeout=20, keep_open=[kept])
        assert result.stdout == b"closed\n"


# ---- commands that cannot be started ----


def test_missing_tool_is_unavailable(bench):
    """A tool that is not on PATH makes the service unfit; the message names the tool and the PATH."""
    with pytest.raises(CliUnavailable, match=r"no-such-tool is not on PATH \(.*is it installed"):
        bench.runner().run(["no-such-tool"], timeout=5)


def test_a_tool_that_has_run_may_be_missing_for_a_moment(bench, monkeypatch):
    """Another version may replace a tool, any number of times. When it stays away, the service is unfit."""
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


@pytest.mark.parametrize(("mode", "content"), [(0o644, "#!/bin/sh\n"), (0o755, "not a program\n")])
def test_unfit_tool_is_unavailable(bench, mode, content):
    """A file without execute permission, or that is not a program, makes the service unfit."""
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
    """A passing shortage on the host (here: an argument list too long) does not make the tool unfit."""
    with pytest.raises(VMTransient, match="cannot be started now"):
        bench.runner().run(["/bin/echo", "x" * 4_000_000], timeout=5)


# ---- time-out ----


def test_timeout_ends_the_whole_group(bench):
    """A time-out ends the command and its children, and the result says so."""
    began = time.monotonic()
    result = bench.sh("sleep 300 & echo $! >pid; echo begun; wait", timeout=0.5)
    assert result.timed_out
    assert result.status == -signal.SIGTERM
    assert result.stdout == b"begun\n"
    assert 0.5 <= time.monotonic() - began < 10
    pid = bench.pid_in("pid")
    eventually(lambda: not lives(pid))


def test_timeout_kills_processes_that_ignore_sigterm(bench, monkeypatch):
    """A command that ignores SIGTERM gets SIGKILL after the grace, and so does its child in another group."""
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
    """SIGKILL goes to every process left in the session, even when the command itself ended at SIGTERM."""
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
    """A stop lets a command with an effect finish and returns its result; the next command is interrupted."""
    thread = bench.later("begun", bench.orders.stop)
    result = bench.sh("echo >begun; sleep 0.5; echo finished", on_stop=OnStop.FINISH)
    thread.join()
    assert result.stdout == b"finished\n"
    with pytest.raises(Interrupted):
        bench.sh("echo never", on_stop=OnStop.FINISH)
    with bench.orders.shield():
        assert bench.sh("echo clean-up").stdout == b"clean-up\n"


def test_stop_does_not_lengthen_a_timeout(bench):
    """A hanging command with an effect ends at its time-out, with or without a stop."""
    thread = bench.later("begun", bench.orders.stop)
    assert bench.sh("echo >begun; exec sleep 300", timeout=1.0, on_stop=OnStop.FINISH).timed_out
    thread.join()


@pytest.mark.parametrize("on_stop", [OnStop.KILL, OnStop.FINISH])
def test_detach_leaves_the_command_running_to_its_end(bench, on_stop):
    """After a detach the command goes on, can print, and reaches its end; its note stays."""
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
    """Neither the command nor its note is left; the note said that nothing needs to wait for it."""
    thread = bench.later("begun", getattr(bench.orders, order))
    with pytest.raises(Detached if order == "detach" else Interrupted):
        bench.sh("echo $$ >pid; echo >begun; exec sleep 300", on_stop=OnStop.DISCARD)
    thread.join()
    eventually(lambda: not lives(bench.pid_in("pid")))
    assert [note and note.expendable for note in bench.notes] == [True, True, None]


def test_command_outlives_the_death_of_its_worker(bench):
    """Killing a worker neither ends its command nor breaks the command's output."""
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
    """The note names the process and its verb while the command runs, and is removed after its end."""
    bench.runner().run(["/bin/sh", "-c", "echo $$"], timeout=10)
    intent, note, end = bench.notes
    assert (intent.pid, intent.argv) == (None, ("/bin/sh", "-c", "echo $$"))
    assert (note.verb, end) == ("echo $$", None)
    assert note.pid
    assert abs(note.created - time.time()) < 60


def test_note_of_its_own_replaces_the_hook(bench):
    """A command with its own note (a pull) does not call the common hook."""
    own = []
    result = bench.sh("echo $$", note=own.append)
    assert bench.notes == []
    assert own[1].pid == int(result.stdout)
    assert own[2] is None


def test_command_runs_without_its_note(bench):
    """On a full disk the note cannot be written, but the command still runs: it may be the one that frees space."""

    def full(_):
        raise OSError(28, "No space left on device")

    assert bench.runner(in_flight=full).run(["echo", "x"], timeout=10).stdout == b"x\n"


def test_bug_in_a_hook_leaves_no_process(bench):
    """An exception from a hook ends the hook's command."""
    pids = []

    def broken(note):
        if note is not None and note.pid:
            pids.append(note.pid)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        bench.runner(in_flight=broken).run(["sleep", "300"], timeout=10)
    assert not lives(pids[0])


# ---- settling the command of an earlier process ----


@pytest.fixture
def left_running(bench):
    """A function that starts a script as if an earlier process had left it: (note, Popen)."""
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
    """A command that ends within the time is waited for and not signalled."""
    note, process = left_running("while [ ! -e go ]; do sleep 0.05; done; exit 4")
    naps = []

    def nap(seconds):
        naps.append(seconds)
        (bench.folder / "go").touch()
        select.select([], [], [], seconds)

    settle_in_flight(note, 20, nap)
    assert naps
    assert process.wait(5) == 4


def test_settling_ends_a_command_that_does_not_end(bench, left_running, monkeypatch):
    """After the time-out the whole session is ended, even when the command ignores SIGTERM."""
    monkeypatch.setattr(module, "_TERM_GRACE", 0.3)
    note, process = left_running("trap '' TERM; sleep 300 & echo $! >pid; while :; do wait; done")
    child = bench.pid_in("pid")
    settle_in_flight(note, 0.2)
    assert process.wait(5) == -signal.SIGKILL
    eventually(lambda: not lives(child))


def test_settling_does_not_wait_for_an_expendable_command(left_running):
    """A wait in a guest that outlived its worker is ended at once."""
    note, process = left_running("exec sleep 300")
    began = time.monotonic()
    settle_in_flight(msgspec.structs.replace(note, expendable=True), 60)
    assert process.wait(5) == -signal.SIGTERM
    assert time.monotonic() - began < 10


def test_settling_spares_another_process_of_that_pid(left_running):
    """Another process that got the same pid (its creation time differs) is neither signalled nor waited for."""
    note, process = left_running("exec sleep 300")
    began = time.monotonic()
    settle_in_flight(InFlight(pid=note.pid, created=note.created - 100, verb="clone"), 30)
    assert time.monotonic() - began < 5
    assert process.poll() is None


def test_settling_a_finished_command_returns(left_running):
    """A command that has ended meanwhile is settled, reaped or not."""
    note, process = left_running("exit 0")
    eventually(lambda: not lives(note.pid))
    settle_in_flight(note, 30)
    process.wait()
    settle_in_flight(note, 30)
    settle_in_flight(InFlight(pid=2**22 + 1, created=1.0, verb="clone"), 30)


def test_settling_is_cut_short_by_an_order(bench, left_running):
    """An order ends the wait and leaves the command alone."""
    note, process = left_running("exec sleep 300")
    bench.orders.detach()
    with pytest.raises(Detached):
        settle_in_flight(note, 30, bench.orders.wait)
    assert process.poll() is None


def test_detached_command_is_settled_by_the_next_process(bench):
    """The next process finds a detached command by its note, and ends it after the time-out."""
    thread = bench.later("begun", bench.orders.detach)
    with pytest.raises(Detached):
        bench.sh("echo >begun; exec sleep 300")
    thread.join()
    note = bench.notes[-1]
    settle_in_flight(note, 0.1)
    assert not lives(note.pid)


def test_a_command_whose_pid_was_never_noted_is_found(bench, left_running):
    """A worker died between the start of a command and the note of its pid: the intent and the process table identify it."""
    before = time.time()
    _, process = left_running("exec sleep 300.25")
    eventually(lambda: psutil.Process(process.pid).cmdline() == ["sleep", "300.25"])
    settle_in_flight(InFlight(pid=None, created=before - 100, verb="sleep", argv=("sleep", "300.25")), 0.1)
    settle_in_flight(InFlight(pid=None, created=before, verb="sleep", argv=("sleep", "300")), 0.1)
    assert process.poll() is None
    settle_in_flight(InFlight(pid=None, created=before, verb="sleep", argv=("/usr/bin/sleep", "300.25")), 0.1)
    assert process.wait(5) == -signal.SIGTERM


def test_an_intent_is_removed_when_the_start_fails(bench):
    """A tool that cannot be executed leaves no note."""
    with pytest.raises(CliUnavailable):
        bench.runner().run(["/nonexistent/tool"], timeout=10)
    assert [note and note.pid for note in bench.notes] == [None, None]


# ---- commands of the configuration ----


def test_configured_command_gives_its_first_line():
    """`run_capture` returns the first line without its newline, or everything when asked."""
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
    """The error of a configured command names the command, but none of its arguments or output."""
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


# ---- launched processes ----


def test_launched_process_goes_on_and_its_output_is_kept(bench, tmp_path):
    """It has its own session, no input, its output file and no note, and no order ends it."""
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


def test_launched_process_that_ends_has_a_status(bench, tmp_path):
    """It is reaped, and only our user can read its output."""
    output = tmp_path / "run.log"
    launched = bench.runner().launch(["/bin/sh", "-c", "exit 7"], output)
    eventually(lambda: launched.status == 7)
    assert output.stat().st_mode & 0o777 == 0o600
    assert not psutil.pid_exists(launched.process.pid)


def test_launched_process_outlives_the_death_of_its_worker(bench, tmp_path):
    """SIGKILL of the worker does not end it, and its later output still reaches the file."""
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
    """The error is the same as for a command."""
    with pytest.raises(CliUnavailable, match="is not on PATH"):
        bench.runner().launch(["no-such-tool"], tmp_path / "run.log")


def test_launch_without_a_place_for_output_is_temporary(bench, tmp_path):
    """Without an output file nothing starts; a link is not followed."""
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for output in (tmp_path / "missing" / "run.log", tmp_path / "link"):
        with pytest.raises(VMTransient, match="cannot write"):
            bench.runner().launch(["/bin/sh", "-c", "touch started"], output)
    assert not (tmp_path / "started").exists()
    assert not (tmp_path / "elsewhere").exists()


def test_an_order_prevents_a_launch(bench, tmp_path):
    """After an order nothing is launched."""
    bench.orders.stop()
    with pytest.raises(Interrupted):
        bench.runner().launch(["/bin/sh", "-c", "touch started"], tmp_path / "run.log")
    assert not (tmp_path / "started").exists()


def test_more_variables_for_some_commands(bench):
    """Only the new runner's commands get them, and secrets reach neither's commands."""
    more = bench.runner().with_env({"MORE": "seen", "WORSE": SECRET})
    shown = more.run(["/usr/bin/env"], timeout=20).stdout.decode()
    assert "MORE=seen\n" in shown
    assert "PLAIN=seen\n" in shown
    assert SECRET not in shown
    assert "MORE" not in bench.runner().run(["/usr/bin/env"], timeout=20).stdout.decode()


# ---- locks ----


def test_inherited_lock_outlives_a_detach(bench):
    """A lock whose descriptor the child inherits stays held after a detach, until the child ends."""
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
