"""The server's control API for tests: commands under /_emulator/, JSON in and out. Owns their names; `control.py` is the client."""

from __future__ import annotations

import datetime as dt
import re
import time

from emulators.github.engine import downloads, jobs, render, runners
from emulators.github.engine.exchange import Reply
from emulators.github.engine.render import Urls
from emulators.github.engine.world import Group, Token


class ControlApi:
    """The commands of one server: its world, its faults, its request log. `root` is the server's own address."""

    def __init__(self, world, faults, log, root):
        self._world, self._faults, self._log = world, faults, log
        self._urls = Urls(root, root)
        self._commands = {
            "add_app": self._add_app,
            "add_group": self._add_group,
            "add_installation": self._add_installation,
            "add_org": lambda name: {"id": world.add_account(name, "Organization").id},
            "add_repo": self._add_repo,
            "add_runner": self._add_runner,
            "add_token": self._add_token,
            "anomalies": lambda: list(world.anomalies),
            "cancel_job": lambda job_id: jobs.cancel_job(world, self._job(job_id)),
            "cancel_run": lambda run_id: jobs.cancel_run(world, self._run(run_id)),
            "clear_faults": faults.clear,
            "counts": log.counts,
            "delete_runner": self._delete_runner,
            "events": lambda since=0: world.events[since:],
            "fault": faults.add,
            "faults": faults.waiting,
            "job": lambda job_id: self._shown_job(self._job(job_id)),
            "jobs": lambda: [self._shown_job(job) for job in world.jobs.values()],
            "queue_run": self._queue_run,
            "requests": lambda since=0: log.lines(since),
            "rerun": self._rerun,
            "run": lambda run_id: self._shown_run(self._run(run_id)),
            "runner_sha256": downloads.sha256,
            "runners": self._runners,
            "set": lambda **changes: world.turn(changes),
            "wait": self._wait,
        }

    def answer(self, request):
        """Return 200 with the command's result, or 400 with the error."""
        command = self._commands.get(request.path.rsplit("/", 1)[1])
        if command is None or request.method != "POST":
            return Reply(404, {"error": f"no such command: {request.method} {request.path}"})
        try:
            with self._world.changed:
                return Reply(200, {"result": command(**request.json())})
        except (KeyError, TypeError, ValueError, re.error) as error:
            return Reply(400, {"error": f"{type(error).__name__}: {error}"})

    def _run(self, run_id):
        return self._world.runs[run_id]

    def _job(self, job_id):
        return self._world.jobs[job_id]

    def _repo(self, owner, repo):
        found = self._world.repo(owner, repo)
        if found is None:
            raise ValueError(f"no such repository: {owner}/{repo}")
        return found

    def _shown_job(self, job):
        more = {
            "log": job.log,
            "released": job.released,
            "starts": job.starts,
            "cancel_asked": job.cancel_asked is not None,
        }
        return render.job(self._urls, job) | {"repo": job.run.repo.full_name} | more

    def _shown_run(self, run):
        return render.workflow_run(self._urls, run) | {"jobs": [self._shown_job(job) for job in run.jobs]}

    def _add_repo(self, owner, repo, *, private=True):
        return {"id": self._world.add_repo(owner, repo, private=private).id}

    def _add_token(self, value, *, permissions=None, repos=None, user="octocat", expires_in=None):
        kind = "installation" if value.startswith("ghs_") else "user"
        repos = None if repos is None else [name.lower() for name in repos]
        expires = None if expires_in is None else time.time() + expires_in
        self._world.tokens[value] = Token(value, kind, user, permissions, repos, expires)

    def _add_app(self, app_id, *, client_id=None, slug="emulated-app", owner="octo-org"):
        client = client_id or f"Iv23li{app_id}"
        app = {"id": app_id, "client_id": client, "slug": slug, "owner": owner, "installations": 0}
        self._world.add_account(owner)
        self._world.apps[str(app_id)] = self._world.apps[client] = app

    def _add_installation(self, installation_id, *, app_id, account, permissions, repos=None):
        app = self._world.apps[str(app_id)]
        app["installations"] += 1
        self._world.add_account(account)
        what = {
            "id": installation_id,
            "app_id": app["id"],
            "account": account,
            "permissions": permissions,
            "repos": repos,
        }
        self._world.installations[installation_id] = what

    def _add_group(self, org, name, *, repos=None):
        account = self._world.org(org)
        if account is None:
            raise ValueError(f"no such organisation: {org}")
        number = self._world.new_id("group")
        account.groups[number] = Group(number, name, repos)
        return {"id": number}

    def _queue_run(self, owner, repo, jobs_of, *, workflow="CI", created_at=None, branch="main"):
        created = created_at
        if isinstance(created_at, str):
            created = dt.datetime.fromisoformat(created_at).timestamp()
        found = self._repo(owner, repo)
        run = jobs.queue_run(self._world, found, jobs_of, workflow=workflow, created=created, branch=branch)
        return self._shown_run(run)

    def _rerun(self, run_id, *, failed_only=False, job_id=None):
        run = self._run(run_id)
        if run.status != "completed":
            raise ValueError(f"run {run_id} is {run.status}")
        name = None if job_id is None else self._job(job_id).name
        jobs.run_again(
            self._world,
            run,
            lambda job: (name in (None, job.name)) and (not failed_only or job.conclusion in jobs.FAILED),
        )
        return self._shown_run(run)

    def _add_runner(self, owner, repo, name, labels, *, online=False, job_id=None):
        """Add a foreign runner without a process. `online` keeps it online for ever; with `job_id` it runs that job."""
        world = self._world
        scope = (owner, repo)
        group = world.add_account(owner).groups[1]
        runner = runners.register(world, scope, name, labels, group=group, ephemeral=False)
        if online or job_id is not None:
            runner.polling = 1
            runners.touch(world, runner)
        if job_id is not None:
            jobs.assign(world, self._job(job_id), runner)
            jobs.start(world, self._job(job_id), runner)
        return render.runner(world, runner)

    def _delete_runner(self, runner_id):
        """Delete a runner, as an administrator does on the web site."""
        runners.remove(self._world, self._world.runners[runner_id], "deleted by an administrator")

    def _runners(self, owner, repo=None):
        return [render.runner(self._world, runner) for runner in runners.in_scope(self._world, (owner, repo))]

    def _wait(self, since, seconds):
        """Wait for an event after the number `since`, at most `seconds`. Returns the number of events."""
        world, deadline = self._world, time.monotonic() + seconds
        while len(world.events) <= since and (left := deadline - time.monotonic()) > 0:
            world.changed.wait(left)
        return len(world.events)
