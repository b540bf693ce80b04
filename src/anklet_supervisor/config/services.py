"""The `services` of the configuration -> `ServiceConfig`s.

Owns what the core's keys mean together, and what services must not have in common. Asks each plugin's rules about the plugin's own
keys; knows no plugin by name.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from anklet_supervisor.config.host_keys import HOST
from anklet_supervisor.config.plain import PlainData, Undeclared
from anklet_supervisor.config.plugin_rules import UNJUDGED, Allowed, PluginRules, missing_keys
from anklet_supervisor.config.problems import Location, Problems
from anklet_supervisor.config.reader import Position, Reader, Values
from anklet_supervisor.config.service_keys import PLUGIN, SERVICE
from anklet_supervisor.config.tree import Branch, Items, Node, ScalarKind, is_broken, is_null
from anklet_supervisor.config.values import RedisAddress, Unfit, plain_text
from anklet_worker.contract.rules import Complaint, ServiceRules, origin_of
from anklet_worker.contract.service import Database, Deadlines, ServiceConfig, Tart
from anklet_worker.contract.settings import Secret, SettingValue

HOST_PREFIX = "ANKLET_"
_LONGEST_NAME, _LONGEST_NAME_BYTES = 64, 255
_SHORTEST_PAUSE = 1.0
_INHERITED = ("vm_driver", "lease_ttl", "job_retry_attempts")


class _Read(msgspec.Struct, frozen=True):
    """One service that has been read."""

    config: ServiceConfig
    values: Values
    allowed: Allowed


class ServicesLoader:
    """Reads all services of one file. `host`: the values that services inherit."""

    def __init__(self, reader: Reader, problems: Problems, rules: PluginRules | None, host: Mapping[str, Any]) -> None:
        """`rules` None: the plugins cannot be listed (reported), so no service's plugin is judged."""
        self._reader = reader
        self._problems = problems
        self._rules = rules
        self._inherited = {key: host[key] for key in _INHERITED if key in host}

    def load(self, node: Node | None, top: Location) -> tuple[ServiceConfig, ...]:
        """The services under `services`; their problems are collected."""
        if node is not None and is_broken(node):
            return ()
        if node is None or is_null(node) or (isinstance(node, Items) and not node.items):
            self._problems.error(top if node is None else node.place, "services needs at least one service")
            return ()
        if not isinstance(node, Items):
            self._problems.error(node.place, "services must be a list: one `- name: ...` for each service")
            return ()
        read = [self._service(item, index) for index, item in enumerate(node.items, 1)]
        services = [one for one in read if one is not None]
        self._check_names(services)
        return tuple(service.config for service in services)

    # ---- one service ----

    def _service(self, node: Node, index: int) -> _Read | None:
        if is_broken(node):
            return None
        if not isinstance(node, Branch):
            self._problems.error(node.place, f"services[{index}] must be a section of `key: value` lines")
            return None
        position = self._position(node, index)
        allowed = self._allowed(node, position)
        values = self._reader.section(allowed.section, node, position)
        self._check_name(values, position)
        settings = self._settings(node, allowed, position, values)
        config = self._build(values, settings, position)
        if allowed.rules is not None:
            config = self._apply(allowed.rules, config, values, position)
        elif allowed.judged:
            config = msgspec.structs.replace(config, origin=origin_of(config, None))
        return _Read(config, values, allowed)

    def _position(self, node: Branch, index: int) -> Position:
        """The service's position, titled by its name, or by its number when the name is missing or unfit."""
        entry = node.entries.get("name")
        position = Position(place=node.place, prefix=None, title=f"services[{index}]: ")
        given = self._reader.text(None if entry is None else entry.value, position, "name")
        if given is None or given.kind is ScalarKind.FLAG or not is_name(given.text):
            return position
        prefix = environment_prefix(given.text)
        return Position(place=node.place, prefix=prefix, service=given.text, title=f"service {given.text}: ")

    def _check_name(self, values: Values, position: Position) -> None:
        if "name" in values.wrong:
            return
        name = values.fields.get("name")
        if name is None:
            self._error(values.at("name"), position, "name is missing")
        elif not is_name(name):
            self._error(
                values.at("name"),
                position,
                f"name must be usable as a directory name: 1 to {_LONGEST_NAME} characters, without '/', control "
                "characters, blanks at its ends; not '.' or '..'",
            )

    def _allowed(self, node: Branch, position: Position) -> Allowed:
        """The keys that this service may have, by its plugin."""
        given = self._reader.given(PLUGIN, node, position)
        entry = node.entries.get(PLUGIN.name)
        if self._rules is None or (given is None and entry is not None and not is_null(entry.value)):
            return UNJUDGED
        try:
            name = "" if given is None else plain_text(PLUGIN, given)
        except Unfit:
            return UNJUDGED  # reported when the section is read
        try:
            return self._rules.of(name, quotable=given is None or given.quotable)
        except Unfit as error:
            self._error(node.place if given is None else given.place, position, str(error))
            return UNJUDGED

    def _settings(self, node: Branch, allowed: Allowed, position: Position, values: Values) -> dict[str, SettingValue]:
        """The keys that are the plugin's own, as plain data."""
        unknown = self._reader.unknown_keys(allowed.section, node, position)
        if allowed.rules is not None:
            for name, place, _ in unknown:
                self._reader.refuse(allowed.section, name, place, position)
            own = [key.name for key in allowed.rules.settings.keys]
            return {key: plain for key in own if (plain := _plain(values.fields.get(key))) not in (None, {})}
        settings: dict[str, SettingValue] = {}
        for name, place, value in unknown if allowed.judged else ():
            values.places[name] = place
            try:
                settings[name] = PlainData(self._reader, position, name, place).value(value)
            except Undeclared as error:
                self._error(error.place, position, str(error))
            except Unfit as error:
                self._error(value.place, position, f"{name} {error}")
        return settings

    def _build(self, values: Values, settings: dict[str, SettingValue], position: Position) -> ServiceConfig:
        fields = {key.name: values.fields[key.name] for key in SERVICE.keys if key.name in values.fields}
        fields = {"name": "", "plugin": "", **self._inherited, **fields, "settings": settings}
        fields["database"] = self._database(fields["database"], position)
        fields["tart"] = Tart(**fields["tart"].fields)
        fields["deadlines"] = Deadlines(**fields["deadlines"].fields)
        if fields.get("sleep_interval") == 0:
            self._warn(
                values, "sleep_interval", position, "is 0, which would use up the API's rate limit; 1 second is used"
            )
            fields["sleep_interval"] = _SHORTEST_PAUSE
        return ServiceConfig(**fields)

    def _database(self, values: Values, position: Position) -> Database:
        """The keys and the parts of the URL, which must not contradict each other."""
        address: RedisAddress | None = values.fields.pop("url", None)
        if address is None:
            return Database(**values.fields)
        fields = dict(values.fields)
        stated = {
            "port": address.port,
            "database": address.database,
            "user": address.user,
            "password": address.password,
        }
        for key, value in stated.items():
            if value in (None, ""):
                continue
            said = Secret(str(value)) if key == "password" else value
            if key in fields and fields[key] != said:
                self._error(values.at(key), position, f"database.{key} contradicts database.url")
            fields[key] = said
        return Database(host=address.host, tls=address.tls, **fields)

    def _apply(self, rules: ServiceRules, config: ServiceConfig, values: Values, position: Position) -> ServiceConfig:
        """Ask the plugin's rules. A key that has a problem already gets no second one."""
        lacking = list(missing_keys(rules.settings, config.settings))
        for key in lacking:
            if key.name not in values.wrong:
                self._error(values.place, position, f"{key.name} is missing: {key.doc}")
        if lacking:
            return config
        try:
            settings = config.settings_as(rules.settings.values)
            complaints = msgspec.convert(tuple(rules.check(config, settings)), tuple[Complaint, ...])
            config = msgspec.structs.replace(config, origin=origin_of(config, rules), figures=rules.figures)
        except (Exception, SystemExit) as error:  # noqa: BLE001  a plugin's function: it may raise anything
            # The error's own words may quote a secret.
            self._error(
                values.at("plugin"), position, f"the rules of plugin {config.plugin} failed: {type(error).__name__}"
            )
            return config
        self._complain(complaints, values, position)
        return config

    def _complain(self, complaints: Iterable[Complaint], values: Values, position: Position) -> None:
        for complaint in complaints:
            if any(values.is_wrong(key) for key in (complaint.key, *complaint.instead)):
                continue
            report = self._problems.warn if complaint.warning else self._problems.error
            message = f"{position.title}{complaint.key} {complaint.message}"
            report(values.at(complaint.key), message, position.service)

    # ---- all services ----

    def _check_names(self, services: list[_Read]) -> None:
        """No two services may share a directory or an environment variable, and none may take one of the host's."""
        names: dict[str, str] = {}
        owners = dict.fromkeys((*HOST.variables(HOST_PREFIX), "LOG_LEVEL"), "the host")
        for service in services:
            name, place = service.config.name, service.values.at("name")
            if not is_name(name):
                continue
            folded = _folded(name)
            position = Position(place=place, prefix=None, service=name, title=f"service {name}: ")
            if folded in names:
                self._error(place, position, f"name is taken by another service: {names[folded]}")
                continue
            names[folded] = name
            own = list(service.allowed.section.variables(environment_prefix(name)))
            clash = next((variable for variable in own if variable in owners), None)
            if clash is not None:
                self._error(
                    place, position, f"name makes the environment variable {clash}, which belongs to {owners[clash]}"
                )
            owners.update(dict.fromkeys(own, f"service {name}"))

    def _error(self, place: Location, position: Position, message: str) -> None:
        self._problems.error(place, position.title + message, position.service)

    def _warn(self, values: Values, key: str, position: Position, message: str) -> None:
        self._problems.warn(values.at(key), f"{position.title}{key} {message}", position.service)


def is_name(name: str) -> bool:
    """True for a usable service name: it becomes a directory's name, and stands in logs and metrics."""
    return (
        0 < len(name) <= _LONGEST_NAME
        and len(name.encode(errors="replace")) <= _LONGEST_NAME_BYTES
        and name not in (".", "..")
        and "/" not in name
        and name.isprintable()
        and name == name.strip()
    )


def environment_prefix(service: str) -> str:
    """The prefix of a service's environment variables: its name in capitals, `_` for all but ASCII letters and digits."""
    return re.sub("[^A-Z0-9]", "_", _folded(service).upper()) + "_"


def _plain(value: object) -> SettingValue:
    """A value as it travels to the worker; sections are mappings of what was given."""
    if isinstance(value, Values):
        return {key: _plain(inner) for key, inner in value.fields.items()}
    return value  # type: ignore[return-value]  # the converters make nothing but setting values


def _folded(name: str) -> str:
    """Names equal in this form are one directory on a Mac, whose file system ignores case and composition."""
    return unicodedata.normalize("NFC", name).casefold()
