"""How a command ends badly: Tart's own errors and their exit statuses.

Owns the texts that several commands share. Knows nothing of state and output.
"""

from __future__ import annotations


class TartError(Exception):
    """An error that Tart reports as one line on standard error.

    Its own errors are printed bare; what comes from below it (`foreign`) is printed after `Error: `.
    """

    def __init__(self, message, status=1, *, foreign=False):
        super().__init__(message)
        self.message = message
        self.status = status
        self.foreign = foreign


def does_not_exist(name):
    """Of a VM that is not there."""
    return TartError(f'the specified VM "{name}" does not exist', 2)


def not_running(name):
    """Of a VM that has to run for this."""
    return TartError(f'VM "{name}" is not running', 2)


def already_running(name):
    """Of a second `run`."""
    return TartError(f'VM "{name}" is already running!', 2)


def is_running(name):
    """Of a VM that must not run for this."""
    return TartError(f'VM "{name}" is running')


def no_agent(settings):
    """Of a guest whose agent does not answer."""
    return TartError(
        f"Failed to connect to the VM using its control socket: {settings['agent_error']}, is the Tart Guest Agent running?"
    )
