"""A strict parser of command lines: known options only, each with its arity.

Owns the grammar (clusters of short flags, `--name=value`, options after positionals). Knows no command.
"""

from __future__ import annotations


class UsageError(Exception):
    """The command line is refused."""


FLAG = "flag"
VALUE = "value"
MANY = "many"


def option(*spellings, kind=FLAG):
    """One option: its spellings and whether it takes a value (`MANY`: repeatedly). Stored under its last spelling."""
    return {spelling: (kind, spellings[-1].lstrip("-")) for spelling in spellings}


class Parsed:
    """The parsed arguments: `values` by option name (flags True, `MANY` a list) and the positionals."""

    def __init__(self):
        self.values = {}
        self.positionals = []

    def __getitem__(self, name):
        return self.values.get(name)


def parse(args, known, *, least=0, most=None, interleaved=True, terminator=False):
    """Parse `args`; raises UsageError for an unknown option, a missing value, or a wrong number of positionals.

    Without `interleaved`, everything from the first positional on is positional; with `terminator`, everything after `--`.
    """
    parsed = Parsed()
    rest = list(args)
    while rest:
        arg = rest.pop(0)
        if terminator and arg == "--":
            parsed.positionals += rest
            break
        if arg == "-" or not arg.startswith("-"):
            parsed.positionals.append(arg)
            if not interleaved:
                parsed.positionals += rest
                break
        elif arg.startswith("--"):
            _long(arg, rest, known, parsed)
        else:
            _short(arg, rest, known, parsed)
    count = len(parsed.positionals)
    if count < least:
        raise UsageError("missing argument")
    if most is not None and count > most:
        raise UsageError(f"unexpected argument: {parsed.positionals[most]}")
    return parsed


def _long(arg, rest, known, parsed):
    name, given, value = arg.partition("=")
    if name not in known:
        raise UsageError(f"unknown option: {name}")
    if known[name][0] == FLAG:
        if given:
            raise UsageError(f"option takes no value: {name}")
        _store(parsed, known[name], True)
    else:
        _store(parsed, known[name], value if given else _next(name, rest))


def _short(arg, rest, known, parsed):
    letters = arg[1:]
    while letters:
        name, letters = "-" + letters[0], letters[1:]
        if name not in known:
            raise UsageError(f"unknown option: {name}")
        if known[name][0] == FLAG:
            _store(parsed, known[name], True)
        else:
            _store(parsed, known[name], letters or _next(name, rest))
            break


def _next(name, rest):
    if not rest:
        raise UsageError(f"option needs a value: {name}")
    return rest.pop(0)


def _store(parsed, entry, value):
    kind, name = entry
    if kind == MANY:
        parsed.values.setdefault(name, []).append(value)
    else:
        parsed.values[name] = value
