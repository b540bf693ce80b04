"""The plan of a chaos run: which jobs are queued and which faults strike, when and where. Pure: a seed in, a plan out.

Owns the kinds of faults, their frequency and their parameters; `faults.py` carries them out. The same seed, length and fleet give
exactly the same plan, so a run that failed can be repeated.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass, field

#: The `anka` verbs that the program uses, and the points at which a fault may strike a command.
VERBS = ("list", "clone", "start", "run", "delete", "cp", "pull")
POINTS = ("before", "middle", "after")
#: The routes of GitHub's API as regular expressions, with their methods.
ROUTES = (
    ("GET", r"/actions/runs$"),
    ("GET", r"/actions/runs/\d+/jobs$"),
    ("GET", r"/actions/jobs/\d+$"),
    ("GET", r"/actions/runners$"),
    ("POST", r"/generate-jitconfig$"),
    ("DELETE", r"/actions/runners/\d+$"),
    ("*", r"^/[^_]"),
)


#: Redis faults that strike between one host and Redis.
_OF_A_HOST = ("redis-partition", "redis-slow")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault, `at` seconds after the begin. `host` counts from 0; None for a fault that strikes all hosts."""

    at: float
    kind: str
    host: int | None = None
    more: dict = field(default_factory=dict)

    def __str__(self) -> str:
        where = "" if self.host is None else f" host {self.host}"
        return f"{self.at:8.2f} s  {self.kind}{where}  {' '.join(f'{key}={value}' for key, value in self.more.items())}"


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A job: what its step does and for how long, whether it fails, its template, and when its user cancels it."""

    at: float
    name: str
    seconds: float = 0.0
    fails: bool = False
    pulled: int | None = None
    #: Without a tag, the program asks the registry for the newest one.
    tagged: bool = True
    cancel_after: float | None = None
    pinned: bool = True


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The size of a run. `rate` is faults per minute, `jobs` jobs per minute, `longest` the longest fault; times in seconds."""

    seconds: float
    hosts: int = 3
    services: int = 2
    rate: float = 40.0
    jobs: float = 24.0
    longest: float = 8.0
    #: Faults that may cost a timeout of minutes.
    hangs: bool = True


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All events, in order."""

    seed: int
    shape: Shape
    faults: tuple[Fault, ...]
    offers: tuple[Offer, ...]
    #: Variants of the emulated Anka, one per host, where the behaviour of the real one is unknown.
    switches: tuple[dict, ...]
    #: How each host's services register their runners.
    modes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"seed {self.seed}, {dataclasses.asdict(self.shape)}"]
        lines += [f"host {number}: {pair}" for number, pair in enumerate(zip(self.modes, self.switches, strict=True))]
        return "\n".join(lines + [str(fault) for fault in self.faults])


def make(seed: int, shape: Shape) -> Plan:
    """Return the plan of a seed."""
    dice = random.Random(seed)
    return Plan(
        seed=seed,
        shape=shape,
        faults=tuple(_faults(random.Random(dice.random()), shape)),
        offers=tuple(_offers(random.Random(dice.random()), shape)),
        switches=tuple(_switches(dice) for _ in range(shape.hosts)),
        modes=tuple(dice.choice(("jit", "jit", "token")) for _ in range(shape.hosts)),
    )


def _switches(dice):
    return {
        "killed_clone": dice.choice(("nothing", "half", "whole")),
        "killed_start": dice.choice(("running", "failed", "stopped")),
        "killed_run_guest": dice.choice(("lives", "lives", "killed")),
        "empty_list": dice.choice(("[]", "null", "missing", "nothing")),
        "start_body": dice.choice(("show", "empty")),
        "run_json": dice.choice(("raw", "append", "wrap")),
        "boot_runs": dice.choice((0, 0, 1, 2)),
        "stderr_noise": dice.choice(("", "", "warning: a newer version is available\n")),
    }


def _offers(dice, shape):
    """Draw the jobs: most are short; some are long, fail, need a pull, or are cancelled by their users."""
    at, number = 0.0, 0
    while at < shape.seconds:
        number += 1
        long = dice.random() < 0.15
        yield Offer(
            at=round(at, 2),
            name=f"job-{number}",
            seconds=round(dice.uniform(5, min(30, shape.seconds / 3)) if long else dice.uniform(0, 1.5), 2),
            fails=dice.random() < 0.15,
            pulled=dice.randrange(max(2, int(shape.seconds / 60))) if dice.random() < 0.08 else None,
            tagged=dice.random() < 0.5,
            cancel_after=round(dice.uniform(0, 8), 2) if dice.random() < 0.08 else None,
            pinned=dice.random() < 0.6,
        )
        at += dice.expovariate(shape.jobs / 60)


def _faults(dice, shape):
    """Draw the faults at random, each kind by its weight."""
    at = 3.0 if shape.seconds > 30 else 1.0
    kinds, weights = zip(*((kind, weight) for kind, (weight, _) in KINDS.items()), strict=True)
    while True:
        at += dice.expovariate(shape.rate / 60)
        if at >= shape.seconds:
            return
        kind = dice.choices(kinds, weights)[0]
        everywhere = kind.startswith(("github-", "redis-")) and kind not in _OF_A_HOST
        host = None if everywhere else dice.randrange(shape.hosts)
        yield Fault(at=round(at, 2), kind=kind, host=host, more=KINDS[kind][1](dice, shape))


def _lasting(dice, shape):
    return {"seconds": round(dice.uniform(0.3, shape.longest), 2)}


def _of_service(dice, shape):
    return {"service": dice.randrange(shape.services)}


def _stopped_service(dice, shape):
    return _of_service(dice, shape) | _lasting(dice, shape)


def _latency(dice, shape):
    return {"latency": round(dice.choice((0.02, 0.2, 1.0, 4.0)), 2)} | _lasting(dice, shape)


def _nothing(_dice, _shape):
    return {}


def _route(dice):
    method, route = dice.choice(ROUTES)
    return {"method": method, "route": route}


def _github_error(dice, _shape):
    return _route(dice) | {"status": dice.choice((500, 502, 503, 504)), "times": dice.choice((1, 1, 2, 5))}


def _github_limit(dice, _shape):
    return _route(dice) | {"status": dice.choice((403, 429)), "retry_after": dice.choice((1, 2, 3))}


def _github_refusal(dice, _shape):
    return {"method": "GET", "route": dice.choice(ROUTES[:4])[1], "status": dice.choice((401, 404)), "times": 1}


def _github_broken(dice, _shape):
    return _route(dice) | {
        "how": dice.choice(("reset", "truncate", "drop_after_effect")),
        "times": dice.choice((1, 1, 2, 4)),
    }


def _github_slow(dice, shape):
    return _route(dice) | {
        "how": dice.choice(("delay", "slow_drip")),
        "by": round(dice.uniform(0.2, min(4.0, shape.longest)), 2),
        "times": dice.choice((1, 2, 4)),
    }


def _runner_service(dice, _shape):
    """Draw a fault between runner and GitHub, a path that the program is not part of."""
    return {"how": dice.choice(("reset", "truncate", "drop_after_effect", "delay")), "times": dice.choice((1, 2))}


def _anka_error(dice, _shape):
    return {
        "verb": dice.choice(VERBS),
        "when": dice.choice(POINTS),
        "message": dice.choice(
            ("failed to communicate with the daemon", "Resource temporarily unavailable", "internal error")
        ),
        "code": dice.choice((1, 5, 35)),
        "times": dice.choice((1, 1, 2, 3)),
    }


def _anka_kill(dice, _shape):
    return {"verb": dice.choice(VERBS), "when": dice.choice(POINTS)}


def _anka_slow(dice, shape):
    return {
        "verb": dice.choice(VERBS),
        "when": dice.choice(POINTS),
        "by": round(dice.uniform(0.2, shape.longest), 2),
        "times": dice.choice((1, 1, 3)),
    }


def _anka_hang(dice, shape):
    """Slow instead of hanging, where a hang would take too long."""
    return _anka_slow(dice, shape) | ({"by": 150.0, "times": 1} if shape.hangs else {})


def _anka_mute(dice, _shape):
    return {"verb": dice.choice(VERBS), "stdout": dice.choice(("", "{", "null", "Killed: 9\n"))}


def _reboot(dice, shape):
    return {"seconds": round(dice.uniform(0.5, shape.longest), 2)}


def _vm_death(dice, _shape):
    """Draw whether the guest shuts down or its hypervisor dies."""
    return {"status": dice.choice(("stopped", "failed"))}


def _config(dice, shape):
    return {"how": dice.choice(("broken", "empty", "gone", "interval", "same"))} | _lasting(dice, shape)


Maker = Callable[[random.Random, Shape], dict]
#: Kind -> its weight, and the function that draws its parameters.
KINDS: dict[str, tuple[float, Maker]] = {
    "supervisor-kill": (5, _nothing),
    "supervisor-stop": (2, _lasting),
    "supervisor-restart": (4, _nothing),
    "supervisor-drain": (3, _nothing),
    "supervisor-reload": (3, _config),
    "worker-kill": (6, _of_service),
    "worker-stop": (3, _stopped_service),
    "worker-term": (2, _of_service),
    "all-kill": (3, _nothing),
    "command-kill": (6, _nothing),
    "command-stop": (2, _lasting),
    "drain-file": (2, _lasting),
    "redis-kill": (2, _lasting),
    "redis-flush": (3, _nothing),
    "redis-freeze": (2, _lasting),
    "redis-slow": (3, _latency),
    "redis-partition": (3, _lasting),
    "redis-cut": (3, _nothing),
    "github-error": (8, _github_error),
    "github-limit": (3, _github_limit),
    "github-refusal": (2, _github_refusal),
    "github-broken": (7, _github_broken),
    "github-slow": (5, _github_slow),
    "github-down": (2, _lasting),
    "github-runners": (3, _runner_service),
    "anka-error": (7, _anka_error),
    "anka-kill": (7, _anka_kill),
    "anka-slow": (5, _anka_slow),
    "anka-hang": (0.5, _anka_hang),
    "anka-mute": (3, _anka_mute),
    "anka-leak": (0.5, _nothing),
    "registry-down": (1, _lasting),
    "foreign-vm": (2, _lasting),
    "vm-death": (2, _vm_death),
    "host-reboot": (2, _reboot),
}
