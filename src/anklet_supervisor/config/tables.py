"""The tables of keys for docs/configuration.md. Knows no key by name."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from anklet_worker.contract.settings import Key, Kind, Section


def default_of(section: Section, key: Key) -> str:
    """A key's default as the documentation shows it; empty when it has none."""
    if key.default:
        return key.default
    for field in msgspec.structs.fields(section.values):
        if field.name == key.name:
            return "" if field.default in (None, "", msgspec.NODEFAULT) else _plain(field.default)
    return ""


def rows(section: Section, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Name, kind, default and documentation of every key in use, sections unfolded, in the order of the tables."""
    for key in section.keys:
        if key.unused:
            continue
        if key.section is not None:
            deeper = f"{prefix}{key.name}[]." if key.kind is Kind.SERVICES else f"{prefix}{key.name}."
            yield from rows(key.section, deeper)
        else:
            kind = ", ".join(key.choices) if key.choices else key.kind.value
            yield prefix + key.name, kind, default_of(section, key), key.doc


def markdown(section: Section, prefix: str = "") -> str:
    """A section's table of keys, for docs/configuration.md; `prefix` stands before every name."""
    head = "| key | value | default | meaning |\n|---|---|---|---|\n"
    return head + "".join(
        f"| `{name}` | {kind} | {default} | {doc} |\n" for name, kind, default, doc in rows(section, prefix)
    )


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)
