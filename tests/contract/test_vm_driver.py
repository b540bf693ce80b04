"""The contract of VM drivers: a VM's whole life, and each kind of failure, for every driver."""

import base64
import shlex
import threading
import time

import pytest
from driver_rigs import AnkaRig, MemoryRig, TartRig, executable
from emulators.vmhost.bench import eventually

from anklet_worker.contract.errors import (
    AnswerUnreadable,
    CliUnavailable,
    Detached,
    FileUnusable,
    Interrupted,
    NotOurVM,
    TemporaryError,
    VMError,
    VMLimitReached,
    VMNameExists,
    VMNotFound,
    VMTransient,
)
from anklet_worker.contract.job import VMSpec
from anklet_worker.contract.service import Deadlines
from anklet_worker.life.guest import exports
from anklet_worker.process.command import settle_in_flight
from anklet_worker.process.orders import Orders
from anklet_worker.vm.driver import VMState
from anklet_worker.vm.guest_script import wrapped


def of_a_tool(reason):
    """Skip the test for the driver in memory; the reason says why."""
    assert reason
    return pytest.mark.parametrize("rig", [AnkaRig, TartRig], indirect=True, ids=lambda rig: rig.name)


@pytest.fixture(params=[AnkaRig, TartRig, MemoryRig], ids=lambda rig: rig.name)
def rig(request, tmp_path):
    """One driver's rig; none of its processes outlives the test."""
    made = request.param(tmp_path)
    yield made
    made.close()


@pytest.fixture
def driver(rig):
    """A driver as a worker has it."""
    return rig.driver()


@pytest.fixture
def vm(rig, driver):
    """A started VM."""
    return rig.started(driver)


# ---- probe, labels and images ----


def test_probe_tells_product_and_version(driver):
    """The probe of a working tool describes it for the log."""
    info = driver.probe()
    assert info.product
    assert info.version[0].isdigit()


@pytest.mark.parametrize("deaths", [1, 3])
@of_a_tool("it breaks a command")
def test_probe_that_a_signal_ends_is_passing_trouble(rig, tmp_path, deaths):
    """The host kills processes when memory is short. The next probe succeeds."""
    dying(rig, tmp_path, deaths)
    driver = rig.driver()
    for _ in range(deaths):
        with pytest.raises(TemporaryError, match="was killed by SIGKILL"):
            driver.probe()
    assert driver.probe().version


@of_a_tool("it breaks a command")
def test_probe_that_signals_end_for_a_minute_makes_the_service_unfit(rig, tmp_path, monkeypatch):
    """A tool that macOS refuses to run is killed each time.

    After a minute the message tells the operator what to do.
    """
    dying(rig, tmp_path, 10_000)
    driver = rig.driver()
    with pytest.raises(TemporaryError):
        driver.probe()
    rig.shorten(monkeypatch, "_KILLED_WITHIN", 0.0)
    with pytest.raises(CliUnavailable, match=f"was killed by SIGKILL, every time .* reinstall {rig.name}"):
        driver.probe()


def dying(rig, folder, deaths):
    """Make the rig's tool kill itself the first `deaths` times that it runs."""
    real, left = rig.host.environ(), folder / "left"
    left.write_text("x" * deaths)
    script = (
        f'[ -s {left} ] || exec {rig.host.bin_dir}/{rig.name} "$@"\n'
        f"head -c -1 {left} >{left}.new; mv {left}.new {left}; kill -9 $$"
    )
    mine = executable(folder / "dying" / rig.name, script)
    rig.host.environ = lambda **_: {**real, **mine}


def test_labels_of_a_job_become_a_spec(rig, driver):
    """A job's labels name template and tag; other labels ask for nothing here."""
    assert driver.spec_from_labels(rig.labels) == rig.spec
    assert driver.spec_from_labels(["self-hosted", "linux"]) is None
    assert driver.spec_from_labels([]) is None


def test_listing_shows_templates_and_vms_with_their_states(rig, driver, vm):
    """Templates, our VMs and others' VMs are all listed."""
    rig.host.start_foreign("somebody")
    states = {row.name: row.state for row in driver.listing()}
    assert states["macos"] is VMState.STOPPED
    assert states[vm] is VMState.RUNNING
    assert states["somebody"] is VMState.RUNNING


def test_present_image_is_not_pulled(rig, driver):
    """A present image is used as it is."""
    pulls = []
    with driver.image(rig.spec, lambda: pulls.append(1)) as source:
        assert source
    assert pulls == []
    assert rig.argvs("pull") == []
    assert not driver.pulling()


@pytest.mark.parametrize("name", ["", "-x", "--yes", " x", "a\nb", "a\0b", "x" * 300])
def test_impossible_image_never_reaches_a_command(rig, driver, name):
    """A name that no command line can carry is refused as not found, and quoted, before any command runs."""
    with (
        pytest.raises(VMNotFound, match=r"is not a possible name of (?:a template|an image)") as caught,
        driver.image(VMSpec(template=name), lambda: None),
    ):
        pass
    assert "\n" not in str(caught.value)
    assert rig.host.calls() == []


def test_image_that_is_nowhere_is_not_found(driver):
    """An image that neither this host nor the registry has is reported as not found."""
    with pytest.raises(VMNotFound), driver.image(VMSpec(template="nowhere", tag="v1"), lambda: None):
        pass


@of_a_tool("it counts a tool's commands")
def test_one_listing_serves_the_slot_and_the_clone(rig, driver):
    """The listing that a worker makes for its slot also shows the image. Nothing is listed again before the clone."""
    driver.listing()
    with driver.image(rig.spec, lambda: None) as source:
        driver.clone(source, rig.vm())
    verbs = [verb for verb, *_ in rig.ended]
    assert verbs[: verbs.index("clone") + 1] == ["list", "clone"]


@of_a_tool("it counts a tool's commands")
def test_old_listing_serves_nothing(rig, driver, monkeypatch):
    """A listing from before a long wait is not used."""
    rig.shorten(monkeypatch, "_FRESH", 0.0)
    driver.listing()
    with driver.image(rig.spec, lambda: None):
        pass
    assert len(rig.argvs("list")) == 2


def test_own_changes_are_seen_at_once(rig, driver, vm):
    """An earlier listing never hides what this worker cloned, started or deleted."""
    driver.listing()
    driver.delete(vm)
    with driver.image(rig.spec, lambda: None) as source:
        driver.clone(source, vm)
    with driver.image(rig.spec, lambda: None) as source, pytest.raises(VMNameExists):
        driver.clone(source, vm)


# ---- clone, start, delete ----


def test_clone_makes_a_stopped_vm(rig, driver):
    """A clone is stopped and has the name that we gave it."""
    with driver.image(rig.spec, lambda: None) as source:
        driver.clone(source, rig.vm())
    assert {row.name: row.state for row in driver.listing()}[rig.vm()] is VMState.STOPPED


def test_clone_of_a_taken_name_says_so(rig, driver, vm):
    """Two VMs never have the same name."""
    with driver.image(rig.spec, lambda: None) as source, pytest.raises(VMNameExists):
        driver.clone(source, vm)


def test_clone_of_nothing_is_not_found(rig, driver):
    """A source that has vanished is reported as not found."""
    with pytest.raises(VMNotFound):
        driver.clone("gone", rig.vm())


@of_a_tool("a guest in memory answers at once")
def test_start_returns_when_the_guest_takes_commands(rig, driver):
    """The start waits for a guest that needs time to boot."""
    rig.boots_for(3)
    assert driver.run(rig.started(driver), "echo up", 20).output == "up"


@of_a_tool("a guest in memory answers at once")
def test_start_gives_up_on_a_guest_that_never_answers(rig):
    """A guest that does not come up within its deadline is a transient failure."""
    rig.boots_for(10_000)
    with pytest.raises(VMTransient, match=r"took no commands within 1\.5 s"):
        rig.started(rig.driver(deadlines=Deadlines(vm_start=1.5)))


@of_a_tool("a guest in memory answers at once")
def test_guest_that_hangs_while_booting_is_asked_again(rig, driver, monkeypatch):
    """One try that hangs does not use up the deadline."""
    rig.shorten(monkeypatch, "_READY_TRY", 0.5)
    rig.hang(rig.guest_verb)
    assert driver.run(rig.started(driver), "echo up", 20).output == "up"


def test_third_vm_is_refused_by_the_host(rig, driver):
    """A third running VM has its own kind of error, and the two that run are not harmed."""
    rig.host.start_foreign("somebody", hidden=True)
    first = rig.started(driver, 1)
    with pytest.raises(VMLimitReached):
        rig.started(driver, 2)
    assert rig.host.running() == [first]
    driver.delete(rig.vm(2))
    assert rig.host.max_running() <= 2


def test_start_of_nothing_is_not_found(rig, driver):
    """A missing VM cannot be started."""
    with pytest.raises(VMNotFound):
        driver.start(rig.vm())


@of_a_tool("a guest in memory answers at once")
def test_vm_that_dies_while_it_boots_is_a_failure_at_once(rig, driver):
    """The wait for a guest ends at once when its VM is deleted by others."""
    rig.boots_for(10_000)
    began = time.monotonic()
    errors = []

    def start():
        try:
            rig.started(rig.driver(Orders()))
        except (VMNotFound, VMTransient) as error:
            errors.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    rig.wait_for_command("true")
    rig.driver(Orders()).delete(rig.vm())
    thread.join()
    assert isinstance(errors[0], VMNotFound)
    assert time.monotonic() - began < 15


@of_a_tool("its guests share this machine's processes")
def test_delete_removes_a_running_vm_and_what_runs_in_it(rig, driver, vm):
    """Deletion ends the guest with every process in it, and gives the slot back."""
    driver.run(vm, "nohup sleep 300 >/dev/null 2>&1 & echo started", 20)
    assert rig.host.guest_processes(vm)
    driver.delete(vm)
    assert vm not in rig.names()
    assert rig.host.guest_processes() == []
    assert rig.host.slots() == []


def test_delete_is_idempotent(rig, driver, vm):
    """Deleting a missing VM succeeds."""
    driver.delete(vm)
    driver.delete(vm)
    driver.delete(rig.vm(99))


@of_a_tool("it breaks a command")
def test_delete_whose_reply_is_lost_is_done_the_second_time(rig, driver, vm):
    """A lost reply is a failure although the VM is gone; the second deletion succeeds."""
    rig.host.fault("delete", when="after", stdout="", exit_status=1)
    with pytest.raises(VMTransient):
        driver.delete(vm)
    driver.delete(vm)


@of_a_tool("it breaks a command")
def test_delete_that_did_nothing_is_not_believed(rig, driver, vm):
    """A deletion that reports success while the VM is still listed is a failure."""
    rig.host.fault("delete", when="before", stdout='{"status":"OK","body":{}}', exit_status=0)
    with pytest.raises(VMTransient, match="still there"):
        driver.delete(vm)


@of_a_tool("it breaks a command")
def test_delete_that_finds_nothing_is_checked(rig, driver, vm):
    """A "not found" alone does not prove that the VM is gone: the listing has the last word."""
    rig.deny("delete")
    with pytest.raises(VMTransient, match="still there"):
        driver.delete(vm)


@of_a_tool("it breaks a command")
def test_delete_without_a_listing_is_no_success(rig, driver, vm):
    """Without a listing, no VM counts as gone."""
    rig.host.fault("list", times=None, message="failed", code=1)
    with pytest.raises(VMTransient):
        driver.delete(vm)


def test_only_vms_of_ours_are_deleted(rig, driver):
    """A template's name is refused before any command runs."""
    with pytest.raises(NotOurVM, match="not one of our VMs"):
        driver.delete("macos")
    assert rig.host.calls() == []


# ---- in the guest ----


@pytest.mark.parametrize("status", [0, 1, 3, 125, 255])
def test_script_gives_its_status_and_output(driver, vm, status):
    """A script that ends is a result, whatever its status; its output streams are merged in order."""
    result = driver.run(vm, f"echo out; echo err >&2; exit {status}", 20)
    assert (result.status, result.output) == (status, "out\nerr")


def test_script_runs_in_the_guests_home_with_nothing_to_read(rig, driver, vm):
    """A script runs in the home directory, and none of its commands can read the rest of it."""
    result = driver.run(vm, 'cat; pwd -P; [ "$PWD" -ef "$HOME" ] && [ /dev/stdin -ef /dev/null ] && echo so', 20)
    assert result.output.splitlines() == [str(rig.host.guest_home(vm).resolve()), "so"]


def test_script_passes_unchanged(driver, vm):
    """Quotes, newlines, backslashes, heredocs, control characters and a missing last newline arrive unchanged."""
    script = (
        "printf '%s|' 'a b' \"it's\" '\\n' '\x01\x7f\t' 'ä→🍏' '$HOME'\n"
        "cat <<'EOF'\nanklet-end- 0\nEOF\necho '}'; printf 'no newline'"
    )
    assert driver.run(vm, script, 20).output == "a b|it's|\\n|\x01\x7f\t|ä→🍏|$HOME|anklet-end- 0\n}\nno newline"


def test_settings_are_data_in_the_guest(rig, driver, vm):
    """Values of settings are never executed, whatever they contain, and appear in no argv."""
    values = {
        "A": "$(touch pwned)`touch pwned`",
        "B": "'; touch pwned #\n\"",
        "LABELS": ",".join(["l" * 299] * 3),
        "C": "\\",
    }
    script = (
        exports(values) + "for name in A B LABELS C; do printf '%s' \"${!name}\" | base64 | tr -d '\\n'; echo; done"
    )
    lines = driver.run(vm, script, 20).output.splitlines()
    assert [base64.b64decode(line).decode() for line in lines] == list(values.values())
    assert not (rig.host.guest_home(vm) / "pwned").exists()
    assert not [argv for argv in rig.argvs() if "pwned" in argv or "lll" in argv]


def test_large_script_arrives_whole(driver, vm):
    """A script of 250 KB runs."""
    script = "# " + "x" * 200_000 + "\necho $((6 * 7))\n: " + shlex.quote("y" * 50_000)
    assert driver.run(vm, script, 30).output == "42"


def test_long_output_is_cut_to_its_tail(driver, vm):
    """The end of a long output is kept, and the status is still seen."""
    result = driver.run(vm, "echo first; head -c 3000000 /dev/zero | tr '\\0' x; echo; echo last; exit 5", 30)
    assert result.status == 5
    assert result.output.endswith("xx\nlast")
    assert len(result.output) <= 64 * 1024


def test_output_that_is_no_text_is_replaced(driver, vm):
    """Bytes that are not UTF-8 do not break the result."""
    assert driver.run(vm, "printf '\\377\\376 ok'", 20).output == "�� ok"


@of_a_tool("its guests share this machine's processes")
def test_script_leaves_background_processes(rig, driver, vm):
    """A background process of a script lives on, and is not waited for, even when it holds the output open."""
    rig.holds_output()
    began = time.monotonic()
    assert driver.run(vm, "sleep 300 & echo started", 30).output == "started"
    assert time.monotonic() - began < 15
    eventually(lambda: any("sleep" in str(process.argv) for process in rig.host.guest_processes(vm)))


def test_script_leaves_no_file_of_ours(rig, driver, vm):
    """Script and output may hold secrets; both files are gone when the script has ended."""
    home = rig.host.guest_home(vm)
    assert driver.run(vm, "ls -d .anklet.*/script", 20).status == 0
    assert list(home.iterdir()) == []


@of_a_tool("it changes a guest's environment")
def test_script_that_is_cut_off_leaves_files_in_the_guest_only(rig, vm, tmp_path):
    """The files of a script that is ended in the middle are in the guest, and go with its VM."""
    scratch = tmp_path / "shared"
    scratch.mkdir()
    rig.host.set(guest_env={"TMPDIR": str(scratch)})
    with pytest.raises(VMTransient):
        rig.driver().run(vm, "sleep 300", 1)
    assert list(scratch.iterdir()) == []


@of_a_tool("it feeds a tool")
def test_half_a_script_does_nothing(rig, driver, vm):
    """Input that breaks off (its worker died) runs no part of the script."""
    whole = wrapped("touch begun\n" * 100, "abc")
    runner = rig.commands()
    for length in (len(whole) // 2, len(whole) - 3, len(whole) - 1):
        result = runner.run(rig.guest_shell(vm), timeout=20, stdin=whole[:length])
        if length < len(whole) - 1:
            assert result.status != 0
            assert not (rig.host.guest_home(vm) / "begun").exists()


def test_script_that_does_not_end_is_transient(driver, vm):
    """A script that exceeds its time is not a result, and the call returns."""
    began = time.monotonic()
    with pytest.raises(VMTransient, match="did not end within 1 s"):
        driver.run(vm, "sleep 300", 1)
    assert time.monotonic() - began < 12


@of_a_tool("its guests cannot be lost")
def test_guest_that_is_lost_is_transient_and_betrays_nothing(rig, driver, vm):
    """The error for a guest that dies during a script quotes nothing that the script printed."""

    def lose():
        eventually((rig.host.guest_home(vm) / "begun").exists)
        rig.host.halt(vm)

    thread = threading.Thread(target=lose)
    thread.start()
    with pytest.raises(VMTransient) as caught:
        driver.run(vm, "set -x; echo s3cret; echo 's3cret: not found' >&2; touch begun; sleep 300", 30)
    thread.join()
    assert "s3cret" not in str(caught.value)


def test_script_that_kills_its_shell_is_transient(driver, vm):
    """A script without a report of its end is not a result."""
    with pytest.raises(VMTransient, match="its end was not seen"):
        driver.run(vm, "kill -9 $PPID; sleep 1", 20)


def test_script_cannot_forge_its_end(driver, vm):
    """A script's output never counts as the report of its end."""
    result = driver.run(vm, 'echo \'anklet-end-0123456789abcdef 0\'; echo \'{"status":"OK","body":"x"}\'; exit 9', 20)
    assert result.status == 9


def test_run_in_no_vm_is_not_found(rig, driver):
    """A missing VM is reported as not found."""
    with pytest.raises(VMNotFound):
        driver.run(rig.vm(), "true", 20)


def test_file_arrives_in_the_home_under_its_name_and_mode(rig, driver, vm, tmp_path):
    """A file is copied with content and mode."""
    path = tmp_path / "install-runner.bash"
    path.write_text("#!/bin/bash\necho installed\n")
    path.chmod(0o750)
    driver.copy_in(vm, path)
    assert driver.run(vm, "./install-runner.bash", 20).output == "installed"
    assert (rig.host.guest_home(vm) / path.name).stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize("real", ["elsewhere/mine.sh", "a:b/start-runner.bash"])
def test_link_arrives_as_a_file_under_the_links_name(rig, driver, vm, tmp_path, real):
    """A link is resolved on the host and keeps its own name; a colon in the path does not confuse the tool."""
    target = tmp_path / real
    target.parent.mkdir()
    target.write_text("echo linked\n")
    link = tmp_path / "start-runner.bash"
    link.symlink_to(target)
    driver.copy_in(vm, link)
    copy = rig.host.guest_home(vm) / link.name
    assert copy.read_text() == "echo linked\n"
    assert not copy.is_symlink()


def test_missing_file_is_fatal(driver, vm, tmp_path):
    """A missing file cannot be copied, however often it is tried."""
    with pytest.raises(FileUnusable, match="not a file"):
        driver.copy_in(vm, tmp_path / "missing")


def test_file_comes_out_of_the_guest(rig, driver, vm, tmp_path):
    """Any bytes arrive, also over an older file, and nothing else is left in the folder."""
    content = bytes(range(256)) * 300
    (rig.host.guest_home(vm) / "logs").mkdir()
    (rig.host.guest_home(vm) / "logs" / "packed.tgz").write_bytes(content)
    target = tmp_path / "out" / "logs.tgz"
    target.parent.mkdir()
    target.write_bytes(b"older")
    driver.copy_out(vm, "logs/packed.tgz", target)
    assert target.read_bytes() == content
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a b", "-x", "", "a;b", "a/../../b"])
def test_odd_paths_of_a_guest_reach_no_command(rig, driver, path, tmp_path):
    """Only plain words and slashes, inside the home, reach a command."""
    with pytest.raises(FileUnusable, match="not a path of plain words"):
        driver.copy_out(rig.vm(), path, tmp_path / "out")
    assert rig.host.calls() == []


@pytest.mark.parametrize(("what", "refusal"), [("missing", VMError), ("folder", FileUnusable), ("link", FileUnusable)])
def test_what_is_no_file_is_not_copied(rig, driver, vm, what, refusal, tmp_path):
    """A link is not followed, and nothing is left on the host."""
    home = rig.host.guest_home(vm)
    (home / "folder").mkdir()
    (home / "link").symlink_to("/etc/passwd")
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(refusal):
        driver.copy_out(vm, what, out / "file")
    assert list(out.iterdir()) == []


# ---- faults ----


@pytest.mark.parametrize("when", ["before", "middle"])
@of_a_tool("it breaks a command")
def test_command_that_hangs_is_transient(rig, monkeypatch, when):
    """A hanging command is ended at its time-out; its remains are deleted by name."""
    driver = rig.driver()
    rig.shorten(monkeypatch, "_CLONE", 1.0)
    rig.hang("clone", when)
    with driver.image(rig.spec, lambda: None) as source, pytest.raises(VMTransient, match="did not end within 1 s"):
        driver.clone(source, rig.vm())
    assert rig.host.command_pids() == []
    driver.delete(rig.vm())
    assert rig.vm() not in rig.names()


@pytest.mark.parametrize("garbage", ["", "what?", "[1, 2", "null", "42", '{"no": "status"}', "\x00\x01", "{" * 5000])
@of_a_tool("it breaks a command")
def test_garbage_is_fatal(rig, driver, garbage):
    """An unreadable answer does not count as success."""
    rig.host.fault(rig.telling_verb, when="before", stdout=garbage, exit_status=0)
    with (
        pytest.raises(AnswerUnreadable, match="cannot read the answer of"),
        driver.image(rig.spec, lambda: None) as source,
    ):
        driver.clone(source, rig.vm())
    assert rig.vm() not in rig.names()


@pytest.mark.parametrize(
    "stdout", ['{"status":"OK","body":{"name":"x"}}', '{"status":"OK","body":[{"status":"running"}]}', "oops"]
)
@of_a_tool("it breaks a command")
def test_listing_that_cannot_be_understood_is_fatal(rig, driver, stdout):
    """A listing with anything unreadable is refused completely: a VM that is overlooked would count as gone."""
    rig.host.fault("list", when="before", stdout=stdout, exit_status=0)
    with pytest.raises(AnswerUnreadable):
        driver.listing()


@of_a_tool("it breaks a command")
def test_noise_on_stderr_means_nothing(rig, driver):
    """Warnings on stderr do not spoil an answer."""
    rig.host.set(stderr_noise='warning: {"status":"ERROR"} not found\n')
    vm = rig.started(driver)
    assert driver.run(vm, "echo fine", 20).output == "fine"
    driver.delete(vm)


# ---- orders ----


def order_during(rig, word, give):
    """Give an order while a command with this word runs."""

    def wait_and_give():
        rig.wait_for_command(word)
        give()

    thread = threading.Thread(target=wait_and_give)
    thread.start()
    return thread


@of_a_tool("nothing in memory takes long enough for an order")
def test_stop_interrupts_a_script(rig, driver, vm):
    """A stop does not wait for a script."""
    thread = order_during(rig, "-s", rig.orders.stop)
    began = time.monotonic()
    with pytest.raises(Interrupted):
        driver.run(vm, "sleep 300", 300)
    thread.join()
    assert time.monotonic() - began < 15
    with rig.orders.shield():
        driver.delete(vm)


@of_a_tool("nothing in memory takes long enough for an order")
def test_stop_interrupts_the_wait_for_the_guest(rig, driver):
    """A stop does not wait for a guest to boot."""
    rig.boots_for(10_000)
    thread = order_during(rig, "true", rig.orders.stop)
    with pytest.raises(Interrupted):
        rig.started(driver)
    thread.join()


@of_a_tool("nothing in memory takes long enough for an order")
def test_stop_lets_a_clone_finish(rig, driver):
    """A clone is not cut in half by a stop."""
    rig.host.set(delays={"clone": 0.5})
    thread = order_during(rig, "clone", rig.orders.stop)
    with driver.image(rig.spec, lambda: None) as source:
        driver.clone(source, rig.vm())
    thread.join()
    assert rig.vm() in rig.names()


@of_a_tool("nothing in memory takes long enough for an order")
def test_detach_leaves_a_clone_to_its_end(rig, driver):
    """After a detach a clone goes on; the next process waits for it by its note, and finds the VM listed."""
    rig.host.set(delays={"clone": 1.0})
    thread = order_during(rig, "clone", rig.orders.detach)
    with pytest.raises(Detached), driver.image(rig.spec, lambda: None) as source:
        driver.clone(source, rig.vm())
    thread.join()
    note = rig.notes[-1]
    assert note.verb == "clone"
    settle_in_flight(note, 20)
    assert rig.vm() in {row.name for row in rig.driver(Orders()).listing()}


@of_a_tool("it counts a tool's commands")
def test_each_command_is_reported_with_its_outcome(rig, driver, vm):
    """Every command is counted under its own name, with its outcome and its seconds."""
    with pytest.raises(VMNotFound):
        driver.clone("gone", rig.vm(2))
    reported = {(verb, outcome) for verb, outcome, _ in rig.ended}
    assert {
        ("list", "done"),
        ("clone", "done"),
        ("clone", "not_found"),
        (rig.start_verb, "done"),
        (rig.guest_verb, "done"),
    } <= reported
    assert all(seconds > 0 for *_, seconds in rig.ended)


def test_nothing_is_left_in_the_temporary_folder(rig, monkeypatch, tmp_path):
    """Staged copies and captured outputs leave no files behind."""
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    driver = rig.driver()
    vm = rig.started(driver)
    source = tmp_path / "a"
    source.write_text("x")
    (tmp_path / "b").symlink_to(source)
    driver.copy_in(vm, tmp_path / "b")
    assert list(scratch.iterdir()) == []
