"""`make crashpoints`: kill the process after every effect of a job, and print what happened in a table.

    crashpoints.py [--jobs N] [--family NAME ...] [WORD ...]

WORDs choose the cases whose names contain one of them. Exits with 1 when a rule was violated.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import bench
import enumeration
import program
import seams
from emulators.github.control import GitHubServer

_KEEP_WORDS = 900


class Crew:
    """The surroundings of one process of the pool."""

    github = home = folder = None
    numbers = itertools.count()

    @classmethod
    def begin(cls, folder):
        """Start this process's GitHub. All its files are below `folder`."""
        cls.folder = Path(tempfile.mkdtemp(dir=folder))
        cls.github = GitHubServer().start()
        cls.github.add_token(bench.TOKEN, permissions={"administration": "write", "actions": "read"})
        cls.home = cls.folder / "home"
        cls.home.mkdir()
        cls.github.copy_runner(cls.home)

    @classmethod
    def room(cls):
        """Return a folder for one case."""
        return cls.folder / f"case-{os.getpid()}-{next(cls.numbers)}"


def traced_worker():
    """Return the effects of a worker, run in one process."""
    room = Crew.room()
    host = bench.Host(room, Crew.github, Crew.home)
    host.plan["trace"] = True
    try:
        host.run(host.is_quiet)
        host.end()
        if violations := host.violations():
            raise AssertionError(f"the undisturbed run: {violations}")
        return enumeration.points(enumeration.trace(room))
    finally:
        host.close()


def traced_program():
    """Return the effects of supervisor and worker, run as real processes."""
    return program.traced(Crew.room())


def run_one(real, case):
    """Run one case. Keep its files only if it violated a rule."""
    room = Crew.room()
    outcome = program.run(case, room) if real else enumeration.run(case, room, Crew.github, Crew.home)
    if not outcome.violations:
        shutil.rmtree(room, ignore_errors=True)
    return outcome, room


def families(pool):
    """Return each family of cases: name -> (True if it needs real processes, the cases)."""
    found = pool.submit(traced_worker).result()
    changing = [point for point in found if point.changes]
    lines = pool.submit(traced_program).result()
    of_program = [
        case
        for role in (seams.WORKER, seams.SUPERVISOR)
        for case in program.deaths([point for point in program.points(lines, role) if point.changes], role)
    ]
    return {
        "death": (False, list(enumeration.deaths(changing))),
        "in-the-middle": (False, list(enumeration.deaths_in_the_middle(found))),
        "two-deaths": (False, list(enumeration.double_deaths(changing))),
        "detach": (False, list(enumeration.detachments(changing))),
        "failure": (False, list(enumeration.failures(found))),
        "orphan": (False, list(enumeration.orphanings(found))),
        "program": (True, of_program),
    }


def main():
    """Run the chosen cases, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=max(2, os.cpu_count() or 2))
    parser.add_argument("--family", action="append")
    parser.add_argument("words", nargs="*")
    chosen = parser.parse_args()
    began, tally = time.monotonic(), Counter()
    folder = tempfile.mkdtemp(prefix="crashpoints-")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(chosen.jobs, mp_context=spawn, initializer=Crew.begin, initargs=(folder,)) as pool:
        for family, (real, cases) in families(pool).items():
            if chosen.family and family not in chosen.family:
                continue
            wanted = [case for case in cases if not chosen.words or any(word in case.name for word in chosen.words)]
            for outcome, room in pool.map(run_one, itertools.repeat(real), wanted):
                tally[family, outcome.word] += 1
                print(f"{outcome.seconds:6.1f} s  {family:13}  {outcome.word:11}  {outcome.case.name}", flush=True)
                for violation in outcome.violations:
                    print(f"            {violation[:_KEEP_WORDS]}  ({room})", flush=True)
    print()
    for (family, word), count in tally.items():
        print(f"{family:13}  {word:11}  {count:4}")
    print(f"{sum(tally.values())} cases in {time.monotonic() - began:.0f} s")
    violated = any(word == "VIOLATED" for _, word in tally)
    if not violated:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(violated)


if __name__ == "__main__":
    main()
