"""REST routes of runners, their labels, tokens, JIT configurations and groups, for a repository or an organisation (`scope`)."""

from __future__ import annotations

import secrets
import string
import time

from emulators.github.engine import render, runners
from emulators.github.engine.exchange import Refusal, Reply, invalid, not_found, page

_TOKEN_LENGTH = 29


def list_runners(world, request, scope):
    """GET .../actions/runners, optionally filtered by name."""
    name = request.query.get("name")
    found = [runner for runner in runners.in_scope(world, scope) if not name or runner.name.lower() == name.lower()]
    body, headers = page(request, found, "runners")
    body["runners"] = [render.runner(world, runner) for runner in body["runners"]]
    return Reply(200, body, headers)


def _runner(world, scope, runner_id):
    runner = world.runners.get(int(runner_id))
    if runner is None or runner not in runners.in_scope(world, scope):
        raise not_found()
    return runner


def get_runner(world, request, scope, runner_id):
    """GET .../actions/runners/{id}."""
    return Reply(200, render.runner(world, _runner(world, scope, runner_id)))


def delete_runner(world, request, scope, runner_id):
    """DELETE .../actions/runners/{id}: 422 while it has a job."""
    runner = _runner(world, scope, runner_id)
    if runner.busy:
        raise Refusal(422, f'Bad request - Runner "{runner.name}" is still running a job"')
    runners.remove(world, runner, "deleted through the API")
    return Reply(204)


def registration_token(world, request, scope):
    """POST .../actions/runners/registration-token."""
    return _token(world, scope, "register")


def remove_token(world, request, scope):
    """POST .../actions/runners/remove-token."""
    return _token(world, scope, "remove")


def _token(world, scope, kind):
    value = "A" + "".join(secrets.choice(string.ascii_uppercase + string.digits) for _ in range(_TOKEN_LENGTH - 1))
    expires = time.time() + world.switches["token_ttl"]
    world.registration_tokens[value] = (scope, kind, expires)
    return Reply(201, {"token": value, "expires_at": render.stamp(expires)})


def generate_jitconfig(world, request, scope):
    """POST .../actions/runners/generate-jitconfig."""
    body = request.json()
    wrong = _faults_of_jit(body)
    if wrong:
        raise invalid(wrong)
    group = _groups(world, scope).get(body["runner_group_id"])
    if group is None:
        raise not_found()
    if runners.by_name(world, scope, body["name"]):
        raise Refusal(409, f"Already exists - A runner with the name {body['name']} already exists.")
    folder = body.get("work_folder") or "_work"
    runner = runners.register(
        world, scope, body["name"], body["labels"], group=group, ephemeral=True, jit=True, work_folder=folder
    )
    config = runners.jit_config(world, runner, request.urls.web)
    return Reply(201, {"runner": render.runner(world, runner), "encoded_jit_config": config})


def _faults_of_jit(body):
    wrong = runners.faults_of_name(body.get("name"))
    group = body.get("runner_group_id")
    if not isinstance(group, int) or isinstance(group, bool):
        wrong.append("runner_group_id must be an integer")
    wrong += _faults_of_labels(body.get("labels"), least=1)
    folder = body.get("work_folder", "_work")
    if not isinstance(folder, str):
        wrong.append("work_folder must be a string")
    return wrong


def _faults_of_labels(labels, *, least):
    if not isinstance(labels, list) or not all(isinstance(label, str) and label.strip() for label in labels):
        return ["labels must be a list of strings that are not blank"]
    if not least <= len(labels) <= runners.MOST_LABELS:
        return [f"labels must have {least} to {runners.MOST_LABELS} members"]
    return []


def _groups(world, scope):
    owner, repo = scope
    account = world.accounts[owner.lower()]
    return account.groups if repo is None else {1: account.groups[1]}


def get_labels(world, request, scope, runner_id):
    """GET .../actions/runners/{id}/labels."""
    return _labels(world, _runner(world, scope, runner_id))


def _labels(world, runner):
    shown = render.runner_labels(world, runner)
    return Reply(200, {"total_count": len(shown), "labels": shown})


def add_labels(world, request, scope, runner_id):
    """POST .../actions/runners/{id}/labels."""
    runner, labels = _runner(world, scope, runner_id), _asked(request, least=1)
    runner.labels = list(dict.fromkeys([*runner.labels, *labels]))
    return _relabelled(world, runner)


def set_labels(world, request, scope, runner_id):
    """PUT .../actions/runners/{id}/labels: replaces the custom ones."""
    runner, labels = _runner(world, scope, runner_id), _asked(request, least=0)
    runner.labels = list(dict.fromkeys([*_fixed(world, runner), *labels]))
    return _relabelled(world, runner)


def clear_labels(world, request, scope, runner_id):
    """DELETE .../actions/runners/{id}/labels: all custom ones."""
    runner = _runner(world, scope, runner_id)
    runner.labels = _fixed(world, runner)
    return _relabelled(world, runner)


def _asked(request, *, least):
    labels = request.json().get("labels")
    wrong = _faults_of_labels(labels, least=least)
    if wrong:
        raise invalid(wrong)
    return labels


def _fixed(world, runner):
    return [label["name"] for label in render.runner_labels(world, runner) if label["type"] == "read-only"]


def _relabelled(world, runner):
    world.changed.notify_all()  # a queued job may now fit
    return _labels(world, runner)


def list_groups(world, request, scope):
    """GET /orgs/{org}/actions/runner-groups, optionally only those that a repository may use."""
    account = world.accounts[scope[0].lower()]
    repo = request.query.get("visible_to_repository")
    found = [group for group in account.groups.values() if not repo or group.repos is None or repo in group.repos]
    body, headers = page(request, found, "runner_groups")
    body["runner_groups"] = [render.runner_group(request.urls, account, group) for group in body["runner_groups"]]
    return Reply(200, body, headers)


def get_group(world, request, scope, group_id):
    """GET /orgs/{org}/actions/runner-groups/{id}."""
    account = world.accounts[scope[0].lower()]
    group = account.groups.get(int(group_id))
    if group is None:
        raise not_found()
    return Reply(200, render.runner_group(request.urls, account, group))
