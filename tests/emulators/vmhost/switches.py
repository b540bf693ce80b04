"""Checks changes to a product's switches.

Owns the check only; each product owns its switches, their defaults, and the closed sets of values.
"""

from __future__ import annotations


def check(changes, defaults, choices):
    """Refuse an unknown switch and a value outside a closed set; raises ValueError that names it."""
    for name, value in changes.items():
        if name not in defaults:
            raise ValueError(f"no such setting: {name}")
        if name in choices and value not in choices[name]:
            raise ValueError(f"{name}: {value!r} is not one of {choices[name]}")
