"""The end of a job, between a worker that keeps it on record and a supervisor that counts it."""

from anklet_supervisor.machine import allocator
from anklet_supervisor.machine.events import Tell, WorkerSaid
from anklet_supervisor.machine.model import Moment
from anklet_supervisor.machine.step import initial, step
from anklet_worker.contract.job import Conclusion
from anklet_worker.link import messages as m

END = m.JobFinished(vm="vm-1", job_id="1", job_name="j", job_url="u", conclusion=Conclusion.SUCCESS)


def test_each_telling_of_an_end_is_answered():
    """Also the second one: its worker waits for the answer, with its record."""
    model = initial(["A"], allocator.build(2, 1, [], 0.0), once=False, drain_timeout=None)
    for _ in range(2):
        model, effects = step(model, WorkerSaid("A", END), Moment(0.0, 0.0))
        assert Tell("A", m.OutcomeHeard(vm="vm-1")) in effects
