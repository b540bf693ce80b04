"""GitHub's objects as JSON: repositories, users, runs, jobs, runners, groups, installations, apps.

Owns the shape of every object (tests check it against the OpenAPI description and the webhook examples in tests/data) and
decides nothing. `Urls` gives the roots of the API and the web site for the current request.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import hashlib
import re

_FAR_PAST = 1_700_000_000.0

_REPO_URLS = (
    "archive_url:/{archive_format}{/ref} assignees_url:/assignees{/user} blobs_url:/git/blobs{/sha} "
    "branches_url:/branches{/branch} "
    "collaborators_url:/collaborators{/collaborator} comments_url:/comments{/number} commits_url:/commits{/sha} "
    "compare_url:/compare/{base}...{head} contents_url:/contents/{+path} contributors_url:/contributors "
    "deployments_url:/deployments downloads_url:/downloads events_url:/events forks_url:/forks "
    "git_commits_url:/git/commits{/sha} git_refs_url:/git/refs{/sha} git_tags_url:/git/tags{/sha} hooks_url:/hooks "
    "issue_comment_url:/issues/comments{/number} issue_events_url:/issues/events{/number} issues_url:/issues{/number} "
    "keys_url:/keys{/key_id} labels_url:/labels{/name} languages_url:/languages merges_url:/merges "
    "milestones_url:/milestones{/number} notifications_url:/notifications{?since,all,participating} pulls_url:/pulls{/number} "
    "releases_url:/releases{/id} stargazers_url:/stargazers statuses_url:/statuses/{sha} subscribers_url:/subscribers "
    "subscription_url:/subscription tags_url:/tags teams_url:/teams trees_url:/git/trees{/sha}"
)
_USER_URLS = (
    "events_url:/events{/privacy} followers_url:/followers following_url:/following{/other_user} gists_url:/gists{/gist_id} "
    "organizations_url:/orgs received_events_url:/received_events repos_url:/repos starred_url:/starred{/owner}{/repo} "
    "subscriptions_url:/subscriptions"
)


def _suffixes(text):
    return [tuple(pair.split(":", 1)) for pair in text.split()]


_REPO_SUFFIXES, _USER_SUFFIXES = _suffixes(_REPO_URLS), _suffixes(_USER_URLS)


@dataclasses.dataclass(frozen=True)
class Urls:
    """Roots without a trailing slash: `api` of the REST API, `web` of the web site."""

    api: str
    web: str


def stamp(epoch):
    """A time in GitHub's format: whole seconds, UTC."""
    if epoch is None:
        return None
    return dt.datetime.fromtimestamp(epoch, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _node(kind, number):
    return base64.b64encode(f"{kind}{number}".encode()).decode()


def _sha(seed):
    return hashlib.sha1(str(seed).encode(), usedforsecurity=False).hexdigest()


def simple_user(urls, account):
    """A `simple-user`."""
    base = f"{urls.api}/users/{account.login}"
    return {
        "login": account.login,
        "id": account.id,
        "node_id": _node("User", account.id),
        "avatar_url": f"{urls.web}/avatars/u/{account.id}?v=4",
        "gravatar_id": "",
        "url": base,
        "html_url": f"{urls.web}/{account.login}",
        **{name: base + suffix for name, suffix in _USER_SUFFIXES},
        "type": account.kind,
        "user_view_type": "public",
        "site_admin": False,
    }


def public_user(urls, account):
    """A `public-user`, as a fine-grained token sees it at /user."""
    zero = ("public_repos", "public_gists", "followers", "following")
    empty = ("company", "location", "email", "hireable", "bio", "twitter_username", "notification_email")
    return {
        **simple_user(urls, account),
        "name": account.login,
        "blog": "",
        **dict.fromkeys(empty),
        **dict.fromkeys(zero, 0),
        "created_at": stamp(_FAR_PAST),
        "updated_at": stamp(_FAR_PAST),
    }


def minimal_repository(urls, repo):
    """A `minimal-repository`, as in a run."""
    base = f"{urls.api}/repos/{repo.full_name}"
    return {
        "id": repo.id,
        "node_id": _node("Repository", repo.id),
        "name": repo.name,
        "full_name": repo.full_name,
        "private": repo.private,
        "owner": simple_user(urls, repo.owner),
        "html_url": f"{urls.web}/{repo.full_name}",
        "description": None,
        "fork": False,
        "url": base,
        **{name: base + suffix for name, suffix in _REPO_SUFFIXES},
    }


def repository(urls, repo):
    """A `repository`."""
    host = urls.web.split("://", 1)[1]
    web = f"{urls.web}/{repo.full_name}"
    counts = [
        "size",
        "stargazers_count",
        "watchers_count",
        "forks_count",
        "open_issues_count",
        "forks",
        "open_issues",
        "watchers",
    ]
    return {
        **minimal_repository(urls, repo),
        "created_at": stamp(repo.created),
        "updated_at": stamp(repo.created),
        "pushed_at": stamp(repo.created),
        "git_url": f"git://{host}/{repo.full_name}.git",
        "ssh_url": f"git@{host}:{repo.full_name}.git",
        "clone_url": f"{web}.git",
        "svn_url": web,
        **dict.fromkeys(("homepage", "language", "mirror_url", "license")),
        **dict.fromkeys(counts, 0),
        **dict.fromkeys(("has_issues", "has_projects", "has_downloads", "has_wiki", "allow_forking"), True),
        **dict.fromkeys(("has_pages", "has_discussions", "archived", "disabled", "is_template"), False),
        "web_commit_signoff_required": False,
        "topics": [],
        "visibility": "private" if repo.private else "public",
        "default_branch": "main",
        "permissions": {"admin": True, "maintain": True, "push": True, "triage": True, "pull": True},
    }


def full_repository(urls, repo):
    """A `full-repository`, as GET /repos/{owner}/{repo} shows it."""
    body = repository(urls, repo)
    body.update(temp_clone_token=None, network_count=0, subscribers_count=1, custom_properties={})
    if repo.owner.kind == "Organization":
        body["organization"] = simple_user(urls, repo.owner)
    return body


def workflow(urls, repo, name, number):
    """A `workflow`."""
    path = _workflow_path(name)
    return {
        "id": number,
        "node_id": _node("Workflow", number),
        "name": name,
        "path": path,
        "state": "active",
        "created_at": stamp(repo.created),
        "updated_at": stamp(repo.created),
        "url": f"{urls.api}/repos/{repo.full_name}/actions/workflows/{number}",
        "html_url": f"{urls.web}/{repo.full_name}/blob/main/{path}",
        "badge_url": f"{urls.web}/{repo.full_name}/workflows/{name.replace(' ', '%20')}/badge.svg",
    }


def _workflow_path(name):
    return f".github/workflows/{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-') or 'workflow'}.yml"


def workflow_run(urls, run, attempt=None):
    """A `workflow-run`, in its current state or as one of its earlier attempts."""
    attempt = attempt or run.attempt
    status, conclusion, started, updated = run.ended.get(
        attempt, (run.status, run.conclusion, run.started, run.updated)
    )
    repo, workflow_id = run.repo, run.repo.workflows[run.workflow]
    base = f"{urls.api}/repos/{repo.full_name}/actions/runs/{run.id}"
    suite = run.id + 20_000_000_000
    body = {
        "id": run.id,
        "name": run.workflow,
        "node_id": _node("WorkflowRun", run.id),
        "head_branch": run.branch,
        "head_sha": _sha(run.id),
        "path": _workflow_path(run.workflow),
        "display_title": f"{run.workflow} #{run.number}",
        "run_number": run.number,
        "event": "push",
        "status": status,
        "conclusion": conclusion,
        "workflow_id": workflow_id,
        "check_suite_id": suite,
        "check_suite_node_id": _node("CheckSuite", suite),
        "url": base,
        "html_url": f"{urls.web}/{repo.full_name}/actions/runs/{run.id}",
        "pull_requests": [],
        "created_at": stamp(run.created),
        "updated_at": stamp(updated),
        "actor": simple_user(urls, repo.owner),
        "run_attempt": attempt,
        "referenced_workflows": [],
        "run_started_at": stamp(started),
        "triggering_actor": simple_user(urls, repo.owner),
        "check_suite_url": f"{urls.api}/repos/{repo.full_name}/check-suites/{suite}",
        "previous_attempt_url": f"{base}/attempts/{attempt - 1}" if attempt > 1 else None,
        "workflow_url": f"{urls.api}/repos/{repo.full_name}/actions/workflows/{workflow_id}",
        "head_commit": _commit(run),
        "repository": minimal_repository(urls, repo),
        "head_repository": minimal_repository(urls, repo),
    }
    body.update({f"{name}_url": f"{base}/{name}" for name in ("jobs", "logs", "artifacts", "cancel", "rerun")})
    return body


def _commit(run):
    who = {"name": run.repo.owner.login, "email": f"{run.repo.owner.login.lower()}@example.com"}
    return {
        "id": _sha(run.id),
        "tree_id": _sha(run.id + 1),
        "message": f"Change {run.number}",
        "timestamp": stamp(run.created),
        "author": who,
        "committer": who,
    }


def job(urls, job):
    """A `job`."""
    run, ran_on = job.run, job.runner or dict.fromkeys(("id", "name", "group_id", "group_name"))
    base = f"{urls.api}/repos/{run.repo.full_name}"
    return {
        "id": job.id,
        "run_id": run.id,
        "workflow_name": run.workflow,
        "head_branch": run.branch,
        "run_url": f"{base}/actions/runs/{run.id}",
        "run_attempt": job.attempt,
        "node_id": _node("CheckRun", job.id),
        "head_sha": _sha(run.id),
        "url": f"{base}/actions/jobs/{job.id}",
        "html_url": f"{urls.web}/{run.repo.full_name}/actions/runs/{run.id}/job/{job.id}",
        "status": job.status,
        "conclusion": job.conclusion,
        "created_at": stamp(job.created),
        "started_at": stamp(job.created if job.started is None else job.started),
        "completed_at": stamp(job.completed),
        "name": job.name,
        "steps": [_step(number, step) for number, step in enumerate(job.steps, 1)],
        "check_run_url": f"{base}/check-runs/{job.id}",
        "labels": job.labels,
        **{f"runner_{name}": value for name, value in ran_on.items()},
    }


def _step(number, step):
    return {
        "name": step["name"],
        "status": step["status"],
        "conclusion": step["conclusion"],
        "number": number,
        "started_at": stamp(step["started_at"]),
        "completed_at": stamp(step["completed_at"]),
    }


def runner_labels(world, runner):
    """The labels of a runner; its default labels are read-only."""
    own = {"self-hosted", "macOS", "X64", "ARM64"} if not runner.jit else set()
    return [
        {"id": world.label_id(name), "name": name, "type": "read-only" if name in own else "custom"}
        for name in runner.labels
    ]


def runner(world, runner):
    """A `runner`."""
    return {
        "id": runner.id,
        "name": runner.name,
        "os": runner.os,
        "status": runner.status,
        "busy": runner.busy,
        "ephemeral": runner.ephemeral,
        "runner_group_id": runner.group.id,
        "labels": runner_labels(world, runner),
        "version": runner.version,
    }


def runner_group(urls, account, group):
    """A `runner-groups-org`."""
    base = f"{urls.api}/orgs/{account.login}/actions/runner-groups/{group.id}"
    body = {
        "id": group.id,
        "name": group.name,
        "visibility": "all" if group.repos is None else "selected",
        "default": group.id == 1,
        "runners_url": f"{base}/runners",
        "hosted_runners_url": f"{base}/hosted-runners",
        "inherited": False,
        "allows_public_repositories": True,
        "restricted_to_workflows": False,
        "selected_workflows": [],
        "workflow_restrictions_read_only": False,
    }
    if group.repos is not None:
        body["selected_repositories_url"] = f"{base}/repositories"
    return body


def app(urls, account, app):
    """An `integration`: the App itself."""
    return {
        "id": app["id"],
        "client_id": app["client_id"],
        "slug": app["slug"],
        "node_id": _node("Integration", app["id"]),
        "owner": simple_user(urls, account),
        "name": app["slug"],
        "description": None,
        "external_url": "https://example.com",
        "html_url": f"{urls.web}/apps/{app['slug']}",
        "created_at": stamp(_FAR_PAST),
        "updated_at": stamp(_FAR_PAST),
        "permissions": {"metadata": "read", "actions": "read", "administration": "write"},
        "events": ["workflow_job"],
        "installations_count": app["installations"],
    }


def installation(urls, account, app, installation):
    """An `installation` of an App."""
    number = installation["id"]
    return {
        "id": number,
        "client_id": app["client_id"],
        "account": simple_user(urls, account),
        "repository_selection": "all" if installation["repos"] is None else "selected",
        "access_tokens_url": f"{urls.api}/app/installations/{number}/access_tokens",
        "repositories_url": f"{urls.api}/installation/repositories",
        "html_url": f"{urls.web}/settings/installations/{number}",
        "app_id": app["id"],
        "app_slug": app["slug"],
        "target_id": account.id,
        "target_type": account.kind,
        "permissions": installation["permissions"],
        "events": ["workflow_job"],
        "created_at": stamp(_FAR_PAST),
        "updated_at": stamp(_FAR_PAST),
        "single_file_name": None,
        "has_multiple_single_files": False,
        "single_file_paths": [],
        "suspended_by": None,
        "suspended_at": None,
    }
