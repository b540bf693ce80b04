"""Imports modules without something heavy that they use only if it is there. Owns the list of these; knows no module of ours.

A host runs one process per service, so each megabyte counts as often as there are services.
"""

from __future__ import annotations

import importlib
import sys

#: module -> what it does without, and the megabytes that this saves in each process.
_DOES_WITHOUT = {
    # The standard library has all that msgspec needs of it since Python 3.11: 0.5 MB.
    "msgspec": "typing_extensions",
    # OpenSSL's hashes; the interpreter's own give the same digests: 0.8 MB.
    "hashlib": "_hashlib",
}


def import_lean() -> None:
    """Import the modules on the list; to be called before anything else imports them. Later imports find all as usual."""
    for module, heavy in _DOES_WITHOUT.items():
        if module in sys.modules or heavy in sys.modules:
            continue
        # The import system takes None for "not installed".
        sys.modules[heavy] = None  # type: ignore[assignment]  # typeshed knows modules only
        try:
            importlib.import_module(module)
        finally:
            del sys.modules[heavy]
