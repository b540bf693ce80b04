"""Installs, registers and starts the runner inside the VM, with three scripts that an operator may replace.

Owns the scripts and their settings. Settings go into the guest as environment variables on standard input, never as arguments;
only `script_arguments: original` passes arguments, for scripts that were written for the original Anklet. Knows nothing about
GitHub's API.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import msgspec

from anklet_github.settings import GithubSettings, settings_of
from anklet_worker.contract.context import Context
from anklet_worker.contract.errors import RetryElsewhere, RetryHere
from anklet_worker.contract.guest import Guest, GuestResult

#: The runner version for an image without one. Its checksum is in the release notes of that version (actions/runner) and belongs
#: into `runner.sha256`.
RUNNER_VERSION = "2.336.0"

INSTALL, REGISTER, START = "install-runner.bash", "register-runner.bash", "start-runner.bash"
_OURS = Path(__file__).parent / "guest"
_WAIT = (_OURS / "wait-for-runner.bash").read_text()
#: Seconds beyond its own limit within which a wait in the guest must answer.
_WAIT_MARGIN = 30.0
#: Seconds without any trace of a runner after which a wait ends: an operator's start script may still be starting it.
_UNSEEN_AFTER = 10
#: Makes the runner exit with status 7 when GitHub no longer serves its version.
_TELL_DEPRECATION = {"ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE": "1"}
DEPRECATED = "7"
_INSTALL_TIMEOUT = 900.0
_REGISTER_TIMEOUT = 90.0
_START_TIMEOUT = 60.0
_TAIL = 300
#: Runs the start script in the background, because an operator's script may run as long as the runner. If it ends within half a
#: second, its output and status are reported.
_START_IN_BACKGROUND = """\
set -m
# The image may hold marks and logs of an earlier runner. Do not mistake them for those of this one.
marks=$HOME/.anklet-runner
rm -rf "$marks"
mkdir -p "$marks"
ls -d "${RUNNER_HOME:-$HOME/actions-runner}"/_diag/Worker_* >"$marks/earlier" 2>/dev/null
(trap '' HUP; exec bash ./{command}) >"$HOME/start-runner.log" 2>&1 </dev/null &
script=$!
for _ in 1 2 3 4 5 6 7 8 9 10; do
    if ! kill -0 "$script" 2>/dev/null; then
        wait "$script"
        status=$?
        cat "$HOME/start-runner.log"
        exit "$status"
    fi
    sleep 0.05
done
"""


class Sighting(msgspec.Struct, frozen=True, kw_only=True):
    """The state of the runner, as seen in the guest.

    `state`: waiting (it listens for a job), working (it took a job), ended or gone (it no longer runs), unseen (unknown).
    `status`: the exit status of run.sh, or "?". `removed`: GitHub has removed its registration. `words`: the runner's log lines
    about its job. `left`: run.sh has ended and left processes behind, which may be the runner itself.
    """

    state: str
    status: str
    removed: bool
    words: str
    left: bool = False

    @property
    def over(self) -> bool:
        """The runner no longer runs."""
        return self.state in ("ended", "gone")

    @property
    def online(self) -> bool:
        """The runner has reported that it is in contact with GitHub."""
        return "Listening for Jobs" in self.words

    @property
    def job_name(self) -> str | None:
        """The name of the job that the runner took, from its own log; None when it has not reported one."""
        said = re.findall(r"Running job: (.+)$", self.words, re.MULTILINE)
        return str(said[-1]).strip() if said else None

    @property
    def result(self) -> str | None:
        """The job's result from the runner's own log: Succeeded, Failed, Canceled; None when it has not reported one."""
        said = re.findall(r"completed with result: (\w+)", self.words)
        return said[-1] if said else None


class GuestScripts:
    """Runs the scripts of one service in a guest."""

    def __init__(self, context: Context, unseen_after: int = _UNSEEN_AFTER) -> None:
        self._context = context
        self._settings = settings_of(context.service)
        self._unseen_after = unseen_after
        self._judged: set[str] = set()

    def install(self, guest: Guest) -> None:
        """Copy the scripts and make sure that a runner is installed. Registers nothing. Raises `RetryHere`, `VMError`."""
        wanted = [INSTALL, START] if self._settings.runner_mode == "jit" else [INSTALL, REGISTER, START]
        for name in wanted:
            guest.copy_in(self._script(name))
        self._context.check()
        result = guest.run(f"exec bash ./{INSTALL}\n", env=install_settings(self._settings), timeout=_INSTALL_TIMEOUT)
        _expect_success(result, "installing the runner")
        self._judge_version(result.output)

    def _judge_version(self, output: str) -> None:
        """Warn once about an old runner: GitHub gives it no jobs when it is more than 30 days behind (actions/runner docs,
        --disableupdate)."""
        found = re.search(r"^runner version: (\d+(?:\.\d+)+)", output, re.MULTILINE)
        if found is None or found[1] in self._judged or _numbers(found[1]) >= _numbers(RUNNER_VERSION):
            return
        self._judged.add(found[1])
        self._context.log.warning(
            "the runner in the image is old; GitHub stops giving jobs to runners more than 30 days behind",
            extra={"runnerVersion": found[1], "knownVersion": RUNNER_VERSION},
        )

    def wait(self, guest: Guest, limit: float, *, working: bool) -> Sighting:
        """Wait inside the guest until the runner ends or takes a job, at most `limit` seconds.

        `working`: it is known to have a job; wait only for its end. Raises `VMError` when the command cannot run in the guest.
        """
        settings = {
            "LIMIT": str(max(1, round(limit))),
            "KNOWN": "1" if working else "0",
            "UNSEEN": str(self._unseen_after),
        }
        result = guest.run(_WAIT, env=settings, timeout=limit + _WAIT_MARGIN, looks_only=True)
        found = re.search(
            r"^anklet-runner state=(\w+) status=(\S+) removed=([01]) left=([01])$", result.output, re.MULTILINE
        )
        if found is None:
            return Sighting(state="unseen", status="?", removed=False, words="")
        words = result.output[found.end() :].strip()
        return Sighting(state=found[1], status=found[2], removed=found[3] == "1", words=words, left=found[4] == "1")

    def register(self, guest: Guest, url: str, token: str, labels: list[str]) -> None:
        """Register the runner from inside the guest (token mode). Raises `RetryElsewhere`, `RetryHere`, `VMError`."""
        if any("," in label for label in labels):
            raise RetryElsewhere("a label with a comma cannot be registered in token mode; use runner_mode: jit")
        joined = ",".join(labels)
        env = {
            f"ACTIONS_RUNNER_INPUT_{key}": value
            for key, value in (("URL", url), ("TOKEN", token), ("NAME", guest.name), ("LABELS", joined))
        }
        if self._settings.runner.group:
            env["ACTIONS_RUNNER_INPUT_RUNNERGROUP"] = self._settings.runner.group
        arguments = ""
        if self._settings.script_arguments == "original":
            self._context.log.warning(
                "passing the registration token as an argument inside the guest, because script_arguments is original"
            )
            arguments = " " + shlex.join([guest.name, token, url, joined])
        result = guest.run(f"exec bash ./{REGISTER}{arguments}\n", env=env, timeout=_REGISTER_TIMEOUT)
        _expect_success(result, "registering the runner", token)

    def start(self, guest: Guest, jit_config: str | None) -> None:
        """Start the runner and leave it running. Raises `RetryHere`, `VMError`."""
        env = dict(_TELL_DEPRECATION)
        if jit_config is not None:
            env["ACTIONS_RUNNER_INPUT_JITCONFIG"] = jit_config
        result = guest.run(_START_IN_BACKGROUND.replace("{command}", START), env=env, timeout=_START_TIMEOUT)
        _expect_success(result, "starting the runner", jit_config)

    def _script(self, name: str) -> Path:
        """The operator's script of this name if there is one, else ours."""
        theirs = self._context.plugins_path / "github" / name
        return theirs if theirs.is_file() else _OURS / name


def install_settings(settings: GithubSettings) -> dict[str, str]:
    """The environment variables for install-runner.bash."""
    version = settings.runner.version or RUNNER_VERSION
    url = settings.runner.download_url or (
        f"{settings.server_url}/actions/runner/releases/download/v{version}/actions-runner-osx-${{arch}}-{version}.tar.gz"
    )
    return {"RUNNER_VERSION": version, "RUNNER_DOWNLOAD_URL": url, "RUNNER_SHA256": settings.runner.sha256 or ""}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _expect_success(result: GuestResult, what: str, secret: str | None = None) -> None:
    if result.status != 0:
        # A script may trace its own commands, and the log's redaction does not know short-lived secrets. Mask before cutting.
        output = result.output.replace(secret, "***") if secret else result.output
        tail = " ".join(output[-_TAIL:].split())
        raise RetryHere(f"{what} failed in the guest with status {result.status}: {tail}")
