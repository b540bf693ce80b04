"""Draws the status document: tables on a wide terminal, lines on a narrow one.

Reads no file: `console.remote` hands it each document.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import datetime

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from anklet_supervisor.console.drawing import NARROW, open_console, plain
from anklet_supervisor.report.status import ApiBudget, ServiceStatus, SlotStatus, StatusDocument

#: Seconds; the supervisor writes the file at least every 5.
_STALE_AFTER = 15.0
_STYLES = {
    "ready": "green", "starting": "yellow", "backoff": "yellow", "stopping": "yellow", "fatal": "bold red",
    "orphaned": "yellow", "failed": "red", "failure": "red", "limit_paused": "yellow", "paused": "yellow",
}  # fmt: skip
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


class StatusView:
    """One document, drawn to fit the console. `now` is Unix seconds, `age` the seconds since the document was written."""

    def __init__(self, document: StatusDocument, *, now: float, age: float) -> None:
        self.document = document
        self._now = now
        self._age = age

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        document = self.document
        yield Text(
            f"{document.mode}, pid {document.pid}, version {document.version}, up {self._since(document.started_at)}"
        )
        if self._age > _STALE_AFTER:
            yield Text(
                f"this status is {_duration(self._age)} old: the supervisor hangs or its disk is full", style="bold red"
            )
        for service in document.services:
            if service.api is not None:
                yield plain(f"{service.name}: {self._budget(service.api)}")
        yield Text()
        yield from self._lines() if options.max_width < NARROW else self._tables()
        for service in document.services:
            if service.reason:
                reason = plain(f"{service.name}: {service.reason}")
                reason.stylize(_STYLES.get(service.state, ""))
                yield reason
        yield from self._reload()
        yield from self._failures()

    def _tables(self) -> Iterator[Table | Text]:
        services = Table("SERVICE", "STATE", "STATUS", "PID", "RESTARTS", "JOB", "VM", "FOR", box=None, pad_edge=False)
        for service in self.document.services:
            services.add_row(
                plain(service.name),
                _word(service.state),
                _status(service),
                str(service.pid or "-"),
                str(service.restarts),
                *self._job(service),
            )
        slots = Table("SLOT", "STATE", "SERVICE", "VM", "FOR", box=None, pad_edge=False)
        for slot in self.document.slots:
            slots.add_row(str(slot.index), _word(slot.state), *self._holder(slot))
        yield services
        for service in self.document.services:
            if service.job is not None:
                yield plain(f"{service.name} runs {service.job.url}")
        yield from (Text(), slots)

    def _lines(self) -> Iterator[Text]:
        for service in self.document.services:
            pid = f", pid {service.pid}" if service.pid else ""
            yield Text.assemble(plain(service.name), ": ", _word(service.state), ", ", _status(service), pid)
            if service.job is not None:
                name, vm, since = self._job(service)
                yield Text.assemble("  job ", name, f", for {since}, in ", vm)
                yield plain(f"  {service.job.url}")
        yield Text()
        for slot in self.document.slots:
            name, vm, since = self._holder(slot)
            held = "" if slot.service is None else Text.assemble(", ", name, ", ", vm, f", for {since}")
            yield Text.assemble(f"slot {slot.index}: ", _word(slot.state), held)

    def _reload(self) -> Iterator[Text]:
        """Why the last reload changed nothing."""
        reload = self.document.reload
        for problem in reload.problems if reload is not None else []:
            yield Text.assemble(Text("not reloaded: ", style="red"), plain(problem))

    def _failures(self) -> Iterator[Text]:
        """The latest jobs that did not succeed, one per line."""
        if self.document.failures:
            yield Text()
            yield Text("last failures")
        for one in self.document.failures:
            why = f": {one.reason}" if one.reason else ""
            line = plain(f"{self._since(one.at)} ago, {one.service}, {one.name}, {one.ended}{why} {one.url}")
            line.stylize(_STYLES.get(one.ended, ""))
            yield line

    def _job(self, service: ServiceStatus) -> tuple[Text, Text, str]:
        if service.job is None:
            return Text("-"), Text("-"), "-"
        return plain(service.job.name), plain(service.job.vm), self._since(service.job.since)

    def _holder(self, slot: SlotStatus) -> tuple[Text, Text, str]:
        return plain(slot.service or "-"), plain(slot.vm or "-"), self._since(slot.since)

    def _budget(self, api: ApiBudget) -> str:
        left = datetime.fromisoformat(api.reset).timestamp() - self._now
        if left <= 0:
            return f"up to {api.limit} API requests left: the limit was renewed after the last request"
        return f"{api.remaining} of {api.limit} API requests left, renewed in {_duration(left)}"

    def _since(self, moment: str | None) -> str:
        return "-" if moment is None else _duration(self._now - datetime.fromisoformat(moment).timestamp())


def show(view: StatusView) -> None:
    """Print the view once on standard output."""
    open_console().print(view)


def watch(look: Callable[[], StatusView | None], wait: Callable[[], None]) -> None:
    """Draw what `look` returns until it returns None or the user presses Ctrl-C; `wait` pauses between two views.

    A terminal that cannot redraw, or a pipe, gets each changed view below the last one.
    """
    console = open_console()
    with contextlib.suppress(KeyboardInterrupt):
        if not console.is_terminal or console.is_dumb_terminal:
            last = None
            while (view := look()) is not None:
                if view.document != last:
                    console.print(view, "")
                last = view.document
                wait()
            return
        with Live(console=console, auto_refresh=False) as live:
            while (view := look()) is not None:
                live.update(view, refresh=True)
                wait()


def _word(word: str) -> Text:
    return Text(word, style=_STYLES.get(word, ""))


def _status(service: ServiceStatus) -> Text:
    """The status, with `paused` added while a paused service finishes its job."""
    word = _word(service.status)
    return word if not service.paused or service.status == "paused" else Text.assemble(word, ", ", _word("paused"))


def _duration(seconds: float) -> str:
    """Seconds in their two largest units; negative ones, after the clock was set back, are 0s."""
    whole = max(0, int(seconds))
    if whole >= _DAY:
        return f"{whole // _DAY}d{whole % _DAY // _HOUR:02d}h"
    if whole >= _HOUR:
        return f"{whole // _HOUR}h{whole % _HOUR // _MINUTE:02d}m"
    if whole >= _MINUTE:
        return f"{whole // _MINUTE}m{whole % _MINUTE:02d}s"
    return f"{whole}s"
