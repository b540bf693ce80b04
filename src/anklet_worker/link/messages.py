"""The closed set of messages between the supervisor and a worker, and their encoding.

Commands go down, facts come up. One class per message, JSON on the wire, with the version of the set in front: no pickle, so
that neither side depends on the other's class paths and a golden test can hold the bytes. Knows no pipe.
"""

from __future__ import annotations

from enum import Enum
from typing import TypeVar

import msgspec

from anklet_worker.contract.errors import UNREADABLE, ProtocolError
from anklet_worker.contract.job import Conclusion

T = TypeVar("T")

#: Version of the set. A peer of another version is refused; the two ends are always of one installation.
VERSION = 1


class Status(Enum):
    """What a service is doing, in the words of the metric `service_status`."""

    IDLE = "idle"
    RUNNING = "running"
    PULLING = "pulling"
    LIMIT_PAUSED = "limit_paused"
    PAUSED = "paused"
    STOPPED = "stopped"
    FAILED = "failed"


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag=True):
    """Common form of all messages."""


class SlotRef(msgspec.Struct, frozen=True, kw_only=True):
    """One grant of one slot: `generation` counts the grants of the slot, `nonce` is drawn anew for each."""

    index: int
    generation: int
    nonce: int


# ---- commands, down ----


class GrantSlot(Message, frozen=True, kw_only=True, tag=True):
    """The slot that the worker asked for. It is RESERVED for it until it is occupied or released."""

    slot: SlotRef


class SlotAnswered(Message, frozen=True, kw_only=True, tag=True):
    """The slot table now says what became of the last `SlotOccupied`: look there."""


class Drain(Message, frozen=True, kw_only=True, tag=True):
    """Take no new job, finish the one in hand, exit 0."""


class Stop(Message, frozen=True, kw_only=True, tag=True):
    """Interrupt the job in hand, clean up, give an unstarted claim back, exit 0."""


class LogLevel(Message, frozen=True, kw_only=True, tag=True):
    """Write the log at another level from now on: one of DEBUG, INFO, ERROR, dev."""

    level: str


class OutcomeHeard(Message, frozen=True, kw_only=True, tag=True):
    """The `JobFinished` of this VM has been counted and put into the history: its record may go."""

    vm: str


Command = GrantSlot | SlotAnswered | Drain | Stop | LogLevel | OutcomeHeard


# ---- facts, up ----


class Ready(Message, frozen=True, kw_only=True, tag=True):
    """Recovered from what an earlier process left, and able to take jobs."""

    driver: str
    driver_version: str


class StatusChanged(Message, frozen=True, kw_only=True, tag=True):
    """What the service is doing now."""

    status: Status


class SlotWanted(Message, frozen=True, kw_only=True, tag=True):
    """Asks for a slot; answered by one `GrantSlot`, in order of asking."""


class SlotDeclined(Message, frozen=True, kw_only=True, tag=True):
    """Takes the request back (a grant that crosses it is released by `SlotReleased`)."""


class SlotOccupied(Message, frozen=True, kw_only=True, tag=True):
    """A VM of this name is about to be made in the slot: from now on only proof that it is gone frees the slot."""

    slot: SlotRef
    vm: str


class SlotReleased(Message, frozen=True, kw_only=True, tag=True):
    """The slot holds no VM: none was made, or it is gone for certain."""

    slot: SlotRef


class VMGone(Message, frozen=True, kw_only=True, tag=True):
    """Proof that the VM of this name does not exist (any more): frees a slot that an earlier process left occupied."""

    vm: str


class VMAdopted(Message, frozen=True, kw_only=True, tag=True):
    """A VM that an earlier process left is looked after again; its slot is occupied, not orphaned."""

    vm: str


class VMStarted(Message, frozen=True, kw_only=True, tag=True):
    """The host has started the VM of this name."""

    vm: str


class StartRefused(Message, frozen=True, kw_only=True, tag=True):
    """The host refused to start the VM of this name for its limit of running VMs. A `RunningVMs` comes before, if it can."""

    vm: str


class RunningVMs(Message, frozen=True, kw_only=True, tag=True):
    """The running VMs, ours and others', that the drivers of this host list, and the number of virtualization processes on it (0
    where that cannot be told): what counts against the limit without having a slot is foreign."""

    vms: list[str]
    processes: int


class JobClaimed(Message, frozen=True, kw_only=True, tag=True):
    """This service is about to run a job in the VM of this name.

    `queued_at`: Unix seconds, 0 where the origin does not tell; `attempt` counts the tries of all hosts, from 1. Told again, with
    the same `claimed_at` (Unix seconds), by a later process that follows the job.
    """

    job_id: str
    job_name: str
    job_url: str
    vm: str
    queued_at: float = 0.0
    claimed_at: float = 0.0
    attempt: int = 1


class JobStarted(Message, frozen=True, kw_only=True, tag=True):
    """The origin says that a job runs in our VM (it may be another than the one claimed)."""

    job_id: str
    job_name: str
    job_url: str


class JobFinished(Message, frozen=True, kw_only=True, tag=True):
    """A job ended in the VM of this name. Told after the outcome is on record, and again by each later process until
    `OutcomeHeard` has come; counted once for each VM."""

    vm: str
    job_id: str
    job_name: str
    job_url: str
    conclusion: Conclusion


class JobGivenBack(Message, frozen=True, kw_only=True, tag=True):
    """The claimed job did not run in the VM of this name (infrastructure, stop, or it was taken); `reason` is one line for
    people. Counted once for each VM."""

    vm: str
    job_id: str
    reason: str


class AttemptOver(Message, frozen=True, kw_only=True, tag=True):
    """VM gone, runner removed (or its debt recorded), claim released: nothing of the attempt is left in hand."""


class StageTook(Message, frozen=True, kw_only=True, tag=True):
    """How long one stage of a job took. `stage` is one of a closed list (see `STAGES`)."""

    stage: str
    seconds: float


class DriverCommandEnded(Message, frozen=True, kw_only=True, tag=True):
    """One VM command line tool call ended. `command` is the tool's verb; `outcome` an outcome class."""

    command: str
    outcome: str
    seconds: float


class ApiCalled(Message, frozen=True, kw_only=True, tag=True):
    """One call of the origin's API. `route` is a template of the plugin's; `outcome` a status code, or a word for none."""

    route: str
    outcome: str
    seconds: float


class FigureReported(Message, frozen=True, kw_only=True, tag=True):
    """A figure that the plugin's rules declare: the last value of a gauge, or what a counter grew by. `figure` is its name."""

    figure: str
    value: float


class ApiBudgetSeen(Message, frozen=True, kw_only=True, tag=True):
    """The calls of the origin's API that the login has left, out of `limit`, until `resets_at` (Unix seconds)."""

    left: float
    limit: float
    resets_at: float


class QueueSeen(Message, frozen=True, kw_only=True, tag=True):
    """How many jobs wait that this service could run, as last seen, and since when the oldest of them (Unix seconds, 0: none)."""

    waiting: int
    oldest: float


class OrphanReaped(Message, frozen=True, kw_only=True, tag=True):
    """A VM was removed that an earlier process had left, with no job in it."""


class LeaseLost(Message, frozen=True, kw_only=True, tag=True):
    """The claim on a job went to another owner while we held it."""


class Failed(Message, frozen=True, kw_only=True, tag=True):
    """This service cannot run until an operator acts; the worker exits next. `reason` is one line for people."""

    reason: str


#: The stages of a job that `StageTook` may name.
STAGES = ("queue", "claim", "template", "clone", "start", "register", "wait", "run", "collect", "cleanup")

Fact = (
    Ready
    | StatusChanged
    | SlotWanted
    | SlotDeclined
    | SlotOccupied
    | SlotReleased
    | VMGone
    | VMAdopted
    | VMStarted
    | StartRefused
    | RunningVMs
    | JobClaimed
    | JobStarted
    | JobFinished
    | JobGivenBack
    | AttemptOver
    | StageTook
    | DriverCommandEnded
    | ApiCalled
    | FigureReported
    | ApiBudgetSeen
    | QueueSeen
    | OrphanReaped
    | LeaseLost
    | Failed
)

_encoder = msgspec.json.Encoder()
_commands: msgspec.json.Decoder[Command] = msgspec.json.Decoder(Command)
_facts: msgspec.json.Decoder[Fact] = msgspec.json.Decoder(Fact)
_PREFIX = f"anklet/{VERSION} ".encode()


def encode(message: Message) -> bytes:
    """Encode one message of either direction."""
    return _PREFIX + _encoder.encode(message)


def decode_command(data: bytes) -> Command:
    """Decode what the supervisor sent. Raises `ProtocolError`."""
    return _decode(_commands, data)


def decode_fact(data: bytes) -> Fact:
    """Decode what a worker sent. Raises `ProtocolError`."""
    return _decode(_facts, data)


def _decode(decoder: msgspec.json.Decoder[T], data: bytes) -> T:
    if not data.startswith(_PREFIX):
        raise ProtocolError(f"a message of another version or no message at all: {data[:40]!r}")
    try:
        return decoder.decode(data[len(_PREFIX) :])
    except UNREADABLE as error:
        raise ProtocolError(f"a message that cannot be understood: {error}") from None
