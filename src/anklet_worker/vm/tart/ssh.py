"""The ssh client for guests of Tart without a guest agent: its arguments, its environment, and its error messages.

Each VM has a new host key and there is nothing to compare it with, so keys are neither kept nor checked. Therefore the only
secret on the connection that another VM on the host's network must not see is the guest's password. The client never gets the
host's keys or agent, and forwards nothing. A program that ssh runs reads the password from a file: it is in no argument,
variable or log, and not in the guest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from anklet_worker.files import write_atomically
from anklet_worker.state_layout import Place
from anklet_worker.vm.wording import one_line

#: The login of the usual images (cirruslabs' macOS images).
USUAL_USER = "admin"
_USUAL_PASSWORD = b"admin\n"
_CONNECT_TIMEOUT = 3
_OPTIONS = {
    "BatchMode": "no",
    "StrictHostKeyChecking": "no",
    "UserKnownHostsFile": "/dev/null",
    "GlobalKnownHostsFile": "/dev/null",
    "UpdateHostKeys": "no",
    "PreferredAuthentications": "password,keyboard-interactive",
    "PubkeyAuthentication": "no",
    "NumberOfPasswordPrompts": "1",
    "IdentityAgent": "none",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "ClearAllForwardings": "yes",
    "ControlMaster": "no",
    "ControlPath": "none",
    "PermitLocalCommand": "no",
    "RequestTTY": "no",
    "LogLevel": "ERROR",
    "ConnectTimeout": str(_CONNECT_TIMEOUT),
    "ServerAliveInterval": "15",
    "ServerAliveCountMax": "4",
}
_ASKPASS = b'#!/bin/sh\nexec cat "$ANKLET_GUEST_PASSWORD_FILE"\n'
#: ssh's own lines when it does not get through.
_SSH_LINE = re.compile(
    r"^(?:ssh: .*|.*Permission denied \(.*\)\.?|(?:Connection|kex_exchange_identification).*|Received disconnect .*)\s*$",
    re.MULTILINE,
)


class Ssh:
    """The ssh client for guests. `folder` is private: the program that gives ssh the password is there."""

    def __init__(self, folder: Path, user: str | None, password_file: Path | None) -> None:
        self._folder = folder
        self._user = user or USUAL_USER
        self._password_file = password_file

    def argv(self, address: str, *command: str) -> list[str]:
        """The arguments that run a command of plain words in the guest at this address, with our standard input."""
        options = [word for name, value in _OPTIONS.items() for word in ("-o", f"{name}={value}")]
        return ["ssh", "-F", "/dev/null", *options, f"{self._user}@{address}", *command]

    def env(self) -> Mapping[str, str]:
        """The variables by which ssh asks for the password; none of them is a secret. Writes the files. Raises `OSError`."""
        askpass, password = Place.TART_ASKPASS.in_folder(self._folder), self._password_file
        write_atomically(askpass, _ASKPASS, mode=0o700, durable=False)
        if password is None:
            password = Place.TART_USUAL_PASSWORD.in_folder(self._folder)
            write_atomically(password, _USUAL_PASSWORD, durable=False)
        return {
            "SSH_ASKPASS": str(askpass),
            "SSH_ASKPASS_REQUIRE": "force",
            "ANKLET_GUEST_PASSWORD_FILE": str(password),
        }


def ssh_words(stderr: bytes) -> str:
    """Why ssh did not get through, in its own words, without anything of the guest's."""
    lines = _SSH_LINE.findall(stderr.decode(errors="replace"))
    return one_line(lines[-1]) if lines else "no answer"
