"""config.sh: register this folder as a runner with a registration token, or remove it. Python 3.9 or newer."""

import os
import platform
import socket
import urllib.parse

import service

_FLAGS = (
    "unattended",
    "no-default-labels",
    "replace",
    "ephemeral",
    "disableupdate",
    "local",
    "once",
    "generateservice",
)
_VALUES = ("url", "token", "name", "labels", "runnergroup", "work", "pat", "jitconfig", "startuptype")
_ENV = "ACTIONS_RUNNER_INPUT_"


def options(argv, command):
    """Return the options of a command line and of ACTIONS_RUNNER_INPUT_*; removes the latter from the environment."""
    found = {}
    for key in [key for key in os.environ if key.startswith(_ENV)]:
        value = os.environ.pop(key)
        name = key[len(_ENV) :].lower().replace("_", "-")
        if name in _VALUES:
            found[name] = value
        elif name in _FLAGS or name == "nodefaultlabels":
            found["no-default-labels" if name == "nodefaultlabels" else name] = value.lower() in (
                "1",
                "true",
                "yes",
                "on",
            )
    rest, unknown = list(argv), []
    while rest:
        word = rest.pop(0)
        name = word[2:].lower() if word.startswith("--") else ""
        if name in _VALUES and rest:
            found[name] = rest.pop(0)
        elif name in _FLAGS:
            found[name] = True
        else:
            unknown.append(word)
    if unknown:
        words = ", ".join(f"'{word}'" for word in unknown)
        print(f"Unrecognized command-line input arguments for command {command}: {words}. ", end="")
        print("For usage refer to: .\\config.cmd --help or ./config.sh --help")
    return found


class Stop(Exception):
    """The configuration cannot continue; the text gives the reason."""


def configure(argv):
    """Run `config.sh ...`; returns its exit status."""
    return _guarded(_configure, options(argv, "configure"))


def remove(argv):
    """Run `config.sh remove ...`; returns its exit status."""
    return _guarded(_remove, options(argv, "remove"))


def _guarded(action, given):
    try:
        action(given)
    except Stop as stop:
        print(stop, flush=True)
        return 1
    except service.Unreachable as error:
        print(f"An error occurred: {error}", flush=True)
        return 1
    return 0


def _configure(given):
    if os.path.exists(service.path(".runner")):
        text = "Cannot configure the runner because it is already configured. To reconfigure the runner, "
        raise Stop(text + "run 'config.cmd remove' or './config.sh remove' first.")
    for name in ("url", "token"):
        if not given.get(name):
            raise Stop(f"Invalid configuration provided for {name}. Terminating unattended configuration.")
    labels = [label.strip() for label in given.get("labels", "").split(",") if label.strip()]
    if given.get("no-default-labels") and not labels:
        raise Stop("Invalid configuration provided for labels. Terminating unattended configuration.")
    print("\n# Authentication\n")
    status, tenant = _connect(given, "register")
    print("\n√ Connected to GitHub\n\n# Runner Registration\n", flush=True)
    if not given.get("no-default-labels"):
        labels = ["self-hosted", "macOS", "ARM64" if platform.machine() in ("arm64", "aarch64") else "X64", *labels]
    asked = {
        "name": given.get("name") or socket.gethostname(),
        "labels": labels,
        "group": given.get("runnergroup"),
        "ephemeral": bool(given.get("ephemeral")),
        "replace": bool(given.get("replace")),
        "workFolder": given.get("work") or "_work",
    }
    status, added = service.call("POST", f"{tenant['url']}agents", tenant["token"], asked)
    if status >= 300:
        raise Stop(added.get("message", f"Failed to add the runner: {status}"))
    service.save(added["files"])
    print("√ Runner successfully added", "√ Runner connection is good", "", "# Runner settings", "", sep="\n")
    print("√ Settings Saved.\n", flush=True)


def _connect(given, event):
    """Exchange a registration or removal token for (status, service address and token)."""
    url = urllib.parse.urlsplit(given["url"])
    if url.scheme not in ("http", "https") or not url.netloc:
        raise Stop("Invalid configuration provided for url. Terminating unattended configuration.")
    api = "https://api.github.com" if url.netloc == "github.com" else f"{url.scheme}://{url.netloc}/api/v3"
    asked = {"url": given["url"], "runner_event": event}
    status, tenant = service.call(
        "POST", f"{api}/actions/runner-registration", given["token"], asked, scheme="RemoteAuth"
    )
    if status >= 300:
        text = f"Http response code: {http_name(status)} from 'POST {api}/actions/runner-registration'"
        raise Stop(f"{text}\n{tenant}\nResponse status code does not indicate success: {status}.")
    return status, tenant


def http_name(status):
    """The name of a status in .NET."""
    return {401: "Unauthorized", 403: "Forbidden", 404: "NotFound"}.get(status, str(status))


def _remove(given):
    if given.get("local"):
        service.forget()
        return
    try:
        settings, _ = service.load()
    except FileNotFoundError:
        print("Does not exist. Skipping Removing .runner", flush=True)
        return
    if not given.get("token"):
        raise Stop("Invalid configuration provided for token. Terminating unattended configuration.")
    print("\n# Runner removal\n")
    _, tenant = _connect({**given, "url": settings["GitHubUrl"]}, "remove")
    status, reply = service.call("DELETE", f"{tenant['url']}agents/{settings['AgentId']}", tenant["token"])
    if status >= 300 and status != 404:
        raise Stop(reply.get("message", f"Failed to remove the runner: {status}"))
    print("√ Runner removed successfully")
    service.forget()
