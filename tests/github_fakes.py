"""The core as far as the github plugin sees it, and GitHub's objects; waiting moves a clock."""

import contextlib
import logging
from pathlib import Path

from anklet_github.payloads import WorkflowJob

from anklet_worker.contract.job import VMSpec
from anklet_worker.contract.service import Secret, ServiceConfig
from anklet_worker.log.service_log import ServiceLog

MINE = "anklet-vm-00000001-aaaaaa-1-1"


class Lines(logging.Handler):
    """Keeps what is logged: (level, message)."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append((record.levelname, record.getMessage()))


class FakeBoard:
    """A board in memory, shared by the contexts that are given it."""

    def __init__(self):
        self.notes, self.counters, self.leases = {}, {}, {}

    def of(self, owner):
        """The board as this service sees it."""
        return _Seat(self, owner)


class _Seat:
    def __init__(self, board, owner):
        self.board, self.owner = board, owner

    def turn(self, key, seconds):
        return self.board.leases.setdefault(key, self.owner) == self.owner

    def pass_on(self, key):
        if self.board.leases.get(key) == self.owner:
            del self.board.leases[key]

    def holder(self, key):
        return self.board.leases.get(key)

    def count(self, key, seconds, amount=1):
        self.board.counters[key] = self.board.counters.get(key, 0) + amount
        return self.board.counters[key]

    def post(self, key, text, seconds):
        self.board.notes[key] = text

    def read(self, key):
        return self.board.notes.get(key)


class FakeContext:
    """One service's context."""

    def __init__(self, folder=Path("/nonexistent"), board=None, **service):
        self.service = ServiceConfig(
            **{
                "name": "S",
                "plugin": "github",
                "owner": "acme",
                "repo": "app",
                "token": Secret("t"),
                "sleep_interval": 1.0,
                **service,
            }
        )
        self.plugins_path = folder
        self.board = (board or FakeBoard()).of(self.service.name)
        self.vm_prefix = "anklet-vm-00000001-"
        self.vms = set()
        logger = logging.Logger("test-github")  # noqa: LOG001  not shared with anyone
        self.said = Lines()
        logger.addHandler(self.said)
        self.log = ServiceLog(logger, {})
        self.now = 0.0
        self.started, self.figures, self.calls, self.waits = [], {}, [], []
        self.paused = 0
        self.draining = False

    def check(self):
        """No orders."""

    def wait(self, seconds):
        self.waits.append(seconds)
        self.now += seconds

    @contextlib.contextmanager
    def limit_paused(self):
        self.paused += 1
        yield

    def spec_from_labels(self, labels):
        return next((VMSpec(template=label[14:]) for label in labels if label.startswith("anka-template:")), None)

    def known_vms(self):
        return self.vms

    def api_called(self, route, outcome, seconds):
        assert seconds >= 0
        self.calls.append((route, outcome))

    def report(self, figure, value):
        self.figures[figure] = value

    def logged(self, level):
        """Messages of this level."""
        return [message for name, message in self.said.lines if name == level]


class FakeHand:
    """The job in hand: what is remembered stays in memory, what is reported goes to the context of the test."""

    def __init__(self, job, context, vm=MINE):
        self.job, self.vm, self.log = job, vm, context.log
        self.context = context
        self.facts = {}

    def remember(self, **facts):
        self.facts.update(facts)

    def recall(self):
        return self.facts

    def runner_online(self):
        self.context.online = True

    def job_started(self, job):
        self.context.started.append(job.id)


def workflow_job(number, **more):
    """A queued job for us."""
    labels = ["self-hosted", "anka", "anka-template:t"]
    return WorkflowJob(
        **{"id": number, "run_id": 7, "name": f"job {number}", "status": "queued", "labels": labels, **more}
    )
