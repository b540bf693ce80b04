"""Tests of the checker: a sound run passes, and each rule notices the journal that breaks it."""

import copy

import pytest
from invariants import checker, spans
from invariants.evidence import Evidence, HostEvidence

INSTALL = "0a1b2c3d"
TOKEN = "an-odd-looking-secret"


def name(job, attempt=1):
    """The name of a VM and runner."""
    return f"anklet-vm-{INSTALL}-aaaaaa-{job}-{attempt}"


def call(at, *argv, seconds=0.1, pid=100):
    """One invocation of anka."""
    return {"call": f"{pid}-{at}", "pid": pid, "argv": ["-j", *argv], "start": at, "end": at + seconds, "status": 0}


def host_event(at, event, vm, running):
    """One line of an emulated Mac's journal."""
    return {"time": at, "event": event, "name": vm, "running": running}


def github_event(at, event, job, **more):
    """One line of GitHub's journal."""
    return {"time": at, "event": event, "job_id": job, **more}


def life(job, begin):
    """GitHub's journal of a job that runs within three seconds."""
    runner = {"runner_name": name(job)}
    return [
        github_event(begin, "job-queued", job),
        {"time": begin + 0.5, "event": "runner-registered", **runner},
        github_event(begin + 1, "job-assigned", job, **runner),
        github_event(begin + 1, "job-started", job, **runner),
        github_event(begin + 2, "job-completed", job, conclusion="success", reason="reported by its runner", **runner),
    ]


def vm_life(job, begin):
    """The anka calls for such a job, and their effects."""
    vm = name(job)
    calls = [
        call(begin + 0.1, "clone", "macos-15", vm),
        call(begin + 0.2, "start", vm),
        call(begin + 0.4, "run", vm, "bash", "-s"),
        call(begin + 2.1, "delete", "--yes", vm),
        call(begin + 2.3, "list"),
    ]
    events = [
        host_event(begin + 0.15, "cloned", vm, 0),
        host_event(begin + 0.25, "started", vm, 1),
        host_event(begin + 2.2, "stopped", vm, 0),
        host_event(begin + 2.2, "deleted", vm, 0),
    ]
    return calls, events


def sound():
    """A sound run of two jobs, one after the other."""
    calls, events = [], []
    for number, job in enumerate((1, 2)):
        more_calls, more_events = vm_life(job, 10 * number)
        calls += more_calls
        events += more_events
    jobs = [{"id": job, "name": f"job-{job}", "released": True, "starts": 1, "status": "completed"} for job in (1, 2)]
    request = {"method": "GET", "path": "/repos/acme/app/actions/runs", "query": {"status": "queued"}, "body": None}
    host = HostEvidence(
        name="mac",
        calls=calls,
        events=events,
        vms=[{"name": "macos-15", "status": "stopped"}, {"name": "theirs", "status": "stopped"}],
        slots=[],
        foreign=["theirs", "macos-15"],
    )
    return Evidence(
        hosts=[host],
        jobs=jobs,
        events=life(1, 0) + life(2, 10),
        runners=[{"name": "their-runner", "status": "offline", "busy": False}],
        requests=[{**request, "status": 200, "fault": False}],
        anomalies=[],
        redis_keys=["anklet:{acme/app}:attempts:1"],
        secrets=[TOKEN],
        foreign_runners=["their-runner"],
        expected={1: "success", 2: "success"},
    )


def broken_rules(evidence, **more):
    """The names of the broken rules."""
    return {violation.rule for violation in checker.judge(evidence, **more).violations}


def test_a_sound_run_passes():
    """A sound run breaks no rule, and its figures are right."""
    verdict = checker.judge(sound(), longest_stall=1.0)
    assert verdict.violations == []
    assert verdict.figures["jobs offered"] == verdict.figures["jobs done"] == 2
    assert verdict.figures["most VMs at once on a host"] == 1
    assert verdict.figures["VMs made"] == 2
    assert verdict.figures["jobs lost"] == verdict.figures["left over"] == verdict.figures["jobs done twice"] == 0


# ---- one way to break each rule ----


def events_of(evidence, kind):
    """The events of this kind in GitHub's journal."""
    return [event for event in evidence.events if event["event"] == kind]


def never_run(evidence):
    """A job stays in the queue."""
    evidence.events = [event for event in evidence.events if event.get("job_id") != 2 or event["event"] == "job-queued"]
    evidence.jobs[1] |= {"status": "queued", "starts": 0}


def never_ended(evidence):
    """A job starts and never ends."""
    evidence.events.remove(events_of(evidence, "job-completed")[0])


def lost_its_vm(evidence):
    """The VM is deleted while the job runs; GitHub ends it after a while."""
    events_of(evidence, "job-completed")[0].update(conclusion="failure", reason="lost communication")


def ended_otherwise(evidence):
    """A successful job is reported as failed because its process was killed."""
    events_of(evidence, "job-completed")[0]["conclusion"] = "failure"


def interrupted(evidence):
    """A runner was stopped in the middle of its job."""
    events_of(evidence, "job-completed")[0]["conclusion"] = "cancelled"


def done_twice(evidence):
    """Two runners start one job."""
    evidence.events.append(github_event(1.5, "job-started", 1, runner_name=name(1)))
    evidence.jobs[0]["starts"] = 2


def ended_twice(evidence):
    """One job ends twice."""
    evidence.events.append(copy.deepcopy(events_of(evidence, "job-completed")[0]))


def journals_differ(evidence):
    """GitHub counts a start that is not in its journal."""
    evidence.jobs[0]["starts"] = 2


def github_noticed(evidence):
    """GitHub noticed an anomaly."""
    evidence.anomalies.append({"anomaly": "jit-config-used-twice"})


def a_third_vm(evidence):
    """Three VMs run at once."""
    evidence.hosts[0].events.append(host_event(30, "started", name(2), 3))


def a_third_start(evidence):
    """The kernel had to refuse a third start."""
    evidence.hosts[0].events.append(host_event(11, "limit-refused", name(2), 2))


def a_vm_is_left(evidence):
    """One of our VMs exists at the end."""
    evidence.hosts[0].vms.append({"name": name(2), "status": "stopped"})


def a_slot_is_left(evidence):
    """The kernel still holds a slot."""
    evidence.hosts[0].slots.append("anka:00000000:uuid")


def a_guest_process_is_left(evidence):
    """A guest's process still runs."""
    evidence.hosts[0].guest_processes.append("bash -s")


def a_command_is_left(evidence):
    """An anka command still runs."""
    evidence.hosts[0].commands.append("anka -j run")


def a_worker_is_left(evidence):
    """A process of the program still runs after the drain."""
    evidence.hosts[0].processes.append("anklet-worker: RUNNER1")


def a_runner_is_left(evidence):
    """One of our registrations exists at the end."""
    evidence.runners.append({"name": name(2), "status": "offline", "busy": False})


def a_claim_is_left(evidence):
    """A claim is left in Redis."""
    evidence.redis_keys.append("anklet:{acme/app}:claim:2")


def a_foreign_vm_is_deleted(evidence):
    """Our command deletes a VM of others."""
    evidence.hosts[0].calls.append(call(20, "delete", "--yes", "theirs"))


def a_foreign_vm_is_gone(evidence):
    """A VM of others is gone, for whatever reason."""
    evidence.hosts[0].vms.pop()


def a_foreign_vm_is_entered(evidence):
    """Our command copies a file into a VM of others."""
    evidence.hosts[0].calls.append(call(20, "cp", "-a", "/etc/hosts", "theirs:"))


def a_vm_of_another_anklet_is_stopped(evidence):
    """The VM has our prefix but another install id."""
    evidence.hosts[0].calls.append(call(20, "stop", "anklet-vm-deadbeef-aaaaaa-7-1"))


def two_install_ids(evidence):
    """One host names its VMs as if it were two."""
    evidence.hosts[0].calls.append(call(20, "clone", "macos-15", "anklet-vm-ffffffff-aaaaaa-7-1"))


def a_name_without_an_owner(evidence):
    """A VM gets a name by which clean-up cannot find it."""
    evidence.hosts[0].calls.append(call(20, "clone", "macos-15", "my-vm"))


def a_foreign_runner_is_removed(evidence):
    """A runner that others registered is gone."""
    evidence.runners.pop()


def a_runner_without_a_vm(evidence):
    """A runner is registered under a name that no VM ever had."""
    evidence.events.append({"time": 20, "event": "runner-registered", "runner_name": name(9)})


def a_clone_in_a_pull(evidence):
    """A template is damaged."""
    evidence.hosts[0].events.append(host_event(20, "corruption", "macos-15", 0))


def two_pulls(evidence):
    """Two pulls overlap."""
    evidence.hosts[0].events.append(host_event(20, "pull-overlap", "macos-15", 0))


def a_token_in_an_argv(evidence):
    """Every user can read it in `ps`."""
    evidence.hosts[0].calls.append(call(20, "run", name(2), "bash", "-c", f"export TOKEN={TOKEN}"))


def a_jit_configuration_in_an_argv(evidence):
    """A secret that the test did not choose."""
    evidence.hosts[0].calls.append(call(20, "run", name(2), "./run.sh", "--jitconfig", "eyJ" + 60 * "QWxs"))


def a_cancelled_run(evidence):
    """The program cancels a run."""
    evidence.requests.append(
        {
            "method": "POST",
            "path": "/repos/acme/app/actions/runs/7/cancel",
            "query": {},
            "body": None,
            "status": 202,
            "fault": False,
        }
    )


def a_refused_request(evidence):
    """GitHub answers a request with 404."""
    evidence.requests[0]["status"] = 404


def a_request_outside_the_contract(evidence):
    """GitHub's API description has no such value."""
    evidence.requests[0]["query"] = {"status": "sleeping"}


def a_lost_slot(evidence):
    """The jobs of the roll call did not all run at once."""
    evidence.roll_call = 2
    for one in evidence.jobs:
        one["name"] = f"{checker.ROLL_CALL}{one['id']}"


BROKEN = {
    "every job ends exactly once": [
        never_run,
        never_ended,
        lost_its_vm,
        ended_otherwise,
        interrupted,
        done_twice,
        ended_twice,
    ],
    "the journals agree": [journals_differ, github_noticed],
    "never too many VMs": [a_third_vm, a_third_start],
    "nothing is left": [
        a_vm_is_left,
        a_slot_is_left,
        a_guest_process_is_left,
        a_command_is_left,
        a_worker_is_left,
        a_runner_is_left,
        a_claim_is_left,
    ],
    "foreign things are left alone": [
        a_foreign_vm_is_deleted,
        a_foreign_vm_is_gone,
        a_foreign_vm_is_entered,
        a_vm_of_another_anklet_is_stopped,
        two_install_ids,
        a_name_without_an_owner,
        a_foreign_runner_is_removed,
        a_runner_without_a_vm,
    ],
    "no clone in a pull": [a_clone_in_a_pull, two_pulls],
    "no secret is shown": [a_token_in_an_argv, a_jit_configuration_in_an_argv],
    "no run is cancelled": [a_cancelled_run],
    "requests are sound": [a_refused_request, a_request_outside_the_contract],
    "every slot works": [a_lost_slot],
}


@pytest.mark.parametrize(
    ("rule", "doctor"),
    [(rule, doctor) for rule, doctors in BROKEN.items() for doctor in doctors],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_each_broken_rule_is_noticed(rule, doctor):
    """The journal of a sound run, changed in one place."""
    evidence = sound()
    doctor(evidence)
    assert rule in broken_rules(evidence)


def test_every_rule_has_a_journal_that_breaks_it():
    """Every rule can fail."""
    assert set(BROKEN) == set(checker.RULES)


# ---- not a violation ----


def test_a_job_that_a_reboot_killed_is_counted_apart():
    """No program can save a job from a reboot."""
    evidence = sound()
    lost_its_vm(evidence)
    evidence.hosts[0].events.append({"time": 1.5, "event": "host-rebooted", "running": 0})
    verdict = checker.judge(evidence)
    assert verdict.violations == []
    assert verdict.figures["jobs killed with their host or VM"] == 1
    assert verdict.figures["jobs done"] == 1


def test_a_reboot_before_or_after_the_job_is_no_excuse():
    """Only a reboot of the job's host while the job runs counts."""
    for moment in (-1.5, 9.0):
        evidence = sound()
        lost_its_vm(evidence)
        evidence.hosts[0].events.append({"time": moment, "event": "host-rebooted", "running": 0})
        assert broken_rules(evidence) == {"every job ends exactly once"}


def test_a_job_that_its_vm_took_along_is_counted_apart():
    """Only if the test let that VM die."""
    evidence = sound()
    lost_its_vm(evidence)
    evidence.hosts[0].deaths = [(1.5, name(2))]
    assert broken_rules(evidence) == {"every job ends exactly once"}
    evidence.hosts[0].deaths = [(1.5, name(1))]
    assert broken_rules(evidence) == set()


def test_a_start_that_a_leaking_kernel_refused_is_allowed():
    """Only while the kernel leaks, not before."""
    evidence = sound()
    a_third_start(evidence)
    evidence.hosts[0].refused = [(12.0, 20.0)]
    assert broken_rules(evidence) == {"never too many VMs"}
    evidence.hosts[0].refused = [(10.0, 20.0)]
    assert broken_rules(evidence) == set()


def test_a_job_that_its_user_cancelled_is_counted_apart():
    """Whether it waits in the queue or runs."""
    queued, running = sound(), sound()
    queued.events = [event for event in queued.events if event.get("job_id") != 2 or event["event"] == "job-queued"]
    queued.events.append(github_event(12, "job-completed", 2, conclusion="cancelled", reason="cancelled while queued"))
    queued.jobs[1]["starts"] = 0
    running.events.append(github_event(1.2, "job-cancel-asked", 1))
    events_of(running, "job-completed")[0]["conclusion"] = "cancelled"
    for evidence in (queued, running):
        verdict = checker.judge(evidence)
        assert verdict.violations == []
        assert verdict.figures["jobs cancelled by their user"] == 1


def test_a_start_that_a_foreign_vm_forestalled_is_allowed():
    """A VM of others may take the room at any moment. Every other refusal is our fault."""
    evidence = sound()
    journal = evidence.hosts[0].events
    journal += [host_event(10.1, "started", "theirs", 1), host_event(10.3, "limit-refused", name(2), 2)]
    assert broken_rules(evidence) == set()
    journal.append(host_event(10.2, "stopped", "theirs", 1))
    journal.append(host_event(13.3, "limit-refused", name(2), 2))
    assert broken_rules(evidence) == {"never too many VMs"}


def test_what_lies_on_a_dead_host_is_nobodys_fault():
    """The host never came back, and GitHub drops its registrations itself."""
    evidence = sound()
    a_vm_is_left(evidence)
    a_runner_is_left(evidence)
    evidence.hosts[0].dead = True
    assert broken_rules(evidence) == set()


def test_refusals_of_the_protocol_are_no_anomaly():
    """Runner busy or already gone, or a name taken by a registration whose reply was lost; also answers that a fault produced."""
    evidence = sound()
    base = evidence.requests[0]
    evidence.requests += [
        base | {"method": "DELETE", "path": "/repos/acme/app/actions/runners/7", "query": {}, "status": 422},
        base | {"method": "DELETE", "path": "/repos/acme/app/actions/runners/8", "query": {}, "status": 404},
        base | {"status": 404, "fault": True},
    ]
    assert broken_rules(evidence) == set()


# ---- waiting ----


def test_a_job_that_waits_while_a_slot_is_free_has_stalled():
    """The stall is exactly the time with a free slot."""
    evidence = sound()
    events_of(evidence, "job-queued")[1]["time"] = 3.0
    verdict = checker.judge(evidence, longest_stall=5.0)
    assert [violation.rule for violation in verdict.violations] == ["stalled"]
    assert verdict.figures["longest stall, s"] == pytest.approx(7.1)


def test_a_job_that_waits_for_a_slot_has_not_stalled():
    """It waits because both slots are occupied, its host is down, or GitHub is down."""
    full, out, away = sound(), sound(), sound()
    for evidence in (full, out, away):
        events_of(evidence, "job-queued")[1]["time"] = 3.0
    for job in (7, 8):
        calls, events = vm_life(job, 3)
        events[-1]["time"] = 9.8
        full.hosts[0].calls += calls
        full.hosts[0].events += events
    out.hosts[0].outages = [(3.0, 9.5)]
    away.outages = [(0.0, 9.7)]
    for evidence in (full, out, away):
        assert checker.judge(evidence).figures["longest stall, s"] < 1.0


def test_spans():
    """Union, difference, intersection, and overlap."""
    assert spans.union([(3, 4), (0, 1), (0.5, 2), (5, 5)]) == [(0, 2), (3, 4)]
    assert spans.subtract([(0, 10)], [(1, 2), (4, 5), (9, 12)]) == [(0, 1), (2, 4), (5, 9)]
    assert spans.intersect([(0, 4), (6, 8)], [(3, 7)]) == [(3, 4), (6, 7)]
    assert spans.at_least([(0, 4), (2, 6), (3, 5)], 2) == [(2, 5)]
    assert spans.depth([(0, 4), (2, 6), (4, 5)]) == 2
    assert spans.longest([]) == (0.0, 0.0)
