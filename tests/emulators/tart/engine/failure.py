"""Errors of the emulated commands: Tart's own texts and exit statuses.

Owns the texts that several commands share. Knows nothing of state and output.
"""

from __future__ import annotations


class TartError(Exception):
    """An error that Tart reports as one line on standard error.

    Tart prints its own errors bare, and errors from lower layers (`foreign`) after `Error: `.
    """

    def __init__(self, message, status=1, *, foreign=False):
        super().__init__(message)
        self.message = message
        self.status = status
        self.foreign = foreign


def does_not_exist(name):
    """The VM does not exist."""
    return TartError(f'the specified VM "{name}" does not exist', 2)


def not_running(name):
    """The VM must run for this command, and does not."""
    return TartError(f'VM "{name}" is not running', 2)


def already_running(name):
    """A second `run` of the same VM."""
    return TartError(f'VM "{name}" is already running!', 2)


def is_running(name):
    """The VM must not run for this command, and does."""
    return TartError(f'VM "{name}" is running')


def no_agent(settings):
    """The guest's agent does not answer."""
    return TartError(
        f"Failed to connect to the VM using its control socket: {settings['agent_error']}, is the Tart Guest Agent running?"
    )
