"""Errors of the emulated commands: Anka's own, and refused command lines.

Owns these error types. Knows nothing of state and output.
"""

from __future__ import annotations

NOT_FOUND = 3
NAME_EXISTS = 18


class AnkaError(Exception):
    """An error that Anka reports: an ERROR envelope with -j, otherwise one line on standard error.

    `status` is the exit status if it differs from the usual one.
    """

    def __init__(self, message, code=1, status=None):
        super().__init__(message)
        self.message = message
        self.code = code
        self.status = status


class LostGuest(AnkaError):
    """The guest of a `run` does not answer or is gone: exit status 125."""

    STATUS = 125

    def __init__(self, message):
        super().__init__(message, self.STATUS, self.STATUS)


def not_found(subject):
    """The error for an id, tag or item that does not exist; the subject is what the user typed."""
    return AnkaError(f"{subject}: not found", NOT_FOUND)


def configured(settings, name, subject):
    """An error with text and code from switches: `<name>_message` with {id}, `<name>_code`."""
    return AnkaError(settings[f"{name}_message"].format(id=subject), settings.get(f"{name}_code", 1))
