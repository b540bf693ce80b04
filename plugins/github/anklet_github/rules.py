"""The github plugin's rules: its keys, what they mean together, its figures. Imports quickly: `check` and every start read it."""

from __future__ import annotations

from collections.abc import Iterator

from anklet_github.figures import FIGURES
from anklet_github.settings import GithubSettings, RunnerSettings, WorkflowFilter
from anklet_worker.contract.rules import Complaint, ServiceRules
from anklet_worker.contract.service import ServiceConfig
from anklet_worker.contract.settings import Key, Kind, Moved, Section, choice, nested

_LARGEST_ID = 10**15  # far above any id, far below where a float would round it
_RECEIVER = "remove it: there is no receiver, since this program asks GitHub itself"

_WORKFLOWS = Section(
    name="workflows",
    values=WorkflowFilter,
    keys=(
        Key(
            name="include",
            kind=Kind.PATTERNS,
            doc="serve these workflows even if excluded; without `exclude`, serve only these",
            default="all",
        ),
        Key(name="exclude", kind=Kind.PATTERNS, doc="leave out workflows of these names", default="none"),
    ),
)
_RUNNER = Section(
    name="runner",
    values=RunnerSettings,
    keys=(
        Key(
            name="version",
            kind=Kind.TEXT,
            doc="runner for images that hold none",
            default="the plugin's",
            form=r"\d+\.\d+\.\d+",
            wanted="a version like 2.330.0",
        ),
        Key(
            name="sha256",
            kind=Kind.TEXT,
            doc="checksum of its archive",
            form=r"[0-9a-f]{64}",
            wanted="64 hexadecimal digits",
            lower=True,
        ),
        Key(name="download_url", kind=Kind.URL, doc="where its archive is, instead of GitHub's releases"),
        Key(name="group", kind=Kind.TEXT, doc="runner group, for runners of an organization"),
    ),
)
SETTINGS = Section(
    name="github",
    values=GithubSettings,
    keys=(
        choice("registration", "register runners with the repository or the organization", "repo", "org"),
        Key(name="token", kind=Kind.SECRET, doc="access token", quoted=True),
        Key(name="private_key", kind=Kind.PRIVATE_KEY, doc="key of a GitHub App, instead of a token"),
        Key(
            name="app_id",
            kind=Kind.TEXT,
            doc="the App's id or client id",
            form=r"[A-Za-z0-9._-]+",
            wanted="an App's id",
            unset="0",  # the original's word for "none"
        ),
        Key(
            name="installation_id",
            kind=Kind.INTEGER,
            doc="the App's installation",
            default="looked up",
            least=0,
            most=_LARGEST_ID,
            unset="0",  # the original's word for "look it up"
        ),
        Key(
            name="repos",
            kind=Kind.TEXTS,
            doc="with `registration: org`, the repositories to look through: a name, a pattern (`ios-*`), or a list of these",
            default="all",
            single=True,
        ),
        nested(_WORKFLOWS, "regular expressions for a workflow's whole name"),
        choice("runner_mode", "how a runner is registered", "jit", "token"),
        nested(_RUNNER, "the runner program in the guest"),
        Key(name="api_url", kind=Kind.URL, doc="for GitHub Enterprise Server `https://HOST/api/v3`"),
        Key(name="server_url", kind=Kind.URL, doc="for GitHub Enterprise Server `https://HOST`"),
        Key(
            name="ca_file",
            kind=Kind.FILE,
            doc="certificates (PEM) to trust beside the system's, for a server with its own CA",
        ),
        choice("script_arguments", "`original` for guest scripts written for the original", "settings", "original"),
    ),
    moved={
        "enterprise": Moved(
            "registration", "registration: org with owner serves an organization; enterprises are not supported"
        ),
        "runner_group": Moved("runner.group"),
        "port": Moved("", _RECEIVER),
        "secret": Moved("", _RECEIVER),
        "hook_id": Moved("", _RECEIVER),
        "skip_redeliver": Moved("", _RECEIVER),
        "redeliver_hours": Moved("", _RECEIVER),
    },
)


def check(service: ServiceConfig, settings: GithubSettings) -> Iterator[Complaint]:
    """Report keys that are missing or contradict each other; the loader has checked each key by itself."""
    if not service.owner:
        yield Complaint("owner", "is missing: the user or organization on GitHub")
    if not service.repo and not settings.org:
        yield Complaint("repo", "is missing; only services with registration: org need none")
    if settings.token is None and settings.private_key is None:
        yield Complaint(
            "token", "is missing: give a token, or a GitHub App's private_key with its app_id", ("private_key",)
        )
    if settings.private_key is not None and not settings.app_id:
        yield Complaint("app_id", "is missing: a private_key needs the id of its GitHub App")
    if settings.runner.group and not settings.org:
        yield Complaint("runner.group", "is for runners of an organization; this service has registration: repo")
    if settings.repos is not None and not settings.org:
        yield Complaint("repos", "is for registration: org; a repository is named with repo")
    if settings.repos == ():
        yield Complaint("repos", "must be a name, a pattern (build-*), or a list of these")
    if settings.script_arguments == "original":
        yield Complaint(
            "script_arguments", "original shows the registration token in the guest's process list", warning=True
        )


RULES = ServiceRules(
    settings=SETTINGS,
    check=check,
    origin_keys=("api_url", "registration", "repos", "ca_file"),
    figures=FIGURES,
    retired={
        "github_receiver": "is the receiver of a later Anklet; there is none here, since this program asks GitHub itself: "
        "remove this service, and the webhook at GitHub"
    },
)
