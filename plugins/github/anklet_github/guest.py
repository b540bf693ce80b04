"""What is done inside the VM: install, register and start the runner, by three scripts that an operator may replace.

Owns the scripts and the settings that they get: as environment, on standard input, never as arguments (but for scripts that
were written for the original, which are asked for by `script_arguments: original`).
"""

from __future__ import annotations

import shlex
from pathlib import Path

from anklet_worker.config import ServiceConfig
from anklet_worker.errors import RetryElsewhere, RetryHere
from anklet_worker.plugin import Context, Guest
from anklet_worker.vm import GuestResult

#: The runner that a guest gets whose image holds none. Its checksum stands in the release notes of that version
#: (actions/runner) and belongs into `runner.sha256`.
RUNNER_VERSION = "2.336.0"

INSTALL, REGISTER, START = "install-runner.bash", "register-runner.bash", "start-runner.bash"
_OURS = Path(__file__).parent / "guest"
_INSTALL_TIMEOUT = 900.0
_REGISTER_TIMEOUT = 90.0
_START_TIMEOUT = 60.0
_TAIL = 300
#: Started in the background, because a script of an operator may run for as long as the runner; one that ends at once says how.
_START_IN_BACKGROUND = """\
set -m
nohup bash ./{command} >"$HOME/start-runner.log" 2>&1 </dev/null &
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


class GuestScripts:
    """Runs the scripts of one service in a guest."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._service = context.service

    def install(self, guest: Guest) -> None:
        """Copy the scripts, and see that there is a runner. Nothing is registered yet."""
        wanted = [INSTALL, START] if self._service.runner_mode == "jit" else [INSTALL, REGISTER, START]
        for name in wanted:
            guest.copy_in(self._script(name))
        self._context.check()
        result = guest.run(f"exec bash ./{INSTALL}\n", env=install_settings(self._service), timeout=_INSTALL_TIMEOUT)
        _expect_success(result, "installing the runner")

    def register(self, guest: Guest, url: str, token: str, labels: list[str]) -> None:
        """Register the runner from inside the guest (token mode)."""
        if any("," in label for label in labels):
            raise RetryElsewhere("a label with a comma cannot be registered in token mode; use runner_mode: jit")
        joined = ",".join(labels)
        env = {
            f"ACTIONS_RUNNER_INPUT_{key}": value
            for key, value in (("URL", url), ("TOKEN", token), ("NAME", guest.name), ("LABELS", joined))
        }
        arguments = ""
        if self._service.script_arguments == "original":
            self._context.log.warning(
                "the registration token is an argument inside the guest: script_arguments is original"
            )
            arguments = " " + shlex.join([guest.name, token, url, joined])
        result = guest.run(f"exec bash ./{REGISTER}{arguments}\n", env=env, timeout=_REGISTER_TIMEOUT)
        _expect_success(result, "registering the runner")

    def start(self, guest: Guest, jit_config: str | None) -> None:
        """Start the runner, and leave it running."""
        env = {} if jit_config is None else {"ACTIONS_RUNNER_INPUT_JITCONFIG": jit_config}
        result = guest.run(_START_IN_BACKGROUND.replace("{command}", START), env=env, timeout=_START_TIMEOUT)
        _expect_success(result, "starting the runner")

    def _script(self, name: str) -> Path:
        """The operator's script of this name, else ours."""
        theirs = self._context.plugins_path / "github" / name
        return theirs if theirs.is_file() else _OURS / name


def install_settings(service: ServiceConfig) -> dict[str, str]:
    """The environment of install-runner.bash."""
    version = service.runner.version or RUNNER_VERSION
    url = service.runner.download_url or (
        f"{service.server_url}/actions/runner/releases/download/v{version}/actions-runner-osx-${{arch}}-{version}.tar.gz"
    )
    return {"RUNNER_VERSION": version, "RUNNER_DOWNLOAD_URL": url, "RUNNER_SHA256": service.runner.sha256 or ""}


def _expect_success(result: GuestResult, what: str) -> None:
    if result.status != 0:
        tail = " ".join(result.output[-_TAIL:].split())
        raise RetryHere(f"{what} failed in the guest with status {result.status}: {tail}")
