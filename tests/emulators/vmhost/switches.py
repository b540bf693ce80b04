"""What may be set of a product's switches.

Owns the check only; each product owns its switches, their defaults, and the closed sets of values.
"""

from __future__ import annotations


def check(changes, defaults, choices):
    """Refuse a switch that does not exist and a value outside a closed set; ValueError names it."""
    for name, value in changes.items():
        if name not in defaults:
            raise ValueError(f"no such setting: {name}")
        if name in choices and value not in choices[name]:
            raise ValueError(f"{name}: {value!r} is none of {choices[name]}")
