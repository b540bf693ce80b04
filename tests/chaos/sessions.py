"""Finds the processes of the supervisors that the harness started, including their workers.

Owns how they are told apart from other processes. A session id is not enough: with a few tens of thousands of pids, ids are reused
within minutes, and a guest on another host may get the id of an earlier supervisor. So each start also puts a token into the
environment, which children inherit and guests do not.
"""

from __future__ import annotations

import os
import secrets

import psutil

_VARIABLE = "CHAOS_SESSION"


class Sessions:
    """The sessions of one host's supervisors. Commands and guests have their own sessions, which are not among these."""

    def __init__(self):
        self._token_of = {}

    def variables(self):
        """Return the environment variables for the next supervisor: a new token, out of reach of a worker's title."""
        return {_VARIABLE: secrets.token_hex(8), "SPT_NOENV": "1"}

    def add(self, pid, variables):
        """Note a supervisor that leads a session and was started with these variables."""
        self._token_of[pid] = variables[_VARIABLE]

    def living(self):
        """Return the processes of all these sessions, without zombies."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def lines(self):
        """Return their command lines."""
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
