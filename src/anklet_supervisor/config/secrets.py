"""Secrets of the configuration: from the file itself, from a file of their own, or from a command.

Owns how a secret is fetched, and the messages when that fails, which never show it. Knows no YAML.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from pathlib import Path
from typing import Protocol

import msgspec

from anklet_supervisor.config.values import Given, Roots, Unfit, plain_text
from anklet_worker.contract.errors import ConfigError
from anklet_worker.contract.settings import Key, Kind, Secret

_PEM = "-----BEGIN "
#: A key file is a few kilobytes; more is the wrong file (or a device without end).
_LARGEST_FILE = 1 << 20
_UNFIT = re.compile("[\x00\ud800-\udfff]")


class RunCommand(Protocol):
    """Runs a configured command without a shell and returns its output: the first line, or all of it.

    Raises `ConfigError`, whose message shows nothing of the output.
    """

    def __call__(self, command: str, *, whole: bool) -> str:
        """Run it to its end."""
        ...


class Fetched(msgspec.Struct, frozen=True):
    """A secret. `literal`: it stands in the configuration itself. `exposed`: its own file, when others can read that."""

    secret: Secret
    literal: bool = False
    exposed: Path | None = None


def fetch(key: Key, spelling: str, given: Given, roots: Roots, run_command: RunCommand) -> Fetched:
    """Fetch the secret that `given` names, under one of the three `spelling`s of its key. Raises `Unfit`."""
    form = spelling.removeprefix(key.name)
    is_key = key.kind is Kind.PRIVATE_KEY
    if form == "_command":
        return Fetched(_secret(_printed(given, run_command, whole=is_key), is_key=is_key))
    if form == "_file" or (is_key and _PEM not in given.text):
        path = roots.resolve(plain_text(key, given))
        text, exposed = _read(path)
        return Fetched(_secret(text if is_key else text.strip().partition("\n")[0], is_key=is_key), exposed=exposed)
    text = given.text if is_key else plain_text(key, given)
    return Fetched(_secret(text, is_key=is_key), literal=given.quotable)


def _secret(text: str, *, is_key: bool) -> Secret:
    text = text.strip()
    if not text:
        raise Unfit("gives an empty text")
    if _UNFIT.search(text):
        raise Unfit("gives something that is not text")
    if not is_key:
        return Secret(text)
    if _PEM not in text:
        raise Unfit("gives no private key in PEM form (-----BEGIN ...)")
    # Environments and secret stores hold keys on one line.
    return Secret((text if "\n" in text else text.replace("\\n", "\n")) + "\n")


def _printed(given: Given, run_command: RunCommand, *, whole: bool) -> str:
    try:
        words = shlex.split(given.text)
    except ValueError:
        raise Unfit("must be a command line; a quote in it has no end") from None
    if not words or "\0" in given.text:
        raise Unfit("must be a command line")
    try:
        return run_command(given.text, whole=whole)
    except ConfigError as error:
        raise Unfit(f"gives nothing: {error}") from None


def _read(path: Path) -> tuple[str, Path | None]:
    """The file's text, and its path when group or others can read it."""
    # No message names the path: it may be the secret itself, written under the wrong key.
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_FILE + 1)
            mode = os.fstat(file.fileno()).st_mode
    except OSError as error:
        raise Unfit(f"names a file that cannot be read: {error.strerror}") from None
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise Unfit("names a file that is not text") from None
    if len(data) > _LARGEST_FILE:
        raise Unfit("names a file that is too large to be right")
    return text, path if mode & (stat.S_IRGRP | stat.S_IROTH) else None
