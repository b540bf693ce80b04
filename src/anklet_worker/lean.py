"""Spares a worker two modules that others import if they are there, and do without otherwise. Knows no module of ours.

A host runs one process per service, so a megabyte counts as often as there are services. The figures are PSS from
/proc/PID/smaps_rollup, Python 3.11 on Linux.
"""

from __future__ import annotations

import importlib
import sys

#: module -> a module that it imports if there is one.
_DOES_WITHOUT = {
    # Since Python 3.11 the standard library has all that msgspec needs of it: 1.1 MB, with the `inspect` that it brings.
    "msgspec": "typing_extensions",
    # OpenSSL's hashes. The interpreter's own give the same digests, but there is no `hashlib.scrypt` then: 0.9 MB.
    "hashlib": "_hashlib",
    "hmac": "_hashlib",
}


def import_lean() -> None:
    """Import these modules without the heavy ones. Call it before anything else imports them; loaded ones stay as they are."""
    for name, heavy in _DOES_WITHOUT.items():
        if name not in sys.modules and heavy not in sys.modules:
            # The import system takes None for "not installed". Later imports find the module as usual.
            sys.modules[heavy] = None  # type: ignore[assignment]  # typeshed knows modules only
            try:
                importlib.import_module(name)
            finally:
                del sys.modules[heavy]
