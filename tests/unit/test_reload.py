"""A reload: what the machine decides about each service, and which settings a worker gets."""

import itertools
from pathlib import Path

import msgspec
import pytest

from anklet_supervisor.config.load import LogConfig, MetricsConfig, SupervisorConfig
from anklet_supervisor.daemon.settings import Settings
from anklet_supervisor.machine import allocator, events
from anklet_supervisor.machine.events import (
    ConfigRead,
    ConfigRefused,
    ForgetService,
    KillWorker,
    ReadConfig,
    ReloadAsked,
    RenewSettings,
    Report,
    StartWorker,
    TakeConfig,
    Tell,
    WorkerExited,
    WorkerSaid,
    WorkerStarted,
)
from anklet_supervisor.machine.model import Fate, Moment
from anklet_supervisor.machine.orders import STOP_PATIENCE
from anklet_supervisor.machine.state import Mode, ServiceState
from anklet_supervisor.machine.step import initial, next_deadline, step
from anklet_worker.contract.service import ServiceConfig
from anklet_worker.contract.settings import Secret
from anklet_worker.link import messages as m
from anklet_worker.link.setup import WorkerSetup
from anklet_worker.link.slots import SlotState

ROOT = Path("/state")


class History:
    """A supervisor with two ready services, fed event by event."""

    def __init__(self, *, once=False, left=(), drain_timeout=None):
        self.now = 100.0
        allocation = allocator.build(2, 1, left, 0.0)
        self.model = initial(["A", "B"], allocation, once=once, drain_timeout=drain_timeout)
        self.feed(events.Began())
        for number, name in enumerate(self.model.services):
            self.feed(WorkerStarted(name, 10 + number), WorkerSaid(name, m.Ready(driver="anka", driver_version="3")))

    def feed(self, *events):
        """Feed events; return the effects of the last one."""
        for event in events:
            self.model, effects = step(self.model, event, Moment(self.now, self.now))
        return effects

    def reload(self, services="AB", changed="", vm_limit=2):
        """Perform a whole reload, from the request to the result."""
        asked = self.feed(ReloadAsked())
        assert ReadConfig() in asked
        return self.feed(
            ConfigRead(services=tuple(services), changed=frozenset(changed), vm_limit=vm_limit, drain_timeout=None)
        )

    def occupies(self, name, vm):
        """A worker makes a VM."""
        (grant,) = [e.command for e in self.feed(WorkerSaid(name, m.SlotWanted())) if isinstance(e, Tell)]
        self.feed(WorkerSaid(name, m.SlotOccupied(slot=grant.slot, vm=vm)))
        return grant.slot

    def crash_for_good(self, name):
        """Crash a worker until it is not restarted."""
        while self.model.services[name].state is not ServiceState.FATAL:
            self.feed(WorkerExited(name, -9))
            self.now += 61.0
            self.feed(events.Tick())

    def after(self, effects):
        """Effects without log lines."""
        return [one for one in effects if not isinstance(one, Report)]


@pytest.fixture
def history():
    """Two ready services."""
    return History()


def test_what_has_not_changed_is_not_touched(history):
    """An unchanged service gets no command, no new process and no new pid."""
    before = history.model.services
    effects = history.reload()
    assert history.after(effects) == [TakeConfig()]
    assert Report("INFO", "reloaded: no service has changed") in effects
    assert history.model.services == before


def test_a_changed_service_finishes_and_begins_with_new_settings(history):
    """The worker drains first. The settings change when its process is gone, with a fresh restart budget."""
    effects = history.reload(changed="A")
    assert history.after(effects) == [TakeConfig(), Tell("A", m.Drain())]
    assert Report("INFO", "reloaded: changed: A") in effects
    assert history.model.services["A"].fate is Fate.REPLACED
    history.feed(WorkerSaid("A", m.Ready(driver="anka", driver_version="3")))
    effects = history.feed(WorkerExited("A", 0))
    assert history.after(effects) == [RenewSettings("A"), StartWorker("A")]
    service = history.model.services["A"]
    assert (service.state, service.fate, service.crashes) == (ServiceState.STARTING, Fate.STAYS, ())


def test_a_changed_worker_that_dies_with_its_job_restarts_with_its_old_settings(history):
    """The old settings stay, because with the new ones the worker might not find the job."""
    history.occupies("A", "vm")
    history.reload(changed="A")
    effects = history.feed(WorkerExited("A", -9))
    assert history.after(effects) == [events.PublishSlots()]
    history.now += 2.0
    assert history.after(history.feed(events.Tick())) == [StartWorker("A")]
    assert history.after(history.feed(WorkerStarted("A", 30))) == [Tell("A", m.Drain())]
    history.feed(WorkerSaid("A", m.VMAdopted(vm="vm")), WorkerSaid("A", m.VMGone(vm="vm")))
    assert history.after(history.feed(WorkerExited("A", 0))) == [RenewSettings("A"), StartWorker("A")]


def test_old_settings_that_do_not_work_give_way(history):
    """If a worker cannot run with the old settings, the next one gets the new settings, without an operator."""
    history.occupies("A", "vm")
    history.reload(changed="A")
    effects = history.feed(WorkerExited("A", 77))
    assert [RenewSettings("A"), StartWorker("A")] == history.after(effects)[:2]
    assert [one.level for one in effects if isinstance(one, Report)] == ["WARN", "INFO"]


def test_a_removed_service_finishes_and_is_forgotten(history):
    """The service leaves the model with its process. Its slot is freed only by proof."""
    slot = history.occupies("B", "vm")
    effects = history.reload(services="A")
    assert history.after(effects) == [TakeConfig(), Tell("B", m.Drain())]
    history.feed(WorkerSaid("B", m.SlotReleased(slot=slot)))
    assert history.after(history.feed(WorkerExited("B", 0))) == [ForgetService("B")]
    assert list(history.model.services) == ["A"]


def test_a_removed_service_that_comes_back_begins_anew(history):
    """A service that returns gets a new worker: the old one is draining, and a drain cannot be undone."""
    history.reload(services="A")
    effects = history.reload(services="BA")
    assert history.after(effects) == [TakeConfig()]
    assert history.after(history.feed(WorkerExited("B", 0))) == [RenewSettings("B"), StartWorker("B")]
    assert list(history.model.services) == ["B", "A"]


def test_a_removed_service_that_cannot_clean_up_is_an_error(history):
    """One ERROR names the VM, and the VM keeps its slot."""
    history.occupies("B", "anklet-vm-x")
    history.reload(services="A")
    effects = history.feed(WorkerExited("B", 77))
    message = "the service is no longer configured, and nothing looks after its VM anklet-vm-x"
    assert Report("ERROR", message, "B") in effects
    assert history.model.allocation.table.slots[0].state is SlotState.ORPHANED


def test_a_new_service_starts_at_once(history):
    """A new service gets its place in the order of the file."""
    effects = history.reload(services="CAB")
    assert history.after(effects) == [TakeConfig(), RenewSettings("C"), StartWorker("C")]
    assert list(history.model.services) == ["C", "A", "B"]


@pytest.mark.parametrize("changed", [True, False])
def test_a_service_that_was_given_up_starts_afresh_when_it_changed(history, changed):
    """A changed service restarts after it was given up; an unchanged one does not."""
    history.crash_for_good("A")
    restarts = history.model.services["A"].restarts
    effects = history.after(history.reload(changed="A" if changed else ""))
    assert (StartWorker("A") in effects) is changed
    if changed:
        service = history.model.services["A"]
        assert (service.crashes, service.reason, service.restarts) == ((), "", restarts)


@pytest.mark.parametrize("services", ["AB", "B"])
def test_a_service_that_backs_off_and_owes_cleans_up_first(history, services):
    """The clean-up starts at once, with a fresh restart budget and the old settings."""
    history.occupies("A", "vm")
    history.feed(WorkerExited("A", 70))
    effects = history.after(history.reload(services=services, changed="A"))
    assert effects == [TakeConfig(), StartWorker("A")]
    assert history.after(history.feed(WorkerStarted("A", 40))) == [Tell("A", m.Drain())]


@pytest.mark.parametrize(("services", "effect"), [("AB", StartWorker("A")), ("B", ForgetService("A"))])
def test_a_service_that_backs_off_and_owes_nothing_changes_at_once(history, services, effect):
    """A change or a removal ends the back-off and takes effect at once."""
    history.feed(WorkerExited("A", 70))
    assert effect in history.reload(services=services, changed="A")
    assert next_deadline(history.model) is None


def test_the_last_of_two_reloads_wins(history):
    """If a second request comes while a configuration is being read, that result is not used."""
    history.feed(ReloadAsked())
    assert history.after(history.feed(ReloadAsked())) == []
    stale = ConfigRead(services=("A",), changed=frozenset("A"), vm_limit=1, drain_timeout=None)
    assert history.feed(stale) == [ReadConfig()]
    assert history.feed(ConfigRefused(("broken",)))[0].level == "ERROR"
    assert history.model.reload.answered == history.model.reload.asked == 2
    assert history.model.reload.problems == ("broken",)


def test_a_broken_configuration_changes_nothing(history):
    """One ERROR lists every problem."""
    history.feed(ReloadAsked())
    before = history.model.services
    problems = ("c.yml:1:2: no", "c.yml:3:4: nor this")
    message = "the configuration has errors; nothing has changed"
    assert history.feed(ConfigRefused(problems)) == [Report("ERROR", message, None, problems)]
    assert history.model.services == before


@pytest.mark.parametrize("order", [events.DrainAsked(), events.InterruptedBy(), events.RestartAsked()])
@pytest.mark.parametrize("read", [None, ConfigRefused(("x",)), "changed"])
def test_nothing_is_reloaded_while_it_ends(history, order, read):
    """If a request or a result comes during the shutdown, one WARN says that it is ignored."""
    if read is None:
        history.feed(order)
        effects = history.feed(ReloadAsked())
    else:
        history.feed(ReloadAsked(), order)
        if read == "changed":
            read = ConfigRead(services=("A",), changed=frozenset("A"), vm_limit=1, drain_timeout=None)
        effects = history.feed(read)
    (report,) = effects
    assert report.level == "WARN"
    assert "not reloaded" in report.message
    assert history.model.reload.refused
    assert len(history.model.services) == 2


def test_once_is_not_reloaded():
    """With `--once`, each service makes one pass with its first settings."""
    (report,) = History(once=True).feed(ReloadAsked())
    assert "--once" in report.message


def test_an_order_to_all_ends_a_replacement(history):
    """A drain during a replacement: no service starts again."""
    history.reload(services="A", changed="A")
    history.feed(events.Terminated())
    assert history.feed(WorkerExited("A", 0)) == []
    assert history.feed(WorkerExited("B", 0)) == [events.Finish(0)]


def test_a_smaller_limit_waits_for_slots_in_use(history):
    """Both VMs continue. The first free slot is retired, and a larger limit brings it back."""
    slots = {name: history.occupies(name, f"vm-{name}") for name in "AB"}
    history.reload(vm_limit=1)
    assert [slot.state for slot in history.model.allocation.table.slots] == [SlotState.OCCUPIED] * 2
    effects = history.feed(WorkerSaid("A", m.SlotReleased(slot=slots["A"])))
    assert history.after(effects) == [events.PublishSlots()]
    assert history.model.allocation.table.slots[0].state is SlotState.RETIRED
    assert history.after(history.feed(WorkerSaid("A", m.SlotWanted()))) == []
    effects = history.reload(vm_limit=3)
    assert [slot.state for slot in history.model.allocation.table.slots] == [
        SlotState.RESERVED, SlotState.OCCUPIED, SlotState.FREE,
    ]  # fmt: skip
    assert [one.command.slot.index for one in effects if isinstance(one, Tell)] == [0]


# ---- conflicting orders ----


@pytest.mark.parametrize("late", [events.Terminated(), events.DrainAsked(), events.InterruptedBy()])
def test_an_order_after_a_restart_comes_too_late_and_warns(history, late):
    """The workers detach. The exit code is still 75, so that the next start adopts the jobs."""
    history.feed(events.RestartAsked())
    (report,) = history.feed(late)
    assert report.level == "WARN"
    for name in "AB":
        effects = history.feed(WorkerExited(name, 75))
    assert effects == [events.Finish(75)]


def test_a_restart_ends_a_drain(history):
    """The jobs continue in their VMs, and the next start takes new jobs."""
    history.feed(events.Terminated())
    effects = history.feed(events.RestartAsked())
    assert events.DetachWorker("A") in effects
    assert history.model.restarting
    assert history.model.drain_deadline is None


def test_a_restart_during_a_stop_is_refused(history):
    """A WARN says so, and the stop continues."""
    history.feed(events.InterruptedBy())
    (report,) = history.feed(events.RestartAsked())
    assert (report.level, history.model.restarting) == ("WARN", False)


def test_a_stop_ends_although_the_clean_up_fails(history):
    """One worker crashes and leaves a VM, and one hangs: after STOP_PATIENCE neither starts again, and the supervisor ends."""
    history.occupies("A", "vm")
    history.feed(events.InterruptedBy(), WorkerExited("A", -9))
    assert history.model.services["A"].state is ServiceState.BACKOFF
    history.now += STOP_PATIENCE
    assert history.after(history.feed(events.Tick())) == [KillWorker("B")]
    assert history.model.services["A"].state is ServiceState.STOPPED
    assert history.feed(WorkerExited("B", -9)) == [events.Finish(0)]


def test_a_drain_waits_for_a_service_that_owes_and_its_deadline_goes_on():
    """The service's worker starts once more to clean up. The deadline still counts from the order."""
    history = History(drain_timeout=50.0)
    history.occupies("A", "vm")
    history.feed(WorkerExited("A", -9))
    history.feed(events.DrainAsked())
    history.feed(WorkerExited("B", 0))
    assert history.model.services["A"].state is ServiceState.BACKOFF
    history.now += 1.0
    assert history.feed(events.Tick()) == [StartWorker("A")]
    assert history.feed(WorkerStarted("A", 50)) == [Tell("A", m.Drain())]
    history.now += 49.0
    effects = history.feed(events.Tick())
    assert Tell("A", m.Stop()) in effects
    assert history.model.mode is Mode.STOPPING


# ---- settings ----


def config_of(*services, **more):
    """A configuration with these services, each given as a name or as a whole."""
    made = [ServiceConfig(name=one, plugin="p") if isinstance(one, str) else one for one in services]
    return SupervisorConfig(state_dir=ROOT, plugins_path=ROOT, pid_file_dir=ROOT, services=tuple(made), **more)


def setups_of(config):
    """The setups that `start` would create."""
    return {
        service.name: WorkerSetup(
            service=service,
            services=tuple(one.name for one in config.services),
            sweeps_strays=number == 0,
            once=False,
            install_id="0",
            host_id="h",
            boot_id="b",
            state_dir=config.state_dir,
            work_dir=config.work_dir,
            plugins_path=config.plugins_path,
            drain_file=ROOT / ".drain",
            log_level=config.log.level,
        )
        for number, service in enumerate(config.services)
    }


def settings_of(*services, **more):
    """The settings in force."""
    return Settings(config_of(*services, **more), setups_of)


@pytest.mark.parametrize(
    ("config", "changed"),
    [
        (config_of("A", "B"), set()),
        (config_of("B", "A", "C"), set()),
        (config_of("A", "B", log=LogConfig(level="DEBUG")), set()),
        (config_of("A", "B", vm_limit=1, drain_timeout=5.0), set()),
        (config_of("A", "B", work_dir=Path("/elsewhere")), {"A", "B"}),
        (config_of("A", ServiceConfig(name="B", plugin="p", settings={"token": Secret("new")})), {"B"}),
        (config_of(ServiceConfig(name="A", plugin="p", lease_ttl=61.0), "B"), {"A"}),
    ],
)
def test_what_counts_as_a_change(config, changed):
    """Settings and facts of the host count; the list of services and the log level do not."""
    assert settings_of("A", "B").compare(config).changed == changed


@pytest.mark.parametrize(
    ("now", "changed"), [(("anka",), set()), (("anka", "tart"), set()), (("anka", "other", "tart"), {"A"}), ((), set())]
)
def test_a_driver_whose_last_vm_has_gone_is_no_change(now, changed):
    """Each reload reads the drivers on record, but only a new one concerns the workers."""
    in_use = ["anka", "tart"]
    settings = Settings(
        config_of("A"),
        lambda config: {
            name: msgspec.structs.replace(setup, drivers=tuple(in_use)) for name, setup in setups_of(config).items()
        },
    )
    in_use[:] = now
    assert settings.compare(config_of("A")).changed == changed


def test_a_service_keeps_its_settings_until_it_is_renewed():
    """The comparison is with the settings that were adopted last, also at a second reload."""
    settings = settings_of("A")
    new = ServiceConfig(name="A", plugin="p", settings={"token": Secret("new")})
    assert settings.compare(config_of(new)).changed == {"A"}
    assert settings.compare(config_of(new)).changed == {"A"}, "what was only compared is not taken"
    list(settings.take())
    assert settings.compare(config_of(new)).changed == set()
    assert settings.for_start("A", ("A", "B")).service.settings == {}
    assert settings.renew("A") == new
    start = settings.for_start("A", ("B", "A"))
    assert (start.service, start.services, start.sweeps_strays) == (new, ("B", "A"), False)


def test_old_secrets_are_kept_out_of_the_log_as_long_as_they_are_in_use():
    """A worker with old settings keeps them."""
    settings = settings_of(ServiceConfig(name="A", plugin="p", settings={"token": Secret("old")}))
    settings.compare(config_of(ServiceConfig(name="A", plugin="p", settings={"token": Secret("new")})))
    list(settings.take())
    assert set(settings.secrets()) == {"old", "new"}
    settings.renew("A")
    assert set(settings.secrets()) == {"new"}


def test_what_waits_for_the_next_start_is_named_and_left():
    """Each reload warns about the key as long as its value differs."""
    settings = settings_of("A")
    other = msgspec.structs.replace(
        config_of("A", metrics=MetricsConfig(port=1), log=LogConfig(keep=9, level="DEBUG"), vm_limit=9),
        state_dir=Path("/other"),
    )
    for _ in range(2):
        read = settings.compare(other)
        assert (read.changed, read.vm_limit) == (set(), 4)
        assert list(settings.take()) == ["state_dir", "metrics.port", "log.keep", "vm_limit"]
    assert settings.for_start("A", ("A",)).state_dir == ROOT
    assert settings.log_level == "DEBUG"


def test_every_key_of_the_host_is_applied_or_named():
    """A reload applies a key, hands it to the services, or names it as waiting for a restart.

    A new key must be entered here.
    """
    applied = {"services", "work_dir", "plugins_path", "vm_limit", "drain_timeout"}
    inherited = {"vm_driver", "lease_ttl", "job_retry_attempts"}
    at_start = {"state_dir", "pid_file_dir", "metrics", "log"}
    fields = {field.name for field in msgspec.structs.fields(SupervisorConfig)}
    assert fields == set(itertools.chain(applied, inherited, at_start))
