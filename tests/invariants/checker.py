"""Judges a run by its evidence alone: was anything lost, done twice or left behind, or was anything of others touched?

Owns the rules. Pure: evidence in, verdict out. Knows only what the README of the program under test promises: the names of its VMs
and runners start with `anklet-vm-<install id>-`, and its claims in Redis have `:claim:` in their keys.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from emulators.github import openapi
from invariants import spans
from invariants.evidence import Evidence, HostEvidence, Span

_OURS = re.compile(r"anklet-vm-(?P<install>[0-9a-f]{8})-[0-9a-z]+-(?P<job>[0-9a-z]+)-\d+")
_CLAIM = ":claim:"
#: The emulated GitHub's words for a job that its user cancelled before a runner took it.
_CANCELLED_UNSTARTED = ("cancelled while queued", "cancelled while assigned", "cancelled before it started")
_REPORTED = "reported by its runner"
#: Commands that change the VM that they name.
_CHANGING = ("start", "stop", "suspend", "reboot", "delete", "modify", "cp", "run")
#: Refusals that GitHub's runner protocol allows: runner busy or already gone, name taken by a registration whose reply was lost.
_PROTOCOL = (
    ("DELETE", re.compile(r"/actions/runners/\d+$"), (404, 422)),
    ("POST", re.compile(r"/actions/runners/generate-jitconfig$"), (409,)),
)
#: Patterns of secrets besides the test's own: GitHub's tokens, and JSON in base64 (JIT configurations, JWTs).
_SECRET = re.compile(r"\b(?:gh[a-z]_|github_pat_)\w{8,}|\beyJ[\w+/=-]{40,}")
#: A VM left by a killed command occupies a slot although no command shows it: for at most this many seconds after its clone began.
_FLEETING = 1.0
#: While a host dies, a runner may see its job's process die first, and report that.
_DYING = 2.0
HOST_REBOOTED = "host-rebooted"


@dataclass(frozen=True)
class Violation:
    """A broken rule, and how it was broken."""

    rule: str
    what: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.what}"


@dataclass(kw_only=True)
class Verdict:
    """The verdict on a run. `figures` are counts and seconds by name."""

    violations: list[Violation]
    figures: dict[str, float]

    def __str__(self) -> str:
        return "\n".join(map(str, self.violations)) or "every rule was kept"


@dataclass(kw_only=True)
class Life:
    """What GitHub's journal says about one job; times in order."""

    id: int
    name: str
    queued: list[float] = field(default_factory=list)
    #: When it left the queue, for a runner or because it ended.
    taken: list[float] = field(default_factory=list)
    #: Starts: time and runner. Ends: time, conclusion and reason.
    starts: list[tuple[float, str]] = field(default_factory=list)
    ends: list[tuple[float, str, str]] = field(default_factory=list)
    cancel_asked: bool = False

    @property
    def cancelled_by_user(self) -> bool:
        """True if its user's cancel ended it."""
        return self.cancel_asked or any(reason in _CANCELLED_UNSTARTED for _, _, reason in self.ends)


class Facts:
    """The evidence in the form that the rules need."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.lives = _lives(evidence)
        #: Name of a VM -> the host on which `anka` cloned it.
        self.host_of: dict[str, HostEvidence] = {}
        for host in evidence.hosts:
            for name in cloned(host):
                self.host_of[name] = host
        times = [event["time"] for event in evidence.events] or [0.0]
        for host in evidence.hosts:
            times += [event["time"] for event in host.events]
        self.end = max(times)

    def killed_from_outside(self, life: Life) -> bool:
        """True if its host rebooted, or the test let its VM die, while it ran."""
        for number, (started, runner) in enumerate(life.starts):
            ended = life.ends[number][0] if number < len(life.ends) else self.end
            host = self.host_of.get(runner)
            deaths = [] if host is None else _reboots(host) + [moment for moment, name in host.deaths if name == runner]
            if any(started - _DYING <= moment <= ended + _DYING for moment in deaths):
                return True
        return False


def judge(evidence: Evidence, *, longest_stall: float | None = None) -> Verdict:
    """Check every rule. `longest_stall`: seconds that a job may wait although a slot is free."""
    facts = Facts(evidence)
    violations = [Violation(rule, what) for rule, broken in RULES.items() for what in broken(facts)]
    stall, job = stalls(facts)
    if longest_stall is not None and stall[1] - stall[0] > longest_stall:
        violations.append(
            Violation("stalled", f"job {job} waited {stall[1] - stall[0]:.1f} s from {stall[0]:.3f} with a slot free")
        )
    return Verdict(violations=violations, figures=_figures(facts, stall))


def _figures(facts: Facts, stall: Span) -> dict[str, float]:
    lives = facts.lives.values()
    rebooted = [life for life in lives if facts.killed_from_outside(life)]
    cancelled = [life for life in lives if life.cancelled_by_user and life not in rebooted]
    done = [life for life in lives if len(life.ends) == 1 and life not in rebooted and life not in cancelled]
    broken = Counter(what.split(":")[0] for what in ends_exactly_once(facts))
    return {
        "jobs offered": len(facts.lives),
        "jobs done": sum(life.ends[0][2] == _REPORTED and len(life.starts) == 1 for life in done),
        "jobs cancelled by their user": len(cancelled),
        "jobs killed with their host or VM": len(rebooted),
        "jobs done twice": broken["twice"],
        "jobs lost": broken["lost"],
        "left over": sum(1 for _ in nothing_is_left(facts)),
        "most VMs at once on a host": max((most_running(host) for host in facts.evidence.hosts), default=0),
        "longest stall, s": round(stall[1] - stall[0], 1),
        "VMs made": sum(len(cloned(host)) for host in facts.evidence.hosts),
        "GitHub requests": len(facts.evidence.requests),
    }


# ---- reading the journals ----


def _lives(evidence: Evidence) -> dict[int, Life]:
    lives = {job["id"]: Life(id=job["id"], name=job["name"]) for job in evidence.jobs if job["released"]}
    for event in evidence.events:
        life = lives.get(event.get("job_id"))
        if life is None:
            continue
        match event["event"]:
            case "job-queued" | "job-requeued":
                life.queued.append(event["time"])
            case "job-assigned":
                life.taken.append(event["time"])
            case "job-started":
                life.starts.append((event["time"], event.get("runner_name", "")))
            case "job-cancel-asked":
                life.cancel_asked = True
            case "job-completed":
                life.taken.append(event["time"])
                life.ends.append((event["time"], event["conclusion"], event.get("reason", "")))
    return lives


def _reboots(host: HostEvidence) -> list[float]:
    return [event["time"] for event in host.events if event["event"] == HOST_REBOOTED]


def _words(call: dict) -> tuple[str, list[str]]:
    """Return verb and operands of an `anka` command line; for `run`, only the VM, because the rest belongs to the guest."""
    words = [word for word in call["argv"] if not word.startswith("-")]
    verb, operands = (words[0], words[1:]) if words else ("", [])
    return verb, operands[:1] if verb == "run" else operands


def cloned(host: HostEvidence) -> list[str]:
    """Return the names that the program gave to VMs on this host, made or not."""
    return list(dict.fromkeys(name for name, _ in _clones(host)))


def _clones(host: HostEvidence) -> Iterator[tuple[str, dict]]:
    """Yield name and call of each `anka clone TEMPLATE NAME`."""
    for call in host.calls:
        verb, operands = _words(call)
        if verb == "clone" and len(operands) > 1:
            yield operands[1], call


def most_running(host: HostEvidence) -> int:
    """Return the largest number of VMs that ran at once, as the emulated kernel counted them."""
    return max((event["running"] for event in host.events), default=0)


# ---- rules: each yields its violations ----


def ends_exactly_once(facts: Facts) -> Iterator[str]:
    """Every queued job starts at most once and ends exactly once, as its own steps decide."""
    for life in facts.lives.values():
        name = f"job {life.id} ({life.name})"
        if len(life.starts) > 1:
            yield f"twice: {name} started {len(life.starts)} times, on {[runner for _, runner in life.starts]}"
        if len(life.ends) > 1:
            yield f"twice: {name} ended {len(life.ends)} times"
        if not life.ends:
            yield f"lost: {name} " + ("started and never ended" if life.starts else "was never run")
        elif len(life.ends) == 1 and not facts.killed_from_outside(life) and not life.cancelled_by_user:
            yield from _ended_badly(facts, life, name)


def _ended_badly(facts: Facts, life: Life, name: str) -> Iterator[str]:
    _, conclusion, reason = life.ends[0]
    expected = facts.evidence.expected.get(life.id)
    where = f"on {life.starts[0][1]}" if life.starts else "nowhere"
    if reason != _REPORTED:
        yield f"lost: {name} started {where} and was ended by GitHub: {conclusion}, {reason}"
    elif not life.starts:
        yield f"lost: {name} ended as {conclusion} and was never started"
    elif conclusion not in ("success", "failure") or expected not in (None, conclusion):
        yield f"lost: {name} started {where} and ended as {conclusion}, not as {expected or 'its steps say'}"


def journals_agree(facts: Facts) -> Iterator[str]:
    """GitHub's count of starts matches its journal, and it noticed no anomaly."""
    for job in facts.evidence.jobs:
        life = facts.lives.get(job["id"])
        if life is not None and job["starts"] != len(life.starts):
            yield f"job {job['id']} has {job['starts']} starts, its journal {len(life.starts)}"
    for anomaly in facts.evidence.anomalies:
        yield f"GitHub noticed {anomaly}"


def never_too_many_vms(facts: Facts) -> Iterator[str]:
    """A host never runs more VMs than allowed, and never tries to."""
    for host in facts.evidence.hosts:
        if most_running(host) > host.limit:
            yield f"{most_running(host)} VMs ran at once on {host.name}"
        excuses, ours = _foreign_running(host) + host.refused, cloned(host)
        for event in host.events:
            if event["event"] != "limit-refused" or event.get("name") not in ours:
                continue
            # A VM of another user may take the room between our listing and our start. That cannot be prevented.
            if not any(begin <= event["time"] <= end for begin, end in excuses):
                yield f"a VM too many was tried on {host.name}: {event.get('name')} at {event['time']:.3f}"


def _foreign_running(host: HostEvidence) -> list[Span]:
    ours, begun, found = set(cloned(host)), {}, []
    for event in host.events:
        name = event.get("name")
        if event["event"] == HOST_REBOOTED:
            found += [(began, event["time"]) for began in begun.values()]
            begun.clear()
        if name in ours:
            continue
        if event["event"] == "started":
            begun[name] = event["time"]
        elif event["event"] in ("stopped", "deleted", "suspended", "failed") and name in begun:
            found.append((begun.pop(name), event["time"] + _FLEETING))
    return found + [(begin, float("inf")) for begin in begun.values()]


def nothing_is_left(facts: Facts) -> Iterator[str]:
    """When all is quiet there is no VM, no occupied slot, no runner, no claim and no process."""
    dead = {name for name, host in facts.host_of.items() if host.dead}
    for host in facts.evidence.hosts:
        if not host.dead:
            yield from _left_on(host)
    for runner in facts.evidence.runners:
        name = runner["name"]
        if name not in facts.evidence.foreign_runners and name not in dead:
            yield f"runner {name} ({runner['status']}, {'busy' if runner['busy'] else 'idle'})"
    for key in facts.evidence.redis_keys:
        if _CLAIM in key:
            yield f"claim {key}"


def _left_on(host: HostEvidence) -> Iterator[str]:
    for vm in host.vms:
        if _OURS.fullmatch(vm["name"]) and vm["name"] not in host.foreign:
            yield f"VM {vm['name']} ({vm['status']}) on {host.name}"
    for owner in host.slots:
        yield f"a slot of {host.name}'s kernel, held by {owner}"
    for what in ("guest_processes", "commands", "processes"):
        for line in getattr(host, what):
            yield f"one of the {what.replace('_', ' ')} of {host.name}: {line[:200]}"


def foreigners_are_left_alone(facts: Facts) -> Iterator[str]:
    """The program does not start, stop, change or remove anything that it did not make."""
    for host in facts.evidence.hosts:
        ours = set(cloned(host))
        for name in ours:
            if not _OURS.fullmatch(name):
                yield f"a VM was given the name {name!r} on {host.name}"
        installs = {match["install"] for match in map(_OURS.fullmatch, ours) if match}
        if len(installs) > 1:
            yield f"{host.name} gave names with more than one install id"
        for call in host.calls:
            verb, operands = _words(call)
            subjects = {operand.partition(":")[0] for operand in operands if verb != "cp" or ":" in operand}
            # A VM whose clone was only announced is deleted by the name that it would have got.
            theirs = {name for name in subjects - ours if not _is_of(name, installs)}
            if verb in _CHANGING and theirs:
                yield f"anka {verb} {sorted(theirs)} on {host.name}"
        there = {vm["name"] for vm in host.vms}
        for name in host.foreign:
            if name not in there:
                yield f"{name} is gone from {host.name}"
    yield from _foreign_runners(facts)


def _is_of(name: str, installs: set[str]) -> bool:
    match = _OURS.fullmatch(name)
    return match is not None and match["install"] in installs


def _foreign_runners(facts: Facts) -> Iterator[str]:
    there = {runner["name"] for runner in facts.evidence.runners}
    for name in facts.evidence.foreign_runners:
        if name not in there:
            yield f"runner {name} is gone from GitHub"
    for event in facts.evidence.events:
        if event["event"] != "runner-registered" or event["runner_name"] in facts.evidence.foreign_runners:
            continue
        if event["runner_name"] not in facts.host_of:
            yield f"runner {event['runner_name']} was registered without a VM of that name"


def no_clone_in_a_pull(facts: Facts) -> Iterator[str]:
    """No template is cloned during its pull, and no two pulls overlap: both damage the template."""
    for host in facts.evidence.hosts:
        for event in host.events:
            if event["event"] in ("corruption", "pull-overlap"):
                yield f"{event['event']} of {event.get('name')} on {host.name}: {event.get('reason', '')}"


def no_secret_is_shown(facts: Facts) -> Iterator[str]:
    """No command line contains a secret."""
    for host in facts.evidence.hosts:
        for call in host.calls:
            line = " ".join(call["argv"])
            if _SECRET.search(line) or any(secret in line for secret in facts.evidence.secrets):
                yield f"in an `anka {_words(call)[0]}` (pid {call['pid']}) on {host.name}"


def no_run_is_cancelled(facts: Facts) -> Iterator[str]:
    """The program never cancels a user's run or job."""
    for request in facts.evidence.requests:
        if request["method"] == "POST" and re.search(r"/(force-)?cancel$", request["path"]):
            yield f"POST {request['path']}"


def requests_are_sound(facts: Facts) -> Iterator[str]:
    """GitHub refused no request as wrong, and its API description allows every request."""
    seen: set[object] = set()
    for request in facts.evidence.requests:
        method, path, status = request["method"], request["path"], request["status"]
        if (
            not request["fault"]
            and status is not None
            and 400 <= status < 500
            and not _in_protocol(method, path, status)
        ):
            yield f"{method} {path} was answered by {status}"
        shape = (method, re.sub(r"\d+", "0", path), tuple(request["query"]), str(type(request["body"])))
        if shape in seen or path.startswith(("/actions/runner/", "/_download/")):
            continue
        seen.add(shape)
        try:
            openapi.check_request(method, path, request["query"], request["body"])
        except openapi.ContractBroken as problem:
            yield str(problem)


def _in_protocol(method: str, path: str, status: int) -> bool:
    return any(method == verb and route.search(path) and status in codes for verb, route, codes in _PROTOCOL)


def every_slot_works(facts: Facts) -> Iterator[str]:
    """The jobs of the roll call, one per slot of the fleet, run all at once, so no slot was lost."""
    if not facts.evidence.roll_call:
        return
    running = [
        (life.starts[0][0], life.ends[0][0] if life.ends else facts.end + 1)
        for life in facts.lives.values()
        if life.name.startswith(ROLL_CALL) and life.starts
    ]
    if spans.depth(running) < facts.evidence.roll_call:
        yield f"only {spans.depth(running)} of {facts.evidence.roll_call} slots took a job at once"


#: The start of the names of roll call jobs.
ROLL_CALL = "roll-call-"

RULES: dict[str, Callable[[Facts], Iterator[str]]] = {
    "every job ends exactly once": ends_exactly_once,
    "the journals agree": journals_agree,
    "never too many VMs": never_too_many_vms,
    "nothing is left": nothing_is_left,
    "foreign things are left alone": foreigners_are_left_alone,
    "no clone in a pull": no_clone_in_a_pull,
    "no secret is shown": no_secret_is_shown,
    "no run is cancelled": no_run_is_cancelled,
    "requests are sound": requests_are_sound,
    "every slot works": every_slot_works,
}


# ---- waiting although a slot is free ----


def stalls(facts: Facts) -> tuple[Span, int | None]:
    """Return the longest time that a job waited without a VM while an unhindered host had a free slot, and the job."""
    usable = [
        spans.subtract([(0.0, facts.end)], _full(host, facts.end) + host.outages)
        for host in facts.evidence.hosts
        if not host.dead
    ]
    free = spans.subtract([span for host in usable for span in host], facts.evidence.outages)
    made_for = _made_for(facts)
    worst: tuple[Span, int | None] = ((0.0, 0.0), None)
    for life in facts.lives.values():
        idle = spans.subtract(_waiting(life, facts.end), made_for[str(life.id)])
        span = spans.longest(spans.intersect(idle, free))
        if span[1] - span[0] > worst[0][1] - worst[0][0]:
            worst = (span, life.id)
    return worst


def _waiting(life: Life, end: float) -> list[Span]:
    found = []
    for begun in life.queued:
        taken = min((moment for moment in life.taken if moment >= begun), default=end)
        found.append((begun, taken))
    return found


def _vm_spans(host: HostEvidence, end: float) -> dict[str, Span]:
    """Return name -> span from the begin of the first clone until the VM is gone; VMs of others too."""
    gone = {event["name"]: event["time"] for event in host.events if event["event"] == "deleted"}
    came = {event["name"] for event in host.events if event["event"] == "cloned"}
    found: dict[str, Span] = {}
    for name, call in _clones(host):
        begun = found.get(name, (call["start"], 0.0))[0]
        failed = call["end"] or call["start"] + _FLEETING
        found[name] = (begun, gone.get(name, end) if name in came else failed)
    return found


def _full(host: HostEvidence, end: float) -> list[Span]:
    taken = list(_vm_spans(host, end).values()) + [(begin, min(over, end)) for begin, over in _foreign_running(host)]
    return spans.at_least(taken, host.capacity)


def _made_for(facts: Facts) -> defaultdict[str, list[Span]]:
    found: defaultdict[str, list[Span]] = defaultdict(list)
    for host in facts.evidence.hosts:
        for name, span in _vm_spans(host, facts.end).items():
            match = _OURS.fullmatch(name)
            if match:
                found[match["job"]].append(span)
    return found
