"""Finds the queued jobs that ask for a VM of this service, best first. A look: it changes nothing.

Owns which jobs are ours, in which order, and how they are described to the core. How GitHub's queue is asked is in `runs.py`, which
repositories there are in `repos.py`.
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
#: After a job, what is known of the queue serves for so long instead of a new look: the oldest jobs are in it, and each is asked
#: about before it is taken.
_BACKLOG_GOOD_FOR = 120.0
#: A job that was seen queued so lately need not be asked about again.
_FRESH = 2.0
#: A job that has waited so long, and that nobody has claimed, is reported.
STALE_AFTER = 600.0
#: So many warnings about jobs are remembered, lest they be told again.
_MOST_WARNED = 10_000


class Discovery:
    """Looks through the queues of one service's repositories."""

    def __init__(self, repos: Repos, context: Context) -> None:
        self._repos = repos
        self._context = context
        self._workflows = settings_of(context.service).workflows
        self._warned: dict[tuple[str, int], None] = {}
        self._just_worked = self._from_backlog = False
        self._taken: set[str] = set()

    def look(self) -> list[Job]:
        """Jobs that may be run now: the oldest first, and of the same age by name. Raises `ApiTrouble`."""
        if self._just_worked:
            self._just_worked = False
            known = self._ours((queue, queue.last(_BACKLOG_GOOD_FOR)) for queue in self._repos.queues())
            if backlog := [job for job in known if job.id not in self._taken]:
                self._from_backlog = True
                return backlog
        self._from_backlog = False
        self._taken.clear()
        return self._ours(self._look_at_all(self._repos.due()))

    def siblings(self, job: Job) -> list[WorkflowJob]:
        """All jobs of the job's run, as they are now. Costs nothing while none of them has changed. Raises `NotFound`."""
        return self.queue_of(job).jobs(int(str(job.details["run_id"])))

    def still_queued(self, job: Job) -> bool:
        """Whether the job is still to be had, as it was described. Costs nothing while its run has not changed."""
        try:
            now = next((one for one in self.siblings(job) if str(one.id) == job.id), None)
        except NotFound:
            return False
        return now is not None and now.status == "queued" and now.labels == job.details.get("labels")

    def may_claim(self, job: Job) -> bool:
        """As `still_queued`; our own look of a moment ago is good enough."""
        queue = self.queue_of(job)
        known = not self._from_backlog and queue.looked_within(_FRESH)
        self._taken.add(job.id)
        return known or self.still_queued(job)

    def leave_to_others(self, claimed: Job) -> None:
        """This service is busy with a job now: another one of the fleet may look through its queue."""
        self._just_worked = True
        self.queue_of(claimed).pass_on()

    def has_rivals(self, job: Job) -> bool:
        """Whether GitHub may give the runner of this job to another one: queued as last seen, and content with the same labels."""
        ours = _folded(labels_of(job))
        return any(
            str(other.job.id) != job.id and _folded(other.job.labels) <= ours
            for queue in self._repos.queues()
            for other in queue.last(float("inf"))
        )

    def queue_of(self, job: Job) -> RunQueue:
        """The queue that a job is in."""
        return self._repos.queue(Repo(self._context.service.owner, str(job.details.get("repo", ""))))

    def find_by_runner(self, runner_name: str, *, ended_too: bool, near: Job) -> tuple[WorkflowJob, Run, Repo] | None:
        """The job that GitHub gave to the runner of this name, whatever it was made for; first among the jobs of `near`'s run."""
        home = self.queue_of(near)
        # The run may be deleted by now, and the runner at work on the job of another.
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
        """A GitHub job in the core's words, with the fields that its log lines bear."""
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
        """Trouble with one of several repositories is no trouble with the others."""
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
        """What VM a queued job wants from us; None when it is not for us."""
        if _SELF_HOSTED not in _folded(job.labels):
            return None
        wanted_run = label_value(_RUN_LABEL, job.labels)
        if wanted_run and wanted_run != str(job.run_id):
            self._warn_once(
                "a job's run-id label is not that of its run; left alone",
                job,
                {"workflowRunId": job.run_id, "label": wanted_run[:40], "repo": repo.name},
            )
            return None
        return self._context.spec_from_labels(job.labels)

    def _report(self, waiting: Sequence[WorkflowJob], jobs: Sequence[Job]) -> None:
        """Which of those that wait nobody seems to want."""
        stale = 0
        for job, described in zip(waiting, jobs, strict=True):
            age = time.time() - described.queued_at if described.queued_at else 0.0
            if age > STALE_AFTER and self._context.board.holder(described.key("claim")) is None:
                stale += 1
                self._warn_once(
                    "a job has waited long and nobody has claimed it",
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
    """What stands behind the first label of this prefix; GitHub compares labels without regard to case."""
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
