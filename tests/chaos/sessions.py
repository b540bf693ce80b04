"""Which processes are those of a supervisor that the harness started, its workers' included.

Owns how they are told from others for as long as a run takes. The number of a session alone does not tell: pids come round again in
minutes when there are a few tens of thousands of them, and a guest's process on another host may then have the number that a
supervisor had before. So each start leaves a token in the environment too, which its children inherit, and guests do not.
"""

from __future__ import annotations

import os
import secrets

import psutil

_VARIABLE = "CHAOS_SESSION"


class Sessions:
    """The sessions of one host's supervisors. Commands and guests have sessions of their own and are never among them."""

    def __init__(self):
        self._token_of = {}

    def variables(self):
        """What to add to the environment of the next supervisor: a new token. A worker's title must not overwrite it."""
        return {_VARIABLE: secrets.token_hex(8), "SPT_NOENV": "1"}

    def add(self, pid, variables):
        """A supervisor that leads a session was started, with these variables."""
        self._token_of[pid] = variables[_VARIABLE]

    def living(self):
        """The processes of all these sessions that are not zombies, as psutil has them."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def lines(self):
        """Their command lines."""
        found = []
        for process in self.living():
            try:
                found.append(" ".join(process.cmdline()) or process.name())
            except psutil.Error:
                continue
        return found

    def _is_ours(self, process):
        try:
            token = self._token_of.get(os.getsid(process.pid))
            return (
                token is not None
                and process.status() != psutil.STATUS_ZOMBIE
                and process.environ().get(_VARIABLE) == token
            )
        except (OSError, psutil.Error):
            return False
