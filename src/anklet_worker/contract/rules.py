"""What a plugin asks of its services' settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from anklet_worker.contract.service import ServiceConfig

#: Entry point group of `ServiceRules`.
RULES_GROUP = "anklet.plugin_rules"


class Complaint(msgspec.Struct, frozen=True):
    """What a plugin finds wrong with a service's settings: the key to point at, and what to say of it (no secret in it).

    A key in a section is `section.key`. `instead`: keys of which one would do as well; a complaint about what is missing is not
    made when one of them is there and wrong.
    """

    key: str
    message: str
    instead: tuple[str, ...] = ()


class ServiceRules(msgspec.Struct, frozen=True, kw_only=True):
    """What a plugin asks of its services' settings, so that everything wrong is told before anything starts.

    Found by the entry point group `anklet.plugin_rules`, under the plugin's name; its module should be quick to import. `options`
    are the plugin's own keys: with rules, any other unknown key is an error; without rules, every unknown key is the plugin's.
    `check` is pure. `retired`: names of plugins that other programs have and that are none here, each with what to do about it.
    """

    check: Callable[[ServiceConfig], Iterable[Complaint]]
    options: frozenset[str] = frozenset()
    retired: Mapping[str, str] = {}
