"""Example plugin `spool`: runs each shell script that is dropped into a folder in a fresh VM of its own.

`inbox/NAME.sh` is a queued job; it is renamed to `running/NAME.sh`, then to `done/NAME.sh` or `failed/NAME.sh`, with its output
beside it as `NAME.log`. The first line may name what it wants to run in: `# template: macos-15-xcode-16`.

Install: copy this folder to `~/.config/anklet/plugins/spool/`, and configure a service:

    services:
      - name: NIGHTLY
        plugin: spool
        folder: /Users/me/spool
        template: macos-15
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from anklet_worker.contract.context import Context
from anklet_worker.contract.driver import JobInHand, Withdrawal
from anklet_worker.contract.errors import RetryHere
from anklet_worker.contract.guest import Guest
from anklet_worker.contract.job import Conclusion, Job, Outcome, VMSpec

from .rules import SpoolSettings

_DEADLINE = 3600.0  # seconds that a script may take


class SpoolPlugin:
    """One service's plugin: made once in its worker, called from one thread. Small enough to be both halves."""

    api_version = 2

    def __init__(self, context: Context) -> None:
        self._context = context
        settings = context.service.settings_as(SpoolSettings)
        self._folder, self._template = settings.folder, settings.template
        self.source = self.driver = self
        for state in ("inbox", "running", "done", "failed"):
            (self._folder / state).mkdir(parents=True, exist_ok=True)

    def find(self) -> Sequence[Job]:
        """Return what could be run now, oldest first. A look changes nothing."""
        scripts = sorted((self._folder / "inbox").glob("*.sh"), key=lambda path: path.stat().st_mtime)
        return [self._job(script) for script in scripts]

    def housekeep(self, claimed: Job | None) -> None:
        """A folder needs no upkeep."""

    def claim(self, job: Job) -> bool:
        """A VM slot and the job's lease are in hand: is it still there?"""
        return self._in("inbox", job).is_file()

    def drive(self, hand: JobInHand, guest: Guest) -> Outcome:
        """The VM runs: run the script in it. Remember first what changes outside, so that the core calls `settle`."""
        hand.remember(taken=hand.job.id)
        self._in("inbox", hand.job).rename(self._in("running", hand.job))
        hand.job_started(hand.job)
        return self._run(hand.job, guest)

    def adopt(self, hand: JobInHand, guest: Guest) -> Outcome:
        """An earlier process started this job and is gone; its script may have run in part. This plugin runs it again."""
        return self._run(hand.job, guest)

    def withdraw(self, hand: JobInHand) -> Withdrawal:
        """No job can land in a VM by itself here."""
        return Withdrawal.WITHDRAWN

    def settle(self, hand: JobInHand) -> bool:
        """The VM is gone: a script that did not finish goes back to the inbox."""
        if self._in("running", hand.job).is_file():
            self._in("running", hand.job).rename(self._in("inbox", hand.job))
        return True

    def collect(self, hand: JobInHand, guest: Guest, folder: Path) -> None:
        """The output is filed already; nothing else in the guest is worth keeping."""

    def abandoned(self, vm: str) -> bool:
        """Nothing waits for a VM of ours that no record explains."""
        return True

    def close(self) -> None:
        """Nothing is held open."""

    def _job(self, script: Path) -> Job:
        first_line = script.read_text(errors="replace").partition("\n")[0]
        template = (
            first_line.removeprefix("# template:").strip() if first_line.startswith("# template:") else self._template
        )
        return Job(
            id=script.stem,
            name=script.name,
            url=script.as_uri(),
            keyspace=f"anklet:{{spool:{self._folder}}}",
            vm=VMSpec(template=template),
        )

    def _run(self, job: Job, guest: Guest) -> Outcome:
        script = self._in("running", job).read_bytes()
        # The script travels on standard input; base64 keeps it whole, whatever is in it.
        wrapped = f"base64 -d > job.sh <<'END'\n{base64.encodebytes(script).decode()}END\nbash job.sh </dev/null\n"
        result = guest.run(wrapped, env={"SPOOL_JOB": job.id}, timeout=_DEADLINE)
        good = result.status == 0
        place = "done" if good else "failed"
        try:
            (self._folder / place / f"{job.id}.log").write_text(result.output)
            self._in("running", job).rename(self._in(place, job))
        except OSError as error:
            raise RetryHere(f"cannot file the result of {job.name}: {error.strerror}") from error
        conclusion = Conclusion.SUCCESS if good else Conclusion.FAILURE
        return Outcome(conclusion=conclusion, job_id=job.id, job_name=job.name, job_url=job.url)

    def _in(self, state: str, job: Job) -> Path:
        return self._folder / state / f"{job.id}.sh"


plugin = SpoolPlugin
