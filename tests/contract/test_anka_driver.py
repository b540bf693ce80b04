"""The parts of the contract that only the anka driver has: probe, labels, templates, their registry, and the exact commands."""

import json
import shutil
import threading
import time

import pytest
from driver_rigs import AnkaRig, executable
from emulators.anka.bench import eventually

from anklet_worker.contract.errors import (
    CliUnavailable,
    ConfigError,
    Detached,
    ImageUnusable,
    Interrupted,
    PullBusy,
    RightsRefused,
    TemporaryError,
    ToolRefused,
    VMNotFound,
    VMTransient,
)
from anklet_worker.contract.job import VMSpec
from anklet_worker.contract.service import ServiceConfig
from anklet_worker.process.orders import Orders
from anklet_worker.vm.anka import driver as module
from anklet_worker.vm.anka import templates
from anklet_worker.vm.driver import VMState
from anklet_worker.vm.drivers import names, open_driver

UNTAGGED = VMSpec(template="macos")


@pytest.fixture
def rig(tmp_path):
    """An emulated host with the local template `macos`, tag v1, and a driver on it."""
    made = AnkaRig(tmp_path)
    yield made
    made.close()


@pytest.fixture
def driver(rig):
    """A driver as a worker has it."""
    return rig.driver()


def ensure(driver, spec, pulls=None):
    """Lock an image briefly; return its id."""
    with driver.image(spec, lambda: None if pulls is None else pulls.append(1)) as source:
        return source


# ---- probe ----


@pytest.mark.parametrize(
    ("version", "expected"), [("3.9.1", "3.9.1"), ("3.9.0 (build 200)", "3.9.0"), ("2.5.7", "2.5.7")]
)
def test_probe_cuts_the_version(rig, driver, version, expected):
    """Some versions of Anka append their build to the version."""
    rig.host.set(version=version)
    assert driver.probe().version == expected


def test_probe_needs_anka(rig):
    """Without `anka` on PATH the service cannot run; the message names the PATH."""
    rig.host.environ = lambda **_: {"PATH": "/nowhere"}
    with pytest.raises(CliUnavailable, match=r"anka is not on PATH \(/nowhere\); is it installed"):
        rig.driver().probe()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo dyld: no such library >&2; exit 134", "dyld: no such library"),
        ("exit 0", "cannot read the answer of .*: nothing"),
        ("echo Anka 3.9.1", "cannot read the answer of .*: Anka 3.9.1"),
        ('echo \'{"status":"OK","body":"3.9.1"}\'', "cannot read the answer of .*: 3.9.1"),
    ],
)
def test_probe_refuses_what_it_does_not_understand(rig, tmp_path, script, said):
    """An `anka` that does not start, or answers garbage, makes the service unfit; the message quotes it."""
    env = executable(tmp_path / "odd" / "anka", script)
    rig.host.environ = lambda **_: env
    with pytest.raises(CliUnavailable, match=said):
        rig.driver().probe()


def test_probe_that_hangs_is_worth_another_start(rig, driver, monkeypatch):
    """Anka may be slow on a host that has just booted: the service tries again."""
    monkeypatch.setattr(module, "_PROBE", 1.0)
    rig.hang("version")
    with pytest.raises(TemporaryError, match="did not end within 1 s"):
        driver.probe()


@pytest.mark.parametrize("status", ["expired", "invalid", ""])
def test_probe_refuses_a_licence_that_is_not_valid(rig, driver, status):
    """The licence's status is named."""
    rig.host.set(license_status=status)
    with pytest.raises(RightsRefused, match=status or "unknown"):
        driver.probe()


@pytest.mark.parametrize("kind", ["com.veertu.anka.run", "com.veertu.anka.develop"])
def test_probe_refuses_a_licence_that_cannot_do_this(rig, driver, kind):
    """Licences for one VM, without registry, are refused by name."""
    rig.host.set(license_type=kind)
    with pytest.raises(RightsRefused, match=kind):
        driver.probe()


def test_probe_tells_of_a_licence_command_that_fails(rig, driver):
    """An error of the licence command is a refusal, in Anka's words."""
    rig.host.fault("license", code=1, message="EULA needs to be accepted")
    with pytest.raises(RightsRefused, match="EULA needs to be accepted"):
        driver.probe()


# ---- labels ----


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["anka", "anka-template:macos"], VMSpec(template="macos")),
        (["anka-template-tag:v1", "self-hosted", "anka-template:a b", "anka"], VMSpec(template="a b", tag="v1")),
        (["Anka", "ANKA-Template:MacOS", "Anka-Template-Tag:V1"], VMSpec(template="MacOS", tag="V1")),
        (["anka", "anka-template:one", "anka-template:two"], VMSpec(template="one")),
        (["anka", "anka-template:x:y", "anka-template-tag:"], VMSpec(template="x:y")),
        (["anka", "anka-template:"], VMSpec(template="")),
        (["anka"], None),
        (["anka", "anka-template-tag:v1"], None),
        (["anka-template:macos"], None),
        (["ankara", "anka-template:macos"], None),
    ],
)
def test_labels(driver, labels, expected):
    """Label and prefixes are compared without regard to case, values keep theirs; the first match counts."""
    assert driver.spec_from_labels(labels) == expected


# ---- templates that are here ----


@pytest.mark.parametrize("tag", ["v1", None])
def test_template_is_found_by_name_and_by_uuid(rig, driver, tag):
    """Both name the same template, which is cloned by its uuid."""
    for template in ("macos", rig.uuid):
        assert ensure(driver, VMSpec(template=template, tag=tag)) == rig.uuid


def test_present_tag_asks_no_registry(rig, driver):
    """For a present tag, one listing is enough."""
    ensure(driver, rig.spec)
    assert rig.argvs() == ["-j list macos"]


def test_registry_that_is_down_hinders_no_present_tag(rig, driver):
    """A present tag needs no registry."""
    rig.host.set(registry_down=True)
    assert ensure(driver, rig.spec) == rig.uuid
    assert rig.log.warnings() == []


def test_vm_of_a_job_is_no_template(rig, driver):
    """A job cannot look into another job's VM by its name or uuid."""
    vm = rig.started(driver)
    uuid = next(row.uuid for row in driver.listing() if row.name == vm)
    for template in (vm, uuid):
        with pytest.raises(VMNotFound, match="not a template"):
            ensure(driver, VMSpec(template=template))


def test_local_template_that_was_never_pushed_is_used(rig, driver):
    """Without a tag, a template that the registry does not know is used, without a warning."""
    assert ensure(driver, UNTAGGED) == rig.uuid
    assert rig.log.warnings() == []


# ---- templates that are pulled ----


def test_missing_template_is_pulled_by_tag(rig, driver):
    """A missing template is pulled with its tag; the pull is announced once."""
    uuid = rig.host.add_registry_template("ventura", tags=["a", "b"])
    pulls = []
    assert ensure(driver, VMSpec(template="ventura", tag="a"), pulls) == uuid
    assert pulls == [1]
    assert "-j registry pull --shrink ventura --tag a" in rig.argvs()
    assert rig.argvs("--check-download-size") == []
    assert next(row.tag for row in driver.listing() if row.uuid == uuid) == "a"
    assert ensure(driver, VMSpec(template=uuid, tag="a"), pulls) == uuid
    assert pulls == [1]


def test_other_tag_is_pulled_and_replaces_the_first(rig, driver):
    """A missing tag is pulled even when another is present; only one is kept."""
    uuid = rig.host.add_registry_template("ventura", tags=["a", "b"])
    for tag in ("a", "b", "a"):
        ensure(driver, VMSpec(template="ventura", tag=tag))
        assert next(row.tag for row in driver.listing() if row.uuid == uuid) == tag
    assert len(rig.argvs("pull")) == 3
    assert list(next(vm for vm in rig.host.vms() if vm["uuid"] == uuid)["tags"]) == ["a"]


def test_untagged_local_template_does_not_do_for_a_tag(rig, driver):
    """A local template without a tag does not count as the wanted tag."""
    rig.host.add_template("bare")
    with pytest.raises(VMNotFound):
        ensure(driver, VMSpec(template="bare", tag="v1"))
    assert rig.argvs("pull") == ["-j registry pull --shrink bare --tag v1"]


def test_registry_of_the_configuration_is_used(rig):
    """Each command for the registry has the registry_url."""
    rig.host.set(registry_url="http://registry:8089")
    rig.host.add_registry_template("ventura")
    ensure(rig.driver(registry_url="http://registry:8089"), VMSpec(template="ventura"))
    assert rig.argvs("pull") == ["-j registry --remote http://registry:8089 pull --shrink ventura"]


def test_newest_is_pulled_only_when_it_is_not_here(rig, driver):
    """Without a tag, the registry is asked and only a newer template is pulled."""
    uuid = rig.host.add_registry_template("ventura", tags=["a"])
    pulls = []
    spec = VMSpec(template="ventura")
    ensure(driver, spec, pulls)
    ensure(driver, spec, pulls)
    assert pulls == [1]
    rig.host.add_registry_template("ventura", uuid, tags=["a", "b"])
    ensure(driver, spec, pulls)
    assert pulls == [1, 1]
    assert next(row.tag for row in driver.listing() if row.uuid == uuid) == "b"
    assert rig.argvs("--check-download-size") == ["-j registry pull --check-download-size ventura"] * 2


@pytest.mark.parametrize("body", [{}, {"size": 5, "cached": 5, "available": 9}])
def test_answer_that_all_is_here_pulls_nothing(rig, driver, body):
    """Both forms of the answer "nothing to pull" are understood."""
    rig.host.fault("pull", when="before", stdout=json.dumps({"status": "OK", "body": body}), exit_status=0)
    pulls = []
    assert ensure(driver, UNTAGGED, pulls) == rig.uuid
    assert pulls == []


def test_registry_that_is_down_leaves_the_local_copy(rig, driver):
    """Without a tag and without a registry the local copy is used, with a warning."""
    rig.host.set(registry_down=True)
    assert ensure(driver, UNTAGGED) == rig.uuid
    [(level, _, err)] = rig.log.warnings()
    assert level == "WARNING"
    assert "request failed with result 7" in err


def test_registry_that_hangs_leaves_the_local_copy(rig, driver, monkeypatch):
    """A registry that does not answer in time counts as down."""
    monkeypatch.setattr(templates, "_CHECK_SIZE", 1.0)
    rig.host.fault("pull", when="before", hang=True)
    assert ensure(driver, UNTAGGED) == rig.uuid
    assert "did not end within 1 s" in rig.log.warnings()[0][2]


def test_newest_that_cannot_be_pulled_leaves_the_local_copy(rig, driver):
    """When the pull of a newer template fails, the local copy is used, with a warning."""
    uuid = rig.host.add_registry_template("ventura", tags=["a"])
    ensure(driver, VMSpec(template="ventura"))
    rig.host.add_registry_template("ventura", uuid, tags=["a", "b"])
    rig.host.fault("pull", match="--shrink", when="before", message="No space left on device", code=28)
    assert ensure(driver, VMSpec(template="ventura")) == uuid
    assert "No space left" in rig.log.warnings()[0][2]


def test_registry_that_is_down_and_no_local_copy_is_transient(rig, driver):
    """A template that cannot be pulled now leads to a retry."""
    rig.host.set(registry_down=True)
    rig.host.add_registry_template("ventura")
    for spec in (VMSpec(template="ventura"), VMSpec(template="ventura", tag="v1"), VMSpec(template="macos", tag="v2")):
        with pytest.raises(VMTransient, match="request failed"):
            ensure(driver, spec)


@pytest.mark.parametrize("template", ["ventura", "nowhere"])
def test_what_the_registry_does_not_have_is_not_found(rig, driver, template):
    """A template or tag that the registry lacks is not the same as a registry that fails."""
    rig.host.add_registry_template("ventura", tags=["a"])
    with pytest.raises(VMNotFound):
        ensure(driver, VMSpec(template=template, tag="zzz"))


def test_registrys_own_words_for_a_missing_tag(rig, driver):
    """An error text of the registry is understood without a code."""
    rig.host.fault("pull", message="400 Did not find any versions with tag v9")
    with pytest.raises(VMNotFound):
        ensure(driver, VMSpec(template="macos", tag="v9"))


def test_failed_template_is_pulled_once(rig, driver):
    """A local copy in state failed is replaced by a pull."""
    uuid = rig.host.add_registry_template("ventura", tags=["a"])
    spec = VMSpec(template="ventura", tag="a")
    ensure(driver, spec)
    failed = {"name": "ventura", "uuid": uuid, "version": "a", "status": "failed"}
    answer = json.dumps({"status": "OK", "body": [failed]})
    rig.host.fault("list", when="before", stdout=answer, exit_status=0)
    assert ensure(driver, spec) == uuid
    assert len(rig.argvs("--shrink")) == 2


def test_template_that_stays_failed_is_fatal(rig, driver):
    """When the pull does not help, the message says what to remove."""
    uuid = rig.host.add_registry_template("ventura", tags=["a"])
    answer = json.dumps(
        {"status": "OK", "body": [{"name": "ventura", "uuid": uuid, "version": "a", "status": "failed"}]}
    )
    rig.host.fault("list", when="before", stdout=answer, exit_status=0, times=None)
    with pytest.raises(ImageUnusable, match=f"anka delete {uuid}"):
        ensure(driver, VMSpec(template="ventura", tag="a"))


def test_pull_with_progress_and_without_newline_is_understood(rig, driver):
    """Progress in JSON before the result and a missing newline after it do not matter."""
    rig.host.set(pull_progress_lines=200, pull_newline=False)
    rig.host.add_registry_template("ventura")
    assert ensure(driver, VMSpec(template="ventura"))


def test_pull_that_hangs_is_ended(rig, driver, monkeypatch):
    """A pull has a time limit, after which its locks are free."""
    monkeypatch.setattr(templates, "_PULL", 1.0)
    rig.host.add_registry_template("ventura")
    rig.host.fault("pull", when="middle", hang=True)
    with pytest.raises(VMTransient, match="anka pull did not end within 1 s"):
        ensure(driver, VMSpec(template="ventura"))
    assert rig.host.command_pids() == []
    assert ensure(driver, VMSpec(template="ventura"))


# ---- who may pull, who may clone ----


class Pulling:
    """A pull by another driver, in a thread, that runs until an order ends it."""

    def __init__(self, rig, spec):
        self.rig = rig
        self.orders = Orders()
        self.error = None
        rig.host.fault("pull", match="--shrink", when="middle", hang=True)
        self.thread = threading.Thread(target=self._pull, args=(rig.driver(self.orders), spec))
        self.thread.start()
        eventually(rig.host.command_pids)
        eventually(lambda: rig.argvs("--shrink"))

    def _pull(self, driver, spec):
        try:
            ensure(driver, spec)
        except (Detached, Interrupted) as error:
            self.error = error

    def end(self, order):
        """Give the order and wait for the driver to obey; the exception that it raised."""
        order()
        self.thread.join()
        return self.error


def test_second_pull_is_refused_while_one_runs(rig, driver):
    """Two pulls never run on one host, even of different templates; present templates are still used."""
    rig.host.add_registry_template("ventura")
    rig.host.add_registry_template("sonoma")
    pulling = Pulling(rig, VMSpec(template="ventura"))
    announced = []
    with pytest.raises(PullBusy):
        ensure(driver, VMSpec(template="sonoma"), announced)
    assert announced == []
    assert driver.pulling()
    assert ensure(driver, rig.spec) == rig.uuid
    assert isinstance(pulling.end(pulling.orders.stop), Interrupted)
    assert not driver.pulling()
    assert ensure(driver, VMSpec(template="sonoma"))
    assert rig.host.events("pull-overlap", "corruption") == []


def test_stop_ends_a_pull(rig):
    """A stop does not wait for gigabytes; the pull's process and its note are gone."""
    rig.host.add_registry_template("ventura")
    pulling = Pulling(rig, VMSpec(template="ventura"))
    pulling.end(pulling.orders.stop)
    assert rig.host.command_pids() == []
    assert not (rig.folder / "state" / "locks" / "pull.json").exists()


def test_detached_pull_goes_on_and_keeps_its_locks(rig, driver):
    """A detach leaves a pull running to its end; meanwhile no other pull runs and its template is not cloned."""
    uuid = rig.host.add_registry_template("ventura")
    rig.host.set(delays={"pull": 2.0}, pull_progress_lines=50)
    orders = Orders()
    thread = threading.Thread(target=lambda: (rig.wait_for_command("--shrink"), orders.detach()))
    thread.start()
    with pytest.raises(Detached):
        ensure(rig.driver(orders), VMSpec(template="ventura"))
    thread.join()
    with pytest.raises(PullBusy):
        ensure(driver, VMSpec(template="macos", tag="v2"))
    assert (rig.folder / "state" / "locks" / "pull.json").exists()
    assert "registry" not in [note.verb for note in rig.notes if note]

    def available():
        try:
            return ensure(driver, VMSpec(template="ventura")) == uuid
        except PullBusy:
            return False

    eventually(available)
    assert len(rig.argvs("--shrink")) == 1
    assert rig.host.events("pull-interrupted", "pull-overlap", "corruption") == []


def test_no_pull_replaces_an_image_in_use(rig, driver):
    """While an image is held for a clone, another worker cannot switch its tag."""
    rig.host.add_registry_template("macos", rig.uuid, tags=["v1", "v2"])
    other = rig.driver(Orders())
    with driver.image(rig.spec, lambda: None) as source:
        with pytest.raises(PullBusy, match="is being cloned"):
            ensure(other, VMSpec(template="macos", tag="v2"))
        assert not other.pulling()
        driver.clone(source, rig.vm())
    assert ensure(other, VMSpec(template="macos", tag="v2")) == rig.uuid
    assert rig.host.events("corruption") == []


def test_pull_of_an_unknown_name_keeps_others_from_cloning_it_by_uuid(rig, driver):
    """A template is locked by name and by uuid: one that is being pulled by name cannot be cloned by uuid."""
    uuid = rig.host.add_registry_template("ventura", tags=["a"])
    pulling = Pulling(rig, VMSpec(template="ventura", tag="a"))
    listed = json.dumps(
        {"status": "OK", "body": [{"name": "ventura", "uuid": uuid, "version": "a", "status": "stopped"}]}
    )
    rig.host.fault("list", when="before", stdout=listed, exit_status=0, match=uuid)
    with pytest.raises(PullBusy, match="is being pulled"):
        ensure(driver, VMSpec(template=uuid, tag="a"))
    pulling.end(pulling.orders.stop)


def test_image_that_changed_while_it_was_looked_for_is_not_used(rig, driver):
    """A pull that comes between listing and lock is noticed."""
    uuid = rig.host.add_registry_template("macos", rig.uuid, tags=["v1", "v2"])
    other = rig.driver(Orders())
    listing = driver._templates._list
    switched = []

    def list_then_switch(*names):
        rows = listing(*names)
        if not switched:
            switched.append(ensure(other, VMSpec(template="macos", tag="v2")))
        return rows

    driver._templates._list = list_then_switch
    with pytest.raises(PullBusy, match="another pull came in between"):
        ensure(driver, rig.spec)
    assert switched == [uuid]


def test_image_that_came_meanwhile_is_not_pulled_again(rig, driver):
    """A worker that gets the right to pull just after another pull looks again instead of pulling."""
    rig.host.add_registry_template("ventura", tags=["a"])
    spec = VMSpec(template="ventura", tag="a")
    other = rig.driver(Orders())
    listing = driver._templates._list
    pulled = []

    def find_nothing_then_others_pull(*names):
        if pulled:
            return listing(*names)
        pulled.append(ensure(other, spec))
        return []

    driver._templates._list = find_nothing_then_others_pull
    with pytest.raises(PullBusy, match="another pull came in between"):
        ensure(driver, spec)
    assert ensure(driver, spec) == pulled[0]
    assert len(rig.argvs("--shrink")) == 1


def test_pull_of_something_else_meanwhile_does_not_matter(rig, driver):
    """A pull of another template between listing and lock does not matter."""
    rig.host.add_registry_template("ventura")
    other = rig.driver(Orders())
    listing = driver._templates._list
    switched = []

    def list_then_pull(*names):
        rows = listing(*names)
        if not switched:
            switched.append(ensure(other, VMSpec(template="ventura")))
        return rows

    driver._templates._list = list_then_pull
    assert ensure(driver, rig.spec) == rig.uuid


# ---- answers in other shapes ----


@pytest.mark.parametrize("shape", ["raw", "append", "wrap"])
def test_guest_output_in_every_shape(rig, driver, shape):
    """A guest's output is found in every form that versions of Anka give it."""
    rig.host.set(run_json=shape)
    vm = rig.started(driver)
    result = driver.run(vm, "echo 'a \"b\" \\n'; exit 4", 20)
    assert (result.status, result.output) == (4, 'a "b" \\n')


@pytest.mark.parametrize("shape", ["[]", "null", "missing", "nothing"])
def test_host_without_vms(tmp_path, shape):
    """An empty listing in any of its forms is empty, and proves that a VM is gone."""
    rig = AnkaRig(tmp_path)
    driver = rig.driver()
    vm = rig.started(driver)
    rig.host.stop_foreign("macos")
    rig.host.set(empty_list=shape)
    driver.delete(vm)
    assert driver.listing() == []
    rig.close()


def test_a_listing_that_is_silent_once_is_asked_for_again(rig, driver):
    """A job is given up when its VM is not listed, so one silent listing is not enough."""
    vm = rig.started(driver)
    rig.host.fault("list", when="before", stdout="", exit_status=0, match="list$")
    assert vm in [row.name for row in driver.listing()]


def test_a_full_disk_is_a_passing_error_of_a_copy(rig, driver, tmp_path, monkeypatch):
    """A full disk is a passing error for a script that must be copied aside first."""

    def full(*_args):
        raise OSError(28, "No space left on device")

    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    monkeypatch.setattr(shutil, "copy2", full)
    with pytest.raises(VMTransient, match=r"cannot copy .* aside: No space"):
        driver.copy_in("anklet-vm-x", tmp_path / "link")


def test_silent_listing_proves_nothing(rig, driver):
    """A listing that prints nothing does not prove that a VM is gone."""
    vm = rig.started(driver)
    rig.host.fault("list", when="before", stdout="", exit_status=0, match="list$")
    rig.host.fault("delete", when="before", stdout='{"status":"OK"}', exit_status=0)
    with pytest.raises(VMTransient, match="still there"):
        driver.delete(vm)


def test_eula_that_was_not_accepted_is_fatal(rig, driver):
    """An error with an object for a body is an error, not an empty listing."""
    rig.host.set(eula_accepted=False)
    with pytest.raises(ToolRefused, match="EULA needs to be accepted; accept the EULA on this host"):
        driver.listing()


def test_unknown_codes_do_not_matter(rig, driver):
    """The limit is recognised by its text, whatever the code and the exit status."""
    rig.host.set(limit_always=True, limit_code=3, error_exit=77)
    with pytest.raises(Exception, match="maximum number of running instances") as caught:
        rig.started(driver)
    assert type(caught.value).__name__ == "VMLimitReached"


# ---- the words of the commands ----


def test_commands_of_a_whole_life(rig, driver, tmp_path):
    """One job's commands, word for word."""
    script = tmp_path / "start-runner.bash"
    script.write_text("true\n")
    vm = rig.started(driver)
    driver.copy_in(vm, script)
    driver.run(vm, "true", 20)
    driver.delete(vm)
    assert rig.argvs() == [
        "-j list macos",
        f"-j clone {rig.uuid} {vm}",
        f"-j start {vm}",
        f"-j run {vm} true",
        f"-j cp -a {script.resolve()} {vm}:",
        f"-j run {vm} bash -s",
        f"-j delete --yes {vm}",
        "-j list",
    ]


@pytest.mark.parametrize("left", ["folder", "file", "link"])
def test_remains_of_a_killed_copy_do_not_matter(rig, driver, left, tmp_path):
    """A worker that dies during a copy leaves its folder; a `cp` that outlives a worker makes something in its place."""
    vm = rig.started(driver)
    (rig.host.guest_home(vm) / "logs.tgz").write_bytes(b"packed")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    out = tmp_path / "out"
    out.mkdir()
    remains = out / ".logs.tgz.copying"
    if left == "folder":
        remains.mkdir()
        (remains / "logs.tgz").write_bytes(b"half")
    elif left == "file":
        remains.write_bytes(b"half")
    else:
        remains.symlink_to(elsewhere)
    driver.copy_out(vm, "logs.tgz", out / "logs.tgz")
    assert [path.name for path in out.iterdir()] == ["logs.tgz"]
    assert (out / "logs.tgz").read_bytes() == b"packed"
    assert list(elsewhere.iterdir()) == [elsewhere / "kept"]


def test_copy_to_a_path_with_a_colon(rig, driver, tmp_path):
    """`anka cp` would take the part before the colon for a VM."""
    vm = rig.started(driver)
    (rig.host.guest_home(vm) / "logs.tgz").write_bytes(b"packed")
    out = tmp_path / "a:b"
    out.mkdir()
    driver.copy_out(vm, "logs.tgz", out / "logs.tgz")
    assert [path.name for path in out.iterdir()] == ["logs.tgz"]


def test_unknown_driver_is_a_configuration_error(rig, tmp_path):
    """An unknown driver is refused by name."""
    assert "anka" in names()
    service = ServiceConfig(name="a", plugin="github", vm_driver="magic")
    with pytest.raises(ConfigError, match="'magic'"):
        open_driver(service, tmp_path, None, rig.orders, None)


def test_start_does_not_wait_for_longer_than_it_says(rig, driver):
    """A start takes about as long as the guest needs."""
    began = time.monotonic()
    rig.started(driver)
    assert time.monotonic() - began < 10
    assert {row.name: row.state for row in driver.listing()}[rig.vm()] is VMState.RUNNING


# ---- reuse of a listing ----


@pytest.mark.parametrize("tag", ["v1", None])
def test_one_listing_and_at_most_one_question_before_the_clone(rig, driver, tag):
    """From the slot check to the clone: one `anka list`, and one question to the registry when the job names no tag."""
    driver.listing()
    with driver.image(VMSpec(template="macos", tag=tag), lambda: None) as source:
        driver.clone(source, rig.vm())
    question = [] if tag else ["-j registry pull --check-download-size macos"]
    assert rig.argvs() == ["-j list", *question, f"-j clone {rig.uuid} {rig.vm()}"]


def test_listing_finds_a_template_by_uuid_too(rig, driver):
    """A job may name a template by its uuid."""
    driver.listing()
    assert ensure(driver, VMSpec(template=rig.uuid, tag="v1")) == rig.uuid
    assert rig.argvs() == ["-j list"]


def test_listing_without_the_wanted_tag_decides_nothing(rig, driver):
    """A stale listing never starts a pull: the driver lists the templates again first."""
    rig.host.add_registry_template("ventura", tags=["a"])
    driver.listing()
    ensure(driver, VMSpec(template="ventura", tag="a"))
    assert rig.argvs()[:3] == ["-j list", "-j list ventura", "-j registry pull --shrink ventura --tag a"]


def test_pull_after_the_listing_makes_it_stale(rig, driver):
    """Another worker switched the tag between the slot check and the clone."""
    rig.host.add_registry_template("macos", rig.uuid, tags=["v1", "v2"])
    driver.listing()
    ensure(rig.driver(Orders()), VMSpec(template="macos", tag="v2"))
    pulls = []
    ensure(driver, rig.spec, pulls)
    assert pulls == [1]


def test_listing_during_a_pull_is_not_handed_on(rig, driver):
    """The pull began before the listing and ends after it, so the listing could not show its result."""
    rig.host.add_registry_template("ventura")
    pulling = Pulling(rig, VMSpec(template="ventura"))
    driver.listing()
    assert ensure(driver, rig.spec) == rig.uuid
    assert len(rig.argvs("list")) == 3
    pulling.end(pulling.orders.stop)


def test_template_that_was_deleted_after_the_listing(rig, driver):
    """The clone fails. The next try comes soon, lists again, and pulls the template again."""
    uuid = rig.host.add_registry_template("ventura", tags=["a"])
    spec = VMSpec(template="ventura", tag="a")
    ensure(driver, spec)
    driver.listing()
    rig.host.stop_foreign("ventura")
    with pytest.raises(VMTransient, match="it was there some seconds ago"), driver.image(spec, lambda: None) as source:
        driver.clone(source, rig.vm())
    pulls = []
    with driver.image(spec, lambda: pulls.append(1)) as source:
        driver.clone(source, rig.vm())
    assert (pulls, source) == ([1], uuid)
