"""The answers of commands, as JSON envelope or as text.

Owns the shape of output on both streams. Knows no command.
"""

from __future__ import annotations

import json


class Reply:
    """An answer: its JSON body, its text, and whether it is an action's (with `code` and `message`) or a read's (without)."""

    def __init__(self, body=None, text="", *, message="", action=True):
        self.body = {} if body is None else body
        self.text = text
        self.message = message
        self.action = action
        self.envelope = None
        self.newline = True
        self.lines_before = []

    def as_json(self):
        """The envelope on one line."""
        if self.envelope is not None:
            return self.envelope
        if not self.action:
            return json.dumps({"status": "OK", "body": self.body})
        return json.dumps({"status": "OK", "code": 0, "body": self.body, "message": self.message})


def error_json(message, code):
    """The ERROR envelope."""
    return json.dumps({"status": "ERROR", "code": code, "body": {}, "message": message})


def grid(rows):
    """A table with lines around its cells; the first row is the head."""
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(rows[0]))]
    line = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
    parts = [line]
    for row in rows:
        cells = (f" {cell!s:<{width}} " for cell, width in zip(row, widths))  # noqa: B905  Python 3.9 has no strict
        parts += ["|" + "|".join(cells) + "|", line]
    return "\n".join(parts)


def table(body):
    """The two-column table of `show`."""
    return grid([("field", "value"), *body.items()])
