"""Copies the logs of a guest to the host before its VM is deleted. Owns the limits, and the checks of the guest's archive.

The archive comes from a machine on which an untrusted job ran. Only plain files are extracted, under their base names, and only up
to the limits below.
"""

from __future__ import annotations

import re
from pathlib import Path

from anklet_worker.contract.errors import RetryHere
from anklet_worker.contract.guest import Guest

_SCRIPT = (Path(__file__).parent / "guest" / "collect-logs.bash").read_text()
_PACKED = ".anklet-logs.tgz"
_TIMEOUT = 20.0
_MOST_FILES, _LARGEST_FILE = 24, 1024 * 1024
_LARGEST_ARCHIVE = _MOST_FILES * _LARGEST_FILE
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,120}")
#: The runner's own logs go into a folder _diag, as on the runner.
_DIAG = re.compile(r"(Runner|Worker)_")


def collect(guest: Guest, folder: Path) -> None:
    """Copy the ends of the runner's logs into `folder`. Raises `VMError`, `RetryHere`, `OSError`."""
    limits = {"COUNT": str(_MOST_FILES), "SIZE": str(_LARGEST_FILE)}
    guest.run(_SCRIPT, env=limits, timeout=_TIMEOUT, looks_only=True)
    packed = folder / "logs.tgz"
    try:
        guest.copy_out(_PACKED, packed)
        unpack(packed, folder)
    finally:
        packed.unlink(missing_ok=True)


def unpack(packed: Path, folder: Path) -> None:
    """Extract the plain files of an untrusted archive. Raises `RetryHere` when it is not an archive or too large, `OSError`."""
    if packed.stat().st_size > _LARGEST_ARCHIVE:
        raise RetryHere("the guest's log archive is too large")
    # Imported here, so that only a worker that has run a job pays for it.
    import tarfile  # noqa: PLC0415

    try:
        with tarfile.open(packed, "r:gz") as archive:
            for number, member in enumerate(archive):
                if number > 2 * _MOST_FILES:
                    break
                name = member.name.rpartition("/")[2]
                source = archive.extractfile(member) if member.isreg() else None
                if source is None or not _NAME.fullmatch(name):
                    continue
                target = folder / "_diag" / name if _DIAG.match(name) else folder / name
                target.parent.mkdir(mode=0o700, exist_ok=True)
                target.touch(mode=0o600)
                target.write_bytes(source.read(_LARGEST_FILE))
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001  a forged archive can make `tarfile` raise anything
        raise RetryHere(f"the guest's log archive cannot be read: {type(error).__name__}") from None
