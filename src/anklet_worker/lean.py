"""Spares a process the modules that others import and an idle process never uses. Owns the list of these; knows no module of ours.

A host runs one process per service, so a megabyte counts as often as there are services. The figures are from
`python -X importtime` and /proc/PID/smaps_rollup, Python 3.11.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from types import ModuleType
from typing import Any

#: module -> a module that it imports if there is one, and does without.
_DOES_WITHOUT = {
    # The standard library has all that msgspec needs of it since Python 3.11: 0.5 MB.
    "msgspec": "typing_extensions",
    # OpenSSL's hashes; the interpreter's own give the same digests: 0.8 MB.
    "hashlib": "_hashlib",
    "hmac": "_hashlib",
}
#: Modules of the standard library that are loaded at the first use of something in them, not when they are imported. Nothing that
#: reports a bug is among them: an upgrade of Python may have removed the files by then, and the report would fail too.
_AT_FIRST_USE = (
    "inspect",  # imported by dataclasses: 0.9 MB
    "ssl",  # by http.client, for the supervisor's page: 0.9 MB
    "shutil",  # by tempfile: 0.3 MB
    "ipaddress",  # by urllib.parse: 0.2 MB
    "locale",  # by subprocess: 0.2 MB
    "secrets",  # by the guests' scripts: 0.1 MB
)

#: Names with underscores that are a use of a module. The import system asks for the others, such as `__path__`, of any module.
_USED_NAMES = frozenset({"__all__", "__version__"})

#: Held while the code of one of them runs, and the names of those whose code runs.
_LOADING = threading.RLock()
_RUNNING: set[str] = set()


def import_lean() -> None:
    """Arrange for lean imports. Call this before anything else imports the modules; those that are loaded stay as they are."""
    for name in _AT_FIRST_USE:
        if name not in sys.modules:
            _load_at_first_use(name)
    for name, heavy in _DOES_WITHOUT.items():
        if name not in sys.modules and heavy not in sys.modules:
            _import_without(name, heavy)


def _import_without(name: str, heavy: str) -> None:
    # The import system takes None for "not installed". Later imports find the module as usual.
    sys.modules[heavy] = None  # type: ignore[assignment]  # typeshed knows modules only
    try:
        importlib.import_module(name)
    finally:
        del sys.modules[heavy]


class _Postponed(ModuleType):
    """A module whose code runs when something in it is first used. importlib's own LazyLoader runs it at the second import."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in _USED_NAMES:
            raise AttributeError(name)
        with _LOADING:
            if self.__name__ in _RUNNING:
                # Its own code looks for a name that is not there.
                raise AttributeError(name)
            if type(self) is _Postponed:
                self._run()
        return getattr(self, name)

    def __dir__(self) -> list[str]:
        with _LOADING:
            if type(self) is _Postponed and self.__name__ not in _RUNNING:
                self._run()
        return list(self.__dict__)

    def _run(self) -> None:
        spec = self.__spec__
        if spec is None or spec.loader is None:
            raise ImportError(f"{self.__name__} cannot be loaded")
        _RUNNING.add(self.__name__)
        try:
            spec.loader.exec_module(self)
        finally:
            _RUNNING.discard(self.__name__)
        self.__class__ = ModuleType  # type: ignore[assignment]  # mypy takes classes for fixed


def _load_at_first_use(name: str) -> None:
    spec = importlib.util.find_spec(name)
    if spec is None:
        return
    module = _Postponed(name)
    module.__spec__, module.__loader__, module.__file__ = spec, spec.loader, spec.origin
    sys.modules[name] = module
