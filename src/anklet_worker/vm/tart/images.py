"""Tart's images: find one on this host, pull it, and keep it still while it is cloned."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from anklet_worker.contract.errors import VMError, VMNotFound, VMTransient
from anklet_worker.contract.guest import NAME_PREFIX
from anklet_worker.contract.job import VMSpec
from anklet_worker.vm.driver import VMInfo, VMState
from anklet_worker.vm.image_locks import ImageLocks
from anklet_worker.vm.listings import LastListing
from anklet_worker.vm.tart.commands import printed
from anklet_worker.vm.tart.output import vms
from anklet_worker.vm.tool import Tool
from anklet_worker.vm.wording import one_line

_LIST = 60.0
#: Tens of GiB over a slow line.
_PULL = 2 * 3600.0

_LONGEST_NAME = 255
#: A local VM's name is a directory's; the others are names in a registry, as Tart's parser takes them.
_LOCAL_NAME = re.compile(r"(?!\.{1,2}$)[^-/\s\x00-\x1f\x7f](?:[^/\x00-\x1f\x7f]*[^/\s\x00-\x1f\x7f])?")
_REMOTE_NAME = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9.-]*(?::[0-9]{1,5})?(?:/[A-Za-z0-9][A-Za-z0-9._-]*)+"
    r"(?P<reference>:[A-Za-z0-9_][A-Za-z0-9._-]*|@sha256:[0-9a-f]{64})?"
)
_DIGEST = re.compile(r"@(sha256:[0-9a-f]{64})\s*$")


class Images:
    """The images of this host. `policy`: when to pull (the service's `tart.pull`)."""

    def __init__(
        self,
        tool: Tool,
        locks: ImageLocks,
        policy: str,
        log: logging.LoggerAdapter[logging.Logger],
    ) -> None:
        self._tool = tool
        self._locks = locks
        self._policy = policy
        self._log = log
        self._listing = LastListing(locks)

    def listing(self) -> Sequence[VMInfo]:
        """Everything on this host, pulled images included."""
        return self._listing.take(lambda: list(vms(self._tool.ask(["list", "--format", "json"], _LIST, printed))))

    def find(self, name: str) -> VMInfo | None:
        """The image or VM of this name as it is listed now."""
        return _row(self.listing(), name)

    def find_lately(self, name: str) -> VMInfo | None:
        """The same from the last listing, while that holds; else from a new one."""
        seen = self._listing.fresh()
        return self.find(name) if seen is None else _row(seen.rows, name)

    def changed(self) -> None:
        """A command has changed what a listing shows."""
        self._listing.forget()

    @contextmanager
    def held(self, spec: VMSpec, on_pull: Callable[[], None]) -> Iterator[str]:
        """Make the image present, and keep pulls away from it. See `VMDriver.image`."""
        name = _full_name(spec.template)
        if self._needs_pull(name):
            self._pull(name, on_pull)
        with self._locks.cloning(name):
            row = self._find_stopped(name)
            if row is None:
                raise VMNotFound(f"image {name!r} is not found on this host" + self._why_not_pulled(name))
            if row.state is not VMState.STOPPED:
                raise VMTransient(f"image {name!r} is {row.state.value}, so a copy would be damaged; shut it down")
            yield name

    def _find_stopped(self, name: str) -> VMInfo | None:
        """The last listing is enough when it shows the image as it should be; anything else is looked at again."""
        row = self.find_lately(name)
        return row if row is not None and row.state is VMState.STOPPED else self.find(name)

    def _needs_pull(self, name: str) -> bool:
        if "/" not in name or self._policy == "never":
            return False
        # The content behind a digest never changes.
        if self._policy == "always" and "@" not in name:
            return True
        return self.find_lately(name) is None and self.find(name) is None

    def _why_not_pulled(self, name: str) -> str:
        if "/" not in name:
            return ""
        return ", and tart.pull is never" if self._policy == "never" else ", although it was pulled"

    def _pull(self, name: str, on_pull: Callable[[], None]) -> None:
        """Pull, unless the host runs another pull of Tart's."""
        with self._locks.pulling(name) as hold:
            on_pull()
            self._log.info("pulling the image", extra={"tartImage": name})
            try:
                self._tool.ask(["pull", name], _PULL, printed, pull=hold)
            except VMError as error:
                if self.find(name) is None:
                    raise
                self._log.warning(
                    "cannot get the newest image from the registry; using the local copy",
                    extra={"tartImage": name, "err": str(error)},
                )

    def digest(self, name: str) -> str:
        """The content that a name stands for now; empty for a local VM, and when Tart does not say."""
        if "/" not in name:
            return ""
        with contextlib.suppress(VMError):
            found = _DIGEST.search(self._tool.ask(["fqn", name], _LIST, printed).decode(errors="replace"))
            return "" if found is None else found[1]
        return ""


def _row(rows: Sequence[VMInfo], name: str) -> VMInfo | None:
    return next((row for row in rows if row.name == name), None)


def _full_name(image: str) -> str:
    """An image's name as Tart lists it: one in a registry has a tag or a digest. Raises `VMNotFound` for an impossible name."""
    remote = _REMOTE_NAME.fullmatch(image) if "/" in image else None
    if len(image) > _LONGEST_NAME or (remote is None and not _LOCAL_NAME.fullmatch(image)):
        raise VMNotFound(f"{one_line(repr(image))} is not a possible name of an image")
    if image.startswith(NAME_PREFIX):
        # Otherwise a job could look into another job's VM.
        raise VMNotFound(f"{image!r} is a job's VM, not an image")
    return f"{image}:latest" if remote is not None and remote["reference"] is None else image
