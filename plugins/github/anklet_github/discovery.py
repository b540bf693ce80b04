"""Finds the queued jobs that ask for a VM of this service, best first. Changes nothing.

Owns which jobs are ours, their order, and their description for the core. Does not know how GitHub's queue is read (`runs.py`) or
which repositories there are (`repos.py`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime

from anklet_github.figures import STALE_JOBS
from anklet_github.payloads import Run, WorkflowJob
from anklet_github.repos import Repos
from anklet_github.runs import RunQueue, Waiting
from anklet_github.scope import Repo
from anklet_github.settings import settings_of
from anklet_github.trouble import ApiTrouble, NotFound
from anklet_worker.contract.context import Context
from anklet_worker.contract.errors import RightsRefused
from anklet_worker.contract.job import Job, VMSpec

_SELF_HOSTED = "self-hosted"
_RUN_LABEL, _UNIQUE_LABEL = "run-id:", "unique-id:"
#: After a job, the last result of a look serves for this many seconds instead of a new look: it holds the oldest jobs, and each is
#: checked before it is claimed.
_BACKLOG_VALID_FOR = 120.0
#: A job that was seen queued within this many seconds need not be checked again.
_FRESH = 2.0
#: Report a job that has waited for this many seconds while no service claimed it.
STALE_AFTER = 600.0
#: The most warnings about jobs to remember, so that each is logged once.
_MOST_WARNED = 10_000


class Discovery:
    """Looks at the queues of one service's repositories."""

    def __init__(self, repos: Repos, context: Context) -> None:
        self._repos = repos
        self._context = context
        self._workflows = settings_of(context.service).workflows
        self._warned: dict[tuple[str, int], None] = {}
        self._just_worked = self._from_backlog = False
        self._taken: set[str] = set()

    def look(self) -> list[Job]:
        """The jobs that this service may run now, oldest first; those of the same age by name.

        Raises `ApiTrouble`, `RightsRefused`.
        """
        if self._just_worked:
            self._just_worked = False
            known = self._ours((queue, queue.last(_BACKLOG_VALID_FOR)) for queue in self._repos.queues())
            if backlog := [job for job in known if job.id not in self._taken]:
                self._from_backlog = True
                return backlog
        self._from_backlog = False
        self._taken.clear()
        return self._ours(self._look_at_all(self._repos.due()))

    def siblings(self, job: Job) -> list[WorkflowJob]:
        """All jobs of the job's run, as they are now. Free of charge while none has changed. Raises `NotFound`, `ApiTrouble`."""
        return self.queue_of(job).jobs(int(str(job.details["run_id"])))

    def still_queued(self, job: Job) -> bool:
        """Return True when the job is still queued with the same labels. Free of charge while its run has not changed."""
        try:
            now = next((one for one in self.siblings(job) if str(one.id) == job.id), None)
        except NotFound:
            return False
        return now is not None and now.status == "queued" and now.labels == job.details.get("labels")

    def may_claim(self, job: Job) -> bool:
        """As `still_queued`, but our own look of a moment ago is good enough."""
        queue = self.queue_of(job)
        known = not self._from_backlog and queue.looked_within(_FRESH)
        self._taken.add(job.id)
        return known or self.still_queued(job)

    def leave_to_others(self, claimed: Job) -> None:
        """Call when this service has a job to run: another service of the fleet may look at its queue."""
        self._just_worked = True
        self.queue_of(claimed).pass_on()

    def has_rivals(self, job: Job) -> bool:
        """Return True when GitHub may give this job's runner to another: one last seen queued that wants no other label."""
        ours = _folded(labels_of(job))
        return any(
            str(other.job.id) != job.id and _folded(other.job.labels) <= ours
            for queue in self._repos.queues()
            for other in queue.last(float("inf"))
        )

    def queue_of(self, job: Job) -> RunQueue:
        """The queue of the job's repository."""
        return self._repos.queue(Repo(self._context.service.owner, str(job.details.get("repo", ""))))

    def find_by_runner(self, runner_name: str, *, ended_too: bool, near: Job) -> tuple[WorkflowJob, Run, Repo] | None:
        """The job that GitHub gave to this runner. Searches the run of `near` first; `ended_too`: ended runs as well."""
        home = self.queue_of(near)
        # The run may have been deleted, and the runner may work on a job of another run.
        with suppress(NotFound):
            for one in self.siblings(near):
                if one.runner_name == runner_name:
                    return one, Run(id=one.run_id), home.repo
        for queue in (home, *(other for other in self._repos.queues() if other is not home and other.active)):
            found = queue.find_by_runner(runner_name, ended_too=ended_too)
            if found is not None:
                return *found, queue.repo
        return None

    def describe(self, job: WorkflowJob, run: Run, spec: VMSpec, repo: Repo) -> Job:
        """Describe a GitHub job to the core, with the fields of its log lines."""
        url = job.html_url or ""
        unique = label_value(_UNIQUE_LABEL, job.labels)
        fields: dict[str, str | int] = {
            "workflowName": job.workflow_name or run.name or "",
            "workflowRunName": run.display_title or "",
            "workflowRunId": job.run_id,
            "workflowJobId": job.id,
            "workflowJobName": job.name,
            "uniqueId": unique,
            "uniqueRunKey": f"{job.run_id}:{unique}" if unique else "",
            "ankaTemplate": spec.template,
            "ankaTemplateTag": spec.tag or "",
            "jobURL": url,
            "repo": repo.name if repo.name != self._context.service.repo else "",
        }
        return Job(
            id=str(job.id),
            name=job.name,
            url=url,
            keyspace=repo.keyspace,
            vm=spec,
            log_fields={key: value for key, value in fields.items() if value != ""},
            details={"labels": job.labels, "run_id": job.run_id, "repo": repo.name},
            queued_at=_time(job.created_at, 0.0),
        )

    def _look_at_all(self, queues: Sequence[RunQueue]) -> list[tuple[RunQueue, list[Waiting]]]:
        """Look at each queue. Trouble with one repository does not hide the jobs of the others."""
        found: list[tuple[RunQueue, list[Waiting]]] = []
        troubles: list[ApiTrouble | RightsRefused] = []
        for queue in queues:
            try:
                found.append((queue, queue.waiting()))
            except (ApiTrouble, RightsRefused) as error:
                troubles.append(error)
                if isinstance(error, RightsRefused) and len(queues) > 1 and self._repos.leave_out(queue.repo):
                    self._context.log.error(
                        "a repository is left out", extra={"repo": queue.repo.name, "err": str(error)}
                    )
        if troubles and not found:
            raise troubles[0]
        return found

    def _ours(self, queues: Iterable[tuple[RunQueue, list[Waiting]]]) -> list[Job]:
        found = [
            (waiting, spec, queue.repo)
            for queue, all_waiting in queues
            for waiting in all_waiting
            if self._workflows.allows(waiting.run.name or waiting.job.workflow_name or "")
            and (spec := self._spec(waiting.job, queue.repo)) is not None
        ]
        found.sort(key=lambda one: (one[0].job.created_at or "", one[0].job.name, one[0].job.id))
        jobs = [self.describe(waiting.job, waiting.run, spec, repo) for waiting, spec, repo in found]
        self._report([waiting.job for waiting, _, _ in found], jobs)
        return jobs

    def _spec(self, job: WorkflowJob, repo: Repo) -> VMSpec | None:
        """The VM that a queued job wants from us, or None when the job is not for us."""
        if _SELF_HOSTED not in _folded(job.labels):
            return None
        wanted_run = label_value(_RUN_LABEL, job.labels)
        if wanted_run and wanted_run != str(job.run_id):
            self._warn_once(
                "a job's run-id label names another run; ignoring the job",
                job,
                {"workflowRunId": job.run_id, "label": wanted_run[:40], "repo": repo.name},
            )
            return None
        return self._context.spec_from_labels(job.labels)

    def _report(self, waiting: Sequence[WorkflowJob], jobs: Sequence[Job]) -> None:
        """Report the jobs that have waited long and that no service has claimed."""
        stale = 0
        for job, described in zip(waiting, jobs, strict=True):
            age = time.time() - described.queued_at if described.queued_at else 0.0
            if age > STALE_AFTER and self._context.board.holder(described.key("claim")) is None:
                stale += 1
                self._warn_once(
                    "a job has waited long and no service has claimed it",
                    job,
                    {"seconds": round(age), "jobURL": described.url},
                )
        self._context.report(STALE_JOBS, stale)

    def _warn_once(self, message: str, job: WorkflowJob, more: dict[str, str | int]) -> None:
        if (message, job.id) not in self._warned:
            self._warned[message, job.id] = None
            if len(self._warned) > _MOST_WARNED:
                del self._warned[next(iter(self._warned))]
            self._context.log.warning(message, extra={"workflowJobId": job.id, **more})


def label_value(prefix: str, labels: Sequence[str]) -> str:
    """The rest of the first label with this prefix, or an empty text. GitHub ignores the case of labels."""
    return next((label[len(prefix) :] for label in labels if label.lower().startswith(prefix)), "")


def _folded(labels: Iterable[str]) -> set[str]:
    return {label.lower() for label in labels}


def labels_of(job: Job) -> list[str]:
    """Return the labels that GitHub gave for a job."""
    labels = job.details.get("labels")
    return [str(word) for word in labels] if isinstance(labels, list) else []


def _time(text: str | None, otherwise: float) -> float:
    try:
        return datetime.fromisoformat(text or "").timestamp()
    except ValueError:
        return otherwise
