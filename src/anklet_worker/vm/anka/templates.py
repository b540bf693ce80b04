"""Anka's templates: find one on this host, ask the registry for a newer one, pull it, and keep it still while it is cloned."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from anklet_worker.contract.errors import ImageUnusable, PullBusy, VMError, VMNotFound, VMTransient
from anklet_worker.contract.guest import NAME_PREFIX
from anklet_worker.contract.job import VMSpec
from anklet_worker.vm.anka.commands import envelope, envelope_or_silence, listed
from anklet_worker.vm.anka.output import is_local
from anklet_worker.vm.driver import VMInfo, VMState
from anklet_worker.vm.image_locks import ImageLocks
from anklet_worker.vm.listings import LastListing
from anklet_worker.vm.tool import Tool
from anklet_worker.vm.wording import one_line

_LIST = 60.0
_CHECK_SIZE = 60.0
#: Tens of GiB over a slow line.
_PULL = 2 * 3600.0

#: A template's name or uuid, or a tag, as the command line can carry it.
_PLAIN = r"[^-\s\x00-\x1f\x7f][^\x00-\x1f\x7f]{0,254}"


class Templates:
    """The templates of this host and of the registry. `listing` is the driver's last listing of everything."""

    def __init__(
        self,
        tool: Tool,
        locks: ImageLocks,
        listing: LastListing,
        registry_url: str,
        log: logging.LoggerAdapter[logging.Logger],
    ) -> None:
        self._tool = tool
        self._locks = locks
        self._listing = listing
        self._registry_url = registry_url
        self._log = log

    @contextmanager
    def held(self, spec: VMSpec, on_pull: Callable[[], None]) -> Iterator[str]:
        """Make template and tag present, and keep them so. See `VMDriver.image`."""
        for word in (spec.template, spec.tag):
            if word is not None and not re.fullmatch(_PLAIN, word):
                raise VMNotFound(f"{one_line(repr(word))} is not a possible name of a template or tag")
        pulls, entry = self._seen_lately(spec) or self._look(spec)
        if not _usable(entry, spec) or not self._is_current(spec):
            self._pull(spec, entry, pulls, on_pull)
            pulls, entry = self._look(spec)
        if entry is None or not _usable(entry, spec):
            raise ImageUnusable(f"{_named(spec)} cannot be used although it was pulled: {_condition(entry)}")
        with self._locks.cloning(entry.name, entry.uuid):
            if self._locks.pull_marks() != pulls and self._find(spec) != entry:
                raise _overtaken(spec)
            yield entry.uuid or entry.name

    def _seen_lately(self, spec: VMSpec) -> tuple[int, VMInfo] | None:
        """The template in the last listing, when it can be used as it stands there; with the pull marks of then."""
        seen = self._listing.fresh()
        entry = None if seen is None else _one_of(seen.rows, spec, exactly=True)
        if seen is None or entry is None or not _usable(entry, spec):
            return None
        return seen.pulls, entry

    def _look(self, spec: VMSpec) -> tuple[int, VMInfo | None]:
        """The template as `anka list` shows it now; with the pull marks from before."""
        self._listing.forget()
        pulls = self._locks.pull_marks()
        return pulls, self._find(spec)

    def _find(self, spec: VMSpec) -> VMInfo | None:
        try:
            return _one_of(self._list(spec.template), spec)
        except VMNotFound:
            return None

    def _list(self, name: str) -> list[VMInfo]:
        return listed(self._tool.ask(["list", name], _LIST, envelope_or_silence))

    def _is_current(self, spec: VMSpec) -> bool:
        """A tag that is present is never pulled again. Without a tag, the registry knows whether there is a newer one."""
        if spec.tag is not None:
            return True
        question = self._registry("pull", "--check-download-size", spec.template)
        try:
            return is_local(self._tool.ask(question, _CHECK_SIZE, envelope))
        except VMNotFound:
            # A template of this host only, never pushed.
            return True
        except VMError as error:
            self._use_local(spec, error)
            return True

    def _use_local(self, spec: VMSpec, error: VMError) -> None:
        self._log.warning(
            "cannot get the newest template from the registry; using the local copy",
            extra={"ankaTemplate": spec.template, "err": str(error)},
        )

    def _pull(self, spec: VMSpec, entry: VMInfo | None, pulls: int, on_pull: Callable[[], None]) -> None:
        """Pull, unless the host runs another pull. `entry` was listed when the pull marks were `pulls`.

        --shrink removes the template's other local tags. Without it the disk fills up with tags of 30 GiB that nothing ever
        removes, and `list` no longer tells which of them is there. VMs that were cloned from a removed tag keep their layers;
        the lock keeps clones from being made meanwhile.
        """
        tag = [] if spec.tag is None else ["--tag", spec.tag]
        known = () if entry is None else (entry.name, entry.uuid)
        with self._locks.pulling(spec.template, *known) as hold:
            if self._locks.pull_marks() != pulls + 1:
                raise _overtaken(spec)
            on_pull()
            self._log.info(
                "pulling the template", extra={"ankaTemplate": spec.template, "ankaTemplateTag": spec.tag or ""}
            )
            try:
                self._tool.ask(self._registry("pull", "--shrink", spec.template, *tag), _PULL, envelope, pull=hold)
            except VMTransient as error:
                if not _usable(entry, spec):
                    raise
                self._use_local(spec, error)

    def _registry(self, *arguments: str) -> list[str]:
        remote = ["--remote", self._registry_url] if self._registry_url else []
        return ["registry", *remote, *arguments]


def _one_of(rows: Sequence[VMInfo], spec: VMSpec, *, exactly: bool = False) -> VMInfo | None:
    """The template among the rows of a listing; `exactly`: only under the name or uuid that the job gives.

    A listing shows only the tag that is checked out (as `version`). It is the only one, because pulls are made with --shrink.
    """
    exact = [row for row in rows if spec.template in (row.name, row.uuid)]
    entry = next(iter(exact if exactly else exact or rows), None)
    if entry is not None and entry.name.startswith(NAME_PREFIX):
        # Otherwise a job could look into another job's VM.
        raise VMNotFound(f"{_named(spec)} is a job's VM, not a template")
    return entry


def _usable(entry: VMInfo | None, spec: VMSpec) -> bool:
    return entry is not None and entry.state is not VMState.FAILED and spec.tag in (None, entry.tag)


def _condition(entry: VMInfo | None) -> str:
    if entry is None:
        return "it is not listed; see `anka list` and `anka registry list` on this host"
    if entry.state is VMState.FAILED:
        return f"it is in state failed; remove it with `anka delete {entry.uuid}`"
    return f"its tag is {entry.tag!r}; remove it with `anka delete {entry.uuid}`"


def _overtaken(spec: VMSpec) -> PullBusy:
    return PullBusy(f"another pull came in between while this service looked for {_named(spec)}")


def _named(spec: VMSpec) -> str:
    return f"template {spec.template!r}" + ("" if spec.tag is None else f" with tag {spec.tag!r}")
