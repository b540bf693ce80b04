"""The data of the emulated GitHub: accounts, repositories, runs, jobs, runners, tokens; its one lock, its events, its switches.

Owns the data, the identifiers and the journal (events and anomalies). Knows no HTTP and makes no decision: `jobs.py` and
`runners.py` change the data, with `World.changed` held.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import threading
import time
from pathlib import Path

#: Name of a switch -> its initial value. README.md explains each.
SWITCHES = {
    "offline_after": 60.0,
    "lost_after": 600.0,
    "pickup_after": 60.0,
    "cancel_timeout": 300.0,
    "poll_seconds": 50.0,
    "removal_delay": 0.0,
    "session_retry": 30.0,
    "session_give_up": 240.0,
    "token_ttl": 3600.0,
    "installation_token_ttl": 3600.0,
    "rate_limit": 5000,
    "rate_remaining": None,
    "rate_reset_in": 3600.0,
    "rate_headers": True,
    "refuse_assign": False,
    "download_redirect": True,
    "minimum_runner_version": None,
    "down": False,
}


@dataclasses.dataclass
class Account:
    """A user or an organisation."""

    id: int
    login: str
    kind: str  # "User" or "Organization"
    groups: dict = dataclasses.field(default_factory=dict)  # id -> Group; organisations only


@dataclasses.dataclass
class Group:
    """A runner group; `repos` is None if every repository of the organisation may use it."""

    id: int
    name: str
    repos: list | None = None


@dataclasses.dataclass
class Repo:
    """A repository and its workflows (name -> id)."""

    id: int
    owner: Account
    name: str
    private: bool
    created: float
    workflows: dict = dataclasses.field(default_factory=dict)
    run_number: int = 0

    @property
    def full_name(self):
        """owner/name."""
        return f"{self.owner.login}/{self.name}"


@dataclasses.dataclass
class Run:
    """A workflow run; `attempts` maps the number of each attempt to its jobs, in workflow order."""

    id: int
    repo: Repo
    workflow: str
    number: int
    branch: str
    created: float
    status: str = "queued"
    conclusion: str | None = None
    attempt: int = 1
    started: float = 0.0
    updated: float = 0.0
    attempts: dict = dataclasses.field(default_factory=dict)
    ended: dict = dataclasses.field(default_factory=dict)  # attempt -> (status, conclusion, started, updated)

    @property
    def jobs(self):
        """The jobs of the latest attempt."""
        return self.attempts[self.attempt]


@dataclasses.dataclass
class Job:
    """One job of one attempt. `released` becomes true when all its needs are done; until then GitHub hides the job."""

    id: int
    run: Run
    attempt: int
    spec: dict
    created: float
    released: bool = False
    status: str = "queued"
    conclusion: str | None = None
    started: float | None = None
    completed: float | None = None
    steps: list = dataclasses.field(default_factory=list)
    runner: dict | None = None  # id, name, group_id, group_name: stays after the runner is gone
    holder: int | None = None  # id of its runner, from assignment to the end
    assigned_at: float | None = None  # monotonic
    cancel_asked: float | None = None  # monotonic
    cancel_told: bool = False
    starts: int = 0
    start_nonce: str | None = None  # distinguishes a repeated request, whose reply was lost, from a second one
    finish_nonce: str | None = None
    log: str = ""

    @property
    def name(self):
        """Its name in the workflow."""
        return self.spec["name"]

    @property
    def labels(self):
        """The labels in its runs-on."""
        return self.spec["labels"]


@dataclasses.dataclass
class Runner:
    """A registered runner. `scope` is (owner, repo), or (org, None); `secret` is its listener's credential."""

    id: int
    name: str
    scope: tuple
    labels: list
    group: Group
    secret: str
    ephemeral: bool
    jit: bool
    work_folder: str = "_work"
    os: str = "unknown"
    version: str | None = None
    status: str = "offline"
    session: str | None = None
    session_nonce: str | None = None
    sessions_opened: int = 0
    polling: int = 0
    contact: float = 0.0  # monotonic
    job: Job | None = None
    remove_at: float | None = None  # monotonic

    @property
    def busy(self):
        """True from the assignment of a job to its end."""
        return self.job is not None


@dataclasses.dataclass
class Token:
    """A credential of the REST API. `permissions` and `repos` are None for all; `principal` names its rate bucket."""

    value: str
    kind: str  # "user" or "installation"
    principal: str
    permissions: dict | None = None
    repos: list | None = None
    expires: float | None = None
    installation: int | None = None


@dataclasses.dataclass
class Rate:
    """One bucket of the primary rate limit."""

    limit: int
    used: int
    reset: float  # epoch


class World:
    """The whole state. Hold `changed` (a condition with a re-entrant lock) to read or change it; notify through `event`."""

    def __init__(self, directory=None):
        self.changed = threading.Condition(threading.RLock())
        self.switches = dict(SWITCHES)
        self.accounts = {}  # lower-case login -> Account
        self.repos = {}  # lower-case full name -> Repo
        self.runs = {}
        self.jobs = {}
        self.runners = {}
        self.tokens = {}
        self.registration_tokens = {}  # value -> (scope, kind, expires)
        self.apps = {}  # app id as text, and client id -> dict
        self.installations = {}
        self.rates = {}
        self.events = []
        self.anomalies = []
        self._directory = Path(directory) if directory else None
        self._ids = {
            "account": itertools.count(7_000_001),
            "repo": itertools.count(600_000_001),
            "workflow": itertools.count(40_000_001),
            "run": itertools.count(9_100_000_001),
            "job": itertools.count(31_400_000_001),
            "runner": itertools.count(1),
            "group": itertools.count(2),
            "label": itertools.count(1),
        }
        self._label_ids = {}

    def new_id(self, kind):
        """The next identifier of a kind; jobs and runs are beyond 32 bits, as on github.com."""
        return next(self._ids[kind])

    def label_id(self, name):
        """One number per label."""
        if name not in self._label_ids:
            self._label_ids[name] = self.new_id("label")
        return self._label_ids[name]

    def event(self, event, **facts):
        """Write one line of the journal and wake every thread that waits for a change."""
        line = {"seq": len(self.events) + 1, "time": time.time(), "event": event, **facts}
        self.events.append(line)
        self._write("events.jsonl", line)
        self.changed.notify_all()

    def anomaly(self, kind, **facts):
        """Record an event that must not happen: a job run twice, a credential used twice, a report from a foreign runner."""
        line = {"time": time.time(), "anomaly": kind, **facts}
        self.anomalies.append(line)
        self._write("anomalies.jsonl", line)

    def _write(self, name, line):
        if self._directory:
            with (self._directory / name).open("a") as file:
                file.write(json.dumps(line) + "\n")

    # -- setup ---------------------------------------------------------------------------------------

    def add_account(self, login, kind="User"):
        """The account of this login, created if new."""
        key = login.lower()
        if key not in self.accounts:
            self.accounts[key] = Account(self.new_id("account"), login, kind)
            self.accounts[key].groups[1] = Group(1, "Default")
        account = self.accounts[key]
        if kind == "Organization":
            account.kind = kind
        return account

    def add_repo(self, owner, name, *, private=True):
        """The repository owner/name, created if new."""
        account = self.add_account(owner)
        key = f"{owner}/{name}".lower()
        if key not in self.repos:
            self.repos[key] = Repo(self.new_id("repo"), account, name, private, time.time())
        return self.repos[key]

    def repo(self, owner, name):
        """A repository or None; names are not case-sensitive."""
        return self.repos.get(f"{owner}/{name}".lower())

    def org(self, login):
        """An organisation or None."""
        account = self.accounts.get(login.lower())
        return account if account and account.kind == "Organization" else None

    def workflow_id(self, repo, workflow):
        """The number of a workflow of a repository, assigned on first use."""
        if workflow not in repo.workflows:
            repo.workflows[workflow] = self.new_id("workflow")
        return repo.workflows[workflow]

    def rate(self, principal):
        """A principal's rate bucket, refilled when its hour is over."""
        limit, now = self.switches["rate_limit"], time.time()
        bucket = self.rates.get(principal)
        if bucket is None or now >= bucket.reset:
            first = bucket is None and self.switches["rate_remaining"] is not None
            used = limit - self.switches["rate_remaining"] if first else 0
            bucket = self.rates[principal] = Rate(limit, used, now + self.switches["rate_reset_in"])
        return bucket

    def turn(self, changes):
        """Set switches; ValueError for an unknown one."""
        unknown = set(changes) - set(SWITCHES)
        if unknown:
            raise ValueError(f"no such switch: {', '.join(sorted(unknown))}")
        self.switches.update(changes)
        for bucket in self.rates.values():
            bucket.limit = self.switches["rate_limit"]
            if changes.get("rate_remaining") is not None:
                bucket.used = bucket.limit - changes["rate_remaining"]
            if "rate_reset_in" in changes:
                bucket.reset = time.time() + changes["rate_reset_in"]
        self.changed.notify_all()
