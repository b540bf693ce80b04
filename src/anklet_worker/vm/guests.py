"""What every driver does with guests: wait until one answers, run scripts whose end is seen, check what may be copied.

Knows no tool: a driver gives a `Shell`, which reaches `bash -s` in its guests.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import msgspec

from anklet_worker.contract.backoff import Backoff
from anklet_worker.contract.errors import FileUnusable, VMError, VMTransient
from anklet_worker.contract.guest import GuestResult
from anklet_worker.process.command import CommandResult, OnStop
from anklet_worker.process.orders import Orders
from anklet_worker.vm.guest_script import new_nonce, result_in, wrapped
from anklet_worker.vm.wording import one_line

#: Seconds that one try to reach a starting guest may take.
_READY_TRY = 30.0
_READY = Backoff(first=0.1, longest=2.0)

#: A path inside the guest's home that needs no quoting: plain words and slashes.
_GUEST_PATH = re.compile(r"(?!.*\.\.)[A-Za-z0-9_.][A-Za-z0-9_./-]*")

_T = TypeVar("_T")


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came back from a guest's shell. `texts` are the places where the guest's output may be; `lost` gives the error for a
    script whose end is in none of them, and quotes nothing that the guest printed: that may be a secret."""

    result: CommandResult
    texts: Iterable[str]
    lost: Callable[[], VMError]


#: Feeds standard input to `bash -s` in a VM's guest. Arguments: VM, input, time limit in seconds, and what a stop does.
Shell = Callable[[str, bytes, float, OnStop], Answer]


def wait_until_ready(
    answers: Callable[[float], _T | None], give_up: Callable[[], _T], deadline: float, orders: Orders
) -> _T:
    """Call `answers` until it gives something else than None; at the deadline, return (or raise) what `give_up` does.

    `answers` gets the seconds that its try may take, and raises what makes waiting useless. `deadline`: monotonic seconds.
    """
    for pause in _READY:
        found = answers(_patience(deadline))
        if found is not None:
            return found
        if time.monotonic() + pause >= deadline:
            break
        orders.wait(pause)
    return give_up()


def never_ready(vm: str, timeout: float, why: str = "") -> VMTransient:
    """The error for a guest that took no commands within `timeout` seconds of its start."""
    return VMTransient(f"the guest of {vm} took no commands within {timeout:g} s of its start" + (why and f": {why}"))


def run_script(
    shell: Shell, vm: str, script: str, timeout: float, *, looks_only: bool = False, lingers: bool = False
) -> GuestResult:
    """Run a bash script in a guest's home. `looks_only`: see `VMDriver.run`; `lingers`: see `guest_script.end_line`."""
    nonce = new_nonce()
    on_stop = OnStop.DISCARD if looks_only else OnStop.KILL
    return feed(shell, vm, wrapped(script, nonce, lingers=lingers), nonce, timeout, on_stop)


def feed(shell: Shell, vm: str, stdin: bytes, nonce: str, timeout: float, on_stop: OnStop) -> GuestResult:
    """Run input that reports its own end with `nonce`. Raises `VMTransient`, or what `Answer.lost` gives, when its end was not
    seen within `timeout` seconds."""
    answer = shell(vm, stdin, timeout, on_stop)
    for text in answer.texts:
        ended = result_in(text, nonce)
        if ended is not None:
            return ended
    if answer.result.timed_out:
        raise VMTransient(f"the guest command in {vm} did not end within {timeout:g} s")
    raise answer.lost()


def source_file(source: Path) -> Path:
    """The regular file that `source` names, links resolved. Raises `FileUnusable`."""
    resolved = source.resolve()
    if not resolved.is_file():
        raise FileUnusable(f"cannot copy {source} to the guest: not a file; check the path on this host")
    return resolved


def check_guest_path(path: str) -> None:
    """Raise `FileUnusable` for a path that could leave the guest's home, or that a shell would take apart."""
    if not _GUEST_PATH.fullmatch(path):
        raise FileUnusable(
            f"cannot copy {one_line(repr(path))} from a guest: not a path of plain words and slashes in its home"
        )


def not_a_file(path: str, vm: str) -> FileUnusable:
    """The error for a path in a guest that is missing, a folder or a link."""
    return FileUnusable(f"cannot copy {one_line(repr(path))} from {vm}: not a regular file there")


def _patience(deadline: float) -> float:
    """Seconds for the next try: at least one, so that a late try is not ended before it can succeed."""
    return min(_READY_TRY, max(1.0, deadline - time.monotonic()))
