"""The core as far as the github plugin sees it, and GitHub's objects; waiting moves a clock."""

import contextlib
import logging
from pathlib import Path

import msgspec
from anklet_github.figures import FIGURES
from anklet_github.payloads import WorkflowJob
from anklet_github.settings import GithubSettings

from anklet_worker.contract.job import VMSpec
from anklet_worker.contract.service import ServiceConfig
from anklet_worker.contract.settings import Secret
from anklet_worker.log.service_log import ServiceLog
from anklet_worker.store.board import StoreBoard
from anklet_worker.store.memory import MemoryStore, Shelf

MINE = "anklet-vm-00000001-aaaaaa-1-1"


class Lines(logging.Handler):
    """Keeps what is logged: (level, message)."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append((record.levelname, record.getMessage()))


def new_board():
    """A store for the boards of several contexts; its clock stands still, so nothing expires."""
    return MemoryStore(Shelf(clock=lambda: 0.0))


def github_service(**keys):
    """A service of the github plugin: the core's keys, and the plugin's own."""
    core = {"name": "S", "plugin": "github", "figures": FIGURES}
    own = {field.name for field in msgspec.structs.fields(GithubSettings)} & keys.keys()
    settings = {key: keys.pop(key) for key in own}
    return ServiceConfig(**{**core, **keys, "settings": settings})


class FakeContext:
    """One service's context."""

    def __init__(self, folder=Path("/nonexistent"), board=None, **service):
        usual = {"owner": "acme", "repo": "app", "token": Secret("t"), "sleep_interval": 1.0}
        self.service = github_service(**{**usual, **service})
        self.plugins_path = folder
        self.store = board or new_board()
        self.board = StoreBoard(self.store, self.service.name)
        self.vm_prefix = "anklet-vm-00000001-"
        self.vms = set()
        logger = logging.Logger("test-github")  # noqa: LOG001  not shared with anyone
        self.said = Lines()
        logger.addHandler(self.said)
        self.log = ServiceLog(logger, {})
        self.now = 0.0
        self.started, self.figures, self.calls, self.waits = [], {}, [], []
        self.budget = None
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

    def api_budget(self, left, limit, resets_at):
        self.budget = (left, limit, resets_at)

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
