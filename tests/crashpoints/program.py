"""The real command on an emulated site, killed at one effect of supervisor or worker, and restarted as launchd would do it.

Every death is a SIGKILL. Nothing else goes wrong.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import seams
from enumeration import Case, Outcome, Point, trace
from invariants import checker
from invariants.evidence import of_host, of_run
from stage import OWNER, REPO, TAG, TEMPLATE, TOKEN, Mac, eventually, job, new_github

_INJECTED = Path(__file__).resolve().parent / "injected"
#: Longer than a record is kept because its registration may still arrive, in seconds.
_DEADLINE = 240.0


def points(lines, role):
    """Return the effects of one of the two processes in an undisturbed run, up to the end of the job's clean-up."""
    found, workers = [], set()
    for line in lines:
        if line["role"] == seams.WORKER:
            workers.add(line["pid"])
        if line["role"] == role and "name" in line:
            found.append(Point(line["name"], line["nth"]))
    assert len(workers) == 1, "an undisturbed run has one worker"
    last = Point("fact AttemptOver", 1)
    found = found[: found.index(last) + 1] if last in found else found
    # The supervisor writes these again and again. A worker's effect lies between two such writes, so the first is enough.
    return [point for point in found if point.nth == 1 or not point.name.startswith(("status", "history"))]


def deaths(found, role):
    """Kill this process, the other one, or both after each effect."""
    other = {seams.WORKER: seams.SUPERVISOR, seams.SUPERVISOR: seams.WORKER}[role]
    for point in found:
        for who, act in ((role, "kill"), (other, "kill-other"), ("both", "kill-both")):
            # At these effects the supervisor has no worker to kill.
            if act != "kill" and point.name.startswith(("lock", "pid file", "identity", "slots made")):
                continue
            blow = {"role": role, "name": point.name, "nth": point.nth, "when": "after", "act": act}
            yield Case(f"{who} killed after the {role}'s {point}", (blow,))


class Site:
    """A GitHub with one queued job, and a host on which the program gets a plan of what goes wrong."""

    def __init__(self, folder, plan):
        self.github = new_github()
        self.mac = Mac(folder, self.github, runner=False)
        self.mac.anka.add_registry_template(TEMPLATE, tags=[TAG], home_files=self.mac.home_with_runner())
        (self.job_id,) = [item["id"] for item in self.github.queue_run(OWNER, REPO, jobs=[job("build")])["jobs"]]
        self.mac.environment = {
            "CRASH_PLAN": json.dumps({"folder": str(folder), **plan}),
            "PYTHONPATH": str(_INJECTED),
        }

    def run(self):
        """Start the program, restart it after each death until the job is over and cleaned up, then drain."""
        self.mac.start(wait=False)
        eventually(self._is_quiet, "the job is over and nothing is left", _DEADLINE, 0.1)
        while (code := self.mac.drain(_DEADLINE)) == -9:
            self.mac.start(wait=False)
            eventually(self._is_ready, "it is ready to drain", _DEADLINE, 0.1)
        assert code == 0, f"the drain ended with {code}"

    def _is_ready(self):
        self._keep_alive()
        return self.mac.get("/healthz")[0] == 200

    def _keep_alive(self):
        """Restart the program after its death, as launchd does."""
        code = self.mac.process.poll()
        if code is not None:
            assert code in (-9, 75), f"the supervisor ended with {code}: {self.mac.said()}"
            self.mac.start(wait=False)

    def _is_quiet(self):
        self._keep_alive()
        if self.github.job(self.job_id)["status"] != "completed" or self.mac.leftovers():
            return False
        # After a restart the slot table is built from the records, so the worker must have freed its slots too.
        return self.mac.get("/readyz")[0] == 200 and self._slots_are_free()

    def _slots_are_free(self):
        try:
            return all(slot["state"] == "free" for slot in self.mac.status()["slots"])
        except (OSError, ValueError):
            return False

    def violations(self):
        """Describe rule violations by the emulators' journals, and leftovers in the program's own state."""
        host = of_host(self.mac.anka, name="mac")
        secrets, expected = [TOKEN], {self.job_id: "success"}
        seen = of_run(self.github, [host], [(OWNER, REPO)], secrets=secrets, expected=expected)
        found = [str(violation) for violation in checker.judge(seen).violations]
        found += [f"left: {what} {things}" for what, things in self.mac.leftovers().items()]
        return found + [f"ERROR: {line['msg']} {line.get('err', '')}" for line in self.mac.log_lines(level="ERROR")]

    def close(self):
        """End all processes."""
        self.mac.close()
        self.github.stop()


def traced(folder):
    """Return the trace of an undisturbed run."""
    site = Site(folder, {"strikes": [], "trace": True})
    try:
        site.run()
        assert site.violations() == []
        return trace(folder)
    finally:
        site.close()


def run(case, folder):
    """Run one case to its end and judge it."""
    site = Site(folder, {"strikes": list(case.worker)})
    began = time.monotonic()
    try:
        try:
            site.run()
            violations = site.violations()
        except AssertionError as error:
            violations = [f"{error}; left {site.mac.leftovers()}; {site.mac.log_text()[-1500:]}"]
        reached = all((folder / f"struck-{number}").exists() for number in range(len(case.worker)))
        return Outcome(case, reached, violations, time.monotonic() - began)
    finally:
        site.close()
