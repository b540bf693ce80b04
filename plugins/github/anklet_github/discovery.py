"""Finds the queued jobs that ask for a VM of this service, best first. A look: it changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from anklet_github.api import Api
from anklet_github.payloads import Jobs, Run, Runs, WorkflowJob
from anklet_github.scope import Scope
from anklet_worker.job import Job
from anklet_worker.plugin import Context
from anklet_worker.vm import VMSpec

#: A run in progress can still hold queued jobs (matrix, needs), so both are looked through.
RUN_STATUSES = ("queued", "in_progress")
#: How many ended runs are searched for the job of a runner that has come and gone.
_LATEST_RUNS = 20
_SELF_HOSTED = "self-hosted"
_RUN_LABEL, _UNIQUE_LABEL = "run-id:", "unique-id:"


class Discovery:
    """Looks through one repository's runs."""

    def __init__(self, api: Api, scope: Scope, context: Context) -> None:
        self._api = api
        self._scope = scope
        self._context = context
        self._warned: set[int] = set()

    def look(self) -> list[Job]:
        """Jobs that may be run now: the oldest first, and of the same age by name."""
        found = [(job, run) for run in self.runs() if self._serves(run) for job in self.jobs(run)]
        candidates = [(job, run, self.spec(job)) for job, run in found]
        jobs = [(job, run, spec) for job, run, spec in candidates if spec is not None]
        jobs.sort(key=lambda found: (found[0].created_at or "", found[0].name, found[0].id))
        return [describe(job, run, spec, self._scope) for job, run, spec in jobs]

    def runs(self) -> Iterator[Run]:
        """Runs that can hold jobs that wait or run, each once."""
        seen: set[int] = set()
        for status in RUN_STATUSES:
            for run in self._api.get_all(f"{self._scope.repo_path}/actions/runs", Runs, status=status):
                if run.id not in seen:
                    seen.add(run.id)
                    yield run

    def jobs(self, run: Run) -> list[WorkflowJob]:
        """The jobs of a run's latest attempt."""
        return self._api.get_all(f"{self._scope.repo_path}/actions/runs/{run.id}/jobs", Jobs, filter="latest")

    def job(self, job_id: int) -> WorkflowJob:
        """One job. Raises `NotFound`."""
        return self._api.get(f"{self._scope.repo_path}/actions/jobs/{job_id}", WorkflowJob)

    def find_by_runner(self, runner_name: str, *, ended_too: bool) -> tuple[WorkflowJob, Run] | None:
        """The job that GitHub gave to the runner of this name, whatever it was made for. With `ended_too`, also among the latest
        runs that are over."""
        for run in (*self.runs(), *(self._latest_runs() if ended_too else ())):
            for job in self.jobs(run):
                if job.runner_name == runner_name:
                    return job, run
        return None

    def _latest_runs(self) -> list[Run]:
        path = f"{self._scope.repo_path}/actions/runs"
        return self._api.get(path, Runs, status="completed", per_page=_LATEST_RUNS).items

    def spec(self, job: WorkflowJob) -> VMSpec | None:
        """What VM a job wants from us; None when it is not queued, or not for us."""
        if job.status != "queued" or _SELF_HOSTED not in (label.lower() for label in job.labels):
            return None
        wanted_run = label_value(_RUN_LABEL, job.labels)
        if wanted_run and wanted_run != str(job.run_id):
            if job.id not in self._warned:
                self._warned.add(job.id)
                self._context.log.warning(
                    "a job's run-id label is not that of its run; left alone",
                    extra={"workflowJobId": job.id, "workflowRunId": job.run_id, "label": wanted_run[:40]},
                )
            return None
        return self._context.spec_from_labels(job.labels)

    def _serves(self, run: Run) -> bool:
        return self._context.service.workflows.allows(run.name or "")


def describe(job: WorkflowJob, run: Run, spec: VMSpec, scope: Scope) -> Job:
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
    }
    return Job(
        id=str(job.id),
        name=job.name,
        url=url,
        keyspace=scope.keyspace,
        vm=spec,
        log_fields={key: value for key, value in fields.items() if value != ""},
        details={"labels": job.labels, "run_id": job.run_id},
        queued_at=_unix(job.created_at),
    )


def _unix(moment: str | None) -> float:
    """A time of GitHub's (ISO 8601) as Unix seconds; 0 where there is none."""
    try:
        return datetime.fromisoformat(moment or "").timestamp()
    except ValueError:
        return 0.0


def label_value(prefix: str, labels: Sequence[str]) -> str:
    """What stands behind the first label of this prefix; GitHub compares labels without regard to case."""
    return next((label[len(prefix) :] for label in labels if label.lower().startswith(prefix)), "")
