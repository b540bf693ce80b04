"""What is done inside the VM: install, register and start the runner, by three scripts that an operator may replace.

Owns the scripts and the settings that they get: as environment, on standard input, never as arguments (but for scripts that
were written for the original, which are asked for by `script_arguments: original`).
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

#: The runner that a guest gets whose image holds none. Its checksum stands in the release notes of that version
#: (actions/runner) and belongs into `runner.sha256`.
RUNNER_VERSION = "2.336.0"

INSTALL, REGISTER, START = "install-runner.bash", "register-runner.bash", "start-runner.bash"
_OURS = Path(__file__).parent / "guest"
_WAIT = (_OURS / "wait-for-runner.bash").read_text()
#: Seconds beyond its own limit in which a wait must have answered.
_WAIT_MARGIN = 30.0
#: Seconds without any trace of a runner after which a wait ends: a foreign start script may still be starting it.
_UNSEEN_AFTER = 10
#: Makes the runner tell that GitHub does not serve its version any more by an exit status of its own.
_TELL_DEPRECATION = {"ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE": "1"}
DEPRECATED = "7"
_INSTALL_TIMEOUT = 900.0
_REGISTER_TIMEOUT = 90.0
_START_TIMEOUT = 60.0
_TAIL = 300
#: Started in the background, because a script of an operator may run for as long as the runner; one that ends at once says how.
_START_IN_BACKGROUND = """\
set -m
# Nothing that the image may hold of an earlier runner is to be taken for this one's.
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
    """What was seen of the runner in the guest. `state`: waiting (it listens), working (it took up a job), ended or gone (it is no
    more), unseen (it cannot be told). `status` is run.sh's; `removed`: GitHub has taken its registration away; `words`: what it
    said of its job; `left`: it has ended, and left processes behind, which may be the runner itself."""

    state: str
    status: str
    removed: bool
    words: str
    left: bool = False

    @property
    def over(self) -> bool:
        """No runner runs any more."""
        return self.state in ("ended", "gone")

    @property
    def online(self) -> bool:
        """The runner said that it is in touch with GitHub."""
        return "Listening for Jobs" in self.words

    @property
    def job_name(self) -> str | None:
        """The job that the runner took up, by its own words."""
        said = re.findall(r"Running job: (.+)$", self.words, re.MULTILINE)
        return str(said[-1]).strip() if said else None

    @property
    def result(self) -> str | None:
        """How the job ended by the runner's own words: Succeeded, Failed, Canceled; None when it said nothing."""
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
        """Copy the scripts, and see that there is a runner. Nothing is registered yet."""
        wanted = [INSTALL, START] if self._settings.runner_mode == "jit" else [INSTALL, REGISTER, START]
        for name in wanted:
            guest.copy_in(self._script(name))
        self._context.check()
        result = guest.run(f"exec bash ./{INSTALL}\n", env=install_settings(self._settings), timeout=_INSTALL_TIMEOUT)
        _expect_success(result, "installing the runner")
        self._judge_version(result.output)

    def _judge_version(self, output: str) -> None:
        """GitHub gives no jobs to a runner that is more than 30 days behind (actions/runner: --disableupdate)."""
        found = re.search(r"^runner version: (\d+(?:\.\d+)+)", output, re.MULTILINE)
        if found is None or found[1] in self._judged or _numbers(found[1]) >= _numbers(RUNNER_VERSION):
            return
        self._judged.add(found[1])
        self._context.log.warning(
            "the runner in the image is old; GitHub stops giving jobs to runners more than 30 days behind",
            extra={"runnerVersion": found[1], "knownVersion": RUNNER_VERSION},
        )

    def wait(self, guest: Guest, limit: float, *, working: bool) -> Sighting:
        """Wait inside the guest until the runner ends, or (unless it is known to be `working`) takes up a job; at most `limit`
        seconds. Raises `VMError` when the guest does not tell."""
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
        """Register the runner from inside the guest (token mode)."""
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
                "the registration token is an argument inside the guest: script_arguments is original"
            )
            arguments = " " + shlex.join([guest.name, token, url, joined])
        result = guest.run(f"exec bash ./{REGISTER}{arguments}\n", env=env, timeout=_REGISTER_TIMEOUT)
        _expect_success(result, "registering the runner", token)

    def start(self, guest: Guest, jit_config: str | None) -> None:
        """Start the runner, and leave it running."""
        env = dict(_TELL_DEPRECATION)
        if jit_config is not None:
            env["ACTIONS_RUNNER_INPUT_JITCONFIG"] = jit_config
        result = guest.run(_START_IN_BACKGROUND.replace("{command}", START), env=env, timeout=_START_TIMEOUT)
        _expect_success(result, "starting the runner", jit_config)

    def _script(self, name: str) -> Path:
        """The operator's script of this name, else ours."""
        theirs = self._context.plugins_path / "github" / name
        return theirs if theirs.is_file() else _OURS / name


def install_settings(settings: GithubSettings) -> dict[str, str]:
    """The environment of install-runner.bash."""
    version = settings.runner.version or RUNNER_VERSION
    url = settings.runner.download_url or (
        f"{settings.server_url}/actions/runner/releases/download/v{version}/actions-runner-osx-${{arch}}-{version}.tar.gz"
    )
    return {"RUNNER_VERSION": version, "RUNNER_DOWNLOAD_URL": url, "RUNNER_SHA256": settings.runner.sha256 or ""}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _expect_success(result: GuestResult, what: str, secret: str | None = None) -> None:
    if result.status != 0:
        # A script may trace itself, and the log knows no secret that lives for an hour only. Before it is cut, while it is whole.
        output = result.output.replace(secret, "***") if secret else result.output
        tail = " ".join(output[-_TAIL:].split())
        raise RetryHere(f"{what} failed in the guest with status {result.status}: {tail}")
