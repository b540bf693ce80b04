"""All messages between the supervisor and a worker, and their encoding. Knows no pipe.

Commands go down, facts come up; one class per message. On the wire each is the version of the set and JSON. Not pickle: then
neither side depends on the other's class paths, and a golden test can check the bytes.
"""

from __future__ import annotations

from enum import Enum
from typing import TypeVar

import msgspec

from anklet_worker.contract.errors import UNREADABLE, ProtocolError
from anklet_worker.contract.job import Conclusion

T = TypeVar("T")

#: Version of the set. A message of another version is refused: both ends always come from the same installation.
VERSION = 1


class Status(Enum):
    """What a service is doing. The values are those of the metric `service_status`."""

    IDLE = "idle"
    RUNNING = "running"
    PULLING = "pulling"
    LIMIT_PAUSED = "limit_paused"
    PAUSED = "paused"
    STOPPED = "stopped"
    FAILED = "failed"


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag=True):
    """The common base of all messages; its JSON names the class in `type`."""


class SlotRef(msgspec.Struct, frozen=True, kw_only=True):
    """One grant of one slot. `generation` counts the grants of this slot; `nonce` is a new random number for each."""

    index: int
    generation: int
    nonce: int


# ---- commands, down ----


class GrantSlot(Message, frozen=True, kw_only=True, tag=True):
    """Answers `SlotWanted`. The slot stays RESERVED for the worker until it occupies or releases it."""

    slot: SlotRef


class SlotAnswered(Message, frozen=True, kw_only=True, tag=True):
    """The last `SlotOccupied` was handled: the slot table shows the result."""


class Drain(Message, frozen=True, kw_only=True, tag=True):
    """Take no new job, finish the job in hand, exit 0."""


class Stop(Message, frozen=True, kw_only=True, tag=True):
    """Interrupt the job in hand, clean up, give back a claim whose job has not started, exit 0."""


class LogLevel(Message, frozen=True, kw_only=True, tag=True):
    """Log at another level from now on: DEBUG, INFO, ERROR or dev."""

    level: str


class OutcomeHeard(Message, frozen=True, kw_only=True, tag=True):
    """The `JobFinished` of this VM is counted and in the history, so the worker may remove the record."""

    vm: str


Command = GrantSlot | SlotAnswered | Drain | Stop | LogLevel | OutcomeHeard


# ---- facts, up ----


class Ready(Message, frozen=True, kw_only=True, tag=True):
    """The worker has reconciled what an earlier process left, and can take jobs."""

    driver: str
    driver_version: str


class StatusChanged(Message, frozen=True, kw_only=True, tag=True):
    """The service does something else from now on."""

    status: Status


class SlotWanted(Message, frozen=True, kw_only=True, tag=True):
    """Requests a slot. Requests are answered in their order, each by one `GrantSlot`."""


class SlotDeclined(Message, frozen=True, kw_only=True, tag=True):
    """Withdraws the request for a slot. If a grant crossed this message, the supervisor frees that slot again."""


class SlotOccupied(Message, frozen=True, kw_only=True, tag=True):
    """The worker is about to make a VM of this name in the slot. From now on only proof that the VM is gone frees the slot."""

    slot: SlotRef
    vm: str


class SlotReleased(Message, frozen=True, kw_only=True, tag=True):
    """The slot holds no VM: none was made, or a listing proved it gone."""

    slot: SlotRef


class VMGone(Message, frozen=True, kw_only=True, tag=True):
    """Proof that no VM of this name exists. Frees a slot that an earlier process left occupied."""

    vm: str


class VMAdopted(Message, frozen=True, kw_only=True, tag=True):
    """This worker adopts a VM that an earlier process left. Its slot is occupied then, no longer orphaned."""

    vm: str


class VMStarted(Message, frozen=True, kw_only=True, tag=True):
    """The host started the VM of this name."""

    vm: str


class StartRefused(Message, frozen=True, kw_only=True, tag=True):
    """The host refused to start the VM because of its VM limit. A `RunningVMs` precedes it if the VMs can be listed."""

    vm: str


class RunningVMs(Message, frozen=True, kw_only=True, tag=True):
    """The running VMs that the drivers of this host list, ours and others', and the host's number of virtualization processes.

    `processes` is 0 where it cannot be counted. Whatever counts against the VM limit and has no slot is foreign.
    """

    vms: list[str]
    processes: int


class JobClaimed(Message, frozen=True, kw_only=True, tag=True):
    """This service is about to run a job in the VM of this name. A later process that adopts the job sends it again.

    `queued_at` and `claimed_at` are Unix seconds; `queued_at` is 0 when the origin does not say, and `claimed_at` stays the same
    when the message is sent again. `attempt` counts the attempts of all hosts, from 1.
    """

    job_id: str
    job_name: str
    job_url: str
    vm: str
    queued_at: float = 0.0
    claimed_at: float = 0.0
    attempt: int = 1


class JobStarted(Message, frozen=True, kw_only=True, tag=True):
    """The origin says that a job runs in our VM. It may be another job than the claimed one."""

    job_id: str
    job_name: str
    job_url: str


class JobFinished(Message, frozen=True, kw_only=True, tag=True):
    """A job ended in the VM of this name. Counted once per VM.

    Sent once the outcome is on record, and again by each later process until `OutcomeHeard` arrives.
    """

    vm: str
    job_id: str
    job_name: str
    job_url: str
    conclusion: Conclusion


class JobGivenBack(Message, frozen=True, kw_only=True, tag=True):
    """The claimed job did not run to its end in the VM of this name: a failure on our side, a stop, or another runner took it.

    `reason` is one line for people. Counted once per VM.
    """

    vm: str
    job_id: str
    reason: str


class AttemptOver(Message, frozen=True, kw_only=True, tag=True):
    """The attempt is over: its VM is gone, its runner removed, its claim given back. What could not be removed is on record."""


class StageTook(Message, frozen=True, kw_only=True, tag=True):
    """How long one stage of a job took. `stage` is one of `STAGES`."""

    stage: str
    seconds: float


class DriverCommandEnded(Message, frozen=True, kw_only=True, tag=True):
    """A call of the VM tool ended. `command` is the tool's verb, `outcome` a word from a closed list."""

    command: str
    outcome: str
    seconds: float


class ApiCalled(Message, frozen=True, kw_only=True, tag=True):
    """A call of the origin's API ended. `route` is a template; `outcome` is the status code, or a word when there was no answer."""

    route: str
    outcome: str
    seconds: float


class FigureReported(Message, frozen=True, kw_only=True, tag=True):
    """A figure that the plugin's rules declare: the value of a gauge, or the growth of a counter. `figure` is its name."""

    figure: str
    value: float


class ApiBudgetSeen(Message, frozen=True, kw_only=True, tag=True):
    """The rate limit of the origin's API: `left` of `limit` calls remain until `resets_at` (Unix seconds)."""

    left: float
    limit: float
    resets_at: float


class QueueSeen(Message, frozen=True, kw_only=True, tag=True):
    """How many jobs wait that this service could run. `oldest`: since when the first of them waits, Unix seconds; 0 if unknown."""

    waiting: int
    oldest: float


class OrphanReaped(Message, frozen=True, kw_only=True, tag=True):
    """The worker removed a VM that an earlier process left and that ran no job."""


class LeaseLost(Message, frozen=True, kw_only=True, tag=True):
    """Another owner took the lease of the job in hand."""


class Failed(Message, frozen=True, kw_only=True, tag=True):
    """The worker cannot go on and exits next. `reason` is one line for people."""

    reason: str


#: The stages of a job, as `StageTook` names them.
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
    """Decode a message of the supervisor. Raises `ProtocolError`."""
    return _decode(_commands, data)


def decode_fact(data: bytes) -> Fact:
    """Decode a message of a worker. Raises `ProtocolError`."""
    return _decode(_facts, data)


def _decode(decoder: msgspec.json.Decoder[T], data: bytes) -> T:
    if not data.startswith(_PREFIX):
        raise ProtocolError(f"not a message of version {VERSION}: {data[:40]!r}")
    try:
        return decoder.decode(data[len(_PREFIX) :])
    except UNREADABLE as error:
        raise ProtocolError(f"unreadable message: {error}") from None
