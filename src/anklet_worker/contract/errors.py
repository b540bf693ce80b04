"""The exception tree, the exit codes, and which of them mean "do not restart".

Owns the vocabulary of failure for both packages and for plugins. Imports nothing of ours, so that every module may import it.

Two questions decide where an exception stands in the tree: whose fault is it (a failed job is data, not an exception), and
who should try again (`Retry`): this host, another host, or this host after an operator has acted.
"""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import ClassVar

import msgspec

#: What decoding JSON raises for bytes that are none, or not the form that is asked for: msgspec lets the codec's own error through
#: for a text that is not UTF-8, and the interpreter's for what is nested too deeply.
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class ExitCode(IntEnum):
    """Exit codes of the command and of worker processes; the values of sysexits(3) where it has one."""

    #: Done; drained; stopped as asked.
    OK = 0
    #: The question was answered, and the answer is no: `doctor` found the host unfit, `job show` knows no such job.
    NEGATIVE = 1
    #: `status` found no running supervisor.
    NOT_RUNNING = 3
    #: The command line is wrong.
    USAGE = 64
    #: The VM command line tool is missing or unfit; for the supervisor: of every service.
    UNAVAILABLE = 69
    #: A bug of ours.
    SOFTWARE = 70
    #: Another supervisor runs, a port is taken, or try again.
    TEMPFAIL = 75
    #: Workers only: credentials or licence are refused.
    NOPERM = 77
    #: The configuration is wrong.
    CONFIG = 78
    #: A second SIGINT.
    INTERRUPTED = 130


#: A worker that exits with one of these is not restarted: a new start cannot cure the cause.
DO_NOT_RESTART = frozenset({ExitCode.UNAVAILABLE, ExitCode.NOPERM, ExitCode.CONFIG})


class AnkletError(Exception):
    """Root of every error that the program raises on purpose."""

    exit_code: ExitCode = ExitCode.SOFTWARE


class ConfigError(AnkletError):
    """The configuration cannot be used; nothing starts."""

    exit_code = ExitCode.CONFIG

    def lines(self) -> tuple[str, ...]:
        """What is wrong, one line each."""
        return (str(self),)


class UsageError(AnkletError):
    """The command line cannot be understood."""

    exit_code = ExitCode.USAGE


class TemporaryError(AnkletError):
    """A later start may succeed: another supervisor runs, a port is taken, a disk is full."""

    exit_code = ExitCode.TEMPFAIL


class AlreadyRunning(TemporaryError):
    """Another supervisor holds the state directory."""


class ProtocolError(AnkletError):
    """A message on the pipe, or a byte in a file of ours, that no version of this program writes."""


class ServiceFatal(AnkletError):
    """This service cannot run until an operator acts; the other services go on."""

    exit_code = ExitCode.CONFIG


class CliUnavailable(ServiceFatal):
    """The VM command line tool is missing, not executable, or answers nothing that can be understood."""

    exit_code = ExitCode.UNAVAILABLE


class RightsRefused(ServiceFatal):
    """A licence, a token or a permission is refused."""

    exit_code = ExitCode.NOPERM


class Retry(Enum):
    """Where a job that failed on our side should be tried again, and how soon."""

    #: This host may try it again at once; the fault usually passes.
    HERE = "here"
    #: Another host should try it first: this one leaves it alone for longer.
    ELSEWHERE = "elsewhere"
    #: This host fails again until an operator changes something; the message says what. Other hosts may try it.
    OPERATOR = "operator"


class InfrastructureError(AnkletError):
    """A fault on our side of the job: a VM, a registry, an API. It never counts as a failed job and never cancels a run.

    `retry` says who should try the job again. Each subclass chooses it on purpose (a test holds the table).
    """

    exit_code = ExitCode.TEMPFAIL
    retry: ClassVar[Retry] = Retry.HERE


class RetryHere(InfrastructureError):
    """The same host may try the job again, on a new VM, after a short pause."""

    retry = Retry.HERE


class RetryElsewhere(InfrastructureError):
    """Give the job back and leave it alone on this host for a while, so that another host can take it."""

    retry = Retry.ELSEWHERE


class JobLost(InfrastructureError):
    """The job was taken, cancelled or deleted before it started here: give it back and forget it, without a pause."""

    retry = Retry.HERE


class RecordNotWritten(RetryElsewhere):
    """The disk refused a record; the effect that it announces must not happen."""

    retry = Retry.ELSEWHERE


class RecordsUnreadable(InfrastructureError):
    """The records on disk cannot be listed: begin nothing and remove nothing."""

    retry = Retry.HERE


class StoreUnavailable(InfrastructureError):
    """The store of leases does not answer."""

    retry = Retry.HERE


class Interrupted(AnkletError):
    """A Stop has been asked for: undo what is unfinished, clean up, end."""

    exit_code = ExitCode.OK


class Detached(AnkletError):
    """The supervisor is gone, or asks us to let go: leave VM, runner and claim as they are, and end."""

    exit_code = ExitCode.OK


class VMError(InfrastructureError):
    """A VM command failed. The subclass says what happened; the message is one line for people.

    `outcome` is the word that metrics use for it, from a closed list: dashboards depend on it.
    """

    retry = Retry.HERE
    outcome: ClassVar[str] = "transient"


class VMNotFound(VMError):
    """The named VM, template or tag does not exist: on this host or, for a pull, in the registry."""

    retry = Retry.ELSEWHERE
    outcome = "not_found"


class VMNameExists(VMError):
    """A VM of that name exists already."""

    retry = Retry.HERE
    outcome = "name_exists"


class VMLimitReached(VMError):
    """The host refuses another running VM. The supervisor learns of it and grants no slot until there may be room."""

    retry = Retry.HERE
    outcome = "limit_reached"


class VMTransient(VMError):
    """It may work next time: a time-out, a registry that does not answer, a lost guest."""

    retry = Retry.HERE


class PullBusy(VMError):
    """Another pull runs on this host (two never run at once), or the image is in use. The host tries again once that is over."""

    retry = Retry.HERE


class AnswerUnreadable(VMError):
    """The VM tool reports success, but this program cannot read its answer.

    That usually passes: the tool was replaced or cut off in the middle. An unknown version of the tool uses up the job's tries.
    """

    retry = Retry.HERE
    outcome = "fatal"


class ToolRefused(VMError):
    """The VM tool refuses the command as such: an unknown option, a licence, a registry login."""

    retry = Retry.OPERATOR
    outcome = "fatal"


class ImageUnusable(VMError):
    """The template or image is on this host but damaged, and a pull did not mend it."""

    retry = Retry.OPERATOR
    outcome = "fatal"


class FileUnusable(VMError):
    """A file cannot be copied into or out of a guest: missing, not a regular file, too large, or a forbidden path."""

    retry = Retry.OPERATOR
    outcome = "fatal"


class NotOurVM(VMError):
    """The name is not one of our VMs, so this program refuses to delete it."""

    retry = Retry.OPERATOR
    outcome = "fatal"
