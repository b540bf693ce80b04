"""The real program: SIGKILL to worker or supervisor at one point of each kind of effect; `make crashpoints` covers all points.

After a restart, as by launchd, the job has run exactly once and nothing of it is left.
"""

import program
import pytest
import seams

#: The process that has the effect, the effect, and which process dies after it.
_POINTS = [
    (seams.WORKER, "record making", "kill"),
    (seams.WORKER, "record driving", "kill-both"),
    (seams.WORKER, "note of begin of anka clone", "kill-other"),
    (seams.WORKER, "anka start", "kill-both"),
    (seams.WORKER, "fact SlotOccupied", "kill-other"),
    (seams.WORKER, "fact JobStarted", "kill-both"),
    (seams.WORKER, "store claim claim", "kill"),
    (seams.WORKER, "api POST /repos/{owner}/{repo}/actions/runners/generate-jitconfig", "kill"),
    (seams.WORKER, "anka run start", "kill-other"),
    (seams.WORKER, "archive filled", "kill"),
    (seams.WORKER, "record removed", "kill-other"),
    (seams.SUPERVISOR, "lock", "kill"),
    (seams.SUPERVISOR, "worker started", "kill"),
    (seams.SUPERVISOR, "slots written", "kill-other"),
    (seams.SUPERVISOR, "command GrantSlot", "kill"),
    (seams.SUPERVISOR, "command SlotAnswered", "kill"),
]
pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize(("role", "name", "act"), _POINTS)
def test_a_process_that_is_killed_loses_nothing(tmp_path, role, name, act):
    """The job runs exactly once, and nothing is left."""
    blow = {"role": role, "name": name, "nth": 1, "when": "after", "act": act}
    outcome = program.run(program.Case(f"{act} after the {role}'s {name}", (blow,)), tmp_path / "site")
    assert outcome.violations == []
    assert outcome.reached
