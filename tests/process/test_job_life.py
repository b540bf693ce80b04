"""Jobs through the real program, from the queue to a clean host."""

import json
import os
from pathlib import Path

import pytest
from stage import OWNER, REPO, TAG, TOKEN, eventually, job

both_drivers = pytest.mark.parametrize("driver", ["anka", "tart"])


def queue(github, *jobs, **more):
    """Queue a run; return the ids of its jobs."""
    return [item["id"] for item in github.queue_run(OWNER, REPO, jobs=list(jobs), **more)["jobs"]]


def all_completed(github, ids):
    """True when all jobs are completed."""
    return all(github.job(job_id)["status"] == "completed" for job_id in ids)


def finish(mac, github, ids, deadline=40):
    """Wait until the jobs are completed and nothing of them is left; return their conclusions."""
    eventually(lambda: all_completed(github, ids), "the jobs are done", deadline)
    eventually(lambda: not mac.leftovers(), "everything is cleaned up", 20)
    return [github.job(job_id)["conclusion"] for job_id in ids]


@both_drivers
def test_jobs_run_and_nothing_is_left(mac, github):
    """A successful and a failed job are counted and logged as such, and the host is clean afterwards."""
    ids = queue(github, mac.job("good"), mac.job("bad", steps=["exit 3"]))
    mac.start()
    assert finish(mac, github, ids) == ["success", "failure"]
    _, text = mac.get("/metrics")
    assert "total_successful_runs_since_start 1.0" in text
    assert "total_failed_runs_since_start 1.0" in text
    document = json.loads(mac.get("/metrics?format=json")[1])
    assert document["TotalSuccessfulRunsSinceStart"] == document["TotalFailedRunsSinceStart"] == 1
    assert document["Services"][0]["LastFailedRunJobUrl"] == github.job(ids[1])["html_url"]
    assert mac.drain() == 0
    ended = mac.log_lines(msg="job ended")
    assert {line["workflowJobId"] for line in ended} == set(ids)
    assert mac.log_lines(level="ERROR") == []


def test_four_services_and_twelve_jobs_never_show_a_third_vm(new_mac, github):
    """Four services share two slots, and each job runs exactly once."""
    mac = new_mac(services=4)
    ids = queue(github, *(mac.job(f"job {number}", duration=0.1) for number in range(12)))
    mac.start()
    assert finish(mac, github, ids, 90) == ["success"] * 12
    assert mac.max_running() == 2
    assert [item["starts"] for item in github.jobs()] == [1] * 12
    assert mac.drain() == 0


def test_jobs_are_taken_oldest_first_then_by_name(mac, github):
    """The order by name lets a team choose the order of its jobs."""
    later = queue(github, job("zebra"), job("ant"), created_at=2_000_000_000)
    first = queue(github, job("middle"), created_at=1_900_000_000)
    mac.start()
    finish(mac, github, later + first)
    order = [line["workflowJobName"] for line in mac.log_lines(msg="job claimed")]
    assert order == ["middle", "ant", "zebra"]


def test_a_template_that_is_only_in_the_registry_is_pulled_once(new_mac, github):
    """The first job pulls the template and the second finds it present. Meanwhile the service's status is `pulling`."""
    mac = new_mac()
    mac.anka.add_registry_template("from-registry", tags=["v3"], home_files=mac.home_with_runner())
    mac.anka.set(delays={"pull": 0.5})
    ids = queue(github, *(job(f"job {n}", template="from-registry", tag="v3") for n in range(2)))
    mac.start()
    eventually(lambda: mac.service_status()["status"] == "pulling", "the service pulls", 10)
    assert finish(mac, github, ids) == ["success"] * 2
    pulls = [call for call in mac.anka.calls() if "pull" in call["argv"]]
    assert len(pulls) == 1


def test_two_services_never_pull_at_once(new_mac, github):
    """The second job that needs a pull goes back to the queue and runs later. Its run is not cancelled."""
    mac = new_mac(services=2)
    mac.anka.set(delays={"pull": 0.7})
    for name in ("one", "two"):
        mac.anka.add_registry_template(name, tags=["v1"], home_files=mac.home_with_runner())
    ids = queue(github, job("a", template="one", tag="v1"), job("b", template="two", tag="v1"))
    mac.start()
    eventually(lambda: mac.log_lines(msg="the job goes back to the queue"), "one goes back", 10)
    eventually(lambda: github.job(ids[0])["status"] == "completed", "the first is done", 20)
    assert not mac.anka.events("pull-overlap", "corruption")
    assert github.job(ids[1])["status"] in ("queued", "in_progress", "completed")
    assert mac.log_lines(level="ERROR") == []


def test_a_job_waits_for_another_pull_no_longer_than_it_lasts(new_mac, github):
    """The service that was refused its pull begins it within about a second after the other one, not after a back-off."""
    mac = new_mac(services=2)
    mac.anka.set(delays={"pull": 2.0})
    for name in ("one", "two"):
        mac.anka.add_registry_template(name, tags=["v1"], home_files=mac.home_with_runner())
    mac.start()
    ids = queue(github, job("a", template="one", tag="v1"))
    eventually(lambda: any("--shrink" in call["argv"] for call in mac.anka.calls()), "the first pull runs", 10)
    ids += queue(github, job("b", template="two", tag="v1"))
    assert finish(mac, github, ids) == ["success"] * 2
    assert len(mac.log_lines(msg="the job goes back to the queue")) == 1
    first, second = [call for call in mac.anka.calls() if "--shrink" in call["argv"]]
    assert second["start"] - first["end"] < 8.0


@both_drivers
def test_a_missing_template_neither_cancels_nor_blocks(mac, github):
    """A job whose template exists nowhere stays queued, and other jobs run."""
    bad, good = queue(github, mac.job("bad", template="nowhere"), mac.job("good"))
    mac.start()
    eventually(lambda: github.job(good)["status"] == "completed", "the good job is done", 20)
    assert github.job(bad)["status"] == "queued"
    line = mac.log_lines(msg="the job goes back to the queue", workflowJobId=bad)[0]
    assert "not found" in line["err"]


def test_a_job_cancelled_before_its_vm_is_up_leaves_nothing(mac, github):
    """A user cancels the job while its VM starts: no runner is left, and no job is counted."""
    mac.host.set(delays={mac.verb("start"): 1.0})
    (job_id,) = queue(github, mac.job("unwanted"))
    mac.start()
    eventually(mac.vms, "the VM is made", 10)
    github.cancel_job(job_id)
    assert finish(mac, github, [job_id]) == ["cancelled"]
    counts = [line for line in mac.get("/metrics")[1].splitlines() if line.startswith("anklet_jobs_total{")]
    assert counts
    assert all(line.endswith(" 0.0") for line in counts)
    assert mac.log_lines(msg="job ended") == []


def test_a_job_cancelled_while_it_runs_is_cleaned_up(mac, github):
    """GitHub tells the runner, the VM is removed, and no failure is counted."""
    (job_id,) = queue(github, job("long", steps=["sleep 60"]))
    mac.start()
    eventually(lambda: github.job(job_id)["status"] == "in_progress", "the job runs", 20)
    github.cancel_job(job_id)
    assert finish(mac, github, [job_id]) == ["cancelled"]
    assert "total_failed_runs_since_start 0.0" in mac.get("/metrics")[1]


def test_a_queued_job_of_a_run_in_progress_is_found(mac, github):
    """With `needs`, the second job is queued while its run is already in progress."""
    ids = queue(github, job("first"), job("second", needs=["first"]))
    mac.start()
    assert finish(mac, github, ids) == ["success"] * 2


def test_the_registration_token_mode(new_mac, github):
    """With `runner_mode: token`, the runner registers from inside the guest, and no argv contains the token."""
    mac = new_mac()
    mac.config["services"][0]["runner_mode"] = "token"
    (job_id,) = queue(github, job("token mode"))
    mac.start()
    assert finish(mac, github, [job_id]) == ["success"]
    assert not any("AAAAA" in word for call in mac.anka.calls() for word in call["argv"])


def test_a_runner_is_downloaded_where_the_image_has_none(new_mac, github):
    """The runner's archive is downloaded from the configured place, and its checksum is verified."""
    mac = new_mac(runner=False)
    mac.anka.add_template("bare", tag=TAG)
    arch = "arm64" if os.uname().machine in ("arm64", "aarch64") else "x64"
    mac.config["services"][0]["runner"] = {"sha256": github.runner_sha256(arch)}
    (job_id,) = queue(github, job("download", template="bare"))
    mac.start()
    assert finish(mac, github, [job_id]) == ["success"]


def test_a_wrong_checksum_is_refused(new_mac, github):
    """A runner with the wrong checksum is never started."""
    mac = new_mac(runner=False)
    mac.anka.add_template("bare", tag=TAG)
    mac.config["services"][0]["runner"] = {"sha256": "0" * 64}
    (job_id,) = queue(github, job("download", template="bare"))
    mac.start()
    line = eventually(lambda: mac.log_lines(msg="the job goes back to the queue"), "it goes back", 20)[0]
    assert "checksum" in line["err"]
    eventually(lambda: not mac.leftovers(), "everything is cleaned up", 10)
    assert github.job(job_id)["status"] == "queued"
    assert github.runners(OWNER, REPO) == []


@both_drivers
def test_no_secret_is_seen_anywhere(mac, github):
    """The token and the JIT configuration are in no argv, log line, record, status, metric or VM command's environment."""
    (job_id,) = queue(github, mac.job("quiet", steps=["env", "sleep 1"]))
    mac.environment = {"LOG_LEVEL": "DEBUG"}
    mac.start()
    seen = []
    eventually(
        lambda: seen.append(_argvs()) or github.job(job_id)["status"] == "completed", "the job is done", 30, 0.01
    )
    records = [path.read_text() for path in mac.state_dir.rglob("*") if path.suffix == ".json"]
    finish(mac, github, [job_id])
    mac.drain()
    texts = [*seen, mac.log_text(), mac.said(), *records, github.job(job_id)["log"], mac.get("/metrics")[1]]
    texts += [" ".join(call["argv"]) for call in mac.calls()]
    for text in texts:
        assert TOKEN not in text
        assert "ACTIONS_RUNNER_INPUT_JITCONFIG" not in text


def _argvs():
    """All command lines on this machine (Linux only; elsewhere the emulator's log of calls must suffice)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return "\n".join(found)


def test_hostile_labels_reach_no_shell(mac, github, tmp_path):
    """Quotes, spaces, `$(...)`, `;`, newlines and 300 characters in labels run nothing, on the host or in the guest."""
    bait = tmp_path / "hacked"
    evil = [
        f"$(touch {bait})",
        f"`touch {bait}`",
        f"; touch {bait};",
        f"' ; touch {bait} '",
        f'" ; touch {bait} "',
        f"a\ntouch {bait}",
    ]
    spec = job("hostile")
    spec["labels"] += evil
    long = job("long")
    long["labels"].append("x" * 300)
    ids = queue(github, spec, long)
    mac.start()
    eventually(
        lambda: mac.log_lines(msg="the job goes back to the queue", workflowJobId=ids[1]) or all_completed(github, ids),
        "judged",
        30,
    )
    eventually(lambda: not mac.leftovers(), "everything is cleaned up", 20)
    assert not bait.exists()


def test_a_template_that_looks_like_an_option_is_none(mac, github):
    """A template named like an option is refused before any command line contains it."""
    (job_id,) = queue(github, mac.job("odd", template="--all", tag="-f"))
    mac.start()
    line = eventually(lambda: mac.log_lines(msg="the job goes back to the queue"), "it goes back", 20)[0]
    assert "is not a possible name" in line["err"]
    assert not any("--all" in call["argv"] or "-f" in call["argv"] for call in mac.calls())
    assert github.job(job_id)["status"] == "queued"


@both_drivers
def test_foreign_vms_leave_no_room_and_are_left_alone(mac, github):
    """Two VMs of another owner fill the host. No job is claimed until one of them is gone."""
    for name in ("theirs-1", "theirs-2"):
        mac.host.start_foreign(name)
    (job_id,) = queue(github, mac.job("patient"))
    mac.start()
    eventually(lambda: mac.service_status()["status"] == "paused", "the service pauses", 10)
    assert github.job(job_id)["status"] == "queued"
    assert "anklet_foreign_vms 2.0" in mac.get("/metrics")[1]
    mac.host.stop_foreign("theirs-1")
    assert finish(mac, github, [job_id]) == ["success"]


def test_a_runner_that_github_gives_to_another_job_follows_that_one(new_mac, github):
    """VMs with the same labels are interchangeable: GitHub may swap their jobs, but each job runs and counts once."""
    mac = new_mac(services=2)
    ids = queue(github, *(job(f"job {number}", pinned=False, duration=0.2) for number in range(8)))
    mac.start()
    assert finish(mac, github, ids, 60) == ["success"] * 8
    assert [item["starts"] for item in github.jobs()] == [1] * 8
    text = mac.get("/metrics")[1]
    assert "total_successful_runs_since_start 8.0" in text


def test_workflows_can_be_left_out(new_mac, github):
    """Two `exclude` entries leave out both workflows."""
    mac = new_mac()
    mac.config["services"][0]["workflows"] = {"exclude": ["Nightly", "Docs"]}
    left_out = queue(github, job("a"), workflow="Nightly") + queue(github, job("b"), workflow="Docs")
    (wanted,) = queue(github, job("c"), workflow="CI")
    mac.start()
    assert finish(mac, github, [wanted]) == ["success"]
    assert [github.job(job_id)["status"] for job_id in left_out] == ["queued", "queued"]


def test_a_rerun_is_a_new_job(mac, github):
    """A rerun keeps the run's id but has a new job id. It is found, run and counted."""
    (job_id,) = queue(github, job("flaky", steps=["exit 1"]))
    mac.start()
    assert finish(mac, github, [job_id]) == ["failure"]
    again = github.rerun(github.job(job_id)["run_id"], failed_only=True)["jobs"][0]["id"]
    assert again != job_id
    assert finish(mac, github, [again]) == ["failure"]
    assert [github.job(one)["starts"] for one in (job_id, again)] == [1, 1]
    assert {line["workflowJobId"] for line in mac.log_lines(msg="job ended")} == {job_id, again}


def test_one_listing_between_a_look_and_the_clone(mac, github):
    """The listing of the slot check also shows the job's template, so the template is not listed again before the clone."""
    (first,) = queue(github, job("pulls"))
    mac.start()
    assert finish(mac, github, [first]) == ["success"]
    before = len(mac.anka.calls())
    (second,) = queue(github, job("quick"))
    assert finish(mac, github, [second]) == ["success"]
    asked = [[word for word in call["argv"] if not word.startswith("-")] for call in mac.anka.calls()[before:]]
    until_clone = asked[: [words[0] for words in asked].index("clone")]
    assert ["list"] in until_clone
    assert [words for words in until_clone if words[0] == "list" and words != ["list"]] == []
