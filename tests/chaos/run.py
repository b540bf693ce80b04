"""`make chaos`: a fleet at work, random faults of every kind, and a judge that reads only the emulators' journals.

Owns the run: queues jobs and strikes at the planned times, heals everything after the last fault, waits until all is quiet, fills
every slot once (the roll call), drains, and has the evidence judged. Exits with 0 when no rule was broken.
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import itertools
import json
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

_TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_TESTS))

from chaos import plan as plans  # noqa: E402  needs the path from above
from chaos import report as reports  # noqa: E402  needs the path from above
from chaos.faults import Hand  # noqa: E402  needs the path from above
from chaos.fleet import Fleet  # noqa: E402  needs the path from above
from invariants import checker  # noqa: E402  needs the path from above
from stage import TAG, TEMPLATE  # noqa: E402  needs the path from above

#: Seconds from the last fault, or the end of the last job, until all must be quiet: back-offs of a minute, leases, and GitHub's
#: timeout for lost runners.
_QUIET_WITHIN = 180.0
_ROLL_WITHIN = 90
_TURN = 0.05
_LOOK_AFTER_SERVICES = 2.0


class Run:
    """Carries out one plan on one fleet."""

    def __init__(self, fleet, plan, say=lambda _text: None):
        self._fleet = fleet
        self._plan = plan
        self._say = say
        self._due = []
        self._number = itertools.count()
        self._begun = 0.0
        #: Seconds from the end of the last fault until all was quiet.
        self.quiet_after = 0.0
        self.hand = Hand(fleet, self._later, plan.seed)

    def _later(self, seconds, act):
        heapq.heappush(self._due, (time.monotonic() + seconds, next(self._number), act))

    def go(self):
        """Run everything up to the drain; return what was not quiet in time."""
        self._fleet.start()
        self._begun = time.monotonic()
        for offer in self._plan.offers:
            self._later(offer.at, lambda offer=offer: self._offer(offer))
        for fault in self._plan.faults:
            self._later(fault.at, lambda fault=fault: self._strike(fault))
        self._turn_until(self._begun + self._plan.shape.seconds)
        self._say("healing")
        # End the faults that should have ended later.
        while self._due:
            heapq.heappop(self._due)[2]()
        self.hand.heal()
        healed = time.monotonic()
        left = self._fleet.settle(_QUIET_WITHIN, self._say)
        self.quiet_after = round(time.monotonic() - healed, 1)
        self._say("calling the roll")
        if not left:
            self._fleet.call_the_roll(_ROLL_WITHIN)
            left = self._fleet.settle(_QUIET_WITHIN)
        codes = self._fleet.drain()
        if codes != [0] * len(codes):
            left = left | {"exit codes of the drain": codes}
        return left

    def _turn_until(self, end):
        looked = 0.0
        while (now := time.monotonic()) < end:
            while self._due and self._due[0][0] <= now:
                heapq.heappop(self._due)[2]()
            self._fleet.tend()
            if now - looked > _LOOK_AFTER_SERVICES:
                looked = now
                self._fleet.operate()
            time.sleep(_TURN)

    def _offer(self, offer):
        template, tag = (
            (TEMPLATE, TAG) if offer.pulled is None else (f"pulled-{offer.pulled}", "v1" if offer.tagged else None)
        )
        job_id = self._fleet.offer(
            offer.name,
            expected="failure" if offer.fails else "success",
            steps=["exit 1" if offer.fails else "true"],
            duration=offer.seconds,
            template=template,
            tag=tag,
            pinned=offer.pinned,
        )
        if offer.cancel_after is not None:
            self._later(offer.cancel_after, lambda: self._fleet.github.cancel_job(job_id))

    def _strike(self, fault):
        self._say(f"{time.monotonic() - self._begun:8.2f}  {fault}")
        self.hand.strike(fault)


def carry_out(plan, folder, *, command="", longest_stall=None, say=lambda _text: None):
    """Run a plan in `folder` and return its report and evidence."""
    begun = time.monotonic()
    shape = plan.shape
    pulled = 1 + max((offer.pulled for offer in plan.offers if offer.pulled is not None), default=-1)
    with Fleet(
        folder, hosts=shape.hosts, services=shape.services, switches=plan.switches, modes=plan.modes, pulled=pulled
    ) as fleet:
        run = Run(fleet, plan, say)
        left = run.go()
        evidence = fleet.evidence()
        given_up = fleet.given_up
    verdict = checker.judge(evidence, longest_stall=longest_stall)
    violations = [str(violation) for violation in verdict.violations]
    violations += [f"not quiet in time: {what}: {things}" for what, things in left.items()]
    report = reports.Report(
        command=command,
        seed=plan.seed,
        shape=dataclasses.asdict(shape),
        wall_seconds=round(time.monotonic() - begun, 1),
        figures=verdict.figures
        | {"quiet after the last fault, s": run.quiet_after, "services that an operator had to start again": given_up},
        struck=run.hand.struck,
        missed=run.hand.missed,
        violations=violations,
    )
    return report, evidence


def arguments(argv):
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="A fleet under faults of every kind, judged by the emulators' journals."
    )
    parser.add_argument("--seed", type=int, default=None, help="replay the plan of this seed (default: a new one)")
    parser.add_argument("--minutes", type=float, default=2.0, help="how long faults strike (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=40.0, help="faults a minute (default: %(default)s)")
    parser.add_argument("--jobs", type=float, default=24.0, help="jobs a minute (default: %(default)s)")
    parser.add_argument("--hosts", type=int, default=3)
    parser.add_argument("--report", type=Path, help="fill the figures into this page")
    parser.add_argument("--json", type=Path, help="write the report there as JSON")
    parser.add_argument(
        "--keep", type=Path, help="a new folder for logs and evidence, kept (default: kept on failure only)"
    )
    parser.add_argument("--plan", action="store_true", help="only print the plan")
    parser.add_argument("--quiet", action="store_true", help="do not tell each fault")
    return parser.parse_args(argv)


def again(seed, options):
    """Return the command that repeats the plan: it names every option that shapes the plan and is not at its default."""
    given = {"SEED": seed, "MINUTES": options.minutes}
    usual = arguments([])
    given |= {
        name.upper(): value
        for name in ("rate", "jobs", "hosts")
        if (value := getattr(options, name)) != getattr(usual, name)
    }
    return " ".join(["make chaos", *(f"{name}={value:g}" for name, value in given.items())])


def main(argv=None):
    """Run the command and return its exit code."""
    options = arguments(argv)
    seed = int(time.time()) % 1_000_000 if options.seed is None else options.seed
    shape = plans.Shape(seconds=options.minutes * 60, rate=options.rate, jobs=options.jobs, hosts=options.hosts)
    plan = plans.make(seed, shape)
    if options.plan:
        print(plan)
        return 0
    # A signal that ends this run must end its processes too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = options.keep or Path(tempfile.mkdtemp(prefix="anklet-chaos-"))
    command = again(seed, options)
    print(f"{command}: {len(plan.faults)} faults, {len(plan.offers)} jobs, in {folder}", flush=True)
    say = (lambda _text: None) if options.quiet else (lambda text: print(text, flush=True))
    report, evidence = carry_out(plan, folder / "fleet", command=command, say=say)
    print(report.text())
    if report.violations and options.quiet:
        print(plan)
    if options.json:
        options.json.write_text(json.dumps(report.as_json(), indent=2) + "\n")
    if options.report:
        options.report.write_text(reports.fill_in(options.report.read_text(), report.markdown()))
    if report.violations or options.keep:
        evidence.save(folder / "evidence.json")
        (folder / "plan.txt").write_text(f"{plan}\n")
        print(f"evidence, plan and logs are in {folder}; again: {command}")
    else:
        shutil.rmtree(folder)
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
